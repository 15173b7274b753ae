r"""Pixels in the unit interval: its two ends, or all of it.

.. math:: x_d \in \{0, 1\}, \qquad x_d \in [0, 1], \qquad x_d \in (0, 1)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from ..distributions import Beta as BetaPixel
from ..distributions import ContinuousBernoulli as ContinuousBernoulliPixel
from ..distributions import GreyBernoulli
from ..errors import DataError
from ..networks import Body
from .base import Likelihood, Spread, SpreadOf, logit_of

__all__ = ["Bernoulli", "Beta", "ContinuousBernoulli"]


class Bernoulli(Likelihood):
    r"""Binary pixels; its negative logarithm is the cross-entropy.

    .. math:: \log p(x \mid z, y) = \sum_d x_d \log \pi_d + (1 - x_d) \log(1 - \pi_d), \qquad x_d \in \{0, 1\}

    Arguments:
        x_shape: the shape of one x.
        features: the number of latent features.
        context: the number of context features.
        hidden: the widths of the hidden layers.
        network: None, a class or a module, as :class:`~ppl_vae.networks.Network` takes it.
        grey: accept x in [0, 1] and return the cross-entropy, which is then **not a density**; for repeating others'
            figures only. Every table says so.

    Reference:
        Auto-Encoding Variational Bayes (Kingma and Welling, 2014)

    Example:
        >>> Bernoulli((1, 28, 28), 20, context=10)(torch.zeros(5, 20), torch.zeros(5, 10)).shape()
        torch.Size([5, 1, 28, 28])
    """

    def __init__(
        self,
        x_shape: Sequence[int],
        features: int,
        context: int = 0,
        hidden: Sequence[int] = (400,),
        network: Body | None = None,
        grey: bool = False,
    ) -> None:
        super().__init__(x_shape, features, context)
        self.grey = grey
        self.density = not grey
        self.levels = None if grey else 2
        self.network = self.body(hidden, network)

    def forward(self, z: Tensor, c: Tensor | None = None) -> Any:
        """Return p(x | z, y), event shape x_shape, for z (*, features) and c (*, context)."""
        family = GreyBernoulli if self.grey else dist.Bernoulli
        return family(logits=self.raw(z, c)).to_event(len(self.x_shape))

    def _check_support(self, x: Tensor) -> None:
        low, high = x.min().item(), x.max().item()
        if low < 0 or high > 1:
            grey_levels = low >= 0 and high <= 255 and bool((x == x.round()).all())
            hint = "divide x by its largest level, 255 for bytes (scale='unit'), and " if grey_levels else ""
            real = "" if grey_levels else ", or for real numbers take likelihood='Gaussian' with range="
            raise DataError(
                f"Bernoulli: expected x in {'[0, 1]' if self.grey else '{0, 1}'}, got {low:g} … {high:g}: {hint}"
                f"binarise it (binarize='threshold', 'static' or 'dynamic'), or use Binomial for counts{real}"
            )
        if not self.grey and not ((x == 0) | (x == 1)).all():
            raise DataError(
                f"Bernoulli: expected x in {{0, 1}}, got grey values in {low:g} … {high:g}, of which it is no density: "
                "binarise x (binarize='threshold', 'static', or 'dynamic', of which Split.draw() gives pixels), use a "
                "continuous Bernoulli or another density (ContinuousBernoulli, Beta), or Bernoulli(grey=True) to "
                "repeat a figure computed like that"
            )

    def _raw_start(self, x: Tensor) -> Tensor:
        return logit_of(x.mean(0))


class ContinuousBernoulli(Likelihood):
    r"""Grey pixels in [0, 1]: the cross-entropy, and the constant that makes it a density.

    .. math:: \log p(x \mid z, y) = \sum_d x_d \log \pi_d + (1 - x_d) \log(1 - \pi_d) + \log C(\pi_d)

    with :math:`C(\pi) = 2 \operatorname{artanh}(1 - 2 \pi) / (1 - 2 \pi)`. The mean is not :math:`\pi`, but nearer to
    one half. As of any density, the logarithm may be positive, and grows without end where pixels are always 0 or 1.

    Arguments:
        x_shape: the shape of one x.
        features: the number of latent features.
        context: the number of context features.
        hidden: the widths of the hidden layers.
        network: None, a class or a module, as :class:`~ppl_vae.networks.Network` takes it.

    Reference:
        The continuous Bernoulli: fixing a pervasive error in variational autoencoders (Loaiza-Ganem and Cunningham,
        2019)

    Example:
        >>> ContinuousBernoulli((1, 28, 28), 20)(torch.zeros(5, 20)).shape()
        torch.Size([5, 1, 28, 28])
    """

    def __init__(
        self,
        x_shape: Sequence[int],
        features: int,
        context: int = 0,
        hidden: Sequence[int] = (400,),
        network: Body | None = None,
    ) -> None:
        super().__init__(x_shape, features, context)
        self.network = self.body(hidden, network)

    def forward(self, z: Tensor, c: Tensor | None = None) -> Any:
        """Return p(x | z, y), event shape x_shape, for z (*, features) and c (*, context)."""
        return ContinuousBernoulliPixel(logits=self.raw(z, c)).to_event(len(self.x_shape))

    def _check_support(self, x: Tensor) -> None:
        low, high = x.min().item(), x.max().item()
        if low < 0 or high > 1:
            raise DataError(
                f"ContinuousBernoulli: expected x in [0, 1], got {low:g} … {high:g}: divide x by the largest value "
                "(scale='unit' when loading), use Gaussian for real values, or Binomial for counts"
            )

    def _raw_start(self, x: Tensor) -> Tensor:
        # There is no formula for the logit of a mean, which rises with it: halve the interval where it lies. A mean of
        # 0.02 has the logit −50, and one of 0 would have −∞.
        mean = x.mean(0).clamp(0.02, 0.98)
        low, high = torch.full_like(mean, -64.0), torch.full_like(mean, 64.0)
        for _ in range(40):
            middle = (low + high) / 2
            below = ContinuousBernoulliPixel(logits=middle).mean < mean
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2


class Beta(Spread):
    r"""Grey pixels strictly between 0 and 1, around a mean m from the network with a concentration ν.

    .. math:: p(x \mid z, y) = \prod_d \frac{x_d^{m_d \nu_d - 1} (1 - x_d)^{(1 - m_d) \nu_d - 1}}
        {\mathrm{B}(m_d \nu_d, (1 - m_d) \nu_d)}, \qquad m = \sigma(\mathrm{network}([z; c]))

    The variance is m (1 − m) / (1 + ν). At m = ½ and ν = 2, where a learned ν starts, it is the uniform density.

    Arguments:
        x_shape: the shape of one x.
        features: the number of latent features.
        context: the number of context features.
        hidden: the widths of the hidden layers.
        network: None, a class or a module, as :class:`~ppl_vae.networks.Network` takes it.
        concentration: ν: a number (fixed), ``"shared"`` (one learned ν), ``"pixel"`` (one learned ν a pixel), or
            ``"output"`` (from the network).
        clamp: log (ν/2) of a learned ν is kept in this range, and the logit of m in −14 … 14.

    Reference:
        Beta Regression for Modelling Rates and Proportions (Ferrari and Cribari-Neto, 2004)

    Example:
        >>> p = Beta((64,), 2)(torch.zeros(5, 2))
        >>> bool((p.mean > 0.2).all() and (p.mean < 0.8).all())
        True
    """

    _parameter = "log_concentration"

    def __init__(
        self,
        x_shape: Sequence[int],
        features: int,
        context: int = 0,
        hidden: Sequence[int] = (400,),
        network: Body | None = None,
        concentration: SpreadOf = "shared",
        clamp: tuple[float, float] = (-7.0, 7.0),
    ) -> None:
        super().__init__(x_shape, features, context)
        self.set_up(hidden, network, "concentration", concentration, clamp)

    def forward(self, z: Tensor, c: Tensor | None = None) -> Any:
        """Return p(x | z, y), event shape x_shape, for z (*, features) and c (*, context)."""
        place, concentration = self.place_and_spread(z, c)
        # The logit's sign, because 1 − m would be 0 where m is near 1.
        place = place.clamp(-14.0, 14.0)
        ends = concentration * torch.sigmoid(place), concentration * torch.sigmoid(-place)
        return BetaPixel(*ends).to_event(len(self.x_shape))

    def _check_support(self, x: Tensor) -> None:
        low, high = x.min().item(), x.max().item()
        if low < 0 or high > 1:
            raise DataError(
                f"Beta: expected x strictly between 0 and 1, got {low:g} … {high:g}: divide x by more than the largest "
                "value, or use Gaussian for real values, or Binomial for counts"
            )
        if low == 0 or high == 1:
            raise DataError(
                f"Beta: expected x strictly between 0 and 1, got {low:g} … {high:g}, where its density is 0 or "
                "infinite: squeeze x, as in 0.005 + 0.99 * x; dequantise grey levels, (x + torch.rand(x.shape)) / 256; "
                "or use ContinuousBernoulli"
            )

    def _spread(self, log: Tensor) -> Tensor:
        return 2 * log.exp()

    def _log(self, spread: Tensor) -> Tensor:
        return (spread / 2).log()

    def _place(self, mean: Tensor) -> Tensor:
        return logit_of(mean)

    def _estimate(self, x: Tensor, mean: Tensor, dims: tuple[int, ...]) -> Tensor:
        # From the variance; at most 200, and some concentration even where all pixels lie at the ends.
        most = (mean * (1 - mean)).expand_as(x).mean(dims)
        return (most / (x - mean).square().mean(dims) - 1).clamp(0.02, 200.0)
