"""The composition matrix: every prior under every likelihood, encoder and objective, conditional on y or not.

python tests/matrix.py                  all of it, as `make matrix` does
python tests/matrix.py --cells 30       fewer random cells

Every part is here by its name, with its default options but for what makes it small; bodies are MLPs and y is a label.
Construction is checked for the full product: a cell is valid, or refused by an error of this library's that says why,
and which of the two is stated here independently of the library. Then all pairs of parts, and random cells, are proved:
20 steps lower the loss, captured steps equal stock ones, a saved model gives the same samples, and ``Predictive`` and
vectorised particles work.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import math
import multiprocessing
import os
import random
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO

import ppl_vae as pv
from ppl_vae import presets
from ppl_vae.capture import CapturedSVI, CaptureWarning
from ppl_vae.capture.guard import Sizes
from ppl_vae.errors import PplVaeError

LATENT, IMAGE, LABELS, N = 3, (1, 6, 5), 3, 8

# What a part needs to be small. One that is not here is taken as it is, so a new part is in the matrix at once.
SMALL: dict[str, dict[str, dict[str, Any]]] = {
    "prior": {
        "Gaussian": {"hidden": [8]},
        "Fixed": {"distribution": "Laplace", "args": [0.0, 1.0]},
        "Mixture": {"components": 3, "hidden": [8]},
        "Vamp": {"components": 3},
        "Chain": {
            "first": {"name": "Gaussian", "features": 1, "hidden": [8]},
            "second": {"name": "Gaussian", "features": 2, "hidden": [8]},
        },
        **{name: {"transforms": 1, "hidden_features": [8]} for name in ("NSF", "MAF", "BPF", "NICE")},
        "GMM": {"components": 3},
        "CNF": {"hidden_features": [4], "freqs": 1, "atol": 1e-3, "rtol": 1e-3},
    },
    "likelihood": {
        "Binomial": {"total_count": 4},
        "Categorical": {"levels": 5},
        "DiscretizedLogistic": {"levels": 5},
        "DiscretizedLogisticMixture": {"levels": 5, "components": 2},
    },
    "encoder": {
        "Flow": {"outputs": 6},
        "Masked": {"part": {"name": "Gaussian", "hidden": [8]}},
        "Chain": {
            "first": {"name": "Gaussian", "features": 1, "hidden": [8]},
            "second": {"name": "Gaussian", "features": 2, "hidden": [8]},
        },
    },
    "objective": {
        **{name: {"k": 3} for name in ("iwae", "dreg")},
        "renyi": {"alpha": 0.5, "k": 3},
        "freebits": {"nats": 0.1},
        "capacity": {"capacity": 1.0, "gamma": 2.0},
    },
}
TABLES: dict[str, list[str]] = {
    "prior": list(presets.PRIORS),
    "likelihood": list(presets.LIKELIHOODS),
    # One is made by its own name, around another.
    "encoder": [*presets.ENCODERS, "Masked"],
    "objective": list(presets.OBJECTIVES),
}
REAL, UNIT, LEVELS = ("Gaussian", "Laplace", "StudentT"), ("ContinuousBernoulli", "Beta"), ("Bernoulli",)


class Cell(NamedTuple):
    """One model and the objective to train it by."""

    prior: str
    likelihood: str
    encoder: str
    objective: str
    conditional: bool

    def vae(self, seed: int = 0) -> pv.VAE:
        """The model, tiny."""
        torch.manual_seed(seed)
        spec = {
            kind: {"name": getattr(self, kind)} | SMALL[kind].get(getattr(self, kind), {})
            for kind in ("prior", "likelihood", "encoder")
        }
        condition = pv.OneHot(LABELS) if self.conditional else None
        return pv.vae(IMAGE, LATENT, **spec, condition=condition, hidden=(8,))  # type: ignore[arg-type]

    def elbo(self) -> Any:
        """The objective."""
        return presets.OBJECTIVES[self.objective](**SMALL["objective"].get(self.objective, {}))

    def data(self) -> tuple[Any, ...]:
        """X, and y where there is one; and which pixels are seen, for an encoder that is told."""
        u = torch.rand(N, *IMAGE, generator=torch.Generator().manual_seed(1))
        if self.likelihood in REAL:
            x = 3 * u - 1
        elif self.likelihood in UNIT:
            x = 0.02 + 0.96 * u
        else:
            x = u.round() if self.likelihood in LEVELS else (4 * u).round()
        y = torch.arange(N) % LABELS if self.conditional else None
        if self.encoder == "Masked":
            return x, y, u.flip(0) < 0.8
        return (x,) if y is None else (x, y)


def cells() -> Iterator[Cell]:
    """The full product."""
    for names in itertools.product(*TABLES.values(), (False, True)):
        yield Cell(*names)


# What can be said of a cell without the library

NORMAL = ("Gaussian", "FullGaussian", "LowRankGaussian")


def refusal(cell: Cell) -> str | None:
    """Why a cell must be refused, if it must."""
    # A Vamp lies where its encoder does.
    if cell.prior != "Vamp" and (cell.prior == "Sphere") != (cell.encoder == "PowerSpherical"):
        return "a sphere and all of space"
    if cell.encoder == "Delta" and cell.objective == "dreg":
        return "a point has no density"
    if cell.encoder == "Delta" and cell.prior == "Vamp":
        return "a mixture of points"
    encoder = "Gaussian" if cell.encoder == "Masked" else cell.encoder
    closed = (encoder in NORMAL and cell.prior in ("Standard", "Gaussian")) or cell.prior == "Sphere"
    # Of a point it is the density there; from a normal to a Laplace density it is known feature by feature.
    closed = closed or cell.encoder == "Delta"
    closed = closed or (encoder == "Gaussian" and cell.prior == "Fixed")
    if cell.objective in ("analytic", "capacity") and not closed:
        return "no closed form"
    factorised = encoder == "Gaussian" and cell.prior in ("Standard", "Gaussian", "Fixed")
    if cell.objective == "freebits" and not factorised:
        return "not factorised"
    return None


# What the error of a refusal must say.
SAYS = {
    "a sphere and all of space": "sphere|Sphere",
    "a point has no density": "point|Delta",
    "a mixture of points": "point|Delta",
    "no closed form": "closed form",
    "not factorised": "feature|dimension|independent",
}


def outcome(cell: Cell) -> str | None:
    """What the library says of a cell: the first line of its refusal, or None if there is a finite loss."""
    try:
        vae = cell.vae()
        loss = cell.elbo().loss(vae.model, vae.guide, *cell.data())
    except PplVaeError as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    finally:
        pyro.clear_param_store()
    if not math.isfinite(loss):
        raise AssertionError(f"{cell}: loss {loss}")
    return None


# What is proved of a valid cell


def prove(cell: Cell, folder: Path) -> None:
    """Raise an AssertionError for whatever of the promises a cell breaks."""
    data = cell.data()
    y = {"y": torch.arange(LABELS)} if cell.conditional else {}
    vae = cell.vae()
    before = loss_of(cell, vae, data)
    svi = CapturedSVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.02}), cell.elbo(), backend="graph")
    for _ in range(20):
        svi.step(*data)
    falls_back = cell.prior == "CNF"
    if svi.backend != ("off" if falls_back else "graph"):
        raise AssertionError(f"{cell}: captured by {svi.backend}")
    after = loss_of(cell, vae, data)
    if not after < before:
        raise AssertionError(f"{cell}: 20 steps took the loss from {before} to {after}")
    if not falls_back:
        captured_equals_stock(cell)
    pv.save(vae, folder)
    samples = []
    for model in (vae, pv.load(folder)):
        torch.manual_seed(3)
        samples.append(model.sample(2, **y))
    if not torch.equal(*samples):
        raise AssertionError(f"{cell}: a saved model gives other samples")
    shape = (3, LABELS if cell.conditional else 1, *IMAGE)
    if (got := tuple(Predictive(vae.model, num_samples=3)(**y)["x"].shape)) != shape:
        raise AssertionError(f"{cell}: Predictive gives {got}, not {shape}")
    elbo = Trace_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1)
    if not math.isfinite(elbo.loss(vae.model, vae.guide, *data)):
        raise AssertionError(f"{cell}: vectorised particles give no finite loss")


def loss_of(cell: Cell, vae: pv.VAE, data: tuple[torch.Tensor, ...]) -> float:
    """The mean loss over 20 draws that are always the same."""
    torch.manual_seed(5)
    return sum(cell.elbo().loss(vae.model, vae.guide, *data) for _ in range(20)) / 20


def captured_equals_stock(cell: Cell) -> None:
    """Five steps of both, from one seed; the losses are equal to 1e-6 of the terms, which may cancel."""
    losses: list[list[float]] = []
    for make in (SVI, CapturedSVI):
        vae, options = cell.vae(), {} if make is SVI else {"backend": "graph"}
        svi = make(vae.model, vae.guide, pyro.optim.SGD({"lr": 1e-4}), cell.elbo(), **options)
        torch.manual_seed(4)
        losses.append([float(svi.step(*cell.data())) for _ in range(5)])
    with Sizes() as sizes:
        Trace_ELBO().loss(vae.model, vae.guide, *cell.data())
    for stock, captured in zip(*losses, strict=True):
        if abs(stock - captured) > 1e-6 * max(1.0, abs(stock), sizes.size):
            raise AssertionError(f"{cell}: a captured step gives {captured}, the stock one {stock}")


# Which cells


def covering(valid: list[Cell], seed: int = 0) -> list[Cell]:
    """Few cells in which all pairs of parts occur that occur in any: greedily."""
    rest = {pair for cell in valid for pair in pairs(cell)}
    shuffled = random.Random(seed).sample(valid, len(valid))
    chosen = []
    while rest:
        # The best of some, not of all: nearly as few cells in a fraction of the time.
        some = random.Random(len(chosen)).sample(shuffled, min(len(shuffled), 300))
        best = max(some, key=lambda cell: len(rest.intersection(pairs(cell))))
        if not rest.intersection(pairs(best)):
            pair = next(iter(sorted(rest, key=str)))
            best = next(cell for cell in shuffled if pair in pairs(cell))
        chosen.append(best)
        rest -= set(pairs(best))
    return chosen


def pairs(cell: Cell) -> list[Any]:
    """Every pair of a cell's choices."""
    return list(itertools.combinations(enumerate(cell), 2))


