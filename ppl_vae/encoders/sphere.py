r"""A posterior on the unit sphere.

.. math:: q(z \mid x, y) \propto (1 + \mu(x, c)^\top z)^{\kappa(x, c)}, \qquad \lVert z \rVert = 1
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn.functional import normalize, softplus

from .. import distributions
from ..errors import ConfigError, check_positive
from ..networks import Body
from .base import Encoder

__all__ = ["PowerSpherical"]


class PowerSpherical(Encoder):
    r"""The power spherical posterior, which goes with the prior Sphere; the KL between them has a closed form.

    .. math:: q(z \mid x, y) = \mathrm{PowerSpherical}(\mu, \kappa), \qquad
        (\mu \lVert m \rVert, \kappa) = (m, \log(1 + e^k)), \quad
        (m, k) = \mathrm{network}([(x - \text{shift}) / \text{scale};\ c])

    Arguments:
        features: the number of coordinates of z, at least two; the sphere has one dimension less.
        x_shape: the shape of one x.
        context: the number of context features.
        hidden: the widths of the hidden layers.
        network: None, a class or a module, as :class:`~ppl_vae.networks.Network` takes it.
        shift, scale: what standardises x.

    Raises:
        ConfigError: for fewer than two features.

    Reference:
        The Power Spherical distribution (De Cao and Aziz, 2020)

    Example:
        >>> q = PowerSpherical(3, (4,))(torch.zeros(5, 4))
        >>> torch.distributions.kl_divergence(q, pv.priors.Sphere(3)(None)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        features: int,
        x_shape: Sequence[int],
        context: int = 0,
        hidden: Sequence[int] = (400,),
        network: Body | None = None,
        shift: float = 0.0,
        scale: float = 1.0,
    ) -> None:
        if features == 1:
            raise ConfigError("PowerSpherical: expected features ≥ 2: a sphere in one dimension is two points")
        check_positive(features=features)
        super().__init__(features + 1, x_shape, context, hidden, network, shift, scale)
        self.features = features

    def from_raw(self, raw: Tensor) -> Any:
        """Return q(z | x, y), event shape (features,)."""
        direction, raw = raw.tensor_split([self.features], -1)
        return distributions.PowerSpherical(normalize(direction, dim=-1), softplus(raw.squeeze(-1)))
