"""What the rows share: training that can be stopped and gone on with, the measurement, and the file of the result.

A row is a protocol. Every seed of it is a run in a folder of its own, with its settings and its state; a run that is
finished is read and not made again, and one of other settings is refused. ``--epochs`` stops earlier, measures what
there is, and calls the row partial; without it, the same run goes on from there. What comes of all seeds is written to
``results/<row>.json``, from which ``table.py`` makes ``docs/results.md``. Seeds that stand there already, from another
machine perhaps, stay there.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ppl_vae as pv

HERE = Path(__file__).resolve().parent


Rows = pv.data.Split | tuple[torch.Tensor, torch.Tensor]


def arguments(doc: str | None, seeds: int = 3) -> argparse.ArgumentParser:
    """The options that every row has."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("data"), help="where the data sets are")
    parser.add_argument("--out", type=Path, default=Path("runs/reproduce"), help="where the runs go")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="where the results go")
    parser.add_argument("--seeds", type=int, nargs="*", default=list(range(seeds)))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rows", type=int, help="fewer images: a smoke run, whose numbers mean nothing")
    parser.add_argument("--epochs", type=int, help="fewer epochs for now: the result says so, and a later call goes on")
    parser.add_argument("--every", type=int, default=1, help="write the state of a run once in so many epochs")
    parser.set_defaults(usual_seeds=list(range(seeds)))
    return parser


def hardware(device: str, moves: Iterable[tuple[int, str]] = ()) -> str:
    """What computes, in words, and until when something else did."""
    before = "".join(f"{epochs} epochs on {kind}, then " for epochs, kind in moves)
    if device != "cpu" and torch.cuda.is_available():
        return before + torch.cuda.get_device_name()
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else ():
        if line.startswith("model name"):
            model = line.split(":")[1].strip()
            break
    return f"{before}{model}, {torch.get_num_threads()} of {os.cpu_count()} cores"


def drawn(seed: int, *probabilities: torch.Tensor) -> list[torch.Tensor]:
    """Pixels of 0 and 1, of one tensor after the other, by numpy's old generator: the very images of papers' code."""
    state = np.random.RandomState(seed)
    return [torch.from_numpy(state.binomial(1, p.double().numpy())).float() for p in probabilities]


def run(
    row: str,
    args: argparse.Namespace,
    make: Callable[[int], pv.VAE],
    train: Rows,
    valid: Rows | None,
    test: Rows,
    *,
    epochs: int,
    samples: int,
    figure: str = "neg_log_prob",
    measure: Callable[[pv.VAE, torch.Tensor, torch.Tensor | None], dict[str, float]] | None = None,
    **options: Any,
) -> None:
    """Train and measure every seed of a row, and write the result.

    Arguments:
        row: its name.
        make: the model of a seed, freshly initialised; torch's generator is at that seed.
        train, valid, test: rows with their labels, or (x, y); no valid where the protocol holds none out.
        epochs: of the protocol.
        samples: of z for −log p, of the protocol.
        figure: which of the numbers of a seed the row is about.
        measure: what else is measured.
        options: for ``fit``.
    """
    until = min(args.epochs or epochs, epochs)
    train, test = (_head(rows, args.rows) for rows in (train, test))
    valid = None if valid is None else _head(valid, args.rows)
    settings, path = _settings(args), args.results / f"{row}.json"
    # Refused before anything is trained, if they are another protocol's.
    _all_seeds(path, args.out, settings)
    # Training is told of all epochs, and stopped: fewer would choose the best weights at another β than a later call.
    callbacks = [*options.pop("callbacks", []), lambda vae, history: len(history) >= until]
    for seed in args.seeds:
        out = args.out / f"{row}-{seed}"
        _same_settings(out, settings)
        if (done := _result(out)) is not None and done["asked"] >= until:
            continue
        torch.manual_seed(seed)
        model = make(seed)
        history = pv.fit(
            model,
            train,
            valid=valid,
            epochs=epochs,
            seed=seed,
            device=args.device,
            checkpoint=out / "state",
            checkpoint_every=args.every,
            resume=True,
            callbacks=callbacks,
            **options,
        )
        pv.save(model, out)
        x, y = (test.x, test.y) if isinstance(test, pv.data.Split) else test
        y = None if model.condition is None else y
        found = pv.evaluation.log_likelihood(model, x, y, samples=samples)
        # Whose weights were measured: the best on validation rows, where a protocol chooses, or the last.
        kept = history[-1] if valid is None else min(history, key=lambda r: r["valid_neg_elbo"])
        kept = kept if options.get("patience") else history[-1]
        result = {
            "seed": seed,
            "epochs": len(history),
            "asked": until,
            "hardware": hardware(args.device, history.info.get("moves", ())),
            "versions": f"torch {torch.__version__}, ppl_vae {pv.__version__}",
            "date": datetime.date.today().isoformat(),
            "neg_log_prob": -found.mean,
            "standard_error": found.error,
            "rows": len(found.values),
            "rows_not_to_be_trusted": int((~found.good).sum()),
            "density": found.density,
            "valid_neg_elbo": kept.get("valid_neg_elbo"),
            "epoch_of_the_weights": kept["epoch"],
            # A pause of the machine is in an epoch or two of the history, and not in the median.
            "seconds": len(history) * statistics.median(history.column("seconds")),
            **({} if measure is None else measure(model, x, y)),
        }
        (out / "result.json").write_text(json.dumps(result, indent=2) + "\n")
        print(found, flush=True)
    results = _all_seeds(path, args.out, settings)
    if not results:
        return
    values = torch.tensor([r[figure] for r in results], dtype=torch.float64)
    summary = {
        "row": row,
        "command": _command(results, args.usual_seeds, epochs),
        "figure": figure,
        "complete": all(result["asked"] == epochs for result in results) and not args.rows,
        "epochs": epochs,
        "samples": samples,
        "settings": settings,
        "mean": values.mean().item(),
        "spread": values.std().item() if len(values) > 1 else None,
        "seeds": results,
    }
    args.results.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(summary, indent=2) + "\n")
    print(f"{row}: {figure} {summary['mean']:.2f}, {len(results)} seeds")


