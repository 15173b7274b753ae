"""The time of an epoch over 60,000 images of 28 × 28, end to end with data.

python benchmarks/epoch_time.py --root data     where data/MNIST/raw holds the files; synthetic images otherwise

The architecture, batch size and learning rate of Pyro's VAE example: 784 → 400 softplus → 50 → 400 softplus → 784,
batch 256, Adam at 1e-3, for all. Each contestant is a process that sleeps between its epochs.
"""

from __future__ import annotations

import argparse
import functools
import random
import statistics
import sys
import warnings
from pathlib import Path
from typing import Any

import common
import pyro
import pyro.distributions as dist
import torch
from common import LeftOutError, Turns, Worker, say
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, nn

import ppl_vae as pv

HIDDEN, LATENT, BATCH = 400, 50, 256
# What fit is told that the run is long, though it is stopped after the rounds: "auto" plans by it.
PLANNED = 100


def ours(capture: str, x: Tensor, device: str, turns: Turns) -> None:
    """Train with ``fit``; its callback waits for the next turn."""
    capture, _, bf16 = capture.partition("-")
    options: dict[str, Any] = {"capture": capture, "precision": "bf16-mixed" if bf16 else "32"}
    network = functools.partial(pv.networks.MLP, activation=nn.Softplus)
    vae = pv.vae((1, 28, 28), LATENT, hidden=(HIDDEN,), network=network)

    def after(vae: Any, history: Any) -> bool:
        turns.done(chose=str(history.info.get("capture", "")), loss=history[-1]["neg_elbo"])
        return turns.wait() is None

    pv.fit(
        vae, x, epochs=PLANNED, batch_size=BATCH, lr=1e-3, device=device, progress=False, callbacks=[after], **options
    )


class Example(nn.Module):
    """A VAE in plain Pyro with a ``DataLoader``, as its documentation teaches one to write it."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(784, HIDDEN), nn.Linear(HIDDEN, 784)
        self.mean, self.log_scale = nn.Linear(HIDDEN, LATENT), nn.Linear(HIDDEN, LATENT)
        self.rise = nn.Linear(LATENT, HIDDEN)

    def model(self, x: Tensor) -> None:
        """p(z) p(x | z)."""
        pyro.module("example", self)
        with pyro.plate("images", len(x)):
            prior = dist.Normal(x.new_zeros(len(x), LATENT), x.new_ones(len(x), LATENT)).to_event(1)
            h = nn.functional.softplus(self.rise(pyro.sample("z", prior)))
            pyro.sample("x", dist.Bernoulli(self.leave(h).sigmoid(), validate_args=False).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """q(z | x)."""
        pyro.module("example", self)
        with pyro.plate("images", len(x)):
            h = nn.functional.softplus(self.enter(x))
            pyro.sample("z", dist.Normal(self.mean(h), self.log_scale(h).exp()).to_event(1))


def example(x: Tensor, y: Tensor, device: str, turns: Turns) -> None:
    """Train as the example does: rows in memory as floats, a shuffling loader, stock SVI, Pyro's Adam."""
    rows = torch.utils.data.TensorDataset(x.float().flatten(1), y)
    loader = torch.utils.data.DataLoader(rows, batch_size=BATCH, shuffle=True)
    net = Example().to(device)
    svi = SVI(net.model, net.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    while True:
        loss = sum(svi.step(batch.to(device)) for batch, _ in loader)
        turns.done(loss=loss / len(rows))
        if turns.wait() is None:
            return


def work(args: argparse.Namespace) -> None:
    """Be a contestant: answer every line with an epoch."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(args.threads)
    kind, _, capture = args.worker.partition("-")
    x, y = (torch.from_numpy(a) for a in common.images(args.root, args.rows)[:2])
    turns = Turns(args.device)
    say(ready=True)
    if turns.wait() is None:
        return
    ours(capture, x, args.device, turns) if kind == "ours" else example(x, y, args.device, turns)


def command(name: str, args: argparse.Namespace) -> list[Any]:
    """The command of a contestant."""
    here = Path(__file__)
    options = ["--rows", args.rows, "--device", args.device, "--threads", args.threads]
    options += ["--root", args.root] if args.root else []
    if name == "pythae":
        # Both on one and the same torch, which is not downloaded again.
        python = common.environment("pythae", ["pythae"], share=True, make=not args.quick)
        return [python, here.with_name("pythae_epoch.py"), *options]
    return [sys.executable, here, "--worker", name, *options]


CONTESTANTS = {
    "ours capture=auto": "ours-auto",
    "ours capture=inductor": "ours-inductor",
    "ours inductor bf16": "ours-inductor-bf16",
    "ours capture=off": "ours-off",
    "Pyro's example": "example",
    "pythae's trainer": "pythae",
}


def main() -> None:
    """Run the benchmark."""
    parser = common.parser(__doc__, rounds=5)
    parser.add_argument("--root", help="the folder that holds MNIST/raw (default: data)")
    parser.add_argument("--rows", type=int, default=60_000, help="images (default: 60000)")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return work(args)
    args.rows = min(args.rows, 2_000) if args.quick else args.rows
    args.rounds = 1 if args.quick else args.rounds
    facts = common.start(args)
    facts["data"] = common.images(args.root, args.rows)[2]
    table: dict[str, dict[str, Any]] = {}
    workers: dict[str, Worker] = {}
    epochs: dict[str, list[dict[str, Any]]] = {}
    try:
        for name, worker in CONTESTANTS.items():
            if not common.chosen(name, args.only) or (args.quick and "inductor" in name):
                continue
            try:
                process = Worker(command(worker, args))
                workers[name] = process
                if "note" in process.ready:
                    raise LeftOutError(process.ready["note"].removeprefix("left out: "))
                epochs[name] = []
            except (LeftOutError, RuntimeError, OSError) as error:
                table[name] = {"note": common.reason(error)}
        # The first epoch of each, and then as many turns.
        for turn in range(args.rounds + 1):
            for name in list(epochs) if not turn else random.sample(list(epochs), len(epochs)):
                try:
                    epochs[name].append(workers[name].ask("epoch"))
                except (RuntimeError, OSError) as error:
                    table[name] = {"note": common.reason(error)}
                    del epochs[name]
    finally:
        for process in workers.values():
            process.close()
    for name, rows in epochs.items():
        seconds = [row["seconds"] for row in rows]
        table[name] = {"first": seconds[0], "seconds": statistics.median(seconds[1:]), "all": seconds}
        table[name] |= {"chose": rows[-1].get("chose", ""), "loss": rows[-1].get("loss")}
    mine = min((row["seconds"] for n, row in table.items() if n.startswith("ours") and "seconds" in row), default=None)
    lines = []
    for name in CONTESTANTS:
        row = table.get(name)
        if row is None:
            continue
        if "note" in row:
            lines.append([name, row["note"]])
            continue
        ratio = row["seconds"] / mine if mine else None
        lines.append([name, row["first"], row["seconds"], args.rows / row["seconds"], ratio, row["loss"], row["chose"]])
    head = ["contestant", "first epoch s", "later, median s", "images/s", "÷ our best", "last −ELBO", "chose"]
    common.show(f"one epoch of {facts['data']}, batch {BATCH}", head, lines)
    print("\nThe first epoch holds everything from the data in memory on: checks, recording, compiling.")
    common.finish(args, "epoch_time", facts, table)


if __name__ == "__main__":
    main()
