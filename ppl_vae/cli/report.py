"""What a run has to show: its numbers, its audit and its pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pyro.infer import ELBO, Trace_ELBO, TraceMeanField_ELBO

from .. import data, plots
from ..devices import seeded
from ..distributions import spheres
from ..errors import ConfigError, LabelError, NoClosedFormError, NoDensityError, PartError, PplVaeError
from ..evaluation import (
    Calibration,
    LogLikelihood,
    audit,
    bounds,
    calibration,
    diagnostics,
    evaluate,
    label_use,
    quality,
    simulate,
)
from ..evaluation.audit import library
from ..evaluation.pareto import good_below
from ..history import History
from ..model import VAE, density_numbers
from ..plots.codes import most_labels
from .files import described, write_evaluation

__all__ = [
    "HEADINGS",
    "PICTURES",
    "AuditFailed",
    "are_images",
    "draw",
    "draw_calibration",
    "draw_likelihood",
    "more",
    "reconstructions",
    "report",
    "spread",
    "thorough",
    "value_range",
    "vrange_of",
    "xy",
]

PICTURES = (
    "history",
    "reconstructions",
    "latents",
    "samples",
    "prior",
    "styles",
    "manifold",
    "likelihood",
    "calibration",
)
# What a part of an evaluation does not say itself.
HEADINGS = {
    "diagnostics": "what z does, by draws of its own",
    "quality": "the samples, as a classifier of the training data sees them",
    "calibration": "the guide, on data that the model draws",
    "bounds_simulated": "log p by annealing, of data that the model draws",
    "bounds": "log p by annealing, of test data",
}
# How many rows the diagnostics look at, whose cost grows with the square of them.
_ROWS = 2000
# How many numbers the densities of all pairs of rows may take, where it is a network or a mixture that gives them; and
# how many labels are tried, each for every row.
_PAIRS, _LABELS = 2**26, 50
# How many rows annealing takes, each of which costs as much as thousands of samples.
_FEW = 20
# How many labels and styles are drawn at most, as each style in each label is an image; how many rows are encoded at
# once; and how wide a flat square is at least that is taken for an image.
_DRAWN, _CHUNK, _SIDE = 20, 256, 8


class AuditFailed(PplVaeError, ValueError):
    """The audit of a run found a difference."""


def report(vae: VAE, source: data.Data, out: Path, objective: ELBO, progress: bool = True) -> None:
    """Print and write what the test set says of a model, and whether training stood on what it should."""
    result = evaluate(vae, *xy(vae, source.test), progress=progress)
    # What it was trained on, and what that stands on; ppl-vae audit goes through all there is.
    objectives = [Trace_ELBO(), TraceMeanField_ELBO()]
    if type(objective) not in map(type, objectives) and type(objective) in map(type, library()):
        objectives.append(objective)
    check = audit(vae, *xy(vae, spread(source.test, 64)), objectives=objectives, particles=50)
    write_evaluation(out, result, source.test)
    print(f"\n{source.name}, test split\n{result}\n\n{check.line}\n")


def more(vae: VAE, split: data.Split, seed: int) -> tuple[dict[str, Any], list[str]]:
    """Return what there is to say beside the likelihood: what z does, and whether y is used, on 2,000 rows at most.

    The second result says what was left out, and why.
    """
    if vae.prior is None:
        return {}, []
    # Every z of a row is compared with every other row's q, which costs more where q is a network of z, or a mixture.
    numbers = density_numbers(vae.encoder)
    some = spread(split, min(_ROWS, math.isqrt(_PAIRS // numbers))) if numbers else spread(split, _ROWS)
    found: dict[str, Any] = {}
    left_out = []
    measurements: dict[str, Callable[[], Any]] = {"diagnostics": lambda: diagnostics(vae, *xy(vae, some), seed=seed)}
    if isinstance(classes := getattr(vae.condition, "classes", None), int):
        if classes <= _LABELS:
            measurements["labels"] = lambda: label_use(vae, *xy(vae, spread(split, _ROWS)), seed=seed)
        else:
            left_out.append(
                f"left out: use of y: {classes} labels would take hours; in Python label_use(...) does it on fewer rows"
            )
    for name, measure in measurements.items():
        try:
            found[name] = measure()
        except LabelError as error:
            left_out.append(f"left out: {error}")
        except (NoDensityError, PartError) as error:
            left_out.append(f"left out: {name}: {error}")
    return found, left_out


def thorough(vae: VAE, source: data.Data, split: data.Split, seed: int) -> tuple[dict[str, Any], list[str]]:
    """Return what takes minutes: how samples look to a judge, whether the guide is calibrated, bounds on log p.

    These are of rows that the model draws, with their z, and from below of rows of the split. The second result says
    what was left out, and why.
    """
    if vae.prior is None:
        return {}, []
    few, found, left_out = spread(split, _FEW), {}, []
    y = xy(vae, few)[1]

    def judged() -> Any:
        if source.train.y is None or split.y is None:
            raise LabelError("expected data with labels, from which the judge learns")
        # A grey image is judged beside what the model makes of a pixel, not beside a draw of it.
        grey = not getattr(vae.likelihood, "density", True)
        return quality(vae, (_drawn(source.train, seed), source.train.y), (split.x, split.y), mean=grey, seed=seed)

    def simulated() -> Any:
        x, given, z = simulate(vae, len(few), y, seed=seed)
        return bounds(vae, x, given, z=z, seed=seed)

    measurements: dict[str, Callable[[], Any]] = {
        "quality": judged,
        "calibration": lambda: calibration(vae, y=None if y is None else xy(vae, split)[1], seed=seed),
        "bounds_simulated": simulated,
        "bounds": lambda: bounds(vae, few.x, y, seed=seed),
    }
    for name, measure in measurements.items():
        try:
            found[name] = measure()
        except (PartError, LabelError, NoDensityError) as error:
            left_out.append(f"left out: {name}: {error}")
    return found, left_out


def _drawn(split: data.Split, seed: int) -> torch.Tensor:
    """Pixels of the kind that a model draws: of a split that is binarised anew in every step, once."""
    with seeded(seed, split.x.device):
        return split.draw()


def draw_likelihood(vae: VAE, found: LogLikelihood, out: Path) -> Path:
    """Draw how log p grows with the number of samples."""
    k = found.pareto_k if (~found.pareto_k.isnan()).any() else None
    of = "x" if vae.condition is None else "x|y"
    title = f"log p({of}) of {len(found.values)} rows by importance sampling"
    figure = plots.likelihood(found.points, found.curve, k, limit=good_below(found.samples), of=of, title=title)
    return plots.save(figure, out / "likelihood.png")


def draw_calibration(vae: VAE, found: Calibration, out: Path) -> Path:
    """Draw the ranks of the true z among draws of the guide."""
    given = "x" if vae.condition is None else "x,y"
    title = f"ranks of z among draws from q(z|{given}); flat where the guide is exact"
    return plots.save(
        plots.calibration(found.ranks, draws=found.draws, bins=found.bins, title=title), out / "calibration.png"
    )


def spread(split: data.Split, n: int) -> data.Split:
    """N rows, one by chance from each of n equal stretches, always the same ones; all where there are no more.

    The first rows of a set that is sorted by label are of one class, and so is every tenth where ten labels take turns.
    """
    if n < 1:
        raise ConfigError(f"expected at least one row, got {n}")
    if n >= len(split):
        return split
    edges = np.arange(n + 1) * len(split) // n
    return split.subset(np.random.RandomState(0).randint(edges[:-1], edges[1:]))


def xy(vae: VAE, split: data.Split) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the rows of a split that the model takes: without labels where it has no condition."""
    return split.x, None if vae.condition is None else split.y


