r"""How probable is a datum? log p(x | y) of each by importance sampling, and how far that number is to be trusted.

.. math:: \hat p = \frac1S \sum_{s=1}^S w_s, \qquad
    w_s = \frac{p(z_s \mid y)\, p(x \mid z_s, y)}{r(z_s)}, \qquad z_s \sim r

:math:`\hat p` is unbiased, so :math:`\log \hat p` is below log p(x | y) in the mean, by about half its variance. Beside
it stand

.. math:: \mathrm{ESS} = \frac{(\sum_s w_s)^2}{\sum_s w_s^2}, \qquad
    \mathrm{se}(\log \hat p)^2 \approx \frac{S}{S - 1} \Bigl(\frac1{\mathrm{ESS}} - \frac1S\Bigr)

and k̂ of :mod:`~ppl_vae.evaluation.pareto`, which tells whether these two mean anything. Weights are not kept: four
sums go on while they stream by, thousands at a time.

Reference:
    Importance Weighted Autoencoders (Burda, Grosse and Salakhutdinov, 2016)
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..capture import CaptureWarning, TwoStages
from ..devices import cuda_devices, mixed
from ..errors import CaptureError, NonFiniteError, check_positive, known
from ..model import VAE, Proposal
from ..model.checks import check_not_nan, check_precision
from .measuring import GREY, SEEN, Report, mean_and_error, measuring, plain, share
from .pareto import good_below, pareto_k, tail_length

__all__ = ["LogLikelihood", "log_likelihood"]

Backend = Literal["auto", "off", "graph", "inductor"]

# Rows whose samples are drawn side by side. Few, as each then has many samples a chunk.
_ROWS = 64
# How many weights are summed at a time, or more.
_TOGETHER = 2**16
# How many decoded numbers it takes until a recording, and a compilation, has paid for itself.
_WORTH_RECORDING, _WORTH_COMPILING = {"cpu": 2e8, "cuda": 2e10}, {"cpu": 4e9, "cuda": 4e12}


@dataclass(frozen=True, repr=False)
class LogLikelihood(Report):
    """Estimates of log p(x | y), a row each, in nats; ``str`` makes the table.

    Attributes:
        values: (N,), log p̂.
        standard_error: (N,), of each by its weights' spread; NaN for one sample.
        ess: (N,), how many equally good samples the weights are worth, of ``samples``.
        pareto_k: (N,), k̂; NaN for samples too few to have a tail, 20 or fewer, and where all weights are zero.
        samples: how many each is the mean of.
        curve: (points, N), the same after the first 1, 2, 5, 10, ... samples.
        points: after how many.
        proposal: where z was drawn from.
        bits: of a dimension, what a nat of a row is worth, where a dimension is one of 256 levels; else None.
        density: whether p is one.
        seen: the share of the pixels that are seen, of which alone this is the likelihood; None without a mask.
    """

    values: Tensor
    standard_error: Tensor
    ess: Tensor
    pareto_k: Tensor
    samples: int
    curve: Tensor
    points: tuple[int, ...]
    proposal: str = "encoder"
    bits: float | None = None
    density: bool = True
    seen: float | None = None

    @property
    def mean(self) -> float:
        """Of log p̂ over rows."""
        return self.values.mean().item()

    @property
    def error(self) -> float:
        """The standard error of :attr:`mean` over rows: how well so few rows tell what others would give."""
        return mean_and_error(self.values)[1]

    @property
    def monte_carlo_error(self) -> float:
        """What of it comes from the draws of z: the standard error with these very rows."""
        return self.standard_error.square().sum().sqrt().item() / len(self.values)

    @property
    def good(self) -> Tensor:
        """(N,), whether k̂ < min(1 − 1/log₁₀ S, 0.7)."""
        return self.pareto_k < good_below(self.samples)

    def warning(self) -> str | None:
        """Return what is to stand beside the number, or None where there is nothing to say against it."""
        if self.good.all():
            return None
        if tail_length(self.samples) < 5:
            return f"{self.samples} samples are too few to tell whether they are enough: take 25 or more"
        limit, unknown = good_below(self.samples), int(self.pareto_k.isnan().sum())
        told = [f"≥ {limit:.2f} for {heavy}"] if (heavy := int((self.pareto_k >= limit).sum())) else []
        told += [f"not known for {unknown}"] if unknown else []
        return (
            f"k̂ {' and '.join(told)} of {len(self.good)} rows: a few draws decide their log p, which may be far too "
            "low; take more samples, or another proposal"
        )

    def __str__(self) -> str:
        of = {"encoder": "q(z|x,y)", "prior": "p(z|y)"}.get(self.proposal, self.proposal)
        k = self.pareto_k
        lines = [
            f"{f'{len(self.values)} rows, {self.samples} samples of {of} each':40s} {'mean':>10s} {'std. error':>11s}",
            f"{'−log p(x|y), nats':40s} {-self.mean:10.3f} {self.error:11.3f}",
        ]
        if self.bits is not None:
            lines.append(
                f"{'the same in bits per dimension':40s} {-self.bits * self.mean:10.4f} {self.bits * self.error:11.4f}"
            )
        lines.append(f"{'  of the error, from sampling':40s} {'':10s} {self.monte_carlo_error:11.4f}")
        lines.append(f"{'effective samples: median, least':40s} {self.ess.median():10.1f} {self.ess.min():11.1f}")
        lines.append(f"{'Pareto k̂: median, largest':40s} {k.median():10.2f} {k.max():11.2f}")
        steps = [f"{n}: {-row.mean():.3f}" for n, row in zip(self.points, self.curve, strict=True)]
        lines.append("by number of samples  " + "  ".join(steps))
        if self.seen is not None:
            lines.append(SEEN.format(self.seen))
        if not self.density:
            lines.append(GREY)
        return "\n".join(lines if (warning := self.warning()) is None else [*lines, f"warning: {warning}"])

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, for JSON; rows are summed up."""
        return plain(
            {
                "rows": len(self.values),
                "samples": self.samples,
                "proposal": self.proposal,
                "density": self.density,
                "seen": self.seen,
                "unit": "nats per datum",
                "log_prob": {
                    "mean": self.mean,
                    "standard_error": self.error,
                    "monte_carlo_error": self.monte_carlo_error,
                },
                "bits_per_dim": None if self.bits is None else -self.bits * self.mean,
                "ess": {"median": self.ess.median().item(), "least": self.ess.min().item()},
                "pareto_k": {"median": self.pareto_k.median(), "largest": self.pareto_k.max()},
                "rows_not_to_be_trusted": int((~self.good).sum()),
                "curve": {str(n): row.mean().item() for n, row in zip(self.points, self.curve, strict=True)},
            }
        )


