r"""An audit: is what SVI minimises the number that is written by hand?

.. math:: \hat\ell_{\text{SVI}} - \hat\ell_{\text{by hand}} = 0 \pm \text{rounding, or so many standard errors}

Loss and gradient of every objective are compared with :mod:`~ppl_vae.evaluation.references`, in double precision and
with the same noise on both sides. Most are then the same draw for draw, and what remains is rounding. The others, which
are the same in the mean, are tested on differences paired by their noise: the loss, and the gradient along some
directions. A random direction finds any error, but among the many parameters of a tensor it finds mostly noise. So a
few draws that are used for nothing else give two more: the mean difference, and the mean gradient by hand, which
mistakes in an estimator make longer or shorter.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.infer import ELBO, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor

from ..devices import check_gradients, seeded
from ..errors import NoClosedFormError, PartError, ShapeError, check_positive
from ..model import VAE
from ..model.checks import check_not_nan
from ..objectives import IWAE, STL, Analytic, Capacity, DReG, FreeBits, Renyi
from .measuring import Report, plain
from .pairs import HEAD, REFUSED, AuditRow, Pair

__all__ = ["Audit", "AuditRow", "audit", "library"]

# Draws: to find a direction, and how many times as many, of other noise, have to say it as well before something is
# called wrong.
_PILOT, _AGAIN = 10, 10
# Nats, which no draw's density should lose when it is asked for again.
_ROUNDED = 1e-3


@dataclass(frozen=True, repr=False)
class Audit(Report):
    """What :func:`audit` found: ``passed``, its ``rows``, ``line`` in short, ``str`` the table.

    Where it failed, ``note`` says so if the densities of the guide's draws are lost to rounding.
    """

    rows: tuple[AuditRow, ...]
    data: int
    particles: int
    note: str = ""

    @property
    def compared(self) -> list[AuditRow]:
        """The rows that compare something."""
        return [row for row in self.rows if row.value is not None]

    @property
    def passed(self) -> bool:
        """Whether there was something to compare, and every comparison agrees."""
        return bool(self.compared) and all(row.ok for row in self.compared)

    @property
    def line(self) -> str:
        """The result on one line, and what it leaves open."""
        wrong = [f"{row.objective} {row.what}" for row in self.compared if not row.ok]
        names = ", ".join(dict.fromkeys(row.objective for row in self.compared)) or "no objective"
        what = "loss" if {row.what for row in self.compared} == {"loss"} else "loss and gradient"
        found = f"wrong are {', '.join(wrong)}" if wrong else f"{what} of {names}"
        refused = [row.objective for row in self.rows if row.what == REFUSED]
        blind = [f"{row.objective} {row.what}" for row in self._blind]
        left_open = {REFUSED: refused, "too few draws to see an error as large as the number": blind}
        told = [found, *(f"{why}: {', '.join(rows)}" for why, rows in left_open.items() if rows)]
        return f"{self._verdict}: SVI against the same written by hand: {'; '.join(told)}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, for JSON; one that is not finite is None."""
        sizes = {"data": self.data, "particles": self.particles, "unit": "nats per datum"}
        return plain({"passed": self.passed, **sizes, "rows": [asdict(row) for row in self.rows], "note": self.note})

    def __str__(self) -> str:
        title = f"SVI against the same written by hand: {self.data} rows, {self.particles} draws, nats per datum"
        if self._blind:
            title += "; ?: too few draws to see an error as large as the number: take more particles"
        return "\n".join([title, HEAD, *map(str, self.rows), *filter(None, [self.note]), self._verdict])

    @property
    def _blind(self) -> list[AuditRow]:
        """The rows that agree, but would have done so with an error as large as the number."""
        return [row for row in self.compared if row.ok and row.blind]

    @property
    def _verdict(self) -> str:
        return f"audit: {'pass' if self.passed else 'FAIL'}"


