"""Importance-sampled log-likelihoods: how many times a second the decoder is evaluated.

python benchmarks/likelihood.py

A VAE 784-400-20-400-784 with Bernoulli pixels. All estimate log p(x) of a few rows from 5,000 samples of q(z | x) each;
the floor is the matrix products of the decoder alone, in preallocated memory and chunks of the size that suits it best.
"""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import torch
from common import Run, Worker
from torch import Tensor
from torch.nn.functional import interpolate, softplus

import ppl_vae as pv
from ppl_vae.evaluation.likelihood import Estimator

HIDDEN, LATENT = 400, 20


def products(x: Tensor, samples: int, chunk: int) -> Run:
    """z → h → logits, and nothing else."""
    first, second = torch.randn(LATENT, HIDDEN, device=x.device), torch.randn(HIDDEN, 784, device=x.device)
    z = torch.randn(chunk, LATENT, device=x.device)
    h, logits = torch.empty(chunk, HIDDEN, device=x.device), torch.empty(chunk, 784, device=x.device)
    pieces = [chunk] * (len(x) * samples // chunk) + [len(x) * samples % chunk]

    def run(steps: int) -> None:
        for _ in range(steps):
            for n in pieces:
                torch.mm(z[:n], first, out=h[:n])
                torch.mm(h[:n], second, out=logits[:n])

    return run


def by_hand(vae: pv.VAE, x: Tensor, samples: int) -> Run:
    """Plain torch: the sum over pixels as a product with x less a softplus."""
    chunk = max(1, 4096 // len(x))
    flat = x.flatten(1)

    @torch.no_grad()
    def run(steps: int) -> None:
        for _ in range(steps):
            q = vae.encoder(x, None).base_dist
            total = torch.full((len(x),), -math.inf, dtype=torch.float64, device=x.device)
            for done in range(0, samples, chunk):
                e = torch.randn(min(chunk, samples - done), *q.loc.shape, device=x.device)
                z = q.loc + q.scale * e
                logits = vae.likelihood.network.body(z)
                log_w = (logits * flat).sum(-1) - softplus(logits).sum(-1)
                log_w = log_w + (0.5 * (e.square() - z.square()) + q.scale.log()).sum(-1)
                total = torch.logaddexp(total, log_w.double().logsumexp(0))

    return run


def ours(vae: pv.VAE, x: Tensor, samples: int, capture: Any, precision: Any = "32") -> Run:
    """What ``log_likelihood`` does with rows, once it has recorded."""
    estimator = Estimator(vae, samples, capture=capture, precision=precision)
    with torch.no_grad():
        estimator.prepare(x)

    @torch.no_grad()
    def run(steps: int) -> None:
        for _ in range(steps):
            estimator(x)

    return run


def pythae(args: Any, batch: int, workers: list[Worker]) -> Run:
    """``get_nll``, in a process that sleeps meanwhile."""
    python = common.environment("pythae", ["pythae"], share=True, make=not args.quick)
    options = ["--rows", args.rows, "--samples", args.samples, "--hidden", HIDDEN, "--latent", LATENT]
    options += ["--batch", batch, "--device", args.device, "--threads", args.threads]
    worker = Worker([python, Path(__file__).with_name("pythae_nll.py"), *options])
    workers.append(worker)
    return lambda steps: worker.ask(steps)["seconds"]


def main() -> None:
    """Run the benchmark."""
    parser = common.parser(__doc__, rounds=7)
    parser.add_argument("--rows", type=int, default=8, help="images (default: 8)")
    parser.add_argument("--samples", type=int, default=5000, help="of z for each (default: 5000)")
    args = parser.parse_args()
    if args.quick:
        args.rows, args.samples, args.rounds = 4, 100, 1
    facts = common.start(args)
    torch.manual_seed(0)
    vae = pv.vae((1, 28, 28), LATENT, hidden=(HIDDEN,)).to(args.device).eval()
    x = (torch.rand(args.rows, 1, 28, 28) < 0.13).float().to(args.device)
    workers: list[Worker] = []
    some = functools.partial(ours, vae, x, args.samples)
    contestants: dict[str, Callable[[], Run]] = {
        f"decoder's products, {n} at a time": functools.partial(products, x, args.samples, n) for n in (512, 2048, 8192)
    }
    contestants |= {
        "by hand, plain torch": functools.partial(by_hand, vae, x, args.samples),
        "pythae get_nll, batch 100": functools.partial(pythae, args, 100, workers),
        "pythae get_nll, batch 1000": functools.partial(pythae, args, 1000, workers),
        "ours off": functools.partial(some, "off"),
        "ours graph": functools.partial(some, "graph"),
        "ours inductor": functools.partial(some, "inductor"),
        "ours inductor bf16": functools.partial(some, "inductor", "bf16-mixed"),
    }
    if args.quick:
        contestants = {name: make for name, make in contestants.items() if "inductor" not in name}
    contestants = {name: make for name, make in contestants.items() if common.chosen(name, args.only)}
    try:
        table = common.interleave(contestants, args.rounds, 1.0, args.device)
    finally:
        for worker in workers:
            worker.close()
    evaluations = args.rows * args.samples
    for row in table.values():
        if "ms" in row:
            row["per_second"] = 1000 * evaluations / row["ms"]
    rate = {name: row["per_second"] for name, row in table.items() if "ms" in row}
    floor = max((r for name, r in rate.items() if "products" in name), default=None)
    peer = max((r for name, r in rate.items() if "pythae" in name), default=None)
    lines = []
    for name, row in table.items():
        if "note" in row:
            lines.append([name, row["note"]])
            continue
        of = [r and row["per_second"] / r for r in (floor, peer)]
        lines.append([name, row["per_second"] / 1000, row["ms"], row["low"], row["high"], *of, row["setup"]])
    head = ["contestant", "thousand/s", "ms a call", "low", "high", "÷ products", "÷ pythae", "first s"]
    common.show(f"log p(x) of {args.rows} images, {args.samples} samples each: decoder evaluations", head, lines)
    print("\n'first s': until eight calls are over; less where inductor's cache on disk helps.")
    if "inductor" in " ".join(table):
        facts["bf16 error"] = error = precision_error(args.device)
        print(
            f"\nbf16-mixed against float32, the same 1,000 draws, of {error['rows']} images of a trained model: "
            f"{error['mean']:.3f} nats in log p(x) on average, {error['largest']:.2f} at most; "
            f"their mean is off by {error['shift']:+.3f} ± {error['error of shift']:.3f}"
        )
    if args.device.startswith("cuda") and not args.quick:
        facts["whole test set, s"] = seconds = whole_test_set(vae)
        print(f"\nlog_likelihood of 10,000 images with 5,000 samples each: {seconds:.2f} s, the median of three calls")
    common.finish(args, "likelihood", facts, table)


def whole_test_set(vae: pv.VAE) -> float:
    """What a user waits for: the seconds of the public call, images on the CPU, answers there too."""
    x = (torch.rand(10_000, 1, 28, 28) < 0.13).float()
    seconds = []
    for _ in range(4):
        started = time.perf_counter()
        pv.evaluation.log_likelihood(vae, x, samples=5000, progress=False)
        seconds.append(time.perf_counter() - started)
    # The first call loads what the others find loaded.
    return statistics.median(seconds[1:])


def precision_error(device: str) -> dict[str, float]:
    """What bfloat16 makes of log p̂ of binary images, the scikit-learn digits enlarged, by a model trained on them.

    An untrained one would tell nothing: its logits are near zero, where rounding is too.
    """
    data = pv.data.load("digits")
    train, test = ((interpolate(split.x, size=28, mode="bilinear") > 8).float() for split in (data.train, data.test))
    torch.manual_seed(0)
    vae = pv.vae((1, 28, 28), LATENT, hidden=(HIDDEN,))
    pv.fit(vae, train, epochs=100, device=device, progress=False)
    estimates = []
    for precision in ("32", "bf16-mixed"):
        options: dict[str, Any] = {"samples": 1000, "capture": "graph", "precision": precision, "progress": False}
        estimates.append(pv.evaluation.log_likelihood(vae, test, **options).values)
    off = estimates[1] - estimates[0]
    return {
        "rows": len(off),
        "mean": off.abs().mean().item(),
        "largest": off.abs().max().item(),
        "shift": off.mean().item(),
        "error of shift": off.std().item() / math.sqrt(len(off)),
    }


if __name__ == "__main__":
    main()
