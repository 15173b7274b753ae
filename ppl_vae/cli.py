"""The command line: parse, call, print; no mathematics.

::

    ppl-vae train --data digits --prior Gaussian --likelihood Binomial --latent 16 --out runs/a
    ppl-vae sample runs/a --label 3 --n 16
    ppl-vae reconstruct | evaluate | audit | plot runs/a

A part is named and takes the options of its own class: ``--prior NSF --prior.transforms 3``. What parts share (the
number of features, the shape of x, the context) is filled in from ``--latent`` and the data; ``--print_config`` shows
it. A run is a folder: ``config.yaml``, ``metrics.jsonl``, the model, ``evaluation.json`` and the pictures.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import json
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser, Namespace

from . import __version__, data, plots, presets
from .checkpoint import load, save
from .errors import CheckpointError, ConfigError, NoClosedFormError, PplVaeError
from .evaluation import audit, evaluate
from .model import VAE
from .objectives import warmup
from .training import History, fit

__all__ = ["main"]

PARTS = ("prior", "likelihood", "encoder")
NAMED = (*PARTS, "data")
# What parts share is filled in; these can be typed all the same, to override it.
SHARED: dict[str, Any] = {"features": int, "x_shape": list[int], "context": int, "total_count": int}
SHARED |= {"shift": float, "scale": float, "hidden": list[int]}
PICTURES = ("history", "reconstructions", "latents", "samples", "prior", "styles", "manifold")
# Options of zuko's that are functions, which no word stands for, and the shapes that go with them.
UNTYPABLE = {"activation", "univariate", "shapes"}
# What signatures cannot say in words: a class given by its name.
BY_NAME: dict[str, Any] = {"network": str | dict, "distribution": str, "args": list[float]}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code, 2 after one line that says what was wrong."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if not words or words[0] in ("-h", "--help"):
            print((__doc__ or "").strip())
        elif words[0] == "--version":
            print(f"ppl_vae {__version__}")
        else:
            presets.lookup(COMMANDS, words[0], "command")(words[1:])
    except (PplVaeError, argparse.ArgumentError, OSError) as error:
        print(f"ppl-vae: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ppl-vae: interrupted", file=sys.stderr)
        return 130
    return 0


# train


def _train(words: list[str]) -> None:
    """Train a model and report on it."""
    words = [re.sub(rf"^--({'|'.join(NAMED)})(?==|$)", r"--\1.name", word) for word in words]
    config = _read_config(words)
    names = {kind: _name_of(kind, words, config) for kind in NAMED}
    # The options of one part mean nothing to another that the words put in its place.
    config = {k: v for k, v in config.items() if k not in PARTS or v.get("name") == names[k]}
    parser = _train_parser(names)
    options = _parse(parser, words, config)
    source = data.load(**options.data.as_dict())
    with torch.random.fork_rng(devices=[]):
        if options.seed is not None:
            torch.default_generator.manual_seed(options.seed)
        vae = _build(options, parser.get_defaults(skip_validation=True), source)
    typed = options.as_dict()
    for key in ("config", "print_config", "overwrite", "resume"):
        del typed[key]
    made = {kind: part for kind, part in presets.to_dict(vae).items() if kind in PARTS}
    # What context: 0 wrapped is written as it is typed.
    settings = typed | {k: d["part"] if d and d["name"] == "Unconditional" else d for k, d in made.items()}
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    if options.print_config:
        print(text, end="")
        return
    objective = presets.lookup(presets.OBJECTIVES, options.objective, "objective")()
    out = _run_folder(options)
    try:
        history = fit(
            vae,
            source.train,
            source.valid if len(source.valid) else None,
            **{key: options[key] for key in ("epochs", "batch_size", "lr", "clip", "patience", "device", "seed")},
            objective=objective,
            beta=warmup(options.warmup, options.beta) if options.warmup else None,
            checkpoint=out,
            resume=out if options.resume else None,
            callbacks=[_Records(out, text)],
        )
    except PplVaeError:
        with contextlib.suppress(OSError):
            out.rmdir()  # Only if it is empty: nothing was trained.
        raise
    save(vae, out, data=source.describe())
    parts = ", ".join(f"{k} {type(p).__name__}" for k in PARTS if (p := getattr(vae, k)) is not None)
    numbers = sum(p.numel() for p in vae.parameters())
    print(f"{source.name}, {len(history)} epochs: {parts}; {numbers:,} parameters, trained on {history.info['device']}")
    if not len(source.test):
        print("no rows are left to test on: neither evaluated nor drawn")
        return
    _report(vae, source, out)
    print("\n".join(str(path) for path in _draw(vae, source, out, history)))


def _read_config(words: list[str]) -> dict[str, Any]:
    """Take ``--config FILE`` out of the words; return what the file says."""
    for i, word in enumerate(words):
        if re.match(r"--config(=|$)", word):
            file = word.partition("=")[2] if "=" in word else "".join(words[i + 1 : i + 2])
            del words[i : i + (1 if "=" in word else 2)]
            break
    else:
        return {}
    try:
        config = yaml.safe_load(Path(file).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"--config: expected a YAML file of options, got {file!r}: {error}") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{file}: expected a mapping of options, got {type(config).__name__}")
    config = {k: {"name": v} if k in NAMED and isinstance(v, str) else v for k, v in config.items()}
    config = {k: v for k, v in config.items() if not (k in PARTS and v is None)}
    for kind in NAMED:
        if not isinstance(config.get(kind, {}), dict):
            raise ConfigError(f"{file}: expected {kind} to be a name or a mapping with one, got {config[kind]!r}")
    return config


def _name_of(kind: str, words: list[str], config: Mapping[str, Any]) -> str | None:
    """The name given to a part, which decides what options there are."""
    for i, word in enumerate(words):
        if word.startswith(f"--{kind}.name="):
            return word.partition("=")[2]
        if word == f"--{kind}.name" and i + 1 < len(words):
            return words[i + 1]
    spec = config.get(kind)
    return spec.get("name") if isinstance(spec, dict) else None


def _train_parser(names: Mapping[str, str | None]) -> ArgumentParser:
    parser = _parser("train", _train)
    parser.add_argument("--config", type=str, help="a YAML file of options, such as a run's config.yaml")
    parser.add_argument("--print_config", action="store_true", help="show every option, filled in, and stop")
    parser.add_argument("--out", type=str, help="the folder of the run")
    parser.add_argument("--overwrite", action="store_true", help="replace the run that is there")
    parser.add_argument("--resume", action="store_true", help="continue the run that is there")
    parser.add_argument("--data.name", type=str, default="digits", help="a data set, or an .npz file")
    parser.add_function_arguments(data.load, "data", skip={"name"})
    parser.add_argument("--model", type=str, help="ae, vae or cvae; by default cvae where the data have labels")
    parser.add_argument("--latent", type=int, default=16, help="the number of latent features")
    parser.add_argument("--hidden", type=list[int] | None, help="hidden layers of the likelihood and the encoder")
    parser.add_argument("--network", type=str | None, help=f"their body: {', '.join(presets.NETWORKS)}")
    for kind in PARTS:
        parser.add_argument(f"--{kind}.name", type=str | None, help=", ".join(presets.TABLES[kind]))
        _add_options(parser, kind, names[kind])
    parser.add_argument("--objective", type=str, default="trace", help=", ".join(presets.OBJECTIVES))
    parser.add_argument("--beta", type=float, default=1.0, help="the weight of the KL")
    parser.add_argument("--warmup", type=int, default=0, help="epochs over which β rises to its value")
    parser.add_argument("--lr", type=float, default=1e-3, help="the learning rate")
    by_hand: set[str | int] = {
        "vae",
        "train",
        "valid",
        "lr",
        "optim",
        "objective",
        "beta",
        "checkpoint",
        "resume",
        "callbacks",
    }
    parser.add_function_arguments(fit, as_group=False, skip={*by_hand, "progress"})
    return parser


def _add_options(parser: ArgumentParser, kind: str, name: str | None) -> None:
    """Add what the named class takes, from its own signature."""
    if name is None or name == "Unconditional":
        return
    cls = presets.lookup(presets.TABLES[kind], name, f"{kind} name")
    signature = inspect.signature(cls).parameters
    extra: dict[str, Any] = {key: words for key, words in (SHARED | BY_NAME).items() if key in signature}
    skip = {key for key in extra if key != "args"} | UNTYPABLE
    parser.add_class_arguments(cls, kind, skip=set[str | int](skip), fail_untyped=False)
    for key, words in extra.items():
        parser.add_argument(
            f"--{kind}.{key}", type=words | None, help="by default filled in" if key in SHARED else None
        )


def _build(options: Namespace, defaults: Namespace, source: data.Data) -> VAE:
    """Make the model out of the options that were given, and what the data say."""
    specs: dict[str, Any] = {}
    for kind in PARTS:
        spec = options[kind].as_dict()
        if spec["name"] is not None:
            plain = defaults[kind].as_dict()
            # As JSON has them, because a default (64, 64) comes back from a file as [64, 64].
            same = {k for k, v in spec.items() if json.dumps(v, default=str) == json.dumps(plain[k], default=str)}
            specs[kind] = {k: v for k, v in spec.items() if k == "name" or (v is not None and k not in same)}
    model = options.model or ("vae" if source.classes is None else "cvae")
    if "likelihood" not in specs and model != "ae":
        specs["likelihood"] = "Gaussian" if source.levels is None else "Binomial" if source.levels > 1 else "Bernoulli"
    if model == "ae" and "prior" in specs:
        raise ConfigError("an autoencoder has no prior: leave --prior out, or take --model vae")
    if model == "cvae" and source.classes is None:
        raise ConfigError(f"--model cvae: expected data with labels, and {source.name} has none: take --model vae")
    shared = {key: options[key] for key in ("hidden", "network", "beta")}
    if isinstance(shared["network"], str):
        shared["network"] = presets.lookup(presets.NETWORKS, shared["network"], "network")
    shared |= {"range": source.range, "levels": source.levels, **specs}
    makers: dict[str, Callable[[], VAE]] = {
        "ae": lambda: presets.ae(source.x_shape, options.latent, **shared),
        "vae": lambda: presets.vae(source.x_shape, options.latent, **shared),
        "cvae": lambda: presets.cvae(source.x_shape, options.latent, source.classes or 0, **shared),
    }
    return presets.lookup(makers, model, "--model")()


def _run_folder(options: Namespace) -> Path:
    if options.out is None:
        raise ConfigError("train: expected --out, the folder of the run")
    out = Path(options.out)
    there = any((out / name).exists() for name in ("config.yaml", "training.json", "model.json"))
    if options.resume and not there:
        raise ConfigError(f"--resume: expected a run in {out}, found none")
    if there and not options.resume and not options.overwrite:
        raise ConfigError(f"{out} holds a run already: add --resume to continue it, --overwrite to replace it")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {out}: expected a folder that can be made: {error.strerror}") from error
    return out


class _Records:
    """A callback that writes ``config.yaml`` and, one line an epoch, ``metrics.jsonl``, resumed epochs included.

    They come after the first epoch, and only then does what a former run left go: a bad option costs nobody a run.
    """

    def __init__(self, out: Path, config: str) -> None:
        self.out, self.config, self.written = out, config, 0

    def __call__(self, vae: VAE, history: History) -> None:
        if not self.written:
            for old in ("model.json", "evaluation.json", *(f"{name}.png" for name in PICTURES)):
                (self.out / old).unlink(missing_ok=True)
            (self.out / "config.yaml").write_text(self.config)
        with (self.out / "metrics.jsonl").open("a" if self.written else "w") as file:
            file.writelines(json.dumps(row) + "\n" for row in history[self.written :])
        self.written = len(history)


# What is done with a run


def _open_run(command: Callable[..., Any], words: list[str], *options: tuple[str, Any, Any, str]) -> Namespace:
    parser = _parser(command.__name__.strip("_"), command)
    parser.add_argument("run", type=str, help="the folder of a run")
    for name, kind, default, words_of_help in options:
        parser.add_argument(f"--{name}", type=kind, default=default, help=words_of_help)
    return _parse(parser, words, {})


def _model_and_data(run: str) -> tuple[VAE, data.Data]:
    vae, path = load(run), Path(run) / "config.yaml"
    try:
        config = yaml.safe_load(path.read_text())
        return vae, data.load(**config["data"])
    except (OSError, yaml.YAMLError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path}: expected the configuration of a run: {error}") from error


def _sample(words: list[str]) -> None:
    """Draw x ~ p(x|y) and write a picture."""
    options = _open_run(
        _sample,
        words,
        ("label", int | None, None, "one label; by default every one, a row each"),
        ("n", int, 16, "how many for each label"),
        ("mean", bool, False, "the mean of p(x|z,y) instead of a draw from it"),
        ("seed", int, 0, "of the draws"),
        ("out", str | None, None, "the picture; by default in the run's folder"),
    )
    vae = load(options.run)
    vrange = _value_range(options.run)
    labels = None if vae.condition is None else [options.label]
    if labels == [None]:
        labels = list(range(getattr(vae.condition, "classes", 0)))
    y = options.label if labels is None else torch.tensor(labels)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(options.seed)
        x = vae.sample(options.n, y, mean=options.mean)
    name = "samples.png" if options.label is None else f"samples-{options.label}.png"
    figure = plots.samples(x, labels, vrange=vrange, title="draws from p(x|y)" if labels else "draws from p(x)")
    print(plots.save(figure, options.out or Path(options.run) / name))


def _reconstruct(words: list[str]) -> None:
    """Reconstruct rows of the test set and write a picture."""
    options = _open_run(_reconstruct, words, ("n", int, 20, "how many rows"), ("out", str | None, None, "the picture"))
    vae, source = _model_and_data(options.run)
    figure = _reconstructions(vae, source.test.head(options.n), _vrange(source.range))
    print(plots.save(figure, options.out or Path(options.run) / "reconstructions.png"))


def _evaluate(words: list[str]) -> None:
    """Measure −ELBO and −log p(x|y) on the test set."""
    options = _open_run(
        _evaluate,
        words,
        ("samples", int, 500, "of z for the importance-sampled log p(x|y)"),
        ("seed", int, 0, "of the draws"),
    )
    vae, source = _model_and_data(options.run)
    result = evaluate(vae, *_xy(vae, source.test), samples=options.samples, seed=options.seed)
    _write_json(Path(options.run) / "evaluation.json", result.to_dict())
    print(result)


def _audit(words: list[str]) -> None:
    """Compare what SVI minimises with the loss written by hand."""
    options = _open_run(
        _audit, words, ("rows", int, 64, "of the test set"), ("particles", int, 200, "draws of the noise")
    )
    vae, source = _model_and_data(options.run)
    result = audit(vae, *_xy(vae, source.test.head(options.rows)), particles=options.particles)
    print(result)
    if not result.passed:
        raise AuditFailed("the audit failed: SVI does not minimise the loss that is written by hand")


def _plot(words: list[str]) -> None:
    """Draw every picture of a run again."""
    options = _open_run(_plot, words)
    vae, source = _model_and_data(options.run)
    try:
        lines = (Path(options.run) / "metrics.jsonl").read_text().splitlines()
        history = History(json.loads(line) for line in lines)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{options.run}: expected metrics.jsonl, a line of JSON an epoch: {error}") from error
    print("\n".join(str(path) for path in _draw(vae, source, Path(options.run), history)))


class AuditFailed(PplVaeError, ValueError):
    """The audit of a run found a difference."""


def _report(vae: VAE, source: data.Data, out: Path) -> None:
    """Print and write what the test set says of a model."""
    result = evaluate(vae, *_xy(vae, source.test))
    check = audit(vae, *_xy(vae, source.test.head(64)), particles=50)
    _write_json(out / "evaluation.json", result.to_dict())
    print(f"\n{source.name}, test split\n{result}\n\n{check.line}\n")


def _xy(vae: VAE, split: data.Split) -> tuple[torch.Tensor, torch.Tensor | None]:
    return split.x, None if vae.condition is None else split.y


def _value_range(run: str) -> tuple[float, float] | None:
    """The range of a pixel, as the run's data set has it."""
    described = json.loads((Path(run) / "model.json").read_text()).get("data") or {}
    return _vrange(described["range"]) if "range" in described else None


