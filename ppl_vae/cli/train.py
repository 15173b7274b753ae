"""``ppl-vae train``: a model out of the options that were typed, and what the data say."""

from __future__ import annotations

import contextlib
import inspect
import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace

from .. import data, presets
from ..checkpoint import forget, read, replace, save
from ..devices import seeded
from ..errors import CheckpointError, ConfigError, PplVaeError
from ..history import History
from ..model import VAE
from ..objectives import warmup
from ..training import fit
from .config import CHOSEN, NAMED, PARTS, SHARED, as_chosen, as_yaml, in_full, read_yaml, take_config, value_of
from .files import fingerprint
from .parsing import parse, parser_of
from .report import PICTURES, draw, report

__all__ = ["train"]

# Options of zuko's that are functions, which no word stands for, and the shapes that go with them.
UNTYPABLE = {"activation", "univariate", "shapes"}
# A Vamp has the model's encoder, and starts from the data.
UNTYPABLE |= {"encoder", "pseudo_inputs"}
# How Pyro runs an ELBO, which no model made here needs to be told.
UNTYPABLE |= {"max_plate_nesting", "max_iarange_nesting", "strict_enumeration_warning", "ignore_jit_warnings"}
UNTYPABLE |= {"jit_options", "retain_graph", "tail_adaptive_beta"}
# What signatures cannot say in words: a class given by its name.
BY_NAME: dict[str, Any] = {"network": str | dict, "distribution": str, "args": list[float]}
BY_NAME |= {"flow": str | dict, "first": str | dict, "second": str | dict}
# Of what fit takes, what a word cannot say as it is; all else is an option of the same name.
_ASIDE = {"vae", "train", "valid", "lr", "optim", "objective", "beta", "checkpoint", "resume", "overwrite", "callbacks"}
_OF_FIT = [name for name in inspect.signature(fit).parameters if name not in _ASIDE]


