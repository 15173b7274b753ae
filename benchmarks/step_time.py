"""The time of a whole training step: forward, backward, optimiser; ours beside everything it should be compared with.

python benchmarks/step_time.py                  on the CPU
python benchmarks/step_time.py --device cuda    on a GPU
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import common
import pyro
import torch
import zuko
from common import LeftOutError, Run, Worker
from pyro.infer import SVI, JitTrace_ELBO, Trace_ELBO
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot

import ppl_vae as pv
from ppl_vae.capture import CapturedSVI

LATENT = 20
NEVER = 10**9


@dataclasses.dataclass(frozen=True)
class Case:
    """A model and a batch size."""

    kind: str
    batch: int
    hidden: int

    def __str__(self) -> str:
        return f"{self.kind} {self.batch},{self.hidden}"

    def ours(self, device: str) -> Any:
        """The model from the library."""
        shape, hidden = (1, 28, 28), (self.hidden,)
        if self.kind == "conv":
            vae = pv.vae(shape, LATENT, hidden=hidden, network=pv.networks.Conv)
        elif self.kind == "nsf":
            vae = pv.cvae(shape, LATENT, 10, hidden=hidden, prior="NSF")
        else:
            vae = pv.cvae(shape, LATENT, 10, hidden=hidden, prior={"name": "Gaussian", "hidden": []})
        return vae.to(device)

    def batches(self, device: str) -> list[tuple[Tensor, ...]]:
        """Four batches of binary images, with labels for the models that take them."""
        generator = torch.Generator().manual_seed(0)
        batches = []
        for _ in range(4):
            x = (torch.rand(self.batch, 1, 28, 28, generator=generator) < 0.13).float().to(device)
            y = torch.randint(10, (self.batch,), generator=generator).to(device)
            batches.append((x,) if self.kind == "conv" else (x, y))
        return batches


CASES = [Case("mlp", 128, 400), Case("mlp", 256, 400), Case("mlp", 128, 1024), Case("conv", 128, 400)]
CASES += [Case("nsf", 128, 400)]


# The same models by hand: plain torch, as one writes it without a library


class ByHand(nn.Module):
    """``forward(x, y)`` is the loss, −ELBO summed over the batch: the KL in closed form, or at the draw for a flow.

    It leaves out what the library adds: limits on log σ², standardised x, checks.
    """

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.kind, h = case.kind, case.hidden
        if case.kind == "conv":
            self.encoder: nn.Module = nn.Sequential(
                nn.Conv2d(1, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU(),
                nn.Flatten(), nn.Linear(3136, h), nn.ReLU(), nn.Linear(h, 2 * LATENT),
            )  # fmt: skip
            self.decoder: nn.Module = nn.Sequential(
                nn.Linear(LATENT, h), nn.ReLU(), nn.Linear(h, 3136), nn.Unflatten(1, (64, 7, 7)), nn.ReLU(),
                nn.ConvTranspose2d(64, 32, 3, 2, 1, 1), nn.ReLU(), nn.ConvTranspose2d(32, 1, 3, 2, 1, 1),
            )  # fmt: skip
            return
        self.encoder = nn.Sequential(nn.Linear(794, h), nn.ReLU(), nn.Linear(h, 2 * LATENT))
        self.decoder = nn.Sequential(nn.Linear(LATENT + 10, h), nn.ReLU(), nn.Linear(h, 784))
        self.prior = zuko.flows.NSF(LATENT, 10) if case.kind == "nsf" else nn.Linear(10, 2 * LATENT)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """The loss."""
        c = None if y is None else one_hot(y, 10).to(x.dtype)
        joined = x if c is None else torch.cat([x.flatten(1), c], 1)
        mean, log_var = self.encoder(joined).chunk(2, -1)
        noise = torch.randn_like(mean)
        z = mean + (0.5 * log_var).exp() * noise
        logits = self.decoder(z if c is None else torch.cat([z, c], 1))
        nll = binary_cross_entropy_with_logits(logits.flatten(1), x.flatten(1), reduction="sum")
        if self.kind == "nsf":
            log_q = -0.5 * (noise.square() + log_var + 1.8378770664093453).sum()
            return nll + log_q - self.prior(c).log_prob(z).sum()
        if c is None:
            return nll - 0.5 * (1 + log_var - mean.square() - log_var.exp()).sum()
        mean_p, log_var_p = self.prior(c).chunk(2, -1)
        ratio = (log_var.exp() + (mean - mean_p).square()) / log_var_p.exp()
        return nll + 0.5 * (log_var_p - log_var + ratio - 1).sum()


@contextmanager
def no_validation() -> Iterator[None]:
    """Distributions of zuko's check nothing, as they do for whoever imports zuko alone."""
    before = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(before)


