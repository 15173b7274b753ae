r"""Pareto k̂: how heavy the upper tail of importance weights is.

.. math:: p(w \mid w > u) \approx \frac1\sigma \Bigl(1 + k\, \frac{w - u}\sigma\Bigr)^{-1/k - 1}

A weight has finite variance only if k < ½. An estimate from S weights is to be trusted where :math:`\hat k < \min(1 - 1
/ \log_{10} S,\ 0.7)`; above, a few draws decide it, and draws that never came would have changed it.

References:
    Pareto Smoothed Importance Sampling (Vehtari, Simpson, Gelman, Yao and Gabry, 2024);
    A New and Efficient Estimation Method for the Generalized Pareto Distribution (Zhang and Stephens, 2009).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["good_below", "pareto_k", "tail_length"]


def tail_length(samples: int) -> int:
    r"""Return how many of the largest weights are the tail, :math:`\lceil \min(S / 5,\ 3 \sqrt S) \rceil`.

    Example:
        >>> tail_length(100), tail_length(5000)
        (20, 213)
    """
    return math.ceil(min(samples / 5, 3 * math.sqrt(samples)))


def good_below(samples: int) -> float:
    """Return the k̂ below which an estimate from so many weights is to be trusted.

    Example:
        >>> round(good_below(100), 2), good_below(5000)
        (0.5, 0.7)
    """
    return min(1 - 1 / math.log10(samples), 0.7) if samples > 1 else -math.inf


def pareto_k(largest: Tensor) -> Tensor:
    """Fit a generalised Pareto distribution to the tail of weights.

    Arguments:
        largest: log-weights (M + 1, *), the M of the tail and the next one, which is the threshold u, in any order.

    Returns:
        k̂ (*), float64; NaN where M < 5, −∞ where the tail is flat to a hundredth, which can be rounding, and ∞ where a
        quarter of it is nothing beside its largest weight, in double precision.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> w = torch.rand(5000, 50) ** -0.5  # P(w > u) = u⁻², so that k = ½
        >>> round(pareto_k(w.log().topk(tail_length(5000) + 1, 0).values).mean().item(), 1)
        0.5
    """
    log_w = largest.double().sort(0).values
    n = len(log_w) - 1
    if n < 5:
        return log_w.new_full(log_w.shape[1:], math.nan)
    # A common factor is no matter, and this one keeps exp in range.
    w = (log_w - log_w[-1]).exp()
    x = w[1:] - w[0]
    flat = x[-1] <= 0.01
    x = torch.where(flat, torch.linspace(0.5, 1, n).to(x).reshape(-1, *[1] * flat.dim()), x)
    # The posterior mean of θ = -k/σ on a grid, under a prior that the quartile places.
    m = 30 + int(math.sqrt(n))
    at = torch.arange(1, m + 1).to(x).reshape(-1, *[1] * flat.dim())
    quartile = x[int(n / 4 + 0.5) - 1]
    nothing = quartile < torch.finfo(x.dtype).tiny
    quartile = torch.where(nothing, 1.0, quartile)
    theta = 1 / x[-1] + (1 - (m / (at - 0.5)).sqrt()) / (3 * quartile)
    # One row of the grid at a time: all of them at once is the one large tensor there would be.
    k = torch.stack([torch.log1p(-t * x).mean(0) for t in theta])
    profile = n * ((-theta / k).log() - k - 1)
    best = (profile.softmax(0) * theta).sum(0)
    k = torch.log1p(-best * x).mean(0)
    # A weak prior, worth ten observations at ½, steadies k for short tails.
    k = (n * k + 10 * 0.5) / (n + 10)
    return torch.where(flat, -math.inf, torch.where(nothing, math.inf, k))
