r"""The encoder of an autoencoder.

.. math:: z = f(x, c)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
from torch import Tensor

from ..errors import check_positive
from ..networks import Body
from .base import Encoder

__all__ = ["Delta"]


class Delta(Encoder):
    r"""A point, :math:`z = f(x, y)`: the encoder of a plain autoencoder.

    Its "density" at that point is one by convention, so it takes part in a loss but not in a likelihood.

    Arguments:
        features: the number of latent features.
        x_shape: the shape of one x.
        context: the number of context features.
        hidden: the widths of the hidden layers.
        network: None, a class or a module, as :class:`~ppl_vae.networks.Network` takes it.
        shift, scale: what standardises x.

    Reference:
        Reducing the Dimensionality of Data with Neural Networks (Hinton and Salakhutdinov, 2006)

    Example:
        >>> Delta(2, (64,))(torch.zeros(5, 64)).event_shape
        torch.Size([2])
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
        check_positive(features=features)
        super().__init__(features, x_shape, context, hidden, network, shift, scale)
        self.features = features

    def from_raw(self, raw: Tensor) -> Any:
        """Return the point mass at z = f(x, y), event shape (features,)."""
        return dist.Delta(raw, event_dim=1)
