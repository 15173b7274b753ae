r"""Densities that hold matrices, where ``torch.autocast`` has products in half precision.

.. math:: z = \mu + L \varepsilon, \qquad \log \mathcal{N}(z; \mu, L L^\top) = -\tfrac12 \|L^{-1} (z - \mu)\|^2 - \ldots

Mixed precision is for what networks multiply. In bfloat16 the products in here would be off by tenths of a percent: a
density by nats, and a draw would not be one from the density that is written down beside it.
"""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from ..devices import is_cast, uncast

__all__ = ["LowRankMultivariateNormal", "MultivariateNormal", "in_single"]


class MultivariateNormal(dist.MultivariateNormal):
    """A ``MultivariateNormal`` that draws in the precision of its parameters."""

    rsample = uncast(dist.MultivariateNormal.rsample)
    log_prob = uncast(dist.MultivariateNormal.log_prob)


class LowRankMultivariateNormal(dist.LowRankMultivariateNormal):
    """A ``LowRankMultivariateNormal`` that draws, and says its density, in the precision of its parameters."""

    rsample = uncast(dist.LowRankMultivariateNormal.rsample)
    log_prob = uncast(dist.LowRankMultivariateNormal.log_prob)


_LOW_RANK = torch.distributions.LowRankMultivariateNormal, dist.LowRankMultivariateNormal


@uncast
def _low_rank(d: Any) -> LowRankMultivariateNormal:
    # Anew, because it begins by factoring a matrix.
    checked = vars(d).get("_validate_args")
    return LowRankMultivariateNormal(_single(d.loc), _single(d._unbroadcasted_cov_factor), _single(d.cov_diag), checked)


def in_single(d: Any) -> Any:
    """Return a distribution with its matrices in single precision, inside of ``torch.autocast``; elsewhere as it is.

    Arguments:
        d: any distribution; a Gaussian with a covariance, a zuko mixture of such, and what is independent copies of
            one, are what it concerns.

    Example:
        >>> d = dist.MultivariateNormal(torch.zeros(2), scale_tril=1.1 * torch.eye(2))
        >>> with torch.autocast("cpu", torch.bfloat16):
        ...     in_single(d) is d
        False
        >>> in_single(d) is d
        True
    """
    if not is_cast():
        return d
    if isinstance(d, LowRankMultivariateNormal) or type(d) in _LOW_RANK:
        return _low_rank(d)
    held = {name: _inside(value) for name, value in vars(d).items()}
    cls = type(d)
    if cls in (torch.distributions.MultivariateNormal, dist.MultivariateNormal):
        cls = MultivariateNormal
    elif all(value is vars(d)[name] for name, value in held.items()):
        return d
    new = object.__new__(cls)
    new.__dict__.update(held)
    return new


def _inside(value: Any) -> Any:
    return in_single(value) if isinstance(value, torch.distributions.Distribution) else _single(value)


def _single(value: Any) -> Any:
    """What a network gave in half precision, in single."""
    half = isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if half else value
