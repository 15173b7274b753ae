r"""Densities with gamma functions in them, where these are of large numbers.

.. math:: \log \Gamma(a) = (a - \tfrac12) \log a - a + \tfrac12 \log 2 \pi + s(a)

A density is a small difference of such numbers, and float32 holds :math:`\log \Gamma(10^6)` to whole nats only: 784
pixels of 255 levels would be off by 0.04 nats together. Where a number is beyond 16, its gamma function is Stirling's
series instead, with s(a) for what his formula leaves out. Where two are, of which the density has a third, the sum
n = a + b, what is large has cancelled on paper: all that is left are the saddle point

.. math:: S = s(n) - s(a) - s(b) - D(a, n p) - D(b, n q), \qquad p + q = 1, \qquad D(a, b) = b - a - a \log \tfrac ba

and a square root, D being the deviance of a number from one that is near it.

Reference:
    Fast and Accurate Computation of Binomial Probabilities (Loader, 2000)
"""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

__all__ = ["Beta", "Binomial", "NegativeBinomial", "Poisson", "StudentT"]


class Binomial(dist.Binomial):
    r"""How many of n there are, each with probability p, also where n is large.

    .. math:: P(x) = \binom nx p^x q^{n - x} = \sqrt{\frac{n}{2 \pi x (n - x)}}\; e^S, \qquad a = x, \ b = n - x

    Arguments:
        total_count: n (*).
        logits: of p (*), any real numbers.

    Example:
        >>> x, n = torch.tensor(3e4), torch.tensor(65535.0)
        >>> exact = dist.Binomial(n.double(), logits=torch.tensor(-0.2).double()).log_prob(x.double())
        >>> (Binomial(n, logits=torch.tensor(-0.2)).log_prob(x) - exact).abs() < 1e-3
        tensor(True)
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log P(x) (*) in nats for x (*)."""
        if self._validate_args:
            self._validate_sample(value)
        n, logits = self.total_count, self.logits
        left = n - value
        # The binomial coefficient by the smaller of the two, which is small where this is taken.
        few = torch.minimum(value, left)
        coefficient = _log_rising(n - few + 1, few) - torch.lgamma(few + 1)
        direct = coefficient + value * logsigmoid(logits) + left * logsigmoid(-logits)
        # Both many: of numbers that are clamped to 16 where they are not, and this is not taken.
        a, b = value.clamp(min=16.0), left.clamp(min=16.0)
        n = a + b
        # From the side on which rounding is smaller.
        off = torch.where(logits < 0, n * torch.sigmoid(logits) - a, b - n * torch.sigmoid(-logits))
        many = 0.5 * (n / (2 * math.pi * a * b)).log() + _saddle(a, b, off, logsigmoid(logits), logsigmoid(-logits))
        return torch.where((value > 16) & (left > 16), many, direct)


class Beta(dist.Beta):
    r"""A density on [0, 1], also where it is narrow.

    .. math:: p(x) = \frac{x^{a - 1} (1 - x)^{b - 1}}{\mathrm{B}(a, b)}
        = \frac{1}{x (1 - x)} \sqrt{\frac{a b}{2 \pi n}}\; e^S, \qquad p = x

    Arguments:
        concentration1, concentration0: a, b > 0 (*).

    Example:
        >>> x, a = torch.tensor(0.301), torch.tensor([3e5, 7e5])
        >>> exact = dist.Beta(*a.double()).log_prob(x.double())
        >>> (Beta(*a).log_prob(x) - exact).abs() < 1e-2
        tensor(True)
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(x) (*) in nats for x (*)."""
        if self._validate_args:
            self._validate_sample(value)
        a, b = self.concentration1, self.concentration0
        less, more = torch.minimum(a, b), torch.maximum(a, b)
        # At the ends the power of 0 that is 1 has to be.
        powers = torch.xlogy(a - 1, value) + torch.special.xlog1py(b - 1, -value)
        direct = powers + _log_rising(more, less) - torch.lgamma(less)
        many = (a > 16) & (b > 16) & (value > 0) & (value < 1)
        # What is clamped is not taken.
        a, b, limits = a.clamp(min=16.0), b.clamp(min=16.0), torch.finfo(value.dtype)
        x = value.clamp(limits.tiny, 1 - limits.eps / 2)
        n, log_x, log_rest = a + b, x.log(), torch.log1p(-x)
        # From the side on which rounding is smaller.
        off = torch.where(x < 0.5, n * x - a, b - n * (1 - x))
        narrow = 0.5 * (a * b / (2 * math.pi * n)).log() + _saddle(a, b, off, log_x, log_rest) - log_x - log_rest
        return torch.where(many, narrow, direct)


class StudentT(dist.StudentT):
    r"""A density with heavy tails, also where these are hardly heavier than a Gaussian's.

    .. math:: p(x) = \frac{\Gamma(\frac{\nu + 1}2)}{\sqrt{\nu \pi}\, \sigma\, \Gamma(\frac\nu2)}
        \Bigl(1 + \frac{(x - \mu)^2}{\nu \sigma^2}\Bigr)^{-\frac{\nu + 1}2}

    Arguments:
        df, loc, scale: :math:`\nu > 0, \mu, \sigma > 0` (*).

    Example:
        >>> d, x = StudentT(torch.tensor(1e7), torch.tensor(0.0), torch.tensor(1.0)), torch.tensor(0.5)
        >>> (d.log_prob(x) - dist.Normal(0.0, 1.0).log_prob(x)).abs() < 1e-5
        tensor(True)
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(x) (*) in nats for x (*)."""
        if self._validate_args:
            self._validate_sample(value)
        square = ((value - self.loc) / self.scale).square()
        half = self.df / 2
        constant = _log_rising(half, torch.full_like(half, 0.5)) - 0.5 * (math.pi * self.df).log()
        return constant - self.scale.log() - 0.5 * (self.df + 1) * torch.log1p(square / self.df)


