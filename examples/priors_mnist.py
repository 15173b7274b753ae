"""Nine priors on MNIST, under a VAE and under a conditional VAE: one table and one picture.

python examples/priors_mnist.py --root data --out runs/priors        50,000 steps, three seeds: a day on two cores
python examples/priors_mnist.py --root data --steps 5000 --seeds 1   a shorter look

The network is that of the VampPrior paper (Tomczak and Welling, 2018): two gated layers of 300 each side, 40 latent
features, batches of 100, Adam at 5e-4. Every model is a folder of its own, which a second call goes on with, or reads.
"""

import argparse
import functools
import json
import math
from pathlib import Path

import torch
from matplotlib.figure import Figure

import ppl_vae as pv

PRIORS = {
    "Standard": "Standard",
    "Gaussian": {"name": "Gaussian", "hidden": []},
    "Laplace": {"name": "Fixed", "distribution": "Laplace", "args": [0.0, 1.0]},
    "Mixture": {"name": "Mixture", "components": 50, "hidden": []},
    "Vamp": "Vamp",
    "MAF": {"name": "MAF", "transforms": 3, "hidden_features": [100, 100]},
    "NSF": {"name": "NSF", "transforms": 2, "hidden_features": [100, 100]},
    "NICE": {"name": "NICE", "transforms": 4, "hidden_features": [100]},
    "GMM": {"name": "GMM", "components": 20, "hidden_features": [100]},
}
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--root", type=Path, default=Path("data"), help="where MNIST is, or goes")
parser.add_argument("--out", type=Path, default=Path("runs/priors"))
parser.add_argument("--steps", type=int, default=50_000)
parser.add_argument("--seeds", type=int, default=3)
parser.add_argument("--priors", nargs="*", default=list(PRIORS), choices=list(PRIORS))
parser.add_argument("--rows", type=int, default=50_000, help="how many training images")
parser.add_argument("--test", type=int, default=2000, help="how many test images, evenly spaced")
parser.add_argument("--samples", type=int, default=1000, help="of z, for −log p(x|y)")
args = parser.parse_args()

data = pv.data.load("mnist", root=args.root, binarize="dynamic").head(args.rows)
test = data.test.subset(torch.linspace(0, len(data.test) - 1, args.test).long())
epochs = math.ceil(args.steps / math.ceil(len(data.train) / 100))


def nll(name: str, conditional: bool, seed: int) -> torch.Tensor:
    """−log p(x|y) of every test image, of a model that is trained now or was before."""
    folder = args.out / f"{name}-{'y' if conditional else 'none'}-{seed}"
    if (folder / "nll.json").exists():
        return torch.tensor(json.loads((folder / "nll.json").read_text())["nll"])
    torch.manual_seed(seed)
    options = {"prior": PRIORS[name], "network": pv.networks.GatedMLP, "hidden": (300, 300)}
    build = functools.partial(pv.cvae, classes=10) if conditional else pv.vae
    model = build(data.x_shape, 40, **options)
    state = folder / "state"
    pv.fit(
        model,
        data.train,
        epochs=epochs,
        batch_size=100,
        lr=5e-4,
        beta=pv.objectives.warmup(max(1, epochs // 5)),
        seed=seed,
        checkpoint=state,
        resume=state if state.exists() else None,
    )
    pv.save(model, folder)
    y = test.y if conditional else None
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        pieces = [
            model.log_prob(test.x[i : i + 100], None if y is None else y[i : i + 100], samples=args.samples)
            for i in range(0, len(test), 100)
        ]
    values = -torch.cat(pieces).cpu()
    (folder / "nll.json").write_text(json.dumps({"steps": args.steps, "nll": values.tolist()}))
    return values


# Seed by seed, so that a run that was stopped has a table of fewer seeds.
columns = [(name, conditional) for conditional in (False, True) for name in args.priors]
found = [{column: nll(*column, seed) for column in columns} for seed in range(args.seeds)]
table = {column: torch.stack([values[column] for values in found]) for column in columns}

print(f"\n−log p on {len(test)} test images, nats, {args.samples} samples; {args.steps} steps, {args.seeds} seeds")
print(f"{'':10s} {'−log p(x)':>10s} {'std. error':>10s} {'− first':>8s} {'over seeds':>10s}", end="")
print(f" {'−log p(x|y)':>12s} {'std. error':>10s} {'− first':>8s} {'over seeds':>10s}")
for name in args.priors:
    cells = []
    for conditional in (False, True):
        each, first = table[name, conditional], table[args.priors[0], conditional]
        rows = each.mean(0)
        spread = each.mean(1).std().item() if args.seeds > 1 else math.nan
        cells += [
            rows.mean().item(),
            rows.std().item() / len(rows) ** 0.5,
            (rows - first.mean(0)).mean().item(),
            spread,
        ]
    print(f"{name:10s} " + " ".join(f"{v:{w}.2f}" for v, w in zip(cells, (10, 10, 8, 10, 12, 10, 8, 10), strict=True)))

figure = Figure(figsize=(8, 3.8), layout="constrained")
for axes, conditional, title in zip(figure.subplots(1, 2), (False, True), ("−log p(x)", "−log p(x|y)"), strict=True):
    first = table[args.priors[0], conditional].mean(0)
    for i, name in enumerate(args.priors):
        # By image, because all models see the same: the error of a difference is a tenth of that of a mean.
        difference = table[name, conditional].mean(0) - first
        axes.errorbar(
            difference.mean(), i, xerr=difference.std() / len(difference) ** 0.5, fmt="o", color=f"C{i}", capsize=3
        )
    axes.axvline(0, color="0.8", linewidth=1, zorder=0)
    axes.set(yticks=range(len(args.priors)), yticklabels=args.priors, xlabel=f"nats less or more than {args.priors[0]}")
    axes.set_title(title)
    axes.invert_yaxis()
print(pv.plots.save(figure, args.out / "priors.png"))
