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
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from pyro.infer import ELBO, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor

from ..devices import seed_all, seeded
from ..errors import NoClosedFormError, PartError, ShapeError, check_positive
from ..model import VAE
from ..objectives import IWAE, STL, Analytic, Capacity, DReG, FreeBits, Renyi
from .measuring import Report, plain
from .references import draw_for_draw, loss_by_hand

__all__ = ["Audit", "AuditRow", "audit"]

# Two ways to one number may differ by so much of its size; in single precision, weights have that of a large log w.
_ROUNDING, _ROUNDING_SINGLE = 1e-5, 1e-3
# Draws: to see that two losses are the same draw for draw, to find a direction, and to know a signal-to-noise ratio.
_DRAWS, _PILOT, _ENOUGH = 3, 10, 30
# How many times as many draws, of other noise, have to say it as well before something is called wrong.
_AGAIN = 10
# How far beyond the limit an error lies that is seen with a probability of 99%.
_POWER = 2.33
_TINY = 1e-300


@dataclass(frozen=True, repr=False)
class AuditRow(Report):
    """A comparison: the loss of an objective, or its gradient, with the same written by hand.

    Relative is to the size of the reference; over many draws, to its root mean square, for a gradient along its mean.

    Attributes:
        objective: its name and options.
        what: ``"loss"``, ``"gradient"``, or ``"not for this model"`` where there is nothing to compare.
        value: the mean loss, in nats per datum; the norm of the mean gradient.
        difference: the relative difference: the largest of a few draws, or where there is a ``z``, that of the means.
        z: the difference in standard errors, the largest of all directions; None where it is rounding alone.
        limit: of ``|z|``; where there is none, of the difference.
        sees: the relative error of the loss, or of the gradient of any tensor, that is found with a probability of 99%.
        snr: the gradient's signal-to-noise ratio in one draw, ‖E g‖ / √tr Cov g, over the parameters of the encoder, on
            whose noise estimators differ; over all where the encoder has none of its own.
        draws: of the noise, where there is a ``z``; ten times as many where the first had called it wrong, of which
            ``sees`` still speaks.
        ok: whether the row passes.
        note: the tensor with the largest difference; or why there is nothing to compare.
    """

    objective: str
    what: str
    value: float | None = None
    difference: float | None = None
    z: float | None = None
    limit: float | None = None
    sees: float | None = None
    snr: float | None = None
    draws: int | None = None
    ok: bool = True
    note: str = ""

    def __str__(self) -> str:
        if self.value is None:
            return f"–     {self.objective}: {self.what}: {self.note}"
        numbers = (
            f"{self.value:12.4f}",
            f"{self.difference:+11.1e}",
            f"{'':8s}" if self.z is None else f"{self.z:+8.3g}",
            f"{self.limit:8.0e}" if self.z is None else f"{self.limit:8.2f}",
            f"{self.sees:8.0e}",
            f"{'':8s}" if self.snr is None else f"{self.snr:8.2f}",
        )
        again = "" if self.ok or self.draws is None else f", of {self.draws} draws"
        where = "" if self.ok or not self.note else f"  in {self.note}{again}"
        name = f"{'ok' if self.ok else 'FAIL':4s}  {self.objective:{_NAME}s} {self.what:8s}"
        return f"{name} {' '.join(numbers)}{where}".rstrip()


_NAME = 30
_HEAD = (
    f"{'':6s}{'':{_NAME}s} {'':8s} {'value':>12s} {'difference':>11s} {'z':>8s} {'limit':>8s} {'sees':>8s} {'SNR':>8s}"
)