def each_once(valid: list[Cell], seed: int = 0) -> list[Cell]:
    """Few cells in which every part occurs, with a condition and without."""
    wanted = {(i, name, conditional) for cell in valid for i, name in enumerate(cell[:4]) for conditional in (0, 1)}
    chosen = []
    for cell in random.Random(seed).sample(valid, len(valid)):
        covers = {(i, name, int(cell.conditional)) for i, name in enumerate(cell[:4])}
        if len(covers & wanted) > (2 if len(wanted) > 30 else 0):
            chosen.append(cell)
            wanted -= covers
    return chosen


def one(task: tuple[Cell, bool]) -> tuple[Cell, str | None]:
    """A cell proved, or its construction checked: the cell, and what went wrong."""
    cell, whole = task
    pyro.clear_param_store()
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=CaptureWarning)
        try:
            if whole:
                prove(cell, Path(folder) / "model")
                return cell, None
            expected, got = refusal(cell), outcome(cell)
            if (expected is None) == (got is None) and (expected is None or re.search(SAYS[expected], got or "")):
                return cell, None
            return cell, f"{cell}: expected {expected or 'a loss'}, got {got or 'a loss'}"
        # Whatever a cell does, the others are to be heard.
        except (
            AssertionError,
            ArithmeticError,
            AttributeError,
            LookupError,
            OSError,
            RuntimeError,
            TypeError,
            ValueError,
            Warning,
        ) as error:
            return cell, f"{cell}: {type(error).__name__}: {error}"


