"""What the benchmarks share: the machine in words, timing by turns, other environments, tables.

All contestants take turns, many short ones each, in an order that is drawn anew every round; so whatever the machine
does meanwhile happens to all of them. A contestant that needs another framework is a process of its own that sleeps
until it is its turn. Only the standard library and numpy are imported here: those processes import this file too.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import math
import os
import platform
import random
import shlex
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16", "asimd", "sve", "bf16")


class LeftOutError(Exception):
    """A contestant that does not take part, and why."""


# The command line and the machine


def parser(doc: str | None, rounds: int) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--threads", type=int, help="threads on the CPU (default: all)")
    parser.add_argument("--rounds", type=int, default=rounds, help=f"turns of each contestant (default: {rounds})")
    parser.add_argument("--only", default="", help="contestants whose names contain one of these, comma-separated")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/<name>.json")
    parser.add_argument("--quick", action="store_true", help="a smoke run of seconds; its numbers mean nothing")
    return parser


def start(args: argparse.Namespace) -> dict[str, Any]:
    """Set the threads, print the machine, return it."""
    import torch

    if args.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit("--device cuda: torch sees no CUDA device here")
    if args.quick and not args.threads:
        args.threads = 1  # two that wait for each other on a busy machine would make it a slow run
    if args.threads:
        torch.set_num_threads(args.threads)
    args.threads = torch.get_num_threads()
    facts = machine(args)
    print("\n".join(f"{key + ':':<10}{value}" for key, value in facts.items()), flush=True)
    if args.quick:
        print("a smoke run: these numbers mean nothing")
    return facts


def machine(args: argparse.Namespace) -> dict[str, Any]:
    """Say what the timings were taken on."""
    import pyro
    import torch
    import zuko

    import ppl_vae

    model, flags = platform.processor() or platform.machine(), set()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                model = value.strip()
            elif key.strip() in ("flags", "Features"):
                flags = set(value.split())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    facts = {
        "command": shlex.join(["python", f"{HERE.name}/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "cpu": f"{model}, {cores} cores, {', '.join(f for f in FLAGS if f in flags)}",
        "threads": args.threads,
        "busy": busy(),
        "python": platform.python_version(),
        "versions": f"torch {torch.__version__}, pyro {pyro.__version__}, zuko {zuko.__version__}, "
        f"ppl_vae {ppl_vae.__version__}",
    }
    if args.device.startswith("cuda"):
        memory = torch.cuda.get_device_properties(args.device).total_memory / 2**30
        facts["gpu"] = f"{torch.cuda.get_device_name(args.device)}, {memory:.0f} GiB, CUDA {torch.version.cuda}"
    return facts


def busy(seconds: float = 1.0) -> float | None:
    """How many cores other processes keep busy, while this one sleeps; None where the system does not say."""

    def ticks() -> tuple[int, int]:
        values = [int(v) for v in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        return sum(values), values[3] + values[4]

    try:
        before = ticks()
        time.sleep(seconds)
        total, idle = (b - a for a, b in zip(before, ticks(), strict=True))
    except (OSError, ValueError, IndexError):
        return None
    return round((1 - idle / max(1, total)) * (os.cpu_count() or 1), 2)


def finish(args: argparse.Namespace, name: str, facts: dict[str, Any], results: Any) -> None:
    """Look again at what else runs here, warn if anything does, and save with --save."""
    facts["busy after"] = busy()
    seen = [value for key, value in facts.items() if key.startswith("busy") and value is not None]
    facts["quiet"] = bool(seen) and max(seen) < 0.1
    if not facts["quiet"]:
        print(
            f"\nNOT QUIET: other processes kept {' and then '.join(map(str, seen)) or '?'} cores busy, which "
            "slows contestants down\nunequally, several threads most of all. Take no ratio from this run."
        )
    save(args, name, facts, results)


def chosen(name: str, only: str) -> bool:
    """Whether a name contains one of the comma-separated words."""
    return not only or any(word.strip() in name for word in only.split(","))


# Timing

# Takes so many steps; returns the seconds if it measured them itself.
Run = Callable[[int], float | None]


def reason(error: BaseException) -> str:
    """The first line of an error, for a table."""
    text = str(error).strip().split("\n")[0] or type(error).__name__
    return f"left out: {text}" if isinstance(error, LeftOutError) else f"failed: {type(error).__name__}: {text}"[:110]


def interleave(
    contestants: Mapping[str, Callable[[], Run]], rounds: int, seconds: float, device: str
) -> dict[str, dict[str, Any]]:
    """Time steps of all contestants by turns.

    Arguments:
        contestants: name → a function that makes the contestant, which is then called with a number of steps.
        rounds: how many turns each gets.
        seconds: how long a turn takes, roughly.
        device: is waited for at both ends of a turn.

    Returns:
        name → {"ms", "low", "high"}, the median and the quartiles of the milliseconds a step took in each turn, and
        "setup", seconds to make it and take its first steps; or {"note"}, why there is no number.
    """
    table: dict[str, dict[str, Any]] = {}
    runs: dict[str, tuple[Run, int]] = {}
    for name, make in contestants.items():
        started = time.perf_counter()
        try:
            run = make()
            # Recording, compiling and first comparisons are over after so many.
            run(8)
            synchronize(device)
            table[name] = {"setup": time.perf_counter() - started}
            step = turn(run, 3, device) / 3
            runs[name] = run, max(3, min(5000, math.ceil(seconds / step)))
        except Exception as error:  # a contestant that cannot run is a line in the table
            table[name] = {"note": reason(error)}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name in random.sample(list(runs), len(runs)):
            run, steps = runs[name]
            run(2)  # the caches hold what the one before left
            times[name].append(1000 * turn(run, steps, device) / steps)
    for name, values in times.items():
        low, high = (
            (statistics.quantiles(values, n=4, method="inclusive")[::2]) if len(values) > 1 else (values[0], values[0])
        )
        table[name] |= {"ms": statistics.median(values), "low": low, "high": high}
    return table


def turn(run: Run, steps: int, device: str) -> float:
    """The seconds that so many steps take."""
    synchronize(device)
    started = time.perf_counter()
    own = run(steps)
    synchronize(device)
    return time.perf_counter() - started if own is None else own


def synchronize(device: str) -> None:
    """Wait for a CUDA device."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(device)