@torch.no_grad()
def log_likelihood(
    vae: VAE,
    x: Any,
    y: Any = None,
    mask: Any = None,
    *,
    samples: int = 5000,
    proposal: Proposal = "encoder",
    memory: int | None = None,
    capture: Backend = "auto",
    precision: Literal["32", "bf16-mixed"] = "32",
    seed: int | None = 0,
    progress: bool = True,
) -> LogLikelihood:
    """Estimate log p(x | y) of every row, with a standard error, effective sample size and Pareto k̂.

    Arguments:
        vae: the model; it is measured in ``eval()`` mode, and left in the mode it was in.
        x: (N, *x_shape), and y as elsewhere.
        mask: True where a pixel is seen, of the shape of x: the estimate is then of log p(x_seen | y), whatever stands
            in the place of the others.
        samples: of z for a row; exactly so many.
        proposal: what z is drawn from: q(z | x, y), p(z | y), or x (n, *x_shape) → a distribution of your own, batch
            shape (n,); with a mask, x has zeros where it is not seen.
        memory: how many numbers are held at a time, whatever ``samples`` is: of decoded x, of the widest layer on the
            way there, or of the components of a mixture at z. By default 2²² (16 MB in float32), on CUDA 2²⁸.
        capture: "off" runs the model as it is; "graph" records it once and replays it; "inductor" compiles that;
            "auto" does what pays for so many samples, and what the model allows.
        precision: "32", or "bf16-mixed" for matrix products in bfloat16, which moves log p of a row by some
            hundredths of a nat, now and then by three tenths, and their mean by one or two hundredths
            (``benchmarks/likelihood.py``).
        seed: of the draws; the caller's generators are left as they were.
        progress: show a bar.

    Raises:
        DataError, ShapeError, LabelError: as ``vae.check``.
        NoDensityError: if the model has no prior, or its encoder gives a point and is to propose.
        NonFiniteError: for a weight that is NaN or infinite.
        PartError: with a mask, for a likelihood whose pixels are not independent.
        CaptureError: if the model cannot be recorded, and "graph" or "inductor" was asked for.
        ConfigError: for a model in half precision.

    Example:
        >>> vae = pv.vae((4,), 2, likelihood="Gaussian")
        >>> result = log_likelihood(vae, torch.zeros(3, 4), samples=100, progress=False)
        >>> result.values.shape, result.samples, result.points
        (torch.Size([3]), 100, (1, 2, 5, 10, 20, 50, 100))
    """
    check_not_nan(vae, "log_likelihood")
    check_precision(vae, "log_likelihood")
    check_positive(samples=samples, **({} if memory is None else {"memory": memory}))
    known("capture", capture, get_args(Backend))
    known("precision", precision, ("32", "bf16-mixed"))
    # An encoder that proposes nothing need not fit.
    (vae.check if proposal == "encoder" else vae.check_values)(x, y, mask)
    device = vae._beta.device
    x, y, mask = torch.as_tensor(x), *(None if t is None else torch.as_tensor(t) for t in (y, mask))
    work = len(x) * samples * vae.numbers(x[:1])
    wanted = capture != "auto"
    if not wanted:
        kind = "cuda" if device.type == "cuda" else "cpu"
        compile, record = work >= _WORTH_COMPILING[kind], work >= _WORTH_RECORDING[kind]
        capture = "inductor" if compile else "graph" if record else "off"
    every = y is not None and not vae.per_row(y)
    # What there is one of for each row.
    rows = {"x": x, "y": None if every else y, "mask": mask}
    rows = {name: t for name, t in rows.items() if t is not None}
    found = []
    with measuring(vae, seed, "log_likelihood"), tqdm(total=len(x), unit="row", disable=not progress) as bar:
        estimator = Estimator(vae, samples, y if every else None, proposal, memory, capture, precision)
        try:
            estimator.prepare(**rows)
        except CaptureError as error:
            if wanted:
                raise
            warnings.warn(f"log_likelihood: running the model as it is: {error}", CaptureWarning, stacklevel=2)
        for i in range(0, len(x), estimator.rows):
            some = {name: t[i : i + estimator.rows] for name, t in rows.items()}
            found.append(estimator(**some))
            bar.update(len(some["x"]))
    values, deviation, ess, k, curve = (torch.cat(column, -1).cpu() for column in zip(*found, strict=True))
    wrong = values.isnan() | (values == math.inf)
    if wrong.any():
        raise NonFiniteError(
            f"log_likelihood: a weight of row {int(wrong.nonzero()[0])} is not finite: expected finite log-densities; "
            "look at that row, and at the parameters of the model"
        )
    levels = getattr(vae.likelihood, "levels", None)
    return LogLikelihood(
        values,
        deviation,
        ess,
        k,
        samples,
        curve,
        estimator.points,
        proposal if isinstance(proposal, str) else "a function of x",
        bits=1 / (math.log(2) * x[0].numel()) if levels == 256 and mask is None else None,
        density=getattr(vae.likelihood, "density", True),
        seen=share(mask),
    )