def _vrange(values: Sequence[float]) -> tuple[float, float] | None:
    """A range to map to grey levels; None where all pixels are equal."""
    low, high = values
    return (low, high) if low < high else None


def _are_images(x_shape: Sequence[int]) -> bool:
    """Whether x can be seen: (channels, H, W), (H, W), or a flat square."""
    if len(x_shape) == 1:
        return math.isqrt(x_shape[0]) ** 2 == x_shape[0]
    return len(x_shape) == 2 or (len(x_shape) == 3 and x_shape[0] in (1, 3))


def _reconstructions(vae: VAE, split: data.Split, vrange: tuple[float, float] | None) -> Any:
    x, y = _xy(vae, split)
    labels = None if split.y is None else split.y.tolist()
    return plots.reconstructions(x, vae.reconstruct(x, y).cpu(), labels, vrange=vrange, title="test images and x̂")


@torch.no_grad()
def _draw(vae: VAE, source: data.Data, out: Path, history: History) -> list[Path]:
    """Draw what there is to see of a model; return the paths."""
    figures = {"history": plots.history(history, title=f"{source.name}: training")}
    images, vrange = _are_images(source.x_shape), _vrange(source.range)
    if images:
        figures["reconstructions"] = _reconstructions(vae, source.test.head(20), vrange)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        test = source.test.head(1000)
        x, y = _xy(vae, test)
        z = vae.embed(x, y).cpu()
        figures["latents"] = plots.latents(z, test.y, title="means of q(z|x,y), test images")
        classes = None if vae.condition is None else torch.arange(source.classes or 0)
        labels = None if classes is None else classes.tolist()
        if vae.prior is not None:
            title = "draws from p(x|y), a row a label" if labels else "draws from p(x)"
            if images:
                x_new = vae.sample(64 if classes is None else 10, classes)
                figures["samples"] = plots.samples(x_new, labels, vrange=vrange, title=title)
            draws = vae.prior_given(y).sample(() if y is not None else (len(x),)).cpu()
            aggregate = vae.encode(x, y).sample().cpu()
            figures["prior"] = plots.prior_vs_posterior(draws, aggregate, title="p(z) and the aggregate of q(z|x,y)")
        if images and classes is not None and y is not None:
            # One style from every label, as far as the test images have it.
            styles = torch.stack([(y == k).nonzero()[0, 0] for k in classes if (y == k).any()])
            moved = _translated(vae, x[styles], y[styles], classes[:, None]).transpose(0, 1).cpu()
            title = "the style of one image in every label"
            figures["styles"] = plots.translations(x[styles], moved, classes, vrange=vrange, title=title)
        if images and z.shape[-1] == 2 and classes is None:
            axis = torch.linspace(-3, 3, 15)
            grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
            figures["manifold"] = plots.manifold(vae.decode(grid).mean.cpu(), axis, axis, vrange=vrange)
    return [plots.save(figure, out / f"{name}.png") for name, figure in figures.items()]