def value_range(run: str) -> tuple[float, float] | None:
    """The range of a pixel, as the run's data set has it."""
    said = described(run)
    return vrange_of(said["range"]) if "range" in said else None


def vrange_of(values: Sequence[float]) -> tuple[float, float] | None:
    """A range to map to grey levels; None where all pixels are equal."""
    low, high = values
    return (low, high) if low < high else None


def are_images(x_shape: Sequence[int], vrange: tuple[float, float] | None) -> bool:
    """Whether x can be seen: (channels, H, W), (H, W), or flat, if it may be pixels.

    Flat ones are if they make a square of 8 or more a side and none is negative: a table of 9 columns is no image, nor
    is one of 64 that are standardised.
    """
    if len(x_shape) == 1:
        side = math.isqrt(x_shape[0])
        return side**2 == x_shape[0] and side >= _SIDE and (vrange is None or vrange[0] >= 0)
    return len(x_shape) == 2 or (len(x_shape) == 3 and x_shape[0] in (1, 3))


def reconstructions(split: data.Split, x_hat: torch.Tensor, vrange: tuple[float, float] | None) -> Any:
    """Return the picture of test images above their reconstructions."""
    labels = None if split.y is None else split.y.tolist()
    return plots.reconstructions(split.x, x_hat, labels, vrange=vrange, title="test images and x̂")