def train(words: list[str]) -> None:
    """Train a model and report on it."""
    words = in_full(words)
    config = take_config(words)
    names = {kind: value_of(f"{kind}.name", words) or config.get(kind, {}).get("name") for kind in NAMED}
    names["objective"] = names["objective"] or "trace"
    # The options of one part, or objective, mean nothing to another that the words put in its place.
    config = {k: v for k, v in config.items() if k not in CHOSEN or v.get("name") == names[k]}
    parser = _train_parser(names)
    options = parse(parser, words, config)
    source = data.load(**options.data.as_dict())
    with seeded(options.seed, torch.device("cpu")):
        vae = _build(options, parser.get_defaults(skip_validation=True), source)
        if options.start_from_data and not options.resume:
            likelihood: Any = vae.likelihood
            likelihood.start_from(source.train)
    typed = options.as_dict()
    for key in ("config", "print_config", "overwrite", "resume"):
        del typed[key]
    made = {kind: part for kind, part in presets.to_dict(vae).items() if kind in PARTS}
    # What context: 0 wrapped is written as it is typed.
    made = {k: d["part"] if d and d["name"] == "Unconditional" else d for k, d in made.items()}
    if options.print_config:
        print(as_yaml(typed | made), end="")
        return
    shared = {"features": options.latent, "hidden": options.hidden, "network": options.network}
    # Of what parts share, a prior is given the number of features alone.
    of = {kind: {"features": options.latent} if kind == "prior" else shared for kind in PARTS}
    text = as_yaml(typed | {k: d and as_chosen(d, options[k].as_dict(), of[k]) for k, d in made.items()})
    how = options.objective.as_dict()
    objective = presets.lookup(presets.OBJECTIVES, how.pop("name"), "objective name")(**how)
    if options.warmup < 0:
        raise ConfigError(f"--warmup: expected a number of epochs, 0 for none, got {options.warmup}")
    if options.patience and not len(source.valid):
        raise ConfigError(f"--patience: expected rows to validate on, and {source.name} has none: leave it out")
    out = _run_folder(options)
    records = _Records(out, text)
    try:
        history = fit(
            vae,
            source.train,
            valid=source.valid if len(source.valid) else None,
            lr=options.lr,
            **{name: options[name] for name in _OF_FIT},
            objective=objective,
            beta=warmup(options.warmup, options.beta) if options.warmup else None,
            checkpoint=out,
            resume=out if options.resume else None,
            overwrite=options.overwrite,
            callbacks=[records],
        )
        if len(history) > options.epochs:
            done = f"{len(history)} epochs are done in {out}"
            raise ConfigError(f"--epochs {options.epochs}: {done}: name that number to end there, or more")
    except PplVaeError:
        with contextlib.suppress(OSError):
            out.rmdir()  # Only if it is empty: nothing was trained.
        raise
    except KeyboardInterrupt:
        if records.written:
            print(f"what was written last is in {out}: ppl-vae train --resume --out {out} goes on", file=sys.stderr)
        raise
    told = source.describe() | {"test_rows": fingerprint(source.test)}
    if records.written:
        save(vae, out, data=told)
    else:
        # A run that had come to its end. What was measured of it holds, unless it went on in Python since, or has other
        # rows to test on.
        if not _is_saved(out, vae, told["test_rows"]):
            records.clear()
        save(vae, out, data=told)
        records.write(history)
    parts = ", ".join(f"{k} {type(p).__name__}" for k in PARTS if (p := getattr(vae, k)) is not None)
    numbers = sum(p.numel() for p in vae.parameters())
    print(f"{source.name}, {len(history)} epochs: {parts}; {numbers:,} parameters, trained on {history.info['device']}")
    if not options.evaluate:
        return
    if not len(source.test):
        print("no rows are left to test on: neither evaluated nor drawn")
        return
    if (out / "evaluation.json").exists():
        print(f"nothing was trained, and what was measured stays: ppl-vae evaluate {out} measures and draws again")
        return
    report(vae, source, out, objective, options.progress)
    print("\n".join(str(path) for path in draw(vae, source, out, history)))


def _train_parser(names: Mapping[str, str | None]) -> ArgumentParser:
    parser = parser_of("train", train)
    parser.add_argument("--config", type=str, help="a YAML file of options, such as a run's config.yaml")
    parser.add_argument(
        "--print_config", action="store_true", help="show every option, what parts share filled in, and stop"
    )
    parser.add_argument("--out", type=str, help="the folder of the run")
    parser.add_argument("--overwrite", action="store_true", help="replace the run that is there")
    parser.add_argument("--resume", action="store_true", help="continue the run that is there, as its config.yaml says")
    parser.add_argument("--data.name", type=str, default="digits", help="a data set, or an .npz file")
    parser.add_function_arguments(data.load, "data", skip={"name"})
    parser.add_argument("--model", type=str, help="ae, vae or cvae; by default cvae where the data have labels")
    parser.add_argument("--latent", type=int, default=16, help="the number of latent features")
    parser.add_argument(
        "--hidden",
        type=list[int] | int | None,
        help="hidden layers of the likelihood and the encoder: 400, or '[400, 200]' for two",
    )
    parser.add_argument("--network", type=str | None, help=f"their body: {', '.join(presets.NETWORKS)}")
    for kind in PARTS:
        parser.add_argument(f"--{kind}.name", type=str | None, help=", ".join(presets.TABLES[kind]))
        _add_options(parser, kind, names[kind])
    parser.add_argument("--objective.name", type=str, default="trace", help=", ".join(presets.OBJECTIVES))
    _add_options(parser, "objective", names["objective"])
    parser.add_argument("--beta", type=float, default=1.0, help="the weight of the KL")
    parser.add_argument("--warmup", type=int, default=0, help="epochs over which β rises to its value")
    parser.add_argument("--start_from_data", action="store_true", help="start the likelihood at the mean of the data")
    parser.add_argument("--evaluate", type=bool, default=True, help="measure and draw the test set at the end")
    parser.add_argument("--lr", type=float, default=1e-3, help="the learning rate")
    parser.add_function_arguments(fit, as_group=False, skip={*_ASIDE})
    return parser