def _all_seeds(path: Path, out: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Every seed of a row in the order of seeds, of those that are finished here and those that its file has already.

    Of two results of one seed the one of more epochs counts, and the one that is here where they are the same.
    """
    found: dict[int, dict[str, Any]] = {}
    if path.exists():
        before = json.loads(path.read_text())
        if before.get("settings") != settings:
            raise SystemExit(
                f"{path} is of {before.get('settings')}, and asked for is {settings}: give another --results"
            )
        found = {result["seed"]: result for result in before["seeds"]}
    for folder in out.glob(f"{path.stem}-*"):
        result = _result(folder) if folder.name[len(path.stem) + 1 :].isdigit() else None
        if result is not None:
            _same_settings(folder, settings)
            if result["asked"] >= found.get(result["seed"], result)["asked"]:
                found[result["seed"]] = result
    return [found[seed] for seed in sorted(found)]


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """All that decides what comes out but the seed, and how far training has got."""
    elsewhere = ("root", "out", "results", "seeds", "device", "usual_seeds", "epochs", "every")
    given = {name: value for name, value in vars(args).items() if name not in elsewhere}
    return json.loads(json.dumps(given, default=str))


def _result(out: Path) -> dict[str, Any] | None:
    path = out / "result.json"
    return json.loads(path.read_text()) if path.exists() else None


def _same_settings(out: Path, settings: dict[str, Any]) -> None:
    """Write the settings into a new run's folder; stop at a run of others, whose numbers would be taken for these."""
    path = out / "settings.json"
    if not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings, indent=2) + "\n")
    elif (before := json.loads(path.read_text())) != settings:
        raise SystemExit(f"{out} was made with {before}, and asked for is {settings}: give another --out")


def _command(results: list[dict[str, Any]], usual: list[int], epochs: int) -> str:
    """What was typed, less where this machine keeps its files, and with all seeds and epochs that there are."""
    typed, words = list(sys.argv[1:]), []
    while typed:
        word = typed.pop(0)
        if word.split("=")[0] in ("--root", "--out", "--results", "--seeds", "--epochs", "--every"):
            while typed and not typed[0].startswith("--"):
                typed.pop(0)
        else:
            words.append(word)
    seeds, longest = [result["seed"] for result in results], max(result["asked"] for result in results)
    told = [] if longest == epochs else ["--epochs", str(longest)]
    told += [] if seeds == usual else ["--seeds", *map(str, seeds)]
    return " ".join(["python", f"examples/reproduce/{Path(sys.argv[0]).name}", *words, *told])


def _head(rows: Rows, n: int | None) -> Rows:
    """The first n rows, or all."""
    if n is None:
        return rows
    return rows.head(n) if isinstance(rows, pv.data.Split) else (rows[0][:n], rows[1][:n])
