r"""Pixels with so many levels, 0 … L − 1, and probabilities freer than a Binomial's.

.. math:: P(x_d) = \int_{\text{bin of } x_d} f\Bigl(\frac{u - \mu_d}{\sigma_d}\Bigr) \frac{du}{\sigma_d},
    \qquad P(x_d) = \pi_{d, x_d}
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from ..distributions import DiscretizedLogistic as DiscretizedLogisticPixel
from ..distributions import Levels
from ..errors import ConfigError, check_positive, check_range
from ..networks import Body
from .base import Likelihood, SpreadOf, check_counts
from .real import LocationScale

__all__ = ["Categorical", "DiscretizedLogistic", "DiscretizedLogisticMixture"]


class DiscretizedLogistic(LocationScale):
    r"""Grey levels from a logistic density around a location from the network, with the exact mass of every level.

    .. math:: P(x_d \mid z, y) = \sigma\Bigl(\frac{x_d + \frac12 - \mu_d}{\sigma_d}\Bigr)
        - \sigma\Bigl(\frac{x_d - \frac12 - \mu_d}{\sigma_d}\Bigr), \qquad
        \mu = \tfrac{L - 1}{2} \bigl(1 + \mathrm{network}([z; c])\bigr)

    where the lowest and the highest level take the tails, so the probabilities of the L levels add up to one.

    Arguments:
        x_shape: the shape of one x.
        features: the number of latent features.
        context: the number of context features.
        hidden: the widths of the hidden layers.
        network: None, a class or a module, as :class:`~ppl_vae.networks.Network` takes it.
        sigma: the logistic's scale in levels: a number, ``"shared"``, ``"pixel"`` or ``"output"``, as for
            :class:`~ppl_vae.likelihoods.Gaussian`. A learned one starts at (L − 1)/2π, where the logistic is as wide as
            the uniform over the levels.
        levels: L, how many values a pixel has: 0 … L − 1.
        clamp: log σ of a learned σ, less where it starts, is kept in this range.

    Reference:
        Improved Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016)

    Example:
        >>> p = DiscretizedLogistic((64,), 2, levels=17)(torch.zeros(5, 2))
        >>> x = p.sample()
        >>> bool((x == x.round()).all()), p.support.check(x).all().item()
        (True, True)
    """

    levels: int

    def __init__(
        self,
        x_shape: Sequence[int],
        features: int,
        context: int = 0,
        hidden: Sequence[int] = (400,),
        network: Body | None = None,
        sigma: SpreadOf = "shared",
        levels: int = 256,
        clamp: tuple[float, float] = (-7.0, 7.0),
    ) -> None:
        middle = _middle(levels)
        super().__init__(x_shape, features, context, hidden, network, sigma, middle, middle, clamp)
        self.levels = levels

    def _family(self, loc: Tensor, sigma: Tensor) -> Any:
        return DiscretizedLogisticPixel(loc, sigma, self.levels)

    def _unit(self) -> Tensor:
        return self.scale / math.pi

    def _check_support(self, x: Tensor) -> None:
        _check_levels(self, x)

    def _estimate(self, x: Tensor, mean: Tensor, dims: tuple[int, ...]) -> Tensor:
        return (x - mean).square().mean(dims).sqrt() * (math.sqrt(3) / math.pi)


class DiscretizedLogisticMixture(Likelihood):
    r"""Grey levels from a mixture of K logistic densities, each with the exact mass of every level.

    .. math:: P(x_d \mid z, y) = \sum_{k=1}^{K} \pi_{dk} \Bigl[\sigma\Bigl(\frac{x_d + \frac12 - \mu_{dk}}{\sigma_{dk}}
        \Bigr) - \sigma\Bigl(\frac{x_d - \frac12 - \mu_{dk}}{\sigma_{dk}}\Bigr)\Bigr]

    Weights, locations and scales are outputs of the network, 3K numbers a pixel; channels are pixels like others, given
    z. The components start side by side over the levels.

    Arguments:
        x_shape: the shape of one x.
        features: the number of latent features.
        context: the number of context features.
        hidden: the widths of the hidden layers.
        network: None, a class or a module, as :class:`~ppl_vae.networks.Network` takes it.
        components: K.
        levels: L, how many values a pixel has: 0 … L − 1.
        clamp: log σ, less where it starts (a K-th of the levels' width), is kept in this range.

    Reference:
        PixelCNN++: Improving the PixelCNN with Discretized Logistic Mixture Likelihood and Other Modifications
        (Salimans et al., 2017)

    Example:
        >>> DiscretizedLogisticMixture((1, 8, 8), 2, components=3, levels=17)(torch.zeros(5, 2)).shape()
        torch.Size([5, 1, 8, 8])
    """

    levels: int
    centres: Tensor

    def __init__(
        self,
        x_shape: Sequence[int],
        features: int,
        context: int = 0,
        hidden: Sequence[int] = (400,),
        network: Body | None = None,
        components: int = 5,
        levels: int = 256,
        clamp: tuple[float, float] = (-7.0, 7.0),
    ) -> None:
        super().__init__(x_shape, features, context)
        check_positive(components=components)
        self.middle, self.components, self.levels = _middle(levels), components, levels
        self.clamp = check_range("clamp", clamp)
        self.network = self.body(hidden, network, 3 * components)
        # The middles of K equal parts of −1 … 1.
        self.constant("centres", [(2 * i + 1) / components - 1 for i in range(components)], persistent=False)

    def forward(self, z: Tensor, c: Tensor | None = None) -> Any:
        """Return p(x | z, y), event shape x_shape, for z (*, features) and c (*, context)."""
        weights, place, log = self.per_pixel(z, c).chunk(3, -1)
        scale = (self.middle / math.pi / self.components) * log.clamp(*self.clamp).exp()
        loc = self.middle * (1 + self.centres + place)
        pixel = DiscretizedLogisticPixel(loc, scale, self.levels)
        return dist.MixtureSameFamily(dist.Categorical(logits=weights), pixel).to_event(len(self.x_shape))

    def _check_support(self, x: Tensor) -> None:
        _check_levels(self, x)

    def _raw_start(self, x: Tensor) -> Tensor:
        # Around the mean, as wide together as the data: equal parts of a uniform with their deviation.
        mean, overall = x.mean(0), (x - x.mean(0)).square().mean().sqrt()
        deviation = (x - mean).square().mean(0).sqrt().clamp(overall / 10, overall * 10).unsqueeze(-1) / self.middle
        place = (mean.unsqueeze(-1) / self.middle - 1) + (math.sqrt(3) * deviation - 1) * self.centres
        log = (math.sqrt(3) * deviation).log().clamp(*self.clamp).expand_as(place)
        # A pixel's numbers come first, as the network has them.
        return torch.cat([torch.zeros_like(place), place, log], -1).movedim(-1, 0).flatten(0, 1)


class Categorical(Likelihood):
    r"""A probability for every level of every pixel: any distribution, and no notion that 7 is next to 8.

    .. math:: P(x_d \mid z, y) = \operatorname{softmax}(\mathrm{network}([z; c])_d)_{x_d}

    The network has L outputs a pixel: with L = 256 and the default network those are most of the model's parameters.

    Arguments:
        x_shape: the shape of one x.
        features: the number of latent features.
        context: the number of context features.
        hidden: the widths of the hidden layers.
        network: None, a class or a module, as :class:`~ppl_vae.networks.Network` takes it.
        levels: L, how many values a pixel has: 0 … L − 1.

    Reference:
        Pixel Recurrent Neural Networks (van den Oord et al., 2016)

    Example:
        >>> p = Categorical((1, 8, 8), 2, levels=17)(torch.zeros(5, 2))
        >>> p.shape(), p.mean.shape
        (torch.Size([5, 1, 8, 8]), torch.Size([5, 1, 8, 8]))
    """

    levels: int

    def __init__(
        self,
        x_shape: Sequence[int],
        features: int,
        context: int = 0,
        hidden: Sequence[int] = (400,),
        network: Body | None = None,
        levels: int = 256,
    ) -> None:
        super().__init__(x_shape, features, context)
        _check_several(levels)
        self.levels = levels
        self.network = self.body(hidden, network, levels)

    def forward(self, z: Tensor, c: Tensor | None = None) -> Any:
        """Return p(x | z, y), event shape x_shape, for z (*, features) and c (*, context)."""
        return Levels(logits=self.per_pixel(z, c)).to_event(len(self.x_shape))

    def _check_support(self, x: Tensor) -> None:
        _check_levels(self, x)

    def _raw_start(self, x: Tensor) -> Tensor:
        # As if one row more had each level a bit, so that none is impossible.
        counts = x.new_zeros(self.levels, *self.x_shape).scatter_add_(0, x.long(), torch.ones_like(x))
        return ((counts + 1 / self.levels) / (len(x) + 1)).log().flatten(0, 1)


def _middle(levels: int) -> float:
    """The middle of the levels, which is half of their width too."""
    _check_several(levels)
    return (levels - 1) / 2


def _check_several(levels: int) -> None:
    check_positive(levels=levels)
    if levels < 2:
        raise ConfigError("expected levels ≥ 2: with one, every pixel is 0")


def _check_levels(likelihood: Any, x: Tensor) -> None:
    check_counts(
        type(likelihood).__name__,
        x,
        likelihood.levels - 1,
        "set levels to one more than the largest",
        "load with scale='levels', or use Gaussian for real values",
    )