def _add_options(parser: ArgumentParser, kind: str, name: str | None) -> None:
    """Add what the named class takes, from its own signature."""
    if name is None or name == "Unconditional":
        return
    cls = presets.lookup({**presets.TABLES, "objective": presets.OBJECTIVES}[kind], name, f"{kind} name")
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
        specs["likelihood"] = "Gaussian" if source.levels is None else "Binomial" if source.levels > 2 else "Bernoulli"
    if model == "ae" and "prior" in specs:
        raise ConfigError("an autoencoder has no prior: leave --prior out, and prior in the file, or take --model vae")
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
    if options.resume and options.overwrite:
        raise ConfigError(
            "expected --resume, to continue the run that is there, or --overwrite, to replace it, got both"
        )
    if options.resume and not there:
        raise ConfigError(f"--resume: expected a run in {out}, found none")
    if options.resume and (began := _began_from_data(out)) is not None and began != options.start_from_data:
        raise ConfigError(
            f"--start_from_data: expected it to be {began}, as when the run in {out} began, got "
            f"{options.start_from_data}: train anew in another folder"
        )
    if there and not options.resume and not options.overwrite:
        raise ConfigError(f"{out} holds a run already: add --resume to continue it, --overwrite to replace it")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {out}: expected a folder that can be made: {error.strerror}") from error
    return out


def _is_saved(out: Path, vae: VAE, test_rows: str) -> bool:
    """Whether the model in a folder is this one, and has these rows to test on."""
    try:
        there, info = read(out, "model")
    except CheckpointError:
        return False
    own = {name: tensor.cpu() for name, tensor in vae.state_dict().items()}
    same = there.keys() == own.keys() and (info.get("data") or {}).get("test_rows") == test_rows
    return same and all(torch.equal(there[name], own[name]) for name in own)


def _began_from_data(out: Path) -> bool | None:
    """What the run in a folder was told of its start; None where it does not say, which is --config's to mend."""
    with contextlib.suppress(ConfigError):
        return bool(read_yaml(out / "config.yaml").get("start_from_data", False))
    return None


class _Records:
    """A callback that writes ``config.yaml`` and, one line an epoch, ``metrics.jsonl``, resumed epochs included.

    They come after the first epoch, and only then does what a former run left go: a bad option costs nobody a run.
    """

    def __init__(self, out: Path, config: str) -> None:
        self.out, self.config, self.written = out, config, 0

    def __call__(self, vae: VAE, history: History) -> None:
        if not self.written:
            # The state is there by now: the model of before goes first, so that nothing takes it for this run's.
            forget(self.out, "model")
            self.write(history)
            self.clear()
        else:
            self.write(history)

    def clear(self) -> None:
        """Remove a model, and what the commands wrote of it under names of their own."""
        forget(self.out, "model")
        names = ["evaluation.json", "audit.json"]
        names += [f"{name}.npz" for name in ("evaluation", "samples", "reconstructions")]
        names += [f"{name}.png" for name in PICTURES]
        names += [p.name for p in self.out.glob("samples-*") if re.fullmatch(r"samples-\d+\.(png|npz)", p.name)]
        for name in names:
            (self.out / name).unlink(missing_ok=True)

    def write(self, history: History) -> None:
        """Write what the run is said to be, once, and the epochs that are new."""
        if not self.written:
            replace(self.out / "config.yaml", self.config.encode())
        with (self.out / "metrics.jsonl").open("a" if self.written else "w") as file:
            file.writelines(json.dumps(row) + "\n" for row in history[self.written :])
        self.written = len(history)