@dataclass(frozen=True, repr=False)
class Audit(Report):
    """What :func:`audit` found: ``passed``, its ``rows``, ``line`` in short, ``str`` the table."""

    rows: tuple[AuditRow, ...]
    data: int
    particles: int

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
        """The result on one line."""
        wrong = [f"{row.objective} {row.what}" for row in self.compared if not row.ok]
        names = ", ".join(dict.fromkeys(row.objective for row in self.compared)) or "no objective"
        found = f"wrong are {', '.join(wrong)}" if wrong else f"loss and gradient of {names}"
        return f"{self._verdict}: SVI against the same written by hand: {found}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, for JSON; one that is not finite is None."""
        sizes = {"data": self.data, "particles": self.particles, "unit": "nats per datum"}
        return plain({"passed": self.passed, **sizes, "rows": [asdict(row) for row in self.rows]})

    def __str__(self) -> str:
        title = f"SVI against the same written by hand: {self.data} rows, {self.particles} draws, nats per datum"
        return "\n".join([title, _HEAD, *map(str, self.rows), self._verdict])

    @property
    def _verdict(self) -> str:
        return f"audit: {'pass' if self.passed else 'FAIL'}"


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
        ConfigError: for an objective that has no reference.

    Example:
        >>> audit(pv.vae((4,), 2, likelihood="Gaussian"), torch.zeros(8, 4), particles=20).passed
        True
    """
    from scipy.stats import t as student  # importing it takes a second that only an audit should pay

    check_positive(particles=particles, directions=directions)
    vae.check_training(x, y)
    with seeded(seed, vae._beta.device):
        vae = _in_double_precision(vae, x, y)
        chosen = _library() if objectives is None else [copy.deepcopy(objective) for objective in objectives]
        try:
            pairs, particles = [_Pair(objective, vae, x, y) for objective in chosen], max(2, particles)
            tests = sum(pair.tests(directions) for pair in pairs)
            limit = float(student.isf(alpha / (2 * max(1, tests)), particles - 1))
            numbers = min(_PILOT, particles), particles, _AGAIN * particles
            pilot, *seeds = (torch.randint(2**62, (n,)).tolist() for n in numbers)
            random = {k: torch.randn(directions, p.numel()).to(p) for k, p in vae.named_parameters() if p.requires_grad}
            # A pair has run once, with every check.
            rows = [row for pair in pairs for row in pair.rows(pilot, seeds, random, limit)]
        finally:
            vae.unregister()
    return Audit(tuple(rows), len(x), particles)


def _library() -> list[ELBO]:
    """Every objective there is. A Capacity of this γ leaves the other term to be seen beside it."""
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


def _name(objective: ELBO) -> str:
    """Its class, with the options that make it another objective."""
    options = [
        f"{name}={vars(objective)[name]:g}"
        for name in ("alpha", "nats", "capacity", "gamma")
        if name in vars(objective)
    ]
    k = [f"k={objective.num_particles}"] if objective.num_particles > 1 else []
    told = ", ".join(options + k)
    return type(objective).__name__ + (f"({told})" if told else "")


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


class _Pair:
    """An objective on a batch, and the same by hand."""

    def __init__(self, objective: ELBO, vae: VAE, x: Any, y: Any) -> None:
        self.objective, self.vae, self.x, self.y = objective, vae, x, y
        self.name, self.refusal = _name(objective), ""
        self.trained = {name: p for name, p in vae.named_parameters() if p.requires_grad}
        # Of loss and gradient, whether they are the same draw for draw.
        self.same = True, True
        if isinstance(objective, Capacity) and objective.epochs is not None:
            objective.begin_epoch(objective.epochs)
        try:
            self.by_hand()
            self.program()
        except (PartError, NoClosedFormError, NotImplementedError) as error:
            self.refusal = " ".join(str(error).split()) or type(error).__name__
        else:
            loss, gradient = draw_for_draw(objective, vae, x, y)
            self.same = loss, gradient or not self.trained

    def tests(self, directions: int) -> int:
        """Return how many t-tests this will take."""
        return (not self.same[0]) + (not self.same[1]) * (len(self.trained) * (directions + 2) + 1)

    def program(self) -> float:
        """Return the objective's loss per datum, and leave its gradient with the parameters."""
        self.vae.zero_grad()
        programs = self.vae.model, self.vae.guide
        if not isinstance(self.objective, RenyiELBO):
            return float(self.objective.loss_and_grads(*programs, self.x, self.y, total=1.0))
        # Pyro's has the scale of a program in the exponent.
        loss = self.objective.loss_and_grads(*programs, self.x, self.y)
        for p in self.vae.parameters():
            if p.grad is not None:
                p.grad /= len(self.x)
        return float(loss) / len(self.x)

    def by_hand(self) -> float:
        """As :meth:`program`, of the reference."""
        self.vae.zero_grad()
        loss = loss_by_hand(self.objective, self.vae, self.x, self.y)
        if loss.requires_grad:
            loss.backward()
        return loss.item()

    def draw(self, run: Callable[[], float], seed: int) -> tuple[float, dict[str, Tensor]]:
        """Return loss and gradient of one side with this noise."""
        seed_all(seed, self.vae._beta.device)
        loss = run()
        return loss, {k: torch.zeros_like(p) if p.grad is None else p.grad for k, p in self.trained.items()}

    def rows(self, pilot: list[int], seeds: list[list[int]], random: dict[str, Tensor], limit: float) -> list[AuditRow]:
        """Compare the two with the first seeds, and if they differ with the next."""
        if self.refusal:
            return [AuditRow(self.name, "not for this model", note=self.refusal)]
        if all(self.same):
            ours, tested = _Draws.of(self, self.program, seeds[0][:_ENOUGH], {}), list[AuditRow]()
        else:
            wrong, right = (_Draws.of(self, run, pilot, {}).mean for run in (self.program, self.by_hand))
            along = {k: torch.cat([u, (wrong[k] - right[k])[None], right[k][None]]) for k, u in random.items()}
            ours, tested = self._compared(seeds[0], along, limit)
            if not all(row.ok for row in tested):
                # What is found at all is what the first draws see.
                sees = [row.sees for row in tested]
                ours, tested = self._compared(seeds[1], along, limit)
                tested = [replace(row, sees=of_first) for row, of_first in zip(tested, sees, strict=True)]
        equal = self._equal(seeds[0][:_DRAWS]) if any(self.same) else tested
        loss, gradient = (rows[i] for i, rows in enumerate(equal if same else tested for same in self.same))
        return [replace(loss, value=ours.loss), replace(gradient, value=ours.norm, snr=ours.snr)]

    def _compared(self, seeds: list[int], along: dict[str, Tensor], limit: float) -> tuple[_Draws, list[AuditRow]]:
        ours, theirs = (_Draws.of(self, run, seeds, along) for run in (self.program, self.by_hand))
        return ours, self._tested(ours.found, theirs.found, limit)

    @property
    def _rounding(self) -> float:
        return _ROUNDING if self.vae._beta.dtype == torch.float64 else _ROUNDING_SINGLE

    def _equal(self, seeds: list[int]) -> list[AuditRow]:
        """Loss and gradient with the same noise: the largest difference of some draws."""
        losses, gradients = [], []
        for seed in seeds:
            # The second side clears the gradients of the first.
            loss, gradient = self.draw(self.program, seed)
            expected, by_hand = self.draw(self.by_hand, seed)
            losses.append((abs(loss - expected) / max(abs(expected), _TINY), ""))
            norms = {k: g.norm().item() for k, g in by_hand.items()}
            # What is all rounding, a bias before a normalisation say, is held against the whole.
            least = max(1e-3 * math.hypot(*norms.values()), _TINY)
            gradients += [((gradient[k] - g).norm().item() / max(norms[k], least), k) for k, g in by_hand.items()]
        rows = []
        for what, found in (("loss", losses), ("gradient", gradients)):
            largest = max(found, key=lambda pair: math.inf if math.isnan(pair[0]) else pair[0], default=(0.0, ""))
            difference, tensor = largest
            ok = difference <= self._rounding
            limits: dict[str, Any] = {"limit": self._rounding, "sees": self._rounding}
            rows.append(AuditRow(self.name, what, difference=difference, ok=ok, note=tensor, **limits))
        return rows

    def _tested(self, ours: Tensor, theirs: Tensor, limit: float) -> list[AuditRow]:
        """Loss and gradient in the mean."""
        mean, error = (ours - theirs).mean(0), (ours - theirs).std(0) / math.sqrt(len(ours))
        size = theirs.square().mean(0).sqrt().clamp(min=_TINY)
        # A NaN is more than rounding: it must not pass as equal.
        z = torch.where(mean.abs() <= self._rounding * size, 0.0, mean / error)
        sees = ((limit + _POWER) * error / size).clamp(min=self._rounding)
        per_tensor = (len(z) - 2) // max(1, len(self.trained))
        names = ["", *(k for k in self.trained for _ in range(per_tensor)), "all tensors together"]
        # The last direction of every tensor is its mean's.
        columns = [
            ("loss", range(1), 0, [0]),
            ("gradient", range(1, len(z)), -1, range(per_tensor, len(z) - 1, per_tensor)),
        ]
        rows = []
        for what, tested, whole, means in columns if self.trained else columns[:1]:
            i = max(tested, key=lambda i: math.inf if z[i].isnan() else z[i].abs().item())
            numbers: dict[str, Any] = {
                "difference": (mean / size)[whole].item(),
                "z": z[i].item(),
                "sees": sees[means].max().item(),
            }
            rows.append(
                AuditRow(
                    self.name,
                    what,
                    limit=limit,
                    draws=len(ours),
                    ok=bool(z[i].abs() <= limit),
                    note=names[i],
                    **numbers,
                )
            )
        return rows