# Processes that take turns


class Worker:
    """A process that sleeps until it is asked, and answers in JSON.

    Arguments:
        command: what to run; its first answer says that it is ready.
    """

    def __init__(self, command: Sequence[str | Path]) -> None:
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed in close)
        environ = os.environ | {"TQDM_DISABLE": "1", "PYTHONWARNINGS": "ignore"}
        self.process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=environ,
        )
        self.ready = self._answer()

    def ask(self, question: Any) -> dict[str, Any]:
        """Let it take its turn, and wait for the answer."""
        self.process.stdin.write(f"{question}\n")  # type: ignore[union-attr]
        self.process.stdin.flush()  # type: ignore[union-attr]
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        for line in self.process.stdout:  # type: ignore[union-attr]
            if line.startswith("@"):
                return json.loads(line[1:])
        self.process.wait()
        self.errors.seek(0)
        lines = self.errors.read().strip().splitlines() or ["it ended without a word"]
        raise RuntimeError(next((line for line in reversed(lines) if "Error" in line), lines[-1]))

    def close(self) -> None:
        """End it: a worker that reads the end of its input stops."""
        with contextlib.suppress(OSError):
            self.process.stdin.close()  # type: ignore[union-attr]
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.errors.close()


class Turns:
    """The other end of a :class:`Worker`: waits for its turns and times them."""

    def __init__(self, device: str = "cpu") -> None:
        self.device, self.started = device, 0.0

    def wait(self) -> str | None:
        """Sleep until it is our turn; return what was asked, None at the end."""
        line = sys.stdin.readline()
        self.started = time.perf_counter()
        return line.strip() or None

    def done(self, **facts: Any) -> None:
        """Answer: how long the turn took."""
        synchronize(self.device)
        say(seconds=time.perf_counter() - self.started, **facts)


def say(**facts: Any) -> None:
    """Answer the process that asked."""
    print("@" + json.dumps(facts), flush=True)


