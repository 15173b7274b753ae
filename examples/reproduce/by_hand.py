"""R4 without this library: the same protocol as r4.py in a loop of plain torch, for a figure to stand beside ours.

python examples/reproduce/by_hand.py --layers 1      784-400-z40
python examples/reproduce/by_hand.py --layers 2      784-400-400-z40

Only the file of digits is read by ``ppl_vae``. The loss is the ELBO with the KL in closed form, and −log p(x) is by 200
importance samples. The state is kept after every epoch, and the same call goes on from there; one of other settings is
refused. On the CPU.
"""

import itertools
import json
import math
import os
import platform
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from common import arguments, hardware
from torch import Tensor, nn

import ppl_vae as pv

parser = arguments(__doc__, seeds=1)
parser.add_argument("--layers", type=int, default=1)
args = parser.parse_args()
LATENT, HIDDEN = 40, 400


def body(width: int) -> list[nn.Module]:
    """Hidden layers from so many features."""
    widths = [width, *[HIDDEN] * args.layers]
    return [m for i, o in itertools.pairwise(widths) for m in (nn.Linear(i, o), nn.ReLU())]


class Loop(nn.Module):
    """Encoder and decoder, and the two numbers that are written by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(*body(784), nn.Linear(HIDDEN, 2 * LATENT))
        self.decoder = nn.Sequential(*body(LATENT), nn.Linear(HIDDEN, 784))

    def loss(self, x: Tensor) -> Tensor:
        """−ELBO (N,) by one draw of z."""
        mean, log_variance = self.encoder(x).chunk(2, -1)
        z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1)
        return kl + F.binary_cross_entropy_with_logits(self.decoder(z), x, reduction="none").sum(-1)

    def log_prob(self, x: Tensor, samples: int) -> Tensor:
        """Log p(x) (N,) by so many draws of z."""
        mean, log_variance = self.encoder(x).chunk(2, -1)
        noise = torch.randn(samples, *mean.shape)
        z = mean + (0.5 * log_variance).exp() * noise
        log_w = 0.5 * (noise.square() - z.square() + log_variance).sum(-1)
        logits = self.decoder(z)
        log_w -= F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)
        return log_w.logsumexp(0) - math.log(samples)


def save(state: dict, path: Path) -> None:
    """Write it whole or not at all."""
    torch.save(state, path.with_suffix(".tmp"))
    os.replace(path.with_suffix(".tmp"), path)


data = pv.data.load("binarized-mnist", root=args.root)
train, valid, test = (split.x.flatten(1)[: args.rows] for split in (data.train, data.valid, data.test))
epochs, settings = args.epochs or 500, {"layers": args.layers, "rows": args.rows}
for seed in args.seeds:
    torch.manual_seed(seed)
    model = Loop()
    adam = torch.optim.Adam(model.parameters(), lr=1e-4)
    schedule = torch.optim.lr_scheduler.MultiStepLR(adam, [200, 350], gamma=10**-0.2)
    parts = {"model": model, "adam": adam, "schedule": schedule}
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"by-hand-{args.layers}-{seed}.pt"
    best, kept, first, seconds = math.inf, None, 0, 0.0
    if path.exists():
        state = torch.load(path, weights_only=True)
        if state["settings"] != settings:
            raise SystemExit(f"{path} is of {state['settings']}, and asked for is {settings}: give another --out")
        for name, part in parts.items():
            part.load_state_dict(state[name])
        best, kept, first, seconds = (state[name] for name in ("best", "kept", "epoch", "seconds"))
        torch.set_rng_state(state["generator"])
    for epoch in range(first, epochs):
        started = time.perf_counter()
        for rows in torch.randperm(len(train)).split(100):
            adam.zero_grad()
            model.loss(train[rows]).mean().backward()
            adam.step()
        schedule.step()
        with torch.no_grad():
            bound = torch.cat([model.loss(x) for x in valid.split(100)]).mean().item()
        if bound < best:
            best, kept = bound, {name: t.clone() for name, t in model.state_dict().items()}
        seconds += time.perf_counter() - started
        print(f"epoch {epoch + 1}: −ELBO of the validation images {bound:.2f}", flush=True)
        told = {"best": best, "kept": kept, "epoch": epoch + 1, "seconds": seconds}
        told |= {"settings": settings, "generator": torch.get_rng_state()}
        save(told | {name: part.state_dict() for name, part in parts.items()}, path)
    model.load_state_dict(kept)
    with torch.no_grad():
        found = torch.cat([model.log_prob(x, 200) for x in test.split(50)])
    result = {
        "layers": args.layers,
        "seed": seed,
        "epochs": max(first, epochs),
        "complete": max(first, epochs) >= 500 and args.rows is None,
        "neg_log_prob": -found.mean().item(),
        "rows": len(found),
        "seconds": seconds,
        "hardware": hardware("cpu"),
        "versions": f"torch {torch.__version__}, Python {platform.python_version()}",
    }
    (args.results / "by-hand").mkdir(parents=True, exist_ok=True)
    (args.results / "by-hand" / f"r4-{args.layers}-{seed}.json").write_text(json.dumps(result, indent=2) + "\n")
    print(f"−log p(x) {result['neg_log_prob']:.2f} after {result['epochs']} epochs")
