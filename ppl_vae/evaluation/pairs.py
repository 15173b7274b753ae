r"""An objective and the same written by hand, on one batch: loss and gradient of both, with the same noise.

.. math:: d_s = \hat\ell_{\text{SVI}}(\varepsilon_s) - \hat\ell_{\text{by hand}}(\varepsilon_s), \qquad
    z = \sqrt S\, \bar d / \mathrm{sd}(d)

Where both are the same draw for draw, d is rounding; else z is that of a t-test.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro.infer import ELBO, RenyiELBO
from torch import Tensor

from ..devices import seed_all
from ..errors import NoClosedFormError, PartError
from ..model import VAE
from ..objectives import Capacity
from .measuring import Report
from .references import draw_for_draw, loss_by_hand

__all__ = ["HEAD", "REFUSED", "AuditRow", "Pair"]

# What stands in the place of loss and gradient where an objective is not for this model.
REFUSED = "not for this model"
# Two ways to one number may differ by so much of its size; in single precision, weights have that of a large log w.
_ROUNDING, _ROUNDING_SINGLE = 1e-5, 1e-3
# Draws: to see that two losses are the same draw for draw, and to know a signal-to-noise ratio.
_DRAWS, _ENOUGH = 3, 30
# How far beyond the limit an error lies that is seen with a probability of 99%.
_POWER = 2.33
_TINY = 1e-300


@dataclass(frozen=True, repr=False)
class AuditRow(Report):
    """A comparison: the loss of an objective, or its gradient, with the same written by hand.

    Relative is to the size of the reference; over many draws, to its root mean square, for a gradient along its mean.

    Attributes:
        objective: its name and options.
        what: ``"loss"``, ``"gradient"``, or ``"not for this model"``.
        value: the mean loss, in nats per datum; the norm of the mean gradient; None where there is nothing to compare.
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

    @property
    def blind(self) -> bool:
        """Whether draws were too few for an error as large as the number itself to be seen."""
        return self.sees is not None and not self.sees < 1

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
        verdict = "FAIL" if not self.ok else "?" if self.blind else "ok"
        name = f"{verdict:4s}  {self.objective:{_NAME}s} {self.what:8s}"
        return f"{name} {' '.join(numbers)}{where}".rstrip()


_NAME = 30
HEAD = (
    f"{'':6s}{'':{_NAME}s} {'':8s} {'value':>12s} {'difference':>11s} {'z':>8s} {'limit':>8s} {'sees':>8s} {'SNR':>8s}"
)


class Pair:
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
            return [AuditRow(self.name, REFUSED, note=self.refusal)]
        if all(self.same):
            ours, tested = Draws.of(self, self.program, seeds[0][:_ENOUGH], {}), list[AuditRow]()
        else:
            wrong, right = (Draws.of(self, run, pilot, {}).mean for run in (self.program, self.by_hand))
            along = {k: torch.cat([u, (wrong[k] - right[k])[None], right[k][None]]) for k, u in random.items()}
            ours, tested = self._compared(seeds[0], along, limit)
            if not all(row.ok for row in tested):
                # What is found at all is what the first draws see.
                sees = [row.sees for row in tested]
                ours, tested = self._compared(seeds[1], along, limit)
                tested = [replace(row, sees=of_first) for row, of_first in zip(tested, sees, strict=True)]
        equal = self._equal(seeds[0][:_DRAWS]) if any(self.same) else tested
        loss, gradient = (rows[i] for i, rows in enumerate(equal if same else tested for same in self.same))
        loss = replace(loss, value=ours.loss)
        if not self.trained:
            return [loss, AuditRow(self.name, "gradient", note="no parameter of a module is to be trained")]
        return [loss, replace(gradient, value=ours.norm, snr=ours.snr)]

    def _compared(self, seeds: list[int], along: dict[str, Tensor], limit: float) -> tuple[Draws, list[AuditRow]]:
        ours, theirs = (Draws.of(self, run, seeds, along) for run in (self.program, self.by_hand))
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
class Draws:
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
    def of(cls, pair: Pair, run: Callable[[], float], seeds: list[int], along: dict[str, Tensor]) -> Draws:
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