@torch.enable_grad()
def audit(
    vae: VAE,
    x: Any,
    y: Any = None,
    *,
    objectives: Iterable[ELBO] | None = None,
    particles: int = 100,
    seed: int = 0,
    alpha: float = 1e-6,
    directions: int = 4,
) -> Audit:
    r"""Compare the loss and gradient of every objective with the same written by hand, on the same batch.

    Where both are the same draw for draw, they must agree to rounding: 1e-5 of the loss, and of the gradient of every
    parameter tensor. The others (an ELBO of which one side samples the KL and the other has a formula; the gradients of
    ``DReG`` and ``STL``) are t-tested in the mean over many draws, paired by their noise: the loss, the gradient of
    every tensor along random directions, and along its mean and the mean difference in a few other draws, and the whole
    gradient along its mean. The audit fails where :math:`|z|` passes the two-sided quantile at ``alpha`` divided by the
    number of all tests, and the difference is more than rounding; and does so again with ten times as many draws of
    other noise, which are then what the table shows. A gradient with a long tail to one side passes the limit too often
    where draws are few, and an error of the objective is all the clearer where they are many.

    An objective that refuses the model, as ``FreeBits`` does without a KL for every feature, is listed with its reason
    and fails nothing; but an audit that compares nothing does not pass. A sum over missing labels
    (:class:`~ppl_vae.SemiSupervised`) is audited as it is.

    Arguments:
        vae: the model; it and Pyro's param store are left as they were. Parameters that only a function knows of, which
            no ``nn.Module`` lists, are in the loss, but their gradient is not compared.
        x: (N, *x_shape), and y as elsewhere.
        objectives: which; by default all of the library, and those of Pyro's that they stand beside.
        particles: how many draws of the noise for the tests; 30 of them give the signal-to-noise ratio of the others.
        seed: of the noise; the caller's generators are left as they were.
        alpha: the chance of a false alarm.
        directions: how many random ones for each parameter tensor.

    Returns:
        An :class:`Audit`.

    Raises:
        ConfigError: for an objective that has no reference; inside ``torch.inference_mode()``.

    Example:
        >>> audit(pv.vae((4,), 2, likelihood="Gaussian"), torch.zeros(8, 4), particles=20).passed
        True
    """
    from scipy.stats import t as student  # importing it takes a second that only an audit should pay

    check_gradients("audit")
    check_positive(particles=particles, directions=directions)
    check_not_nan(vae, "audit")
    vae.check_training(x, y)
    with seeded(seed, vae._beta.device):
        vae = _in_double_precision(vae, x, y)
        chosen = library() if objectives is None else [copy.deepcopy(objective) for objective in objectives]
        try:
            pairs, particles = [Pair(objective, vae, x, y) for objective in chosen], max(2, particles)
            tests = sum(pair.tests(directions) for pair in pairs)
            limit = float(student.isf(alpha / (2 * max(1, tests)), particles - 1))
            numbers = min(_PILOT, particles), particles, _AGAIN * particles
            pilot, *seeds = (torch.randint(2**62, (n,)).tolist() for n in numbers)
            random = {k: torch.randn(directions, p.numel()).to(p) for k, p in vae.named_parameters() if p.requires_grad}
            # A pair has run once, with every check.
            rows = [row for pair in pairs for row in pair.rows(pilot, seeds, random, limit)]
            note = "" if all(row.ok for row in rows) else _rounded_away(vae, x, y)
        finally:
            vae.unregister()
    return Audit(tuple(rows), len(x), particles, note)


def library() -> list[ELBO]:
    """Return every objective there is. A Capacity of this γ leaves the other term to be seen beside it.

    Example:
        >>> STL in map(type, library())
        True
    """
    return [
        Trace_ELBO(),
        TraceMeanField_ELBO(),
        Analytic(),
        IWAE(3),
        Renyi(0.5, 3),
        RenyiELBO(alpha=0.5, num_particles=3, vectorize_particles=True, max_plate_nesting=1),
        DReG(3),
        STL(),
        FreeBits(0.5),
        Capacity(25.0, gamma=1.0, fallback="sample"),
    ]


@torch.no_grad()
def _rounded_away(vae: VAE, x: Any, y: Any) -> str:
    """How far log q of the guide's draws is from log q of the same numbers, if that is more than rounding.

    A flow keeps the density of what it has drawn; of a tensor that it does not know it has to find the way back.
    """
    for name, site in poutine.trace(vae.guide).get_trace(x, y).nodes.items():
        if site["type"] == "sample" and isinstance(z := site["value"], Tensor) and hasattr(site["fn"], "log_prob"):
            apart = (site["fn"].log_prob(z) - site["fn"].log_prob(z.clone())).abs().max().item()
            if not apart < _ROUNDED:
                precision = str(z.dtype).removeprefix("torch.")
                return (
                    f"log q({name}) of draws is up to {apart:.2g} nats from log q of the same numbers: the guide is "
                    f"too steep for {precision}, and where a density is asked for anew, as DReG and STL do, it is lost "
                    "to rounding"
                )
    return ""


def _in_double_precision(vae: VAE, x: Any, y: Any) -> VAE:
    """Return a copy of the model in which rounding is far below what is looked for, if its parts can do that.

    It runs for the first time here: what no objective can use raises, and is not taken for an objective's refusal.
    """
    wide = copy.deepcopy(vae).eval().double()
    try:
        Trace_ELBO().loss(wide.model, wide.guide, x, y)
        # What one draw lets pass by promotion, several may not.
        with contextlib.suppress(PartError, NoClosedFormError):
            IWAE(2).loss(wide.model, wide.guide, x, y)
    except (RuntimeError, ShapeError):
        # A part has single-precision parameters that no module knows of. Or it fails, and will again.
        return copy.deepcopy(vae).eval()
    finally:
        wide.unregister()
    return wide