def environment(name: str, packages: Sequence[str], *, share: bool = False, make: bool = True) -> Path:
    """The Python of an environment of its own in ``benchmarks/.envs``, made where there is none.

    Arguments:
        name: of the folder.
        packages: to install with pip.
        share: let it see this environment's packages behind its own, so that both use one and the same torch.
        make: if there is none.

    Raises:
        LeftOutError: if it cannot be made.
    """
    folder = HERE / ".envs" / name
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    complete = folder / "complete"
    if complete.exists():
        return python
    if not make:
        raise LeftOutError(f"--quick makes no environment, and {folder.relative_to(HERE.parent)} is not there yet")
    print(f"making {folder.relative_to(HERE.parent)} with {' '.join(packages)} ...", flush=True)
    commands: list[list[Any]] = [[sys.executable, "-m", "venv", "--clear", folder]]
    commands += [[python, "-m", "pip", "install", "--quiet", *packages]]
    for command in commands:
        try:
            got = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=3600)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise LeftOutError(f"no environment {name}: {error}") from error
        if got.returncode:
            lines = got.stderr.strip().splitlines() or ["?"]
            line = next((line for line in lines if line.startswith("ERROR")), lines[-1])
            raise LeftOutError(f"no environment {name}: {line}"[:110])
        if share and command is commands[0]:
            ours = sysconfig.get_paths()["purelib"]
            paths = {"base": str(folder), "platbase": str(folder)}
            Path(sysconfig.get_path("purelib", "venv", paths), "shared.pth").write_text(ours + "\n")
    complete.touch()
    return python


# Data


def images(root: str | Path | None, rows: int) -> tuple[np.ndarray, np.ndarray, str]:
    """Binary images (rows, 1, 28, 28) and labels as bytes, MNIST where the files are, and which they are in words."""
    folder = Path(root or "data") / "MNIST" / "raw"
    files = folder / "train-images-idx3-ubyte", folder / "train-labels-idx1-ubyte"
    if all(file.is_file() for file in files):
        x = np.frombuffer(files[0].read_bytes(), np.uint8, offset=16).reshape(-1, 1, 28, 28)[:rows]
        y = np.frombuffer(files[1].read_bytes(), np.uint8, offset=8)[:rows]
        return (x >= 128).astype(np.uint8), y.copy(), f"MNIST, {len(x):,} images, pixels ≥ 128 are 1"
    rng = np.random.default_rng(0)
    x = (rng.random((rows, 1, 28, 28), np.float32) < 0.13).astype(np.uint8)
    return x, rng.integers(0, 10, rows).astype(np.uint8), f"synthetic binary images, {rows:,} of 28 × 28 (no MNIST)"


# Tables


def show(title: str, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table; numbers to the right."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(head), *cells] if i < len(row)) for i in range(len(head))]
    # A remark in place of numbers may be longer than its column.
    remarks = [len(row) < len(head) for row in cells]
    for i in range(1, len(head)):
        full = [len(row[i]) for row, remark in zip(cells, remarks, strict=True) if not remark]
        widths[i] = max([len(head[i]), *full])
    print(f"\n{title}")
    print("  ".join([head[0].ljust(widths[0]), *(h.rjust(w) for h, w in zip(head[1:], widths[1:], strict=True))]))
    print("  ".join("-" * width for width in widths))
    for row in cells:
        values = (v.rjust(w) if len(row) == len(head) else v for v, w in zip(row[1:], widths[1:], strict=False))
        print("  ".join([row[0].ljust(widths[0]), *values]).rstrip(), flush=True)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
    return "" if value is None else str(value)


def save(args: argparse.Namespace, name: str, facts: Mapping[str, Any], results: Any) -> None:
    """With --save: write the results and the machine as JSON."""
    if not args.save:
        return
    RESULTS.mkdir(exist_ok=True)
    device = "-cuda" if args.device.startswith("cuda") else ""
    path = RESULTS / f"{name}{device}{'-quick' if args.quick else ''}.json"
    path.write_text(json.dumps({"machine": facts, "results": results}, indent=1, ensure_ascii=False) + "\n")
    print(f"\nwrote {path.relative_to(HERE.parent)}")
