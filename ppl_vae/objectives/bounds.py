r"""Bounds on the evidence that take several draws of z a datum, and gradients of less noise.

.. math:: \log p(x \mid y) \ge \mathbb{E}\Bigl[\log \frac1k \sum_{i=1}^k w_i\Bigr], \qquad
    w_i = p(x \mid z_i, y) \Bigl(\frac{p(z_i \mid y)}{q(z_i \mid x, y)}\Bigr)^{\beta}, \quad z_i \sim q(z \mid x, y)

One bound a datum: the mean over draws is taken within what all sites have in common, the rows of the data plate, and
everything else is summed inside log w. (A latent variable outside that plate belongs to all rows at once, and there is
then one joint bound.) β tempers the weights from inside, and at β ≠ 1 that is no bound on log p(x|y). The size of the
data set (``total``, a plate that subsamples) multiplies from outside: inside, it would be another exponent, and
another optimum.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from pyro.distributions.util import scale_and_mask, sum_rightmost
from pyro.infer.util import get_dependent_plate_dims
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ..devices import uncast
from ..distributions import is_point
from ..errors import ConfigError, PartError, check_positive
from .base import Objective, common_scale, only_latent, sites, tempered

__all__ = ["IWAE", "STL", "DReG", "Renyi"]


class _Particle(NamedTuple):
    """One run of both programs, or with vectorised particles all of them, in the dimensions of their plates."""

    scale: Any
    log_p: Tensor
    log_w: Tensor
    guide_trace: Any


class IWAE(Objective):
    r"""The importance-weighted bound: the log of the mean of k weights, for every datum.

    .. math:: V = \log \frac1k \sum_{i=1}^k w_i

    It rises with k, from the ELBO at k = 1 towards log p(x|y). The gradient is that of V through the draws, so the
    signal of the encoder's drowns in its noise as k grows; :class:`DReG` is the same bound without that.

    Arguments:
        k: how many draws of z a datum.
        vectorize_particles: draw them at once, in a plate of their own; else one run of the programs a draw.
        max_plate_nesting: how many plates the programs nest; ``float("inf")`` to find out by running them once.

    Raises:
        ConfigError: for a k that is no whole number ≥ 1.
        PartError: in a step, for a guide that is not reparameterised, or observed sites of several scales.

    Reference:
        Importance Weighted Autoencoders (Burda et al., 2016)

    Example:
        >>> vae = pv.vae((4,), 2, likelihood="Gaussian")
        >>> IWAE(50).loss(vae.model, vae.guide, torch.zeros(3, 4)) > 0
        True
    """

    def __init__(self, k: int = 5, vectorize_particles: bool = True, max_plate_nesting: float = 1) -> None:
        check_positive(k=k)
        super().__init__(num_particles=k, vectorize_particles=vectorize_particles, max_plate_nesting=max_plate_nesting)

    def bound(self, log_w: Tensor) -> Tensor:
        """Return V, (*), of log-weights (k, *)."""
        return log_w.logsumexp(0) - math.log(len(log_w))

    def log_weights(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Return the log-weights that the bound is made of, in nats: (k, N) for a batch of N."""
        return self._in_front([p.log_w for p in self._particles(model, guide, args, kwargs)])

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Return −s Σ V, (), summed over the batch."""
        particles = self._particles(model, guide, args, kwargs)
        return -(particles[0].scale * self.bound(self._in_front([p.log_w for p in particles]))).sum()

    def _particles(self, model: Any, guide: Any, args: Any, kwargs: Any) -> list[_Particle]:
        return [_weighed(*traces) for traces in self._get_traces(model, guide, args, kwargs)]

    @property
    def _in_a_plate(self) -> bool:
        return self.vectorize_particles and self.num_particles > 1

    def _in_front(self, log_w: list[Tensor]) -> Tensor:
        """What the particles have, as (k, *)."""
        return log_w[0].movedim(-int(self.max_plate_nesting), 0) if self._in_a_plate else torch.stack(log_w)

    def _one_by_one(self, weights: Tensor) -> list[Tensor]:
        """The way back from (k, *) to the particles."""
        return [weights.movedim(0, -int(self.max_plate_nesting))] if self._in_a_plate else list(weights)


def _weighed(model_trace: Any, guide_trace: Any) -> _Particle:
    scale = common_scale(model_trace)
    # The plates that are not everybody's; what is in them is summed inside log w.
    dims = get_dependent_plate_dims([*model_trace.nodes.values(), *guide_trace.nodes.values()])

    def log_prob(trace: Any) -> Any:
        return sum(_summed(tempered(site, scale), dims) for _, site in sites(trace))

    log_p = log_prob(model_trace)
    return _Particle(scale, log_p, log_p - log_prob(guide_trace), guide_trace)


def _summed(log_prob: Tensor, dims: list[int]) -> Tensor:
    """The sum over those of the dimensions that there are, kept as ones; over none, for torch, would be over all."""
    there = [d for d in dims if -d <= log_prob.dim()]
    return log_prob.sum(there, keepdim=True) if there else log_prob


class Renyi(IWAE):
    r"""The Rényi bound of order α: between the ELBO and the importance-weighted bound, and beyond both.

    .. math:: V = \frac{1}{1 - \alpha} \log \frac1k \sum_{i=1}^k w_i^{1 - \alpha}

    α = 1 is the ELBO, the mean of log w, and α = 0 is :class:`IWAE`. V falls with α, from the largest log w (α → −∞,
    which seeks mass and is no lower bound) to the smallest (α → ∞, which covers it).

    Arguments:
        alpha: the order, any finite number.
        k, vectorize_particles, max_plate_nesting: as :class:`IWAE`.

    Raises:
        ConfigError: for an α that is not finite; and as :class:`IWAE`.

    Reference:
        Rényi Divergence Variational Inference (Li and Turner, 2016)

    Example:
        >>> log_w = torch.tensor([[-1.0], [-3.0]])
        >>> [round(Renyi(alpha, k=2).bound(log_w).item(), 2) for alpha in (-50.0, 0.0, 1.0, 50.0)]
        [-1.01, -1.57, -2.0, -2.99]
    """

    def __init__(
        self, alpha: float = 0.5, k: int = 5, vectorize_particles: bool = True, max_plate_nesting: float = 1
    ) -> None:
        super().__init__(k, vectorize_particles, max_plate_nesting)
        if not math.isfinite(alpha):
            raise ConfigError(f"expected a finite α, got {alpha}")
        self.alpha = float(alpha)

    def bound(self, log_w: Tensor) -> Tensor:
        """Return V, (*), of log-weights (k, *)."""
        order = 1 - self.alpha
        return super().bound(order * log_w) / order if order else log_w.mean(0)


class _AtDraws(Messenger):
    """Hands the guide's draws on as tensors of their own, at which a gradient can be taken; ``drawn`` keeps them."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: dict[str, Tensor] = {}

    def _pyro_post_sample(self, msg: Any) -> None:
        # The model's site of the same name comes second. It has the guide's value, and keeps it.
        if msg["is_observed"] or msg["name"] in self.drawn or site_is_subsample(msg):
            return
        self.drawn[msg["name"]] = msg["value"]
        if msg["value"].is_floating_point():
            msg["value"] = msg["value"].detach().requires_grad_()


