"""What is done with a run: sample, reconstruct, evaluate, compare, audit, plot."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import Namespace

from .. import data, plots
from ..checkpoint import load
from ..devices import find_device, seeded
from ..errors import CheckpointError, ConfigError, DataError
from ..evaluation import audit, compare, evaluate
from ..history import History
from ..model import VAE
from ..state import has_state
from .config import in_full, read_yaml
from .files import described, fingerprint, read_evaluation, write_arrays, write_evaluation, write_json
from .parsing import parse, parser_of
from .report import (
    HEADINGS,
    AuditFailed,
    are_images,
    draw,
    draw_calibration,
    draw_likelihood,
    more,
    reconstructions,
    spread,
    thorough,
    value_range,
    vrange_of,
    xy,
)

__all__ = ["audit_run", "compare_runs", "evaluate_run", "plot", "reconstruct", "sample"]


# Where the data of a run are, if that is not where they were.
_DATA = (
    ("data.name", str | None, None, "the run's data set, or .npz file, if it lies elsewhere now"),
    ("data.root", str | None, None, "the folder of named data sets, likewise"),
)


def _open_run(command: Callable[..., Any], words: list[str], *options: tuple[str, Any, Any, str]) -> Namespace:
    parser = parser_of(command.__name__.removesuffix("_run"), command)
    parser.add_argument("run", type=str, help="the folder of a run")
    parser.add_argument("--device", type=str, default="auto", help="auto is CUDA where there is one")
    for name, kind, default, words_of_help in options:
        parser.add_argument(f"--{name}", type=kind, default=default, help=words_of_help)
    return parse(parser, in_full(words), {})


def _model(options: Namespace) -> VAE:
    run = Path(options.run)
    if has_state(run) and not (run / "model.json").exists():
        raise CheckpointError(
            f"{run}: expected a trained model, got a training that was interrupted: ppl-vae train --resume --out {run} "
            "goes on, and --epochs says how far"
        )
    return load(run, device=find_device(options.device))


def _model_and_data(options: Namespace) -> tuple[VAE, data.Data]:
    vae, path = _model(options), Path(options.run) / "config.yaml"
    if not path.exists():
        raise CheckpointError(f"{path}: expected the configuration of a run of ppl-vae train, which has its data")
    elsewhere = {key: value for key, value in options.data.as_dict().items() if value is not None}
    try:
        source = data.load(**read_yaml(path)["data"] | elsewhere)
    except DataError as error:
        if elsewhere or not isinstance(error.__cause__, OSError):
            raise
        raise DataError(f"{error}; --data and --data.root say where they are now") from error
    except (TypeError, KeyError) as error:
        raise CheckpointError(f"{path}: expected the configuration of a run: {error}") from error
    then = described(options.run).get("test_rows")
    if then is not None and then != fingerprint(source.test):
        raise DataError(
            f"{options.run}: expected the test rows that its training left aside, got others, on some of which it may "
            f"have been trained: the data of {source.name} have changed since. Train anew, put them back, or say with "
            "--data where they are"
        )
    return vae, source


def sample(words: list[str]) -> None:
    """Draw x ~ p(x|y); write them as they are, with their labels, and a picture where they are images."""
    options = _open_run(
        sample,
        words,
        ("label", int | None, None, "one label; by default every one, a row each"),
        ("n", int, 16, "how many for each label"),
        ("mean", bool, False, "the mean of p(x|z,y) instead of a draw from it"),
        ("seed", int, 0, "of the draws"),
        ("out", str | None, None, "the picture, the numbers beside it in .npz; by default in the run's folder"),
    )
    vae = _model(options)
    vrange = value_range(options.run)
    labels = None if vae.condition is None else [options.label]
    if labels == [None]:
        classes = getattr(vae.condition, "classes", None)
        if not isinstance(classes, int):
            kind = type(vae.condition).__name__
            raise ConfigError(
                f"sample: expected a model of labels, got one of {kind}: in Python load(...).sample(n, y) does"
            )
        labels = list(range(classes))
    y = options.label if labels is None else torch.tensor(labels)
    with seeded(options.seed, vae._beta.device):
        x = vae.sample(options.n, y, mean=options.mean)
    name = "samples.png" if options.label is None else f"samples-{options.label}.png"
    path = Path(options.out or Path(options.run) / name)
    lead = 1 if labels is None else 2
    title = "draws from p(x|y)" if labels else "draws from p(x)"
    # Rows of x and y, as --data reads them: bytes are two levels or 256, other whole numbers as many as were drawn.
    shape, levels = tuple(x.shape[lead:]), None if options.mean else getattr(vae.likelihood, "levels", None)
    numbers = x.reshape(-1, *shape).cpu().numpy()
    if levels is not None:
        numbers = numbers.astype(np.uint8 if levels in (2, 256) else np.int64)
    rows = {"x": numbers} | ({} if labels is None else {"y": np.tile(labels, options.n)})
    _write(path, are_images(shape, vrange), lambda: plots.samples(x, labels, vrange=vrange, title=title), rows)


def _write(path: Path, images: bool, picture: Callable[[], Any], arrays: dict[str, Any]) -> None:
    """Write the picture, where x can be seen, and the numbers beside it; say where."""
    if images:
        print(plots.save(picture(), path))
    else:
        print(f"no picture: x of shape {arrays['x'].shape[1:]} is no image")
        path.parent.mkdir(parents=True, exist_ok=True)
    write_arrays(path := path.with_suffix(".npz"), arrays)
    print(path)


def reconstruct(words: list[str]) -> None:
    """Reconstruct rows of the test set; write x and x̂ as they are, with their labels, and a picture of images."""
    options = _open_run(
        reconstruct,
        words,
        *_DATA,
        ("n", int, 20, "how many rows, spread over the test set"),
        ("seed", int, 0, "of draws of z, whose mean stands for one that has no closed form"),
        ("out", str | None, None, "the picture, the numbers beside it in .npz; by default in the run's folder"),
    )
    vae, source = _model_and_data(options)
    some = spread(source.test, options.n)
    with seeded(options.seed, vae._beta.device):
        x_hat = vae.reconstruct(*xy(vae, some)).cpu()
    rows = {"x": some.x, "reconstruction": x_hat, "y": some.y}
    arrays = {name: values.cpu().numpy() for name, values in rows.items() if values is not None}
    path, vrange = Path(options.out or Path(options.run) / "reconstructions.png"), vrange_of(source.range)
    _write(path, are_images(source.x_shape, vrange), lambda: reconstructions(some, x_hat, vrange), arrays)


@contextlib.contextmanager
def _saying(said: list[str]) -> Iterator[None]:
    """Print what was found after it is written, as who reads may have read enough; and in any case."""
    try:
        yield
    except BaseException:
        # A reader that is gone hides no error.
        with contextlib.suppress(OSError):
            print("\n\n".join(said), flush=True)
        raise
    print("\n\n".join(said), flush=True)


def evaluate_run(words: list[str]) -> None:
    """Measure −ELBO and −log p(x|y) on the test set, what z does and whether y is used; draw the pictures again.

    likelihood.png is among them, and with --thorough true calibration.png.
    """
    options = _open_run(
        evaluate_run,
        words,
        *_DATA,
        ("samples", int, 500, "of z for the importance-sampled log p(x|y)"),
        ("rows", int | None, None, "so many rows, spread over the test set; by default all"),
        ("thorough", bool, False, "also judge the samples, the guide's calibration and bounds of log p: some minutes"),
        ("seed", int, 0, "of the draws"),
    )
    vae, source = _model_and_data(options)
    history, out = _history(options.run), Path(options.run)
    test = source.test if options.rows is None else spread(source.test, options.rows)
    result = evaluate(vae, *xy(vae, test), samples=options.samples, seed=options.seed, progress=True)
    said = [str(result)]
    with _saying(said):
        # At once, as what follows may take minutes.
        write_evaluation(out, result, test)
        found, left_out = more(vae, test, options.seed)
        if options.thorough:
            further, too = thorough(vae, source, test, options.seed)
            found, left_out = found | further, left_out + too
        said += (f"{HEADINGS[name]}\n{part}" if name in HEADINGS else str(part) for name, part in found.items())
        said += left_out
        write_evaluation(out, result, test, {name: part.to_dict() for name, part in found.items()})
    pictures = draw(vae, source, out, history)
    if "calibration" in found:
        pictures.append(draw_calibration(vae, found["calibration"], out))
    if result.likelihood is not None:
        pictures.append(draw_likelihood(vae, result.likelihood, out))
    print("\n" + "\n".join(map(str, pictures)))


def compare_runs(words: list[str]) -> None:
    """Put the evaluations of several runs side by side: differences from the first, paired by row."""
    parser = parser_of("compare", compare_runs)
    parser.add_argument("runs", type=str, nargs="+", help="the folders of evaluated runs")
    parser.add_argument("--out", type=str | None, help="a JSON file for the numbers")
    options = parse(parser, words, {})
    if len({Path(run).resolve() for run in options.runs}) < max(2, len(options.runs)):
        raise ConfigError(f"compare: expected two or more different runs, got {' '.join(options.runs)}")
    found = {run: read_evaluation(run) for run in options.runs}
    (first, (evaluation, rows)), *others = found.items()
    for run, (other, its_rows) in others:
        if its_rows != rows:
            raise DataError(
                f"compare: {first} was evaluated on {evaluation.rows} rows and {run} on {other.rows} different rows: "
                "their data differ, or their --rows; run ppl-vae evaluate on the same"
            )
    comparison = compare({run: evaluation for run, (evaluation, _) in found.items()})
    with _saying([str(comparison)]):
        if options.out is not None:
            (path := Path(options.out)).parent.mkdir(parents=True, exist_ok=True)
            write_json(path, comparison.to_dict())


def audit_run(words: list[str]) -> None:
    """Compare every objective's loss and gradient with the same written by hand; exit with 1 where one fails."""
    options = _open_run(
        audit_run,
        words,
        *_DATA,
        ("rows", int, 64, "spread over the test set"),
        ("particles", int, 100, "draws of the noise"),
    )
    vae, source = _model_and_data(options)
    result = audit(vae, *xy(vae, spread(source.test, options.rows)), particles=options.particles)
    write_json(Path(options.run) / "audit.json", result.to_dict())
    print(result)
    if not result.passed:
        raise AuditFailed("the audit failed: an objective is not what is written by hand")


def plot(words: list[str]) -> None:
    """Draw the pictures of a run again, but those of a measurement.

    ppl-vae evaluate draws likelihood.png, and with --thorough true calibration.png.
    """
    options = _open_run(plot, words, *_DATA)
    vae, source = _model_and_data(options)
    print("\n".join(str(path) for path in draw(vae, source, Path(options.run), _history(options.run))))


def _history(run: str) -> History | None:
    """The epochs of a run; None, after a word on the error stream, where the file does not tell: a picture less."""
    path = Path(run) / "metrics.jsonl"
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        epochs = [row["epoch"] for row in rows]
        if not rows or epochs != list(range(1, len(rows) + 1)):
            raise ValueError("expected the epochs 1, 2, 3, ...")
        if not all(isinstance(v, int | float | None) for row in rows for v in row.values()):
            raise ValueError("expected numbers")
    except (OSError, ValueError, TypeError, KeyError) as error:
        way_out = f"no history.png; ppl-vae train --resume --out {run} writes it anew"
        print(f"{path}: {type(error).__name__}: {error}: {way_out}", file=sys.stderr)
        return None
    return History(rows)
