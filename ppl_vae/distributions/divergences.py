r"""KL divergences that torch and Pyro do not know, registered with :func:`torch.distributions.kl_divergence`.

.. math:: \mathrm{KL}(q \,\|\, p) = -H(q) + \sum_i \tfrac12 \log 2 \pi \sigma_{p,i}^2
    + \frac{\operatorname{Var}_q[z_i] + (\mathbb{E}_q[z_i] - \mu_{p,i})^2}{2 \sigma_{p,i}^2}

for a diagonal Gaussian p: the cross-entropy needs two moments of q and nothing else of it. The analytic objective takes
these with a correlated posterior.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor
from torch.distributions import Independent, LowRankMultivariateNormal, MultivariateNormal, Normal, register_kl

__all__ = ["kl_to_diagonal"]


@register_kl(LowRankMultivariateNormal, Independent)
@register_kl(MultivariateNormal, Independent)
def kl_to_diagonal(q: Any, p: Independent) -> Tensor:
    """Return KL(q ‖ p) in nats, (*), of any q over vectors with mean, variance and entropy to a diagonal Gaussian.

    Arguments:
        q: over (D,).
        p: a ``Normal(...).to_event(1)`` over (D,).

    Raises:
        NotImplementedError: for any other p, as ``kl_divergence`` does where there is no closed form.

    Example:
        >>> q = dist.MultivariateNormal(torch.zeros(2), scale_tril=torch.eye(2))
        >>> torch.distributions.kl_divergence(q, dist.Normal(torch.ones(2), 1.0).to_event(1))
        tensor(1.)
    """
    base: Any = p.base_dist
    if not isinstance(base, Normal) or p.reinterpreted_batch_ndims != 1:
        raise NotImplementedError(
            f"KL({type(q).__name__} ‖ Independent) is known for a diagonal Gaussian over vectors, not for {base} with "
            f"{p.reinterpreted_batch_ndims} event dimensions"
        )
    variance = base.scale.square()
    squares = (q.variance + (q.mean - base.loc).square()) / (2 * variance)
    cross_entropy = (0.5 * math.log(2 * math.pi) + base.scale.log() + squares).sum(-1)
    return cross_entropy - q.entropy()
