r"""What every objective should be: written in plain torch from the parts alone, with no Pyro program and no objective.

.. math:: \log w_i = \log p(x \mid z_i, y) - \beta \bigl(\log q(z_i \mid x, y) - \log p(z_i \mid y)\bigr), \qquad
    z_i \sim q(z \mid x, y), \quad i = 1 \dots k

================================ ===================================================================================
``Trace_ELBO`` and its kind      −E log p(x|z,y) + β KL, by formula for two diagonal Gaussians, else −E log w
``IWAE``, ``DReG``, ``STL``      −log of the mean of w
``Renyi``, Pyro's ``RenyiELBO``  −log of the mean of :math:`w^{1 - \alpha}`, divided by 1 − α
``FreeBits``                     −E log p(x|z,y) + β Σ max(λ, the mean KL of a group of features)
``Capacity``                     −E log p(x|z,y) + β γ \|the mean KL − C\|
================================ ===================================================================================

z is drawn as a plate of Pyro's would draw it, so that the same seed is the same noise.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from pyro.infer import ELBO, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor
from torch.distributions import Independent, kl_divergence

from ..distributions import diagonal
from ..errors import ConfigError, NoClosedFormError, PartError
from ..model import VAE
from ..objectives import IWAE, Capacity, DReG, FreeBits, kl_gaussian, log_likelihood
from ..semisupervised import SemiSupervised

__all__ = ["draw_for_draw", "loss_by_hand"]


def loss_by_hand(objective: ELBO, vae: VAE, x: Any, y: Any = None) -> Tensor:
    """Return what an objective should be on a batch, (), in nats per datum at the model's β.

    Its gradient is the objective's in the mean. Draw for draw it is so too, but for ``DReG`` and ``STL``, which leave
    out what is zero on average, and for an objective that samples a KL for which there is a formula.

    Arguments:
        objective: with its number of draws and its options.
        vae: the model.
        x: (N, *x_shape), and y as elsewhere.

    Raises:
        ConfigError: for an objective that is not in the table above.
        NoClosedFormError: for FreeBits, where the KL of a feature has none.
        PartError: for anything but ``Trace_ELBO`` where the encoder is not reparameterised, or labels are summed out.

    Example:
        >>> vae, x = pv.vae((4,), 2, likelihood="Gaussian"), torch.zeros(1, 4)
        >>> _ = torch.manual_seed(0)
        >>> loss = pv.objectives.IWAE(5).differentiable_loss(vae.model, vae.guide, x)
        >>> _ = torch.manual_seed(0)
        >>> torch.allclose(loss, loss_by_hand(pv.objectives.IWAE(5), vae, x))
        True
    """
    draws = _draw(objective, vae, x, y)
    if isinstance(objective, Trace_ELBO):
        return -_elbo(draws, vae, x, y).mean()
    if not draws.reparameterised or isinstance(vae, SemiSupervised):
        found = "no sum over missing labels" if draws.reparameterised else "an encoder that is reparameterised"
        raise PartError(f"{type(objective).__name__}: expected {found}: use Trace_ELBO()")
    if isinstance(objective, IWAE | RenyiELBO):
        log_w = draws.log_p_x - vae.beta * (draws.log_q - draws.log_p)
        return -_bound(log_w, getattr(objective, "alpha", 0.0)).mean()
    if isinstance(objective, FreeBits):
        kl = _kl_of_features(draws.q, draws.p).unflatten(-1, (-1, objective.group)).sum(-1)
        held = kl.reshape(-1, kl.shape[-1]).mean(0).clamp(min=objective.nats).sum()
        return vae.beta * held - draws.log_p_x.mean()
    if isinstance(objective, Capacity):
        return vae.beta * objective.gamma * (_kl(draws).mean() - objective.capacity).abs() - draws.log_p_x.mean()
    raise ConfigError(
        f"audit: expected objectives of the library, or of the kind of Trace_ELBO or RenyiELBO, got "
        f"{type(objective).__name__}, for which there is no reference"
    )


def draw_for_draw(objective: ELBO, vae: VAE, x: Any, y: Any = None) -> tuple[bool, bool]:
    """Return whether loss and gradient are the reference's with the same noise, or in the mean over the noise alone."""
    x = torch.as_tensor(x).to(vae._beta)
    with _quiet(vae):
        q, p = _posterior_and_prior(vae, x, _every(vae, x, y))
    by_hand = _gaussians(q, p) is not None
    if isinstance(objective, TraceMeanField_ELBO):
        same = by_hand or _registered(q, p) is None
    else:
        same = not (by_hand and isinstance(objective, Trace_ELBO))
    return same, same and not isinstance(objective, DReG)


@dataclass
class _Draws:
    """At k draws of z: log p(x|z,y), log p(z|y) and log q(z|x,y) in nats, each (k, N), and what they were drawn from.

    Where labels are missing there is one more dimension, (k, labels, N).
    """

    q: Any
    p: Any
    log_p_x: Tensor
    log_p: Tensor
    log_q: Tensor

    @property
    def reparameterised(self) -> bool:
        return self.q.has_rsample


@contextmanager
def _quiet(vae: VAE) -> Iterator[None]:
    """Where labels are missing, those without labelled rows are asked about all the same, and in silence."""
    with warnings.catch_warnings():
        if isinstance(vae, SemiSupervised):
            warnings.filterwarnings("ignore", "label .* was never seen in training")
        yield