def _translated(vae: VAE, x: torch.Tensor, y: torch.Tensor, to: torch.Tensor) -> torch.Tensor:
    """The images in every label: at the same place of its prior where that has a map, else at the same z."""
    try:
        return vae.translate(x, y, to=to, carry=vae.prior is not None)
    except NoClosedFormError:
        return vae.translate(x, y, to=to)


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n")


# Parsing


def _parser(name: str, command: Callable[..., Any]) -> ArgumentParser:
    text = inspect.getdoc(command)
    options: dict[str, Any] = {"exit_on_error": False, "allow_abbrev": False}
    # jsonargparse would take the word --print_config for itself, and does not know what is filled in.
    return ArgumentParser(prog=f"ppl-vae {name}", description=text, print_config=None, **options)


def _parse(parser: ArgumentParser, words: list[str], config: dict[str, Any]) -> Namespace:
    """Parse the words over the configuration; an unknown option is met with the nearest one there is."""
    known = [action.dest for action in parser._actions]
    try:
        return parser.parse_args(words, namespace=parser.parse_object(config) if config else None)
    except argparse.ArgumentError as error:
        found = re.search(r"unrecognized arguments: --([\w.]+)|[Oo]ption '([\w.]+)' is not accepted", str(error))
        found = found or re.search(r"Group '(\w+)' does not accept option '([\w.]+)'", str(error))
        if found is None:
            raise
        key = ".".join(part for part in found.groups() if part)
        raise ConfigError(presets.nearest(key, known, "option")) from error


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "train": _train,
    "sample": _sample,
    "reconstruct": _reconstruct,
    "evaluate": _evaluate,
    "audit": _audit,
    "plot": _plot,
}
