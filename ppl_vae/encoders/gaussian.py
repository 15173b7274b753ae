r"""Gaussian posteriors, from independent features to a full covariance.

.. math:: q(z \mid x, y) = \mathcal{N}\bigl(z;\ \mu(x, c),\ \Sigma(x, c)\bigr)

The closed-form KL of the correlated ones to a diagonal Gaussian prior is in ``distributions/divergences.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from ..devices import uncast
from ..distributions import LowRankMultivariateNormal, MultivariateNormal
from ..errors import check_positive, check_range
from ..networks import Body
from .base import Encoder

__all__ = ["FullGaussian", "Gaussian", "LowRankGaussian"]


class Gaussian(Encoder):
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
        check_positive(features=features)
        super().__init__(2 * features, x_shape, context, hidden, network, shift, scale)
        self.features, self.clamp = features, check_range("clamp", clamp)

    def from_raw(self, raw: Tensor) -> Any:
        """Return q(z | x, y), event shape (features,)."""
        loc, log_variance = raw.chunk(2, -1)
        return dist.Normal(loc, (0.5 * log_variance.clamp(*self.clamp)).exp()).to_event(1)


class FullGaussian(Encoder):
    r"""A Gaussian posterior with a full covariance, by its Cholesky factor.

    .. math:: q(z \mid x, y) = \mathcal{N}(\mu, L L^\top), \qquad
        L_{ii} = \sigma_i, \quad L_{ij} = \sigma_i B_{ij} \ \text{for} \ j < i, \qquad
        (\mu, \log \sigma^2, B) = \mathrm{network}([(x - \text{shift}) / \text{scale};\ c])

    Arguments:
        features: the number of latent features.
        x_shape: the shape of one x.
        context: the number of context features.
        hidden: the widths of the hidden layers.
        network: None, a class or a module, as :class:`~ppl_vae.networks.Network` takes it.
        shift, scale: what standardises x.
        clamp: log σ² is kept in this range, where its gradient is zero beyond.

    Reference:
        An Introduction to Variational Autoencoders (Kingma and Welling, 2019)

    Example:
        >>> FullGaussian(3, (4,))(torch.zeros(5, 4)).covariance_matrix.shape
        torch.Size([5, 3, 3])
    """

    below: Tensor

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
        check_positive(features=features)
        outputs = 2 * features + features * (features - 1) // 2
        super().__init__(outputs, x_shape, context, hidden, network, shift, scale)
        self.features, self.clamp = features, check_range("clamp", clamp)
        self.register_buffer("below", torch.tril_indices(features, features, -1), persistent=False)

    def from_raw(self, raw: Tensor) -> Any:
        """Return q(z | x, y), event shape (features,)."""
        loc, log_variance, entries = raw.tensor_split([self.features, 2 * self.features], -1)
        factor = torch.diag_embed(torch.ones_like(loc))
        factor[..., self.below[0], self.below[1]] = entries
        scale = (0.5 * log_variance.clamp(*self.clamp)).exp()
        return MultivariateNormal(loc, scale_tril=scale.unsqueeze(-1) * factor)


class LowRankGaussian(Encoder):
    r"""A Gaussian posterior whose covariance is diagonal but for a few directions.

    .. math:: q(z \mid x, y) = \mathcal{N}\bigl(\mu,\ S (I + W W^\top) S\bigr), \qquad S = \operatorname{diag} \sigma,
        \quad (\mu, \log \sigma^2, W) = \mathrm{network}([(x - \text{shift}) / \text{scale};\ c])

    Arguments:
        features: the number of latent features.
        x_shape: the shape of one x.
        context: the number of context features.
        hidden: the widths of the hidden layers.
        network: None, a class or a module, as :class:`~ppl_vae.networks.Network` takes it.
        shift, scale: what standardises x.
        rank: the number of columns of W.
        clamp: log σ² is kept in this range, where its gradient is zero beyond.

    Reference:
        Stochastic Backpropagation and Approximate Inference in Deep Generative Models (Rezende, Mohamed and Wierstra,
        2014)

    Example:
        >>> q = LowRankGaussian(20, (4,), rank=3)(torch.zeros(5, 4))
        >>> q.shape(), q.cov_factor.shape
        (torch.Size([5, 20]), torch.Size([5, 20, 3]))
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
        rank: int = 2,
        clamp: tuple[float, float] = (-14.0, 14.0),
    ) -> None:
        check_positive(features=features, rank=rank)
        super().__init__((2 + rank) * features, x_shape, context, hidden, network, shift, scale)
        self.features, self.rank, self.clamp = features, rank, check_range("clamp", clamp)

    @uncast
    def from_raw(self, raw: Tensor) -> Any:
        """Return q(z | x, y), event shape (features,)."""
        loc, log_variance, factor = raw.tensor_split([self.features, 2 * self.features], -1)
        scale = (0.5 * log_variance.clamp(*self.clamp)).exp()
        # W in units of σ: the matrix that is factored for the density is then I + WᵀW, however small σ becomes.
        factor = scale.unsqueeze(-1) * factor.unflatten(-1, (self.features, self.rank))
        return LowRankMultivariateNormal(loc, factor, scale.square())