class DReG(IWAE):
    r"""The importance-weighted bound with the doubly reparameterised gradient.

    .. math:: \nabla V = \sum_i \tilde w_i\, \partial_\theta \log p(x, z_i) + \bigl(\tilde w_i -
        \beta\, \tilde w_i (1 - \tilde w_i)\bigr)\, \frac{\partial \log w_i}{\partial z_i} \nabla_\phi z_i, \qquad
        \tilde w_i = \frac{w_i}{\sum_j w_j}

    At β = 1 the second factor is :math:`\tilde w_i^2`. The gradient has the mean of :class:`IWAE`'s, in which φ is also
    in the density log q(zᵢ). That path has, by reparameterising once more, the mean
    :math:`\tilde w_i (1 - \tilde w_i)\, \partial \log w_i / \partial z_i \nabla_\phi z_i` a unit of β, and here it is
    that. The signal of the encoder's gradient then grows with k against its noise.

    The gradient is taken at z, a tensor of its own, and no parameter is told from another by its name. So it holds when
    the prior and the encoder share some: a condition network, or a mixture of the encoder's own posteriors for a prior.

    Arguments:
        k, vectorize_particles, max_plate_nesting: as :class:`IWAE`.

    Raises:
        PartError: in a step, for a guide with several latent sites or, at k > 1, a point; and as :class:`IWAE`.

    Reference:
        Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives (Tucker et al., 2019)

    Example:
        >>> vae = pv.vae((4,), 2, likelihood="Gaussian")
        >>> DReG(5).loss_and_grads(vae.model, vae.guide, torch.zeros(3, 4)) > 0
        True
    """

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        with _AtDraws() as at:
            model_trace, guide_trace = super()._get_trace(model, guide, args, kwargs)
        name, site = only_latent(guide_trace, self)
        if self.num_particles > 1 and is_point(site["fn"]):
            raise PartError(
                f"{type(self).__name__}: expected draws that have a density, got a point (Delta) at site {name!r}: use "
                "IWAE(k), or Trace_ELBO(), as the k draws are one"
            )
        site["drawn"] = at.drawn[name]
        return model_trace, guide_trace

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Return −s Σ V, (), with the gradient above."""
        if not torch.is_grad_enabled():
            return super().differentiable_loss(model, guide, *args, **kwargs)
        particles = self._particles(model, guide, args, kwargs)
        scale, log_w = particles[0].scale, self._in_front([p.log_w for p in particles])
        latent = [only_latent(p.guide_trace, self)[1] for p in particles]
        at = [site["value"] for site in latent]
        # Backwards nothing is cast that was not cast forwards.
        slopes = uncast(torch.autograd.grad)(log_w.sum(), at, retain_graph=True, materialize_grads=True)
        log_w = log_w.detach()
        surrogate = torch.zeros_like(log_w[0]).sum()
        for p, site, slope, w in zip(particles, latent, slopes, self._one_by_one(log_w.softmax(0)), strict=True):
            along = sum_rightmost(slope * site["drawn"], site["fn"].event_dim)
            beta = scale_and_mask(torch.ones_like(along), site["scale"] / scale, site["mask"])
            terms = w * p.log_p, self._slope_weight(w, beta) * along
            surrogate = surrogate + sum((scale * term).sum() for term in terms)
        return -((scale * self.bound(log_w)).sum() + (surrogate - surrogate.detach()))

    def _slope_weight(self, w: Tensor, beta: Tensor) -> Tensor:
        return w - beta * w * (1 - w)


class STL(DReG):
    r"""The ELBO with the gradient that sticks the landing: through z alone, and not through the density of q.

    .. math:: \nabla \mathrm{ELBO} = \partial_\theta \log p(x, z) + \frac{\partial \log w}{\partial z} \nabla_\phi z

    What it leaves out, the score :math:`\partial_\phi \log q(z)`, is zero on average and noise in every draw. At the
    exact posterior nothing is left of the encoder's gradient, not even noise. It is :class:`DReG` at k = 1.

    Arguments:
        k: 1. With more draws, leaving the score out is biased, and the gradient that is not is :class:`DReG`'s.

    Raises:
        ConfigError: for another k; and as :class:`DReG`.

    Reference:
        Sticking the Landing: Simple, Lower-Variance Gradient Estimators for Variational Inference (Roeder et al., 2017)

    Example:
        >>> vae = pv.vae((4,), 2, likelihood="Gaussian")
        >>> STL().loss_and_grads(vae.model, vae.guide, torch.zeros(3, 4)) > 0
        True
    """

    def __init__(self, k: int = 1, max_plate_nesting: float = 1) -> None:
        if k != 1:
            raise ConfigError(f"STL: expected k = 1, as its gradient is biased for more, got {k}: use DReG({k})")
        super().__init__(k, max_plate_nesting=max_plate_nesting)
