r"""Encoders: x, c → q(z | x, y).

.. math:: q(z \mid x, y) = \mathcal{N}\bigl(z;\ \mu(x, c),\ \operatorname{diag} \sigma^2(x, c)\bigr)

An encoder is called with x in the data's own units and the context, and returns a distribution over (latent,). It
standardises x itself, as (x − shift) / scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from .errors import ConfigError
from .networks import Body, Network
from .parts import Part, Unconditional, check_context, check_positive

__all__ = ["Delta", "Gaussian", "Unconditional"]


class _Encoder(Part):
    """What encoders share: the network of a standardised x, joined with c, for so many numbers a latent feature."""

    parameters_per_feature: int
    shift: Tensor
    scale: Tensor

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
        super().__init__()
        check_positive(features=features)
        if not scale > 0:
            raise ConfigError(f"expected scale > 0, got {scale}")
        self.features, self.x_shape, self.context = features, tuple(x_shape), context
        self.network = Network(x_shape, (self.parameters_per_feature * features,), context, hidden, network)
        self.register_buffer("shift", torch.tensor(float(shift)))
        self.register_buffer("scale", torch.tensor(float(scale)))

    def raw(self, x: Tensor, c: Tensor | None) -> Tensor:
        check_context(self, c, self.context)
        return self.network((x - self.shift) / self.scale, c)


class Gaussian(_Encoder):
    r"""The diagonal Gaussian posterior, with mean and log-variance from a network.

    .. math:: q(z \mid x, y) = \mathcal{N}(\mu, \operatorname{diag} \sigma^2), \qquad
        (\mu, \log \sigma^2) = \mathrm{network}([(x - \text{shift}) / \text{scale};\ c])

    Arguments:
        features: the number of latent features.
        x_shape: the shape of one x.
        context: the number of context features.
        hidden: the widths of the hidden layers.
        network: None, a class or a module, as :class:`~ppl_vae.networks.Network` takes it.
        shift, scale: what standardises x.
        clamp: log σ² is kept in this range, where its gradient is zero beyond.

    Reference:
        Auto-Encoding Variational Bayes (Kingma and Welling, 2014)

    Example:
        >>> encoder = Gaussian(20, (1, 28, 28), context=10)
        >>> encoder(torch.zeros(5, 1, 28, 28), torch.zeros(5, 10)).shape()
        torch.Size([5, 20])
    """

    parameters_per_feature = 2

    def __init__(
        self,
        features: int,
        x_shape: Sequence[int],
        context: int = 0,
        hidden: Sequence[int] = (400,),
        network: Body | None = None,
        shift: float = 0.0,
        scale: float = 1.0,
        clamp: tuple[float, float] = (-14.0, 14.0),
    ) -> None:
        super().__init__(features, x_shape, context, hidden, network, shift, scale)
        self.clamp = tuple(clamp)

    def forward(self, x: Tensor, c: Tensor | None = None) -> Any:
        """Return q(z | x, y), event shape (features,), for x (*, *x_shape) and c (*, context)."""
        loc, log_variance = self.raw(x, c).chunk(2, -1)
        return dist.Normal(loc, (0.5 * log_variance.clamp(*self.clamp)).exp()).to_event(1)


class Delta(_Encoder):
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

    parameters_per_feature = 1

    def forward(self, x: Tensor, c: Tensor | None = None) -> Any:
        """Return the point mass at z = f(x, y), event shape (features,)."""
        return dist.Delta(self.raw(x, c), event_dim=1)
