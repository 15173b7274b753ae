r"""A posterior with several modes.

.. math:: q(z \mid x, y) = \sum_k \pi_k(x, c)\,
    \mathcal{N}\bigl(z;\ \mu_k(x, c), \operatorname{diag} \sigma_k^2(x, c)\bigr)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..distributions import NormalMixture
from ..errors import check_positive, check_range
from ..networks import Body
from .base import Encoder

__all__ = ["Mixture"]


class Mixture(Encoder):
    r"""A mixture of diagonal Gaussians as posterior; its draws are differentiable, in the weights as well.

    In the weights that is of use only where components overlap: :mod:`ppl_vae.distributions.mixtures` says why.

    .. math:: q(z \mid x, y) = \sum_{k=1}^K \pi_k\, \mathcal{N}(z; \mu_k, \operatorname{diag} \sigma_k^2), \qquad
        (\log \pi, \mu, \log \sigma^2) = \mathrm{network}([(x - \text{shift}) / \text{scale};\ c])

    Arguments:
        features: the number of latent features.
        x_shape: the shape of one x.
        context: the number of context features.
        hidden: the widths of the hidden layers.
        network: None, a class or a module, as :class:`~ppl_vae.networks.Network` takes it.
        shift, scale: what standardises x.
        components: K.
        clamp: log σ² is kept in this range, where its gradient is zero beyond.

    Reference:
        Approximate Inference for Deep Latent Gaussian Mixtures (Nalisnick, Hertel and Smyth, 2016); Implicit
        Reparameterization Gradients (Figurnov, Mohamed and Mnih, 2018)

    Example:
        >>> q = Mixture(20, (4,), components=3)(torch.zeros(5, 4))
        >>> q.shape(), q.has_rsample, q.mean.shape
        (torch.Size([5, 20]), True, torch.Size([5, 20]))
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
        components: int = 3,
        clamp: tuple[float, float] = (-14.0, 14.0),
    ) -> None:
        check_positive(features=features, components=components)
        outputs = components * (1 + 2 * features)
        super().__init__(outputs, x_shape, context, hidden, network, shift, scale)
        self.features, self.components, self.clamp = features, components, check_range("clamp", clamp)

    def from_raw(self, raw: Tensor) -> Any:
        """Return q(z | x, y), event shape (features,)."""
        logits, places = raw.tensor_split([self.components], -1)
        loc, log_variance = places.unflatten(-1, (2, self.components, self.features)).unbind(-3)
        return NormalMixture.of(logits, loc, (0.5 * log_variance.clamp(*self.clamp)).exp())
