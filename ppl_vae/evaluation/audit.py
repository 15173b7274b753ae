r"""An audit: is what SVI minimises the number that is written by hand?

.. math:: \hat\ell_{\text{SVI}} - \hat\ell_{\text{by hand}} = 0 \pm \text{rounding, or so many standard errors}
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro.infer import ELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor

from ..devices import seed_all, seeded
from ..errors import NoClosedFormError, PartError
from ..model import VAE
from ..objectives import analytic_elbo
from ..parts import check_positive
from ..semisupervised import SemiSupervised

__all__ = ["Audit", "audit"]

# Two ways to one number may differ by rounding: by so much of its size, and no more, in float32.
_ROUNDING = 1e-5


@dataclass
class Audit:
    """What :func:`audit` found: ``passed``, its ``rows``, ``line`` in short, ``str`` the table."""

    rows: list[tuple[str, str, bool]] = field(default_factory=list)
    reference: str = "the hand-written loss"

    @property
    def passed(self) -> bool:
        """Whether every comparison agrees."""
        return all(ok for *_, ok in self.rows)

    @property
    def line(self) -> str:
        """The result on one line."""
        found = "; ".join(f"{name}: {value}" for name, value, _ in self.rows)
        return f"audit: {'pass' if self.passed else 'FAIL'}: SVI against {self.reference}: {found}"

    def __str__(self) -> str:
        lines = [f"SVI against {self.reference}, nats per datum"]
        lines += [f"  {'ok  ' if ok else 'FAIL'}  {name:28s} {value}" for name, value, ok in self.rows]
        return "\n".join([*lines, f"audit: {'pass' if self.passed else 'FAIL'}"])


def audit(
    vae: VAE,
    x: Any,
    y: Any = None,
    *,
    particles: int = 200,
    seed: int = 0,
    alpha: float = 1e-6,
    directions: int = 4,
) -> Audit:
    r"""Compare the loss and gradient that SVI uses with the loss written by hand, on the same batch.

    ``TraceMeanField_ELBO`` must agree to rounding, 1e-5 of the size. ``Trace_ELBO`` samples the KL, so it is compared
    in the mean over many particles, with the same noise on both sides: a t-test of the loss, and one of the gradient of
    every parameter tensor along random directions. The audit fails where :math:`|z|` passes the two-sided quantile at
    ``alpha`` divided by the number of tests, and the difference is more than rounding.

    Where the KL has no closed form, it says so, and the reference is the ELBO sampled with the parts' own ``log_prob``,
    no Pyro program involved, from the same noise.

    Arguments:
        vae: the model; it and Pyro's param store are left as they were.
        x: (N, *x_shape), and y as elsewhere.
        particles: how many draws of the noise.
        seed: of the noise; the caller's generators are left as they were.
        alpha: the chance of a false alarm.
        directions: how many for each parameter tensor.

    Returns:
        An :class:`Audit`.

    Example:
        >>> audit(pv.vae((4,), 2, likelihood="Gaussian"), torch.zeros(8, 4), particles=20).passed
        True
    """
    check_positive(particles=particles, directions=directions)
    if isinstance(vae, SemiSupervised):
        raise PartError(
            "audit: expected one program for a row, got a SemiSupervised, whose loss is a sum over labels: audit "
            "VAE(vae.prior, vae.likelihood, vae.encoder, vae.condition), which has the same parts"
        )
    vae.check(x, y)
    vae = copy.deepcopy(vae).eval()
    with seeded(seed, vae._beta.device):
        try:
            analytic_elbo(vae, x, y)
            closed = True
        except NoClosedFormError:
            closed = False

        def stock(elbo: ELBO) -> float:
            return float(elbo.loss_and_grads(vae.model, vae.guide, x, y, total=1.0))

        def reference() -> float:
            values = analytic_elbo(vae, x, y, beta=vae.beta) if closed else _sampled_elbo(vae, x, y)
            loss = -values.mean()
            loss.backward()
            return loss.item()

        try:
            sampled = f"the mean of {particles} ELBOs sampled from the parts alone (no closed-form KL)"
            result = Audit(reference="the hand-written loss" if closed else sampled)
            result.rows += _compare_sampled(vae, lambda: stock(Trace_ELBO()), reference, particles, alpha, directions)
            if closed:
                result.rows += _compare_exact(vae, lambda: stock(TraceMeanField_ELBO()), reference, seed)
        finally:
            vae.unregister()
    return result


def _sampled_elbo(vae: VAE, x: Any, y: Any) -> Tensor:
    """The ELBO per datum at the model's β, from the parts alone."""
    q = vae.encode(x, y)
    z = q.rsample()
    kl = q.log_prob(z) - vae.prior_given(y).log_prob(z)
    return vae.decode(z, y).log_prob(torch.as_tensor(x).to(z)) - vae.beta * kl


