"""What capture costs before it pays: the first steps and the first epoch of the demo, and peak memory.

python benchmarks/cold_start.py

Each measurement is a process of its own, one after the other, A B A B. Importing is not counted.
"""

from __future__ import annotations

import argparse
import inspect
import json
import statistics
import subprocess
import sys
import time
import warnings
from typing import Any

import common
import torch

DEMO_EPOCHS, DEMO_BATCH = 200, 64


def demo_model() -> tuple[Any, Any]:
    """The data and the model of ``make demo``."""
    import ppl_vae as pv

    data = pv.data.load("digits")
    torch.manual_seed(0)
    return data, pv.cvae(data.x_shape, 16, 10, likelihood="Binomial", levels=17, range=data.range)


def steps(backend: str, device: str, epochs: int) -> dict[str, float]:
    """Seconds of the first steps of the demo, of its first epoch, and of so many."""
    import pyro
    from pyro.infer import SVI, Trace_ELBO
    from step_time import adam

    from ppl_vae.capture import CapturedSVI

    data, vae = demo_model()
    vae.to(device)
    x, y = data.train.x.to(device), data.train.y.to(device)
    planned = DEMO_EPOCHS * -(-len(x) // DEMO_BATCH)
    started = time.perf_counter()
    if backend == "stock":
        svi: Any = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    else:
        svi = CapturedSVI(vae.model, vae.guide, adam(device), Trace_ELBO(), backend=backend, steps=planned)
    marks = []
    found: dict[str, Any] = {}
    for epoch in range(epochs):
        for rows in torch.randperm(len(x)).to(device).split(DEMO_BATCH):
            svi.step(x[rows], y[rows])
            if len(marks) < 3:
                common.synchronize(device)
                marks.append(time.perf_counter() - started)
        if backend != "stock":
            svi.read()
        common.synchronize(device)
        if not epoch:
            found["first epoch"] = time.perf_counter() - started
    found |= {"first step": marks[0], "second": marks[1] - marks[0], "third": marks[2] - marks[1]}
    return found | {"all": time.perf_counter() - started, "chose": getattr(svi, "backend", "")}


def fit(capture: str, device: str, epochs: int) -> dict[str, float]:
    """Seconds from the call of ``fit`` to the end of the first epoch of the demo, and of so many."""
    import ppl_vae as pv

    data, vae = demo_model()
    marks: list[float] = []
    options = {"capture": capture} if "capture" in inspect.signature(pv.fit).parameters else {}
    if capture != "off" and not options:
        raise common.LeftOutError("fit takes no capture")

    def after(vae: Any, history: Any) -> bool:
        marks.append(time.perf_counter() - started)
        return len(marks) >= epochs

    started = time.perf_counter()
    history = pv.fit(
        vae, data.train, epochs=DEMO_EPOCHS, batch_size=DEMO_BATCH, device=device, progress=False,
        callbacks=[after], **options,
    )  # fmt: skip
    return {"first epoch": marks[0], "all": marks[-1], "chose": str(history.info.get("capture", ""))}


def memory(backend: str, device: str, case: int) -> dict[str, float]:
    """Peak MiB of a process over 40 steps; on a GPU also of what torch holds there."""
    import resource

    import pyro
    from pyro.infer import SVI, Trace_ELBO
    from step_time import CASES, NEVER, adam

    from ppl_vae.capture import CapturedSVI

    unit = 2**20 if sys.platform == "darwin" else 2**10
    imported = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    vae, batches = CASES[case].ours(device), CASES[case].batches(device)
    if backend == "stock":
        svi: Any = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    else:
        svi = CapturedSVI(vae.model, vae.guide, adam(device), Trace_ELBO(), backend=backend, check_every=NEVER)
    for i in range(40):
        svi.step(*batches[i % 4])
    found = {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit}
    found["above imports"] = found["peak"] - imported
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        found |= {
            "gpu": torch.cuda.max_memory_allocated() / 2**20,
            "reserved": torch.cuda.max_memory_reserved() / 2**20,
        }
    return found | {"chose": getattr(svi, "backend", "")}


def child(job: dict[str, Any]) -> None:
    """Measure one thing and say it."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(job.pop("threads"))
    kind = job.pop("kind")
    try:
        common.say(**{"steps": steps, "fit": fit, "memory": memory}[kind](**job))
    except common.LeftOutError as error:
        common.say(note=common.reason(error))


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Measure one thing in a process of its own."""
    command = [sys.executable, __file__, "--child", json.dumps(job)]
    got = subprocess.run(command, capture_output=True, text=True)
    for line in got.stdout.splitlines():
        if line.startswith("@"):
            return json.loads(line[1:])
    lines = got.stderr.strip().splitlines() or ["it ended without a word"]
    return {"note": f"failed: {lines[-1]}"[:110]}


def medians(jobs: dict[str, dict[str, Any]], rounds: int) -> dict[str, dict[str, Any]]:
    """Measure everything so many times, by turns; the median of every number."""
    held: dict[str, list[dict[str, Any]]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            if not any("note" in got for got in held[name]):
                held[name].append(measure(job))
    table = {}
    for name, rows in held.items():
        note = next((row for row in rows if "note" in row), None)
        keys = rows[0].keys() if note is None else ()
        table[name] = note or {
            k: rows[0][k] if isinstance(rows[0][k], str) else statistics.median(row[k] for row in rows) for k in keys
        }
    return table


def report(title: str, table: dict[str, dict[str, Any]], columns: list[str], base: str, key: str) -> None:
    """Print a table, with the ratio of one column to that of the base."""
    rows: list[list[Any]] = []
    for name, row in table.items():
        if "note" in row:
            rows.append([name, row["note"]])
            continue
        reference = table.get(base, {}).get(key)
        rows.append([name, *(row.get(c) for c in columns), row[key] / reference if reference else None, row["chose"]])
    common.show(title, ["", *columns, f"{key} ÷ {base}", "chose"], rows)


def main() -> None:
    """Run the benchmark."""
    parser = common.parser(__doc__, rounds=5)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(json.loads(args.child))
    facts = common.start(args)
    cuda, rounds = args.device.startswith("cuda"), 1 if args.quick else args.rounds
    shared = {"threads": args.threads, "device": args.device}
    epochs = 1 if args.quick else DEMO_EPOCHS
    results: dict[str, Any] = {}

    def run(jobs: dict[str, dict[str, Any]], rounds: int) -> dict[str, dict[str, Any]]:
        return medians({n: shared | job for n, job in jobs.items() if common.chosen(n, args.only)}, rounds)

    jobs = {b: {"kind": "steps", "backend": b, "epochs": 1} for b in ("stock", "auto")}
    results["first steps"] = run(jobs, rounds)
    columns = ["first step", "second", "third", "first epoch"]
    report("seconds, the demo's first epoch by SVI", results["first steps"], columns, "stock", "first step")

    jobs = {f"fit {c}": {"kind": "fit", "capture": c, "epochs": epochs} for c in ("off", "auto")}
    results["fit"] = run(jobs, min(rounds, 2))
    title = f"seconds, the demo by fit: its first epoch, and all {epochs}"
    report(title, results["fit"], ["first epoch", "all"], "fit off", "all")

    from step_time import CASES

    # Recording is where a graph could hold too much, so the flow, whose graph is the largest, is here too.
    backends = ["stock", "graph", *([] if args.quick else ["inductor"]), *(["cudagraph"] if cuda else [])]
    for case in [0] if args.quick else [0, len(CASES) - 1]:
        jobs = {b: {"kind": "memory", "backend": b, "case": case} for b in backends}
        results[f"memory {CASES[case]}"] = table = run(jobs, min(rounds, 2))
        columns = ["peak", "above imports", *(["gpu", "reserved"] if cuda else [])]
        report(f"peak MiB, {CASES[case]}", table, columns, "stock", "gpu" if cuda else "peak")
    common.finish(args, "cold_start", facts, results)


if __name__ == "__main__":
    main()