class NegativeBinomial(dist.GammaPoisson):
    r"""Counts that vary more than a Poisson's: its rate is Gamma distributed.

    .. math:: P(x) = \frac{\Gamma(r + x)}{\Gamma(r)\, x!} \Bigl(\frac{\beta}{1 + \beta}\Bigr)^{r}
        \Bigl(\frac{1}{1 + \beta}\Bigr)^{x}, \qquad \text{mean } \mu = \frac r\beta, \quad
        \text{variance } \mu + \frac{\mu^2}{r}

    It becomes a Poisson as r grows. Where r and x both are large,

    .. math:: P(x) = \sqrt{\frac{r}{2 \pi x n}}\; e^S, \qquad a = r, \ b = x, \ p = \frac{\beta}{1 + \beta}

    Arguments:
        concentration: r > 0 (*).
        rate: :math:`\beta > 0` (*).

    Example:
        >>> d = NegativeBinomial(torch.tensor(1e6), torch.tensor(1e6 / 5))
        >>> x = torch.tensor(3.0)
        >>> (d.log_prob(x) - dist.Poisson(5.0).log_prob(x)).abs() < 1e-4
        tensor(True)
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log P(x) (*) in nats for x (*)."""
        if self._validate_args:
            self._validate_sample(value)
        r, rate = self.concentration, self.rate
        # log Γ(r + x) less whichever is nearer to it: the other is small.
        many = value + 1 > r.clamp(min=16.0)
        by_count = _log_rising((value + 1).clamp(min=16.0), r - 1) - torch.lgamma(r)
        gammas = torch.where(many, by_count, _log_rising(r, value) - torch.lgamma(value + 1))
        few = gammas - r * torch.log1p(1 / rate) - value * torch.log1p(rate)
        # Both many: of numbers that are clamped to 16 where they are not, and this is not taken.
        a, x = r.clamp(min=16.0), value.to(r).clamp(min=16.0)
        n, off = a + x, (x * rate - a) / (1 + rate)
        saddle = _saddle(a, x, off, -torch.log1p(1 / rate), -torch.log1p(rate))
        return torch.where((value > 16) & (r > 16), 0.5 * (a / (2 * math.pi * x * n)).log() + saddle, few)


class Poisson(dist.Poisson):
    r"""Counts whose variance is their mean, also where these are many.

    .. math:: P(x) = \frac{\lambda^x e^{-\lambda}}{x!} = \frac{1}{\sqrt{2 \pi x}}
        \exp\Bigl(-x\, \bigl(d - \log(1 + d)\bigr) - s(x)\Bigr), \qquad d = \frac{\lambda - x}{x}

    with s what Stirling's formula leaves out. The first form is a small difference of large numbers, which float32
    holds to whole nats for x = 10⁶; beyond x = 16 it is the second.

    Arguments:
        rate: :math:`\lambda > 0` (*).

    Example:
        >>> x, rate = torch.tensor(1e6), torch.tensor(1e6 + 500)
        >>> exact = dist.Poisson(rate.double()).log_prob(x.double())
        >>> (Poisson(rate).log_prob(x) - exact).abs() < 1e-3
        tensor(True)
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log P(x) (*) in nats for x (*)."""
        few = super().log_prob(value)
        x = value.to(self.rate).clamp(min=16.0)
        many = -_deviance(x, self.rate - x, self.rate.log()) - 0.5 * (2 * math.pi * x).log() - _remainder(x)
        return torch.where(value > 16, many, few)


def _saddle(a: Tensor, b: Tensor, off: Tensor, log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return S, of which n p − a = b − n q is known as ``off``."""
    n = a + b
    deviance = _deviance(a, off, n.log() + log_p) + _deviance(b, -off, n.log() + log_q)
    return _remainder(n) - _remainder(a) - _remainder(b) - deviance


def _deviance(a: Tensor, off: Tensor, log_b: Tensor) -> Tensor:
    """Return D(a, b) = b − a − a log(b / a), of which b − a is known as ``off``, without the cancellation near a."""
    d = off / a
    # Far above b log1p would see −1.
    log = torch.where(d > -0.5, torch.log1p(d.clamp(min=-0.5)), log_b - a.log())
    return a * (d - log)


def _log_rising(a: Tensor, n: Tensor) -> Tensor:
    """Return log Γ(a + n) − log Γ(a), without the cancellation where a is large."""
    large = a.clamp(min=16.0)
    stirling = (large - 0.5) * torch.log1p(n / large) + n * (torch.log(large + n) - 1)
    stirling = stirling + _remainder(large + n) - _remainder(large)
    return torch.where(a > 16, stirling, torch.lgamma(a + n) - torch.lgamma(a))


def _remainder(a: Tensor) -> Tensor:
    """What Stirling's formula for log Γ(a) leaves out, to 2e-12 where a ≥ 16."""
    square = a.square()
    return (1 / 12 - (1 / 360 - 1 / (1260 * square)) / square) / a
