r"""Densities and probabilities of pixels that no library has.

.. math:: p(x) = \prod_d p(x_d; \theta_d)
"""

from __future__ import annotations

import pyro.distributions as dist
from torch.distributions import constraints

__all__ = ["GreyBernoulli"]


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