def _draw(objective: ELBO, vae: VAE, x: Any, y: Any) -> _Draws:
    x = torch.as_tensor(x).to(vae._beta)
    y, k = _every(vae, x, y), objective.num_particles
    at_once = objective.vectorize_particles and k > 1
    with _quiet(vae):
        q_p = _posterior_and_prior(vae, x, y)
        drawn = [_score(vae, x, y, *q_p, shape=(k,) if at_once else ()) for _ in range(1 if at_once else k)]
    joined = (terms[0] if at_once else torch.stack(terms) for terms in zip(*drawn, strict=True))
    return _Draws(*q_p, *joined)


def _posterior_and_prior(vae: VAE, x: Any, y: Any) -> tuple[Any, Any]:
    """Return q(z|x,y), one for every row and for every label summed over, and p(z|y), None for an autoencoder."""
    q = vae.encode(x, y)
    rows = torch.Size([len(y), len(x)] if isinstance(vae, SemiSupervised) else [len(x)])
    if q.batch_shape != rows:
        q = q.expand(rows)
    return q, None if vae.prior is None else vae.prior_given(y)


def _score(vae: VAE, x: Tensor, y: Any, q: Any, p: Any, shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Draw z ~ q and return log p(x|z,y), log p(z|y) and log q(z|x,y)."""
    if q.has_rsample and (parameters := diagonal(q)) is not None:
        loc, scale = (t.expand(shape + q.batch_shape + q.event_shape) for t in parameters)
        # torch.normal and not randn_like: it is what rsample draws with.
        z = loc + scale * torch.normal(torch.zeros_like(loc), torch.ones_like(loc))
    else:
        q = q.expand(torch.Size(shape) + q.batch_shape) if shape else q
        z = q.rsample() if q.has_rsample else q.sample()
    log_p = torch.zeros_like(z[..., 0]) if p is None else log_likelihood(p, z)
    return log_likelihood(vae.decode(z, y), x), log_p, log_likelihood(q, z)


def _elbo(draws: _Draws, vae: VAE, x: Any, y: Any) -> Tensor:
    """The ELBO per datum, (N,), with −β KL by the formula where there is one."""
    formula = _gaussians(draws.q, draws.p)
    kl = draws.log_q - draws.log_p if formula is None else formula.sum(-1)
    value = draws.log_p_x - vae.beta * kl
    if not draws.reparameterised:
        # The score-function gradient.
        value = value + value.detach() * (draws.log_q - draws.log_q.detach())
    return (_sum_over_labels(vae, x, y, value) if isinstance(vae, SemiSupervised) else value).mean(0)


def _bound(log_w: Tensor, alpha: float) -> Tensor:
    """The Rényi bound of order α of log-weights (k, N)."""
    if alpha == 1:
        return log_w.mean(0)
    powers = (1 - alpha) * log_w
    largest = powers.detach().amax(0)
    return ((powers - largest).exp().mean(0).log() + largest) / (1 - alpha)


def _kl(draws: _Draws) -> Tensor:
    """The KL of every row: by a formula, ours or else torch's, or else of the draws."""
    if draws.p is None:
        return torch.zeros_like(draws.log_p)
    if (formula := _gaussians(draws.q, draws.p)) is not None:
        return formula.sum(-1)
    registered = _registered(draws.q, draws.p)
    return draws.log_q - draws.log_p if registered is None else registered


def _registered(q: Any, p: Any) -> Tensor | None:
    """The KL by the formula that torch or Pyro have, None where they have none."""
    try:
        return kl_divergence(q, p)
    except NotImplementedError:
        return None


def _kl_of_features(q: Any, p: Any) -> Tensor:
    """The KL feature by feature, (*, features), of two distributions that are independent over them."""
    formula = None
    if isinstance(q, Independent) and isinstance(p, Independent):
        formula = _gaussians(q, p)
        if formula is None and (registered := _registered(q.base_dist, p.base_dist)) is not None:
            formula = registered.flatten(-q.reinterpreted_batch_ndims)
    if formula is None:
        names = ("no prior" if d is None else type(getattr(d, "base_dist", d)).__name__ for d in (q, p))
        raise NoClosedFormError(
            f"KL({' ‖ '.join(names)}) has no closed form for every feature: use Capacity or Trace_ELBO"
        )
    return formula


def _gaussians(q: Any, p: Any) -> Tensor | None:
    """The KL feature by feature, (*, features), if both are diagonal Gaussians; zeros where there is no prior."""
    of_q, of_p = diagonal(q), None if p is None else diagonal(p)
    if p is None:
        return torch.zeros_like(q.mean)
    if of_q is None or of_p is None:
        return None
    # The sum over one feature is that feature's.
    return kl_gaussian(*(t.unsqueeze(-1) for t in (*of_q, *of_p)))


# Where labels are missing


def _every(vae: VAE, x: Tensor, y: Any) -> Any:
    """Y, or every label where they are summed over, (labels, 1)."""
    return torch.arange(vae.classify(x[:1]).logits.shape[-1])[:, None] if isinstance(vae, SemiSupervised) else y


def _sum_over_labels(vae: SemiSupervised, x: Any, y: Any, elbo: Tensor) -> Tensor:
    """The bound of rows of which some have no label (−1), (k, N), from the ELBO with every label, (k, labels, N)."""
    y, log_q = torch.as_tensor(y, device=elbo.device), vae.classify(x).logits.movedim(-1, 0)
    if vae.labels is None:
        log_p = torch.full_like(log_q, 1 / len(log_q)).log()
    else:
        log_p = torch.atleast_2d(vae.labels(None).logits).movedim(-1, 0)
    total = torch.zeros_like(elbo[:, 0])
    for label in range(len(log_q)):
        joint = elbo[:, label] + log_p[label]
        missing = log_q[label].exp() * (joint - log_q[label])
        known = torch.where(y == label, joint + vae.alpha * log_q[label], 0.0)
        total = total + torch.where(y < 0, missing, known)
    return total
