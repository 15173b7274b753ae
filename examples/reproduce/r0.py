"""R0: a linear VAE is probabilistic PCA, whose optimum is known in closed form (Lucas et al., 2019).

python examples/reproduce/r0.py                  p(z) = N(0, I), p(x|z) = N(W z + μ, σ² I)
python examples/reproduce/r0.py --conditional    with a mean μ(y) for each label

The handwritten digits of scikit-learn, 1,297 images of 64 pixels, 8 latent features; five seeds. With λ the eigenvalues
of the covariance (within the labels, if conditional), and σ² the mean of the discarded ones, the mean log p(x) is at
most

    −½ [64 log 2π + Σ log λ_i (i ≤ 8) + 56 log σ² + 64].

What is compared with it is the ELBO of the trained model, in closed form as well: it can only be below.
"""

import argparse
import datetime
import json
import math
import time
from pathlib import Path

import torch
from common import HERE, hardware
from torch.distributions import Normal, kl_divergence

import ppl_vae as pv

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--conditional", action="store_true")
parser.add_argument("--seeds", type=int, nargs="*", default=list(range(5)))
parser.add_argument("--epochs", type=int, default=3000, help="each is one step on all rows")
parser.add_argument("--results", type=Path, default=HERE / "results", help="where the results go")
args = parser.parse_args()

LATENT = 8
train = pv.data.load("digits").train
x, y = train.x.flatten(1).double(), train.y if args.conditional else None
d = x.shape[1]
centres = x.mean(0) if y is None else torch.stack([x[y == k].mean(0) for k in range(10)])[y]
values = torch.linalg.eigvalsh((x - centres).T @ (x - centres) / len(x)).flip(0)
noise = values[LATENT:].mean()
optimum = -0.5 * (d * math.log(2 * math.pi) + values[:LATENT].log().sum() + (d - LATENT) * noise.log() + d).item()


@torch.no_grad()
def elbo(vae: pv.VAE) -> float:
    """The mean ELBO without sampling: the reconstruction of a linear decoder is quadratic in z."""
    q, label = vae.encode(x, y).base_dist, None if y is None else 0
    columns = vae.decode(torch.eye(LATENT).to(x), label).mean - vae.decode(torch.zeros(LATENT).to(x), label).mean
    p = vae.decode(q.loc, y).base_dist
    sigma = p.scale.flatten()[0]
    squares = (x - p.loc).square().sum(-1) + (q.scale.square() * columns.square().sum(-1)).sum(-1)
    kl = kl_divergence(q, Normal(torch.zeros_like(q.loc), 1.0)).sum(-1)
    return (-squares / (2 * sigma**2) - d / 2 * math.log(2 * math.pi) - d * sigma.log() - kl).mean().item()


def lr(epoch: int) -> float:
    """Constant over a third of the epochs, then falling to a thousandth."""
    return 0.02 * 10 ** (-3 * max(0.0, 1.5 * epoch / args.epochs - 0.5))


seeds = []
for seed in args.seeds:
    torch.manual_seed(seed)
    condition = {"condition": pv.OneHot(10)} if args.conditional else {}
    vae = pv.vae((d,), LATENT, likelihood="Gaussian", hidden=(), range=(0.0, 16.0), **condition).double()
    started = time.perf_counter()
    pv.fit(
        vae,
        x if y is None else (x, y),
        epochs=args.epochs,
        batch_size=len(x),
        lr=lr,
        objective=pv.objectives.Analytic(),
        seed=seed,
        device="cpu",
        progress=False,
    )
    found = elbo(vae)
    print(f"seed {seed}: optimum {optimum:.4f}, ELBO {found:.4f}, {optimum - found:.4f} below")
    seeds.append(
        {
            "seed": seed,
            "epochs": args.epochs,
            "neg_log_prob": -found,
            "seconds": time.perf_counter() - started,
            "hardware": hardware("cpu"),
            "versions": f"torch {torch.__version__}, ppl_vae {pv.__version__}",
            "date": datetime.date.today().isoformat(),
        }
    )
row = "r0-conditional" if args.conditional else "r0"
command = ["python", "examples/reproduce/r0.py"] + ["--conditional"] * args.conditional
for option in ("epochs", "seeds"):
    if (given := getattr(args, option)) != parser.get_default(option):
        command += [f"--{option}", *map(str, given if isinstance(given, list) else [given])]
summary = {
    "row": row,
    "command": " ".join(command),
    "figure": "neg_log_prob",
    "published": -optimum,
    "complete": args.epochs == 3000,
    "epochs": args.epochs,
    "samples": "none",
    "seeds": seeds,
}
args.results.mkdir(parents=True, exist_ok=True)
(args.results / f"{row}.json").write_text(json.dumps(summary, indent=2) + "\n")