def check_same(case: Case, device: str) -> None:
    """Raise unless the model by hand, given our weights, has our loss up to the noise of one draw a row."""
    vae, hand = case.ours(device), ByHand(case).to(device)
    body = vae.encoder.network.body
    # Conv registers its dense layers first, whichever end they are at.
    encoder = nn.ModuleList([body.convolutions, body.dense]) if case.kind == "conv" else body
    parts = [(encoder, hand.encoder), (vae.likelihood, hand.decoder)]
    parts += [] if case.kind == "conv" else [(vae.prior, hand.prior)]
    with torch.no_grad(), no_validation():
        for ours, theirs in parts:
            for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
                q.copy_(p)
        batch = case.batches(device)[0]
        got = hand(*batch).item()
        with pyro.get_param_store().scope():
            expected = Trace_ELBO().loss(vae.model, vae.guide, *batch)
    if abs(got - expected) > 0.02 * abs(expected):
        raise RuntimeError(f"{case}: the model by hand has loss {got:.6g}, ours {expected:.6g}: not the same model")


def adam(device: str) -> Callable[..., torch.optim.Optimizer]:
    """Fused Adam; on a GPU one that can be captured."""
    cuda = device.startswith("cuda")
    lr = torch.tensor(1e-3, device=device) if cuda else 1e-3
    return functools.partial(torch.optim.Adam, lr=lr, fused=True, capturable=cuda)


def by_hand(case: Case, device: str, how: str) -> Run:
    """The step by hand: "eager", "compiled" (forward and loss), or "joint" (with the gradient)."""
    model, batches = ByHand(case).to(device), case.batches(device)
    parameters = list(model.parameters())
    optimiser = adam(device)(parameters)
    if "joint" in how:
        names = dict(model.named_parameters())
        detached = {name: p.detach() for name, p in names.items()}

        def objective(values: dict[str, Tensor], *batch: Tensor) -> Tensor:
            return torch.func.functional_call(model, values, batch)

        gradient = torch.compile(torch.func.grad_and_value(objective), dynamic=False)

        def step(*batch: Tensor) -> None:
            gradients, _ = gradient(detached, *batch)
            for name, p in names.items():
                p.grad = gradients[name]
            optimiser.step()

    else:
        loss_of = torch.compile(model, dynamic=False) if "compiled" in how else model

        def step(*batch: Tensor) -> None:
            optimiser.zero_grad()
            loss_of(*batch).backward()
            optimiser.step()

    if "graph" in how:
        step = in_cuda_graph(step, batches[0], optimiser)

    def run(steps: int) -> None:
        with no_validation():
            for i in range(steps):
                step(*batches[i % 4])

    return run


def in_cuda_graph(
    step: Callable[..., None], batch: tuple[Tensor, ...], optimiser: torch.optim.Optimizer
) -> Callable[..., None]:
    """A step by hand in one CUDA graph, inputs copied into buffers that stay."""
    inputs = [tensor.clone() for tensor in batch]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), no_validation():
        for _ in range(3):
            step(*inputs)
    torch.cuda.current_stream().wait_stream(stream)
    optimiser.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), no_validation():
        step(*inputs)

    def replay(*batch: Tensor) -> None:
        for buffer, tensor in zip(inputs, batch, strict=True):
            buffer.copy_(tensor)
        graph.replay()

    # The graph writes to memory that Python believes to be nobody's once these are gone.
    replay.kept = step, optimiser  # type: ignore[attr-defined]
    return replay


