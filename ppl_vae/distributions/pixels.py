r"""Densities and probabilities of pixels that no library has, or has only roughly.

.. math:: p(x) = \prod_d p(x_d; \theta_d)

Each is a distribution of one pixel: batch shape that of its parameters, no event dimensions. They hold in float32 for
any parameters a network may give.
"""

from __future__ import annotations

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all
from torch.nn.functional import logsigmoid, softplus

__all__ = ["ContinuousBernoulli", "DiscretizedLogistic", "GreyBernoulli", "Levels"]


class GreyBernoulli(dist.Bernoulli):
    r"""The cross-entropy of a grey pixel, :math:`x \log \pi + (1 - x) \log(1 - \pi)` with :math:`x \in [0, 1]`.

    Not a density: it does not integrate to one over [0, 1] (Loaiza-Ganem and Cunningham, 2019, give the missing
    constant). It is here to repeat figures published with it.

    Example:
        >>> d = GreyBernoulli(logits=torch.tensor(0.0))
        >>> round(d.log_prob(torch.tensor(0.5)).item(), 4)
        -0.6931
    """

    support = constraints.unit_interval


class ContinuousBernoulli(dist.ContinuousBernoulli):
    r"""The cross-entropy of a grey pixel with the constant that makes it a density over [0, 1].

    .. math:: \log p(x) = \lambda (x - \tfrac12) - \log \frac{\sinh(\lambda / 2)}{\lambda / 2}

    Torch's own clamps :math:`\pi = \sigma(\lambda)`, so that beyond :math:`|\lambda| = 16` (in float32) it neither
    integrates to one nor has the gradient of one that does, and it subtracts two large numbers around
    :math:`\pi = \frac12`. Here everything is a function of :math:`\lambda`.

    Arguments:
        logits: :math:`\lambda` (*), any real numbers.

    Reference:
        The continuous Bernoulli: fixing a pervasive error in variational autoencoders (Loaiza-Ganem and Cunningham,
        2019)

    Example:
        >>> d = ContinuousBernoulli(logits=torch.tensor([-1000.0, 2.0]))
        >>> d.log_prob(torch.tensor([0.0, 1.0]))
        tensor([6.9078, 0.8386])
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(x) (*) in nats for x (*)."""
        if self._validate_args:
            self._validate_sample(value)
        return self._log_prob(value)

    def _log_prob(self, value: Tensor) -> Tensor:
        logits, value = broadcast_all(self.logits, value)
        half, small, safe = self._halves()
        square = half.square()
        series = square * (1 / 6 - square * (1 / 180 - square * (1 / 2835 - square / 37800)))
        # Seen from the end where the density is highest, nothing large is subtracted.
        slope = 2 * safe.abs()
        from_the_peak = -slope * torch.where(logits < 0, value, 1 - value) - torch.log(-torch.expm1(-slope) / slope)
        return torch.where(small, logits * (value - 0.5) - series, from_the_peak)

    def _halves(self) -> tuple[Tensor, Tensor, Tensor]:
        """λ/2, where that is small and a series does better, and λ/2 or else one for the formula to be finite at."""
        half = self.logits / 2
        small = half.abs() < 0.1
        return half, small, torch.where(small, 1.0, half)

    def _cont_bern_log_norm(self) -> Tensor:
        # In torch's convention, which its KL relies on, the constant stands beside x log π + (1 − x) log (1 − π).
        return self._log_prob(torch.zeros_like(self.logits)) + softplus(self.logits)

    @property
    def mean(self) -> Tensor:
        """The mean (*)."""
        half, small, safe = self._halves()
        square = half.square()
        series = half * (1 / 3 - square * (1 / 45 - square * (2 / 945 - square / 4725)))
        return 0.5 + 0.5 * torch.where(small, series, 1 / torch.tanh(safe) - 1 / safe)

    @property
    def variance(self) -> Tensor:
        """The variance (*)."""
        half, small, safe = self._halves()
        square, safe = half.square(), safe.abs()
        series = 1 / 3 - square * (1 / 15 - square * (2 / 189 - square / 675))
        formula = 1 / safe.square() - 4 * (torch.exp(-safe) / torch.expm1(-2 * safe)).square()
        return 0.25 * torch.where(small, series, formula)

    def _falling(self, value: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Whether λ < 0, whether the density is flat, −|λ|, and the value as the mirror image sees it if λ > 0."""
        logits, value = broadcast_all(self.logits, value)
        falls, flat = logits < 0, logits.abs() < 1e-4
        return falls, flat, torch.where(flat, -1.0, -logits.abs()), torch.where(falls, value, 1 - value)

    def cdf(self, value: Tensor) -> Tensor:
        """Return P(x ≤ value) (*)."""
        if self._validate_args:
            self._validate_sample(value)
        falls, flat, slope, mirrored = self._falling(value)
        p = torch.expm1(slope * mirrored) / torch.expm1(slope)
        return torch.where(flat, value - self.logits * value * (1 - value) / 2, torch.where(falls, p, 1 - p))

    def icdf(self, value: Tensor) -> Tensor:
        """Return the x (*) that lies above a part ``value`` (*) of the probability."""
        falls, flat, slope, mirrored = self._falling(value)
        # At one, where e^λ is nothing, log(1 − 1) would be infinite.
        x = torch.log1p(mirrored.clamp(max=1 - torch.finfo(slope.dtype).eps / 2) * torch.expm1(slope)) / slope
        return torch.where(flat, value + self.logits * value * (1 - value) / 2, torch.where(falls, x, 1 - x))

    def entropy(self) -> Tensor:
        """Return −E[log p(x)] (*) in nats; log p is linear in x."""
        return -self._log_prob(self.mean)


class DiscretizedLogistic(TorchDistribution):
    r"""A logistic density, rounded to whole levels; the first and the last level take its tails.

    .. math:: P(x) = \sigma(a) - \sigma(b), \qquad
        a = \frac{x + \frac12 - \mu}{s}, \quad b = \frac{x - \frac12 - \mu}{s}

    with :math:`a = \infty` at the last level and :math:`b = -\infty` at 0. The difference would be 0 far from
    :math:`\mu`, and its logarithm infinite; :math:`\log \sigma(a) + \log \sigma(-b) + \log(1 - e^{b - a})` is the same
    number and has no such end.

    Arguments:
        loc: :math:`\mu` (*), in levels; may lie beyond them.
        scale: :math:`s > 0` (*), in levels.
        levels: how many values x has: 0 … levels − 1.

    Reference:
        PixelCNN++: Improving the PixelCNN with Discretized Logistic Mixture Likelihood and Other Modifications
        (Salimans et al., 2017)

    Example:
        >>> d = DiscretizedLogistic(torch.tensor(3.0), torch.tensor(0.5), levels=16)
        >>> round(d.log_prob(torch.arange(16.0)).exp().sum().item(), 6), round(d.mean.item(), 2)
        (1.0, 3.0)
    """

    arg_constraints: ClassVar = {"loc": constraints.real, "scale": constraints.positive}

    def __init__(self, loc: Tensor, scale: Tensor, levels: int = 256, validate_args: bool | None = None) -> None:
        self.loc, self.scale = broadcast_all(loc, scale)
        self.levels = levels
        super().__init__(self.loc.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> DiscretizedLogistic:
        """Return the same distribution with a larger batch shape."""
        new = self._get_checked_instance(DiscretizedLogistic, _instance)
        new.loc, new.scale, new.levels = self.loc.expand(batch_shape), self.scale.expand(batch_shape), self.levels
        super(DiscretizedLogistic, new).__init__(Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> Any:
        """The whole numbers 0 … levels − 1."""
        return constraints.integer_interval(0, self.levels - 1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log P(x) (*) in nats for x (*)."""
        if self._validate_args:
            self._validate_sample(value)
        return self._log_prob(value)

    def _log_prob(self, value: Tensor | int) -> Tensor:
        value = torch.as_tensor(value, dtype=self.loc.dtype, device=self.loc.device)
        first, last = value <= 0, value >= self.levels - 1
        centred = value - self.loc
        below_the_upper_edge = logsigmoid((centred + 0.5) / self.scale).masked_fill(last, 0.0)
        above_the_lower_edge = logsigmoid((0.5 - centred) / self.scale).masked_fill(first, 0.0)
        width = torch.log(-torch.expm1(-1 / self.scale)).expand_as(centred).masked_fill(first | last, 0.0)
        return below_the_upper_edge + above_the_lower_edge + width

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Return logistic noise, rounded and clamped, (*sample_shape, *)."""
        with torch.no_grad():
            u = torch.rand(self._extended_shape(sample_shape), dtype=self.loc.dtype, device=self.loc.device)
            # Zero is among the draws; its logit is made that of the next one.
            noise = torch.logit(u, eps=torch.finfo(u.dtype).eps / 2)
            return (self.loc + self.scale * noise).round().clamp(0, self.levels - 1)

    # Sums over the levels, one at a time: all at once they would not fit into memory for a test set.

    @property
    def mean(self) -> Tensor:
        """The exact mean, Σ P(x > k) over k (*)."""
        total = torch.zeros_like(self.loc)
        for k in range(self.levels - 1):
            total = total + torch.sigmoid((self.loc - (k + 0.5)) / self.scale)
        return total

    @property
    def variance(self) -> Tensor:
        """The exact variance (*)."""
        mean, total = self.mean, torch.zeros_like(self.loc)
        for k in range(self.levels):
            total = total + (k - mean).square() * self._log_prob(k).exp()
        return total


class Levels(dist.Categorical):
    r"""A whole number with a probability of its own for every value: a Categorical that knows it is a number.

    .. math:: P(x) = \pi_x, \qquad \mathbb{E}[x] = \sum_k k\, \pi_k

    Draws have the dtype of the parameters, as all pixels do.

    Arguments:
        probs, logits: (*, levels), one of them.

    Example:
        >>> Levels(torch.tensor([0.5, 0.0, 0.5])).mean
        tensor(1.)
    """

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Return x (*sample_shape, *)."""
        return super().sample(Size(sample_shape)).to(self._param.dtype)

    def _values(self) -> Tensor:
        return torch.arange(self._num_events, dtype=self._param.dtype, device=self._param.device)

    @property
    def mean(self) -> Tensor:
        """The mean (*)."""
        return (self.probs * self._values()).sum(-1)

    @property
    def variance(self) -> Tensor:
        """The variance (*)."""
        return (self.probs * (self._values() - self.mean.unsqueeze(-1)).square()).sum(-1)
