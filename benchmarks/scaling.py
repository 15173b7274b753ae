"""How a step's time grows with batch, width, latent size and particles, and where arithmetic outweighs overhead.

python benchmarks/scaling.py

The crossover is the first point from which twice the work costs more than 1.5 times the time.
"""

from __future__ import annotations

import warnings
from typing import Any

import common
import pyro
import torch
from matplotlib.figure import Figure
from pyro.infer import SVI, Trace_ELBO
from step_time import NEVER, adam, own_store

import ppl_vae as pv
from ppl_vae.capture import CapturedSVI

BASE = {"batch": 128, "hidden": 400, "latent": 20, "particles": 1}
SWEEPS = {
    "batch": [2**k for k in range(5, 14)],
    "hidden": [50 * 2**k for k in range(8)],
    "latent": [2**k for k in range(1, 11)],
    "particles": [2**k for k in range(7)],
}
CROSSOVER = 1.5


def make(point: dict[str, int], device: str, backend: str | None) -> Any:
    """A contestant at a point: stock SVI for None, else ours."""
    vae = pv.cvae(
        (1, 28, 28), point["latent"], 10, hidden=(point["hidden"],), prior={"name": "Gaussian", "hidden": []}
    ).to(device)
    x = (torch.rand(point["batch"], 1, 28, 28) < 0.13).float().to(device)
    y = torch.randint(10, (point["batch"],)).to(device)
    many = point["particles"] > 1
    elbo = Trace_ELBO(num_particles=point["particles"], vectorize_particles=many, max_plate_nesting=1)
    if backend is None:
        svi: Any = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), elbo)
    else:
        svi = CapturedSVI(vae.model, vae.guide, adam(device), elbo, backend=backend, check_every=NEVER)

    def run(steps: int) -> None:
        for _ in range(steps):
            svi.step(x, y)
        if backend is not None and svi.backend == "off":
            raise RuntimeError("it fell back to stock steps")

    return run


def gflop(point: dict[str, int]) -> float:
    """The 10⁹ operations of the matrix products of a step: two a weight and row forward, nearly four backward."""
    b, h, d, k = point["batch"], point["hidden"], point["latent"], point["particles"]
    # No gradient is taken of the data.
    encoder = b * (4 * 794 * h + 6 * h * 2 * d)
    decoder = b * k * 6 * ((d + 10) * h + h * 784)
    return (encoder + decoder) / 1e9


def crossover(xs: list[int], ms: list[float], work: list[float]) -> int | None:
    """The first point from which on twice the work always costs more than 1.5 times the time.

    Work that grows by another factor f than two, as beside a fixed part, counts by the same power of f.
    """
    found = None
    for i in range(len(xs) - 1, 0, -1):
        growth = work[i] / work[i - 1]
        # Nothing can be said of a step in which the work hardly grows.
        if growth < 1.2 or ms[i] / ms[i - 1] <= growth ** torch.tensor(CROSSOVER).log2().item():
            break
        found = xs[i - 1]
    return found


def plot(results: dict[str, Any], facts: dict[str, Any]) -> Figure:
    """Four panels: milliseconds against each size, the arithmetic dotted, the crossover marked."""
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    for axes, (name, sweep) in zip(figure.subplots(2, 2).flat, results.items(), strict=False):
        for color, (label, line) in zip(("C1", "C0", "C2"), sweep["lines"].items(), strict=False):
            xs, ms = line["x"], line["ms"]
            if not xs:
                continue
            text = label
            if line["crossover"] is not None:
                text += f", arithmetic from {line['crossover']}"
                axes.axvline(line["crossover"], color=color, linewidth=0.8, linestyle="--")
            axes.plot(xs, ms, "o-", color=color, label=text, markersize=4)
            if not label.startswith("stock"):
                rate = max(w / t for w, t in zip(line["gflop"], ms, strict=True))
                text = f"arithmetic alone, at {1000 * rate:,.0f} GFLOP/s"
                axes.plot(xs, [w / rate for w in line["gflop"]], ":", color=color, label=text)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel(name)
        axes.set_ylabel("ms a step")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    otherwise = ", ".join(f"{name} {value}" for name, value in BASE.items())
    figure.suptitle(
        f"MLP CVAE, otherwise {otherwise}; {facts.get('gpu', facts['cpu'])}, {facts['threads']} threads", size=9
    )
    return figure


def main() -> None:
    """Run the benchmark."""
    parser = common.parser(__doc__, rounds=7)
    parser.add_argument("--backend", help="ours (default: graph; cudagraph on CUDA); several, comma-separated")
    parser.add_argument("--sweeps", default="", help=f"of {', '.join(SWEEPS)}: those that contain one of these")
    args = parser.parse_args()
    facts = common.start(args)
    warnings.filterwarnings("ignore")
    backends = (args.backend or ("cudagraph" if args.device.startswith("cuda") else "graph")).split(",")
    lines: dict[str, str | None] = {"stock SVI": None, **{f"ours {b}": b for b in backends}}
    lines = {label: backend for label, backend in lines.items() if common.chosen(label, args.only)}
    rounds, seconds = (1, 0.01) if args.quick else (args.rounds, 0.1)
    results: dict[str, Any] = {}
    for name, values in SWEEPS.items():
        if not common.chosen(name, args.sweeps):
            continue
        values = values[1:4] if args.quick else values
        found: dict[str, Any] = {label: {"x": [], "ms": [], "gflop": []} for label in lines}
        rows = []
        for value in values:
            point = BASE | {name: value}
            table = common.interleave(
                {
                    label: (lambda p=point, b=backend: own_store(lambda: make(p, args.device, b)))
                    for label, backend in lines.items()
                },
                rounds,
                seconds,
                args.device,
            )
            row: list[Any] = [str(value), gflop(point)]
            for label in lines:
                ms = table[label].get("ms")
                row += [ms if ms is not None else "-", gflop(point) / ms * 1000 if ms else "-"]
                if ms is None:
                    print(f"{name} {value}, {label}: {table[label]['note']}")
                    continue
                found[label]["x"].append(value)
                found[label]["ms"].append(ms)
                found[label]["gflop"].append(gflop(point))
            rows.append(row)
        head = [name, "GFLOP"]
        for label in lines:
            head += [f"{label} ms", "GFLOP/s"]
        common.show(f"time a step against {name}", head, rows)
        for label, line in found.items():
            line["crossover"] = crossover(line["x"], line["ms"], line["gflop"])
            at = f"from {name} {line['crossover']}" if line["crossover"] is not None else "not within this range"
            print(f"{label}: twice the work costs more than {CROSSOVER} times the time {at}")
        results[name] = {"base": BASE, "lines": found}
    if results and args.save:
        common.RESULTS.mkdir(exist_ok=True)
        kind = "-cuda" if args.device.startswith("cuda") else ""
        path = common.RESULTS / f"scaling{kind}{'-quick' if args.quick else ''}.png"
        plot(results, facts).savefig(path, dpi=120)
        print(f"\nwrote {path.relative_to(common.HERE.parent)}")
    common.finish(args, "scaling", facts, results)


if __name__ == "__main__":
    main()