@torch.no_grad()
def draw(vae: VAE, source: data.Data, out: Path, history: History | None) -> list[Path]:
    """Draw what there is to see of a model, and of its labels the first 20 at most; return the paths."""
    vrange = vrange_of(source.range)
    images = are_images(source.x_shape, vrange)
    figures = {}
    if history is not None:
        unit = "nats per image" if images else "nats per row"
        figures["history"] = plots.history(history, unit=unit, title=f"{source.name}: training")
    # The mean of an encoder that has none in closed form is that of draws.
    with seeded(0, vae._beta.device):
        if images:
            some = spread(source.test, 20)
            figures["reconstructions"] = reconstructions(some, vae.reconstruct(*xy(vae, some)).cpu(), vrange)
        test = spread(source.test, 1000)
        x, y = xy(vae, test)
        chunks = [(some.x, None if y is None else some.y) for some in _chunks(test)]
        z = _joined(vae.embed(*some) for some in chunks)
        given, under = ("x", "") if vae.condition is None else ("x,y", "|y")
        # More labels than there are colours and marks are not told apart.
        few = test.y is not None and len(test.y.unique()) <= most_labels(z.shape[-1])
        title = f"means of q(z|{given}), test {'images' if images else 'rows'}"
        figures["latents"] = plots.latents(z, test.y if few else None, title=title)
        count = source.classes or 0
        classes = None if vae.condition is None else torch.arange(min(count, _DRAWN))
        labels = None if classes is None else classes.tolist()
        which = f"each of the first {_DRAWN} of {count:,} labels" if count > _DRAWN else "every label"
        if vae.prior is not None:
            title = f"draws from p(x|y), a row for {which}" if labels else "draws from p(x)"
            if images:
                x_new = vae.sample(64 if classes is None else 10, classes)
                figures["samples"] = plots.samples(x_new, labels, vrange=vrange, title=title)
            if y is None:
                draws = vae.prior_given().sample((len(x),)).cpu()
            else:
                draws = _joined(vae.prior_given(some).sample() for _, some in chunks)
            aggregate = _joined(vae.encode(*some).sample() for some in chunks)
            figures["prior"] = plots.prior_vs_posterior(
                draws, aggregate, title=f"p(z{under}) and the aggregate of q(z|{given})"
            )
        if images and classes is not None and y is not None:
            # One style from every label that the test images have.
            styles = torch.stack([(y == k).nonzero()[0, 0] for k in y.unique()[:_DRAWN]])
            moved = _translated(vae, x[styles], y[styles], classes[:, None]).transpose(0, 1).cpu()
            title = f"the style of one image in {which}"
            figures["styles"] = plots.translations(x[styles], moved, classes, vrange=vrange, title=title)
        # A grid is not of a circle, where a latent of two may lie.
        if images and z.shape[-1] == 2 and classes is None and not spheres(vae.encode(x[:1]).support, 2):
            # Where the codes are, which is nowhere near zero for some priors, and for an autoencoder.
            low, high = z.quantile(torch.tensor([0.01, 0.99]).to(z), 0)
            across, up = (torch.linspace(a, b, 15) for a, b in zip(low.tolist(), high.tolist(), strict=True))
            grid = torch.stack(torch.meshgrid(across, up, indexing="xy"), -1)
            title = "x̂ over the codes of test images"
            figures["manifold"] = plots.manifold(vae.decode(grid).mean.cpu(), across, up, vrange=vrange, title=title)
    return [plots.save(figure, out / f"{name}.png") for name, figure in figures.items()]


def _chunks(split: data.Split) -> list[data.Split]:
    """The rows in pieces whose images and hidden layers are small."""
    return [split.subset(slice(at, at + _CHUNK)) for at in range(0, len(split), _CHUNK)]


def _joined(pieces: Iterable[torch.Tensor]) -> torch.Tensor:
    return torch.cat([piece.cpu() for piece in pieces])


def _translated(vae: VAE, x: torch.Tensor, y: torch.Tensor, to: torch.Tensor) -> torch.Tensor:
    """The images in every label: at the same place of its prior where that has a map, else at the same z."""
    try:
        return vae.translate(x, y, to=to, carry=vae.prior is not None)
    except NoClosedFormError:
        return vae.translate(x, y, to=to)