def floor(case: Case, device: str) -> Run:
    """The matrix products of forward and backward, and fused Adam: what no way to write an MLP step can do without."""
    if case.kind != "mlp":
        raise LeftOutError("the floor is for MLPs")
    h, b = case.hidden, case.batch
    shapes = [(794, h), (h, 2 * LATENT), (10, 2 * LATENT), (LATENT + 10, h), (h, 784)]
    weights = [nn.Parameter(0.01 * torch.randn(o, i, device=device)) for i, o in shapes]
    biases = [nn.Parameter(torch.zeros(o, device=device)) for _, o in shapes]
    for p in [*weights, *biases]:
        p.grad = 1e-3 * torch.randn_like(p)
    optimiser = adam(device)([*weights, *biases])
    inputs = [torch.randn(b, i, device=device) for i, _ in shapes]
    outputs = [torch.randn(b, o, device=device) for _, o in shapes]
    products = [torch.empty(b, o, device=device) for _, o in shapes]
    # Nobody needs the gradient of the data or of the labels.
    backwards = [None if k in (0, 2) else torch.empty_like(inputs[k]) for k in range(5)]

    @torch.no_grad()
    def step() -> None:
        for x, w, out in zip(inputs, weights, products, strict=True):
            torch.mm(x, w.t(), out=out)
        for x, w, g, back in zip(inputs, weights, outputs, backwards, strict=True):
            torch.mm(g.t(), x, out=w.grad)
            if back is not None:
                torch.mm(g, w, out=back)
        optimiser.step()

    def run(steps: int) -> None:
        for _ in range(steps):
            step()

    return run


# Pyro and ours


def own_store(make: Callable[[], Run]) -> Run:
    """A contestant with a param store of its own: what is in the store costs every step of stock SVI."""
    store = pyro.get_param_store()
    state: Any = {"params": {}, "constraints": {}}
    with store.scope(state):
        inner = make()

    def run(steps: int) -> None:
        with store.scope(state):
            inner(steps)

    return run


def stock(case: Case, device: str, elbo: Any) -> Run:
    """``SVI`` with Pyro's Adam."""
    vae, batches = case.ours(device), case.batches(device)
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), elbo)

    def run(steps: int) -> None:
        for i in range(steps):
            svi.step(*batches[i % 4])

    return run


def ours(
    case: Case,
    device: str,
    backend: str,
    precision: str | None = None,
    check_every: int = NEVER,
    one_by_one: bool = False,
) -> Run:
    """``CapturedSVI`` with fused Adam, as ``fit`` runs it."""
    options: dict[str, Any] = {"backend": backend, "check_every": check_every}
    if precision is not None:
        if "precision" not in inspect.signature(CapturedSVI).parameters:
            raise LeftOutError("CapturedSVI takes no precision")
        options["precision"] = precision
    vae, batches = case.ours(device), case.batches(device)
    svi = CapturedSVI(vae.model, vae.guide, adam(device), Trace_ELBO(), **options)

    def run(steps: int) -> None:
        if one_by_one:
            for i in range(steps):
                svi.step(*batches[i % 4])
        else:
            svi.run(batches[i % 4] for i in range(steps))
        if svi.backend == "off":
            raise RuntimeError("it fell back to stock steps")
        # No svi.read(), after which the next step is a checked one: turns are much shorter than epochs.

    return run


def numpyro(case: Case, args: argparse.Namespace, workers: list[Worker]) -> Run:
    """NumPyro in a process of its own."""
    if case.kind != "mlp":
        raise LeftOutError("written for the MLP only")
    cuda = args.device.startswith("cuda")
    packages = ["numpyro", "jax[cuda12]" if cuda else "jax"]
    python = common.environment("numpyro-cuda" if cuda else "numpyro", packages, make=not args.quick)
    command: list[Any] = [python, Path(__file__).with_name("numpyro_step.py")]
    command += ["--batch", case.batch, "--hidden", case.hidden, "--threads", args.threads, "--device", args.device]
    worker = Worker(command)
    workers.append(worker)
    return lambda steps: worker.ask(steps)["seconds"]


def contestants(case: Case, args: argparse.Namespace, workers: list[Worker]) -> dict[str, Callable[[], Run]]:
    """Everybody, by name."""
    device = args.device
    cuda = device.startswith("cuda")

    def pyros(function: Callable[..., Run], *more: Any, **options: Any) -> Callable[[], Run]:
        return lambda: own_store(lambda: function(case, device, *more, **options))

    def hand(how: str) -> Callable[[], Run]:
        return lambda: by_hand(case, device, how)

    everybody: dict[str, Callable[[], Run]] = {
        "stock SVI": pyros(stock, Trace_ELBO()),
        "JitTrace_ELBO": pyros(stock, JitTrace_ELBO(ignore_jit_warnings=True)),
        "by hand eager": hand("eager"),
        "by hand compiled": hand("compiled"),
        "by hand compiled joint": hand("joint"),
        "NumPyro": lambda: numpyro(case, args, workers),
        "floor: GEMMs + Adam": lambda: floor(case, device),
        "ours graph": pyros(ours, "graph"),
        "ours graph all checked": pyros(ours, "graph", check_every=1),
        "ours inductor": pyros(ours, "inductor"),
        "ours inductor all checked": pyros(ours, "inductor", check_every=1),
        "ours graph bf16": pyros(ours, "graph", "bf16-mixed"),
        "ours inductor bf16": pyros(ours, "inductor", "bf16-mixed"),
    }
    if cuda:
        everybody |= {
            "by hand CUDA graph": hand("eager graph"),
            "by hand joint CUDA graph": hand("joint graph"),
            "ours cudagraph": pyros(ours, "cudagraph"),
            "ours cudagraph all checked": pyros(ours, "cudagraph", check_every=1),
            "ours cudagraph bf16": pyros(ours, "cudagraph", "bf16-mixed"),
            "ours cudagraph-inductor": pyros(ours, "cudagraph-inductor"),
            "ours cudagraph-inductor step by step": pyros(ours, "cudagraph-inductor", one_by_one=True),
            "ours cudagraph-inductor bf16": pyros(ours, "cudagraph-inductor", "bf16-mixed"),
        }
    if args.quick:
        everybody = {n: m for n, m in everybody.items() if not any(word in n for word in ("compiled", "inductor"))}
    return {name: make for name, make in everybody.items() if common.chosen(name, args.only)}