def main() -> int:
    """Run the matrix and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=300, help="random cells besides all pairs (default: 300)")
    parser.add_argument("--seed", type=int, default=0, help="of the random cells (default: 0)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes (default: one a core)")
    args = parser.parse_args()
    started = time.perf_counter()
    everything = list(cells())
    reasons = {cell: refusal(cell) for cell in everything}
    valid = [cell for cell, reason in reasons.items() if reason is None]
    rng = random.Random(args.seed)
    chosen = list(dict.fromkeys(covering(valid, args.seed) + rng.sample(valid, min(args.cells, len(valid)))))
    failures, proved = [], collections.Counter[tuple[str, str]]()
    with multiprocessing.get_context("spawn").Pool(args.jobs, torch.set_num_threads, (1,)) as pool:
        for _, wrong in pool.imap_unordered(one, [(cell, False) for cell in everything], chunksize=64):
            failures += [] if wrong is None else [wrong]
        refused = collections.Counter(reason for reason in reasons.values() if reason is not None)
        print(
            f"construction: {len(everything)} cells, {len(valid)} valid, {sum(refused.values())} refused with a reason"
        )
        print("".join(f"    {count:5d} {reason}\n" for reason, count in refused.most_common()), end="")
        print(f"    {len(failures):5d} otherwise than expected")
        print(
            f"proofs: {len(chosen)} cells, all pairs of parts and {args.cells} at random (seed {args.seed})", flush=True
        )
        for cell, wrong in pool.imap_unordered(one, [(cell, True) for cell in chosen]):
            failures += [] if wrong is None else [wrong]
            proved[cell.prior, cell.encoder] += wrong is None
        # Workers that end by themselves leave nothing behind.
        pool.close()
        pool.join()
    width = max(map(len, TABLES["prior"]))
    print(f"\nproved, by prior and encoder\n{'':{width}s} " + " ".join(f"{e:>15s}" for e in TABLES["encoder"]))
    for prior in TABLES["prior"]:
        counts = [proved[prior, encoder] or "·" for encoder in TABLES["encoder"]]
        print(f"{prior:{width}s} " + " ".join(f"{count!s:>15s}" for count in counts))
    print(f"\n{sum(proved.values())} proved, {len(failures)} failed, in {(time.perf_counter() - started) / 60:.1f} min")
    print("\n".join(failures))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