@dataclass
class _Draws:
    """What one side gives over many draws of the noise.

    ``found`` is (draws, columns): the loss, the gradient of every tensor along its directions, and the whole gradient
    along the last of them.
    """

    found: Tensor
    loss: float
    mean: dict[str, Tensor]
    norm: float
    snr: float

    @classmethod
    def of(cls, pair: _Pair, run: Callable[[], float], seeds: list[int], along: dict[str, Tensor]) -> _Draws:
        """Draw with these seeds."""
        found, squares = [], dict.fromkeys(pair.trained, 0.0)
        total = {k: torch.zeros_like(p, dtype=torch.float64) for k, p in pair.trained.items()}
        for seed in seeds:
            loss, gradient = pair.draw(run, seed)
            projected = [(u @ gradient[k].flatten()).double().cpu() for k, u in along.items()]
            whole = [torch.stack([p[-1] for p in projected]).sum(0, keepdim=True)] if projected else []
            found.append(torch.cat([torch.tensor([loss], dtype=torch.float64), *projected, *whole]))
            for k, g in gradient.items():
                total[k] += g
                squares[k] += g.double().square().sum().item()
        n = len(seeds)
        mean = {k: (t / n).to(pair.trained[k]).flatten() for k, t in total.items()}
        means = {k: (t / n).square().sum().item() for k, t in total.items()}
        chosen = [k for k in means if k.startswith("encoder.")] or list(means)
        power = sum(means[k] for k in chosen)
        variance = (sum(squares[k] for k in chosen) - n * power) / (n - 1)
        # The mean of n draws has noise of its own.
        signal = math.sqrt(max(0.0, power - variance / n))
        snr = signal / math.sqrt(variance) if variance > 0 else math.inf if signal else math.nan
        columns = torch.stack(found)
        return cls(columns, columns[:, 0].mean().item(), mean, math.sqrt(sum(means.values())), snr)