def _gradients(vae: VAE, loss: Callable[[], float], seed: int) -> tuple[float, dict[str, Tensor]]:
    """The loss with this seed, and the gradient of every parameter."""
    vae.zero_grad()
    seed_all(seed, vae._beta.device)
    value = loss()
    parameters = {name: p for name, p in vae.named_parameters() if p.requires_grad}
    return value, {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in parameters.items()}


def _compare_exact(vae: VAE, stock: Any, reference: Any, seed: int) -> list[tuple[str, str, bool]]:
    """Two losses that should differ by rounding alone, from the same noise."""
    (loss, gradient), (loss_by_hand, by_hand) = (_gradients(vae, run, seed) for run in (stock, reference))
    whole = math.sqrt(sum(g.double().square().sum().item() for g in by_hand.values()))
    difference = math.sqrt(sum((gradient[k] - g).double().square().sum().item() for k, g in by_hand.items()))
    relative = abs(loss - loss_by_hand) / max(abs(loss_by_hand), 1e-30), difference / max(whole, 1e-30)
    names = "TraceMeanField_ELBO loss", "TraceMeanField_ELBO gradient"
    return [(name, f"relative difference {r:.1e}", r <= _ROUNDING) for name, r in zip(names, relative, strict=True)]


def _compare_sampled(
    vae: VAE, stock: Any, reference: Any, particles: int, alpha: float, directions: int
) -> list[tuple[str, str, bool]]:
    """Two losses that should agree in the mean: the loss itself, and every tensor's gradient along some directions."""
    from scipy.stats import t as student  # importing it takes a second that only an audit should pay

    particles = max(2, particles)
    probes = {k: torch.randn(directions, *p.shape).to(p) for k, p in vae.named_parameters() if p.requires_grad}
    seeds = torch.randint(2**62, (particles,)).tolist()

    def replicate(run: Callable[[], float]) -> Tensor:
        rows = []
        for seed in seeds:
            loss, gradients = _gradients(vae, run, seed)
            along = [(probes[k] * g).reshape(directions, -1).double().sum(1).cpu() for k, g in gradients.items()]
            rows.append(torch.cat([torch.tensor([loss], dtype=torch.float64), *along]))
        return torch.stack(rows)

    ours, theirs = replicate(stock), replicate(reference)
    mean, error = (ours - theirs).mean(0), (ours - theirs).std(0) / math.sqrt(particles)
    # How large each quantity is: the loss, and for a tensor the root mean square along its directions.
    size = theirs.square().mean(0).sqrt()
    size[1:] = size[1:].unflatten(0, (-1, directions)).square().mean(1).sqrt().repeat_interleave(directions)
    # A NaN is more than rounding: it must not pass as equal.
    rounding = mean.abs() <= _ROUNDING * size
    z = torch.where(rounding, 0.0, mean / error.clamp(min=1e-300))
    limit = float(student.isf(alpha / (2 * len(z)), particles - 1))
    loss = (
        f"difference {mean[0]:+.1e} ± {error[0]:.1e} of {theirs[:, 0].mean():.3f}, z = {z[0]:+.2f} (limit {limit:.2f})"
    )
    largest = z[1:].abs().max().item()
    gradient = f"largest |z| = {largest:.2f} of {len(z) - 1} projections (limit {limit:.2f})"
    return [
        ("Trace_ELBO loss", loss, abs(z[0].item()) <= limit),
        ("Trace_ELBO gradient", gradient, largest <= limit),
    ]