def with_defaults(table: dict[str, dict[str, Any]]) -> None:
    """Add what a step costs on average under the default ``check_every``, from the two measured."""
    every = inspect.signature(CapturedSVI).parameters["check_every"].default
    for name in [name for name in table if name.endswith(" all checked")]:
        plain = table.get(name.removesuffix(" all checked"), {})
        if "ms" in plain and "ms" in table[name]:
            label = name.replace("all checked", f"1 in {every} checked*")
            table[label] = {"ms": plain["ms"] + (table[name]["ms"] - plain["ms"]) / every}


def ratios(table: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Our best float32 step over the others that matter."""

    def best(*words: str) -> float | None:
        held = [
            row["ms"]
            for name, row in table.items()
            if "ms" in row
            and any(name.startswith(word) for word in words)
            and not name.endswith(("checked", "checked*", "bf16"))
        ]
        return min(held, default=None)

    mine = best("ours")
    others = {
        "stock SVI": best("stock"),
        "the better one by hand": best("by hand"),
        "NumPyro": best("NumPyro"),
        "the floor": best("floor"),
    }
    return {name: mine / other for name, other in others.items() if mine is not None and other is not None}


def main() -> None:
    """Run the benchmark."""
    parser = common.parser(__doc__, rounds=15)
    parser.add_argument("--cases", default="", help=f"of {'; '.join(map(str, CASES))}: those that contain one of these")
    args = parser.parse_args()
    facts = common.start(args)
    warnings.filterwarnings("ignore")
    cases = [case for case in CASES if not args.cases or any(w.strip() in str(case) for w in args.cases.split(";"))]
    cases = [cases[0]] if args.quick and not args.cases else cases
    rounds, seconds = (2, 0.05) if args.quick else (args.rounds, 0.2)
    results = {}
    for case in cases:
        torch.manual_seed(0)
        torch.compiler.reset()
        try:
            check_same(case, args.device)
        except RuntimeError as error:
            # Times of two models that differ would be compared.
            print(f"\n{case}: not timed, {common.reason(error)}")
            results[str(case)] = {"note": common.reason(error)}
            continue
        workers: list[Worker] = []
        try:
            table = common.interleave(contestants(case, args, workers), rounds, seconds, args.device)
        finally:
            for worker in workers:
                worker.close()
        with_defaults(table)
        base = table.get("stock SVI", {}).get("ms")
        rows = [
            [name, row["ms"], row.get("low"), row.get("high"), row["ms"] / base if base else None, row.get("setup")]
            if "ms" in row
            else [name, row["note"]]
            for name, row in table.items()
        ]
        head = ["contestant", "ms/step", "25%", "75%", "÷ stock", "first s"]
        common.show(f"{case.kind}, batch {case.batch}, hidden {case.hidden}", head, rows)
        of = ratios(table)
        print("our best float32 ÷ " + ", ".join(f"{name}: {value:.2f}" for name, value in of.items()) if of else "")
        results[str(case)] = {"table": table, "ratios": of}
    print("\n* computed: all but one step as without checks, one as with.")
    print("'first s': until eight steps are taken; less where inductor's cache on disk helps.")
    print(
        "By hand: compiled = torch.compile of forward and loss; joint = of torch.func.grad_and_value. NSF: zuko's flow."
    )
    common.finish(args, "step_time", facts, results)


if __name__ == "__main__":
    main()