def _points(samples: int) -> tuple[int, ...]:
    """1, 2, 5, 10, 20, ..., and all."""
    steps = [m * 10**e for e in range(len(str(samples))) for m in (1, 2, 5)]
    return tuple(sorted({*(s for s in steps if s < samples), samples}))


class Estimator:
    """What :func:`log_likelihood` does with a few rows at a time: it runs the model itself, or a recording of it.

    Arguments:
        vae: in ``eval()`` mode.
        samples: as there, and so are the others.
        y: one for all rows.
    """

    def __init__(
        self,
        vae: VAE,
        samples: int,
        y: Tensor | None = None,
        proposal: Proposal = "encoder",
        memory: int | None = None,
        capture: str = "off",
        precision: Literal["32", "bf16-mixed"] = "32",
    ) -> None:
        self.vae, self.samples, self.y, self.proposal = vae, samples, y, proposal
        if memory is None:
            memory = 2**28 if vae._beta.is_cuda else 2**22
        self.memory, self.capture, self.precision = memory, capture, precision
        self.points, self.rows, self.chunk = _points(samples), _ROWS, samples
        self.recorded: TwoStages | None = None

    def prepare(self, x: Tensor, **more: Tensor) -> None:
        """Record a chunk for rows like these; all have one shape, and what is too much of the last is dropped.

        Arguments:
            x: (N, *x_shape).
            more: y and mask, each where there is one for every row; the same as in every call.
        """
        decodings = max(1, self.memory // self.vae.numbers(x[:1]))
        self.rows = n = min(_ROWS, len(x), decodings)
        if self.capture == "off":
            return
        self.chunk = math.ceil(self.samples / math.ceil(self.samples / (decodings // n)))
        inputs = self._moved({name: t[:n] for name, t in {"x": x, **more}.items()})
        compile, devices = self.capture == "inductor", cuda_devices(self.vae._beta.device)

        def chunk(*tensors: Tensor) -> Tensor:
            return torch.cat(list(self._weights(self.chunk, **dict(zip(inputs, tensors, strict=True)))))

        options: Any = {"compile": compile, "precision": self.precision, "devices": devices}
        self.recorded = TwoStages(chunk, list(inputs.values()), **options)

    def __call__(self, x: Tensor, **more: Tensor) -> tuple[Tensor, ...]:
        """Return log p̂ (n,), its standard error, the effective sample size and k̂, and the curve (points, n)."""
        tensors, n = self._moved({"x": x, **more}), len(x)
        sums = _Sums(n, self.samples, self.points, tensors["x"].device)
        if self.recorded is None:
            chunks = iter(self._weights(self.samples, **tensors))
            # The model alone is to run in bfloat16.
            while (log_w := self._next(chunks)) is not None:
                sums.add(log_w)
            return sums.result()
        padded = (torch.cat([t, t[-1:].expand(self.rows - n, *t.shape[1:])]) for t in tensors.values())
        self.recorded.prepare(*padded)
        for done in range(0, self.samples, self.chunk):
            sums.add(self.recorded()[: self.samples - done, :n])
        return sums.result()

    def _next(self, chunks: Iterator[Tensor]) -> Tensor | None:
        with mixed(self.precision != "32"):
            return next(chunks, None)

    def _moved(self, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        like = self.vae._beta
        return {name: t.to(like) if name == "x" else t.to(like.device) for name, t in rows.items()}

    def _weights(
        self, samples: int, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None
    ) -> Iterator[Tensor]:
        y = self.y if y is None else y
        return self.vae.log_weights(x, y, samples, mask=mask, proposal=self.proposal, memory=self.memory)


class _Sums:
    """What is kept of the weights of a few rows: Σw, Σw², the largest, and Σw after some of them, in logarithms."""

    def __init__(self, rows: int, samples: int, points: tuple[int, ...], device: torch.device) -> None:
        self.samples, self.points, self.seen = samples, points, 0
        self.waiting: list[Tensor] = []
        nothing = torch.full((rows,), -math.inf, dtype=torch.float64, device=device)
        self.first, self.second = nothing, nothing
        self.largest = nothing.expand(0, rows)
        self.curve: list[Tensor] = []

    def add(self, log_w: Tensor) -> None:
        """Take more weights (k, n), which nobody is to write over."""
        self.waiting.append(log_w)
        # Few at a time would cost more here than their decoding.
        if sum(map(torch.numel, self.waiting)) >= _TOGETHER:
            self._reduce()

    def _reduce(self) -> None:
        log_w = torch.cat(self.waiting).double()
        self.waiting.clear()
        end, start = self.seen + len(log_w), 0
        for point in self.points:
            if self.seen < point <= end:
                upto = point - self.seen
                self.first = torch.logaddexp(self.first, log_w[start:upto].logsumexp(0))
                self.curve.append(self.first - math.log(point))
                start = upto
        if start < len(log_w):
            self.first = torch.logaddexp(self.first, log_w[start:].logsumexp(0))
        self.second = torch.logaddexp(self.second, (2 * log_w).logsumexp(0))
        self.seen = end
        # The tail, and the next smaller one as its threshold.
        top = torch.cat([self.largest, log_w])
        keep = min(len(top), tail_length(self.samples) + 1, self.samples)
        self.largest = top.topk(keep, 0, sorted=False).values

    def result(self) -> tuple[Tensor, ...]:
        if self.waiting:
            self._reduce()
        # Where all weights are zero, so is what they are worth.
        ess = (2 * self.first - self.second).exp().nan_to_num(0.0)
        S = self.samples
        error = ((1 / ess - 1 / S).clamp(min=0) * (S / (S - 1) if S > 1 else math.nan)).sqrt()
        return self.first - math.log(S), error, ess, pareto_k(self.largest), torch.stack(self.curve)
