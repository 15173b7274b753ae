"""Eight priors under a VAE and under a conditional VAE: a table of held-out −log p, its numbers, and a picture.

python examples/priors.py --root data                         MNIST, 20,000 steps, three seeds: five hours of one core
python examples/priors.py --root data --data fashion-mnist    the same of another data set
python examples/priors.py --root data --steps 5000 --seeds 1 --out runs/look    a shorter look

The network is that of the VampPrior paper (Tomczak and Welling, 2018): two gated layers of 300 each side, 40 latent
features, batches of 100, Adam at 5e-4; images binarised anew in every step, those that are measured once; β rises over
the first fifth of the training. Every model is a folder of its own, which a second call goes on with, or reads; one
that was trained with other settings is refused, one that was measured on other images or samples is measured again.
"""

import argparse
import dataclasses
import functools
import json
import math
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

import ppl_vae as pv

PRIORS = {
    "Standard": "Standard",
    "Gaussian": {"name": "Gaussian", "hidden": []},
    "Laplace": {"name": "Fixed", "distribution": "Laplace", "args": [0.0, 1.0]},
    "Mixture": {"name": "Mixture", "components": 50, "hidden": []},
    "Vamp": "Vamp",
    "NICE": {"name": "NICE", "transforms": 4, "hidden_features": [100]},
    "MAF": {"name": "MAF", "transforms": 3, "hidden_features": [100, 100]},
    "NSF": {"name": "NSF", "transforms": 2, "hidden_features": [100, 100]},
}
CONDITIONS = {"none": "−log p(x)", "y": "−log p(x\\|y)"}
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--root", type=Path, default=Path("data"), help="where the data are, or go")
parser.add_argument("--data", choices=["mnist", "fashion-mnist"], default="mnist")
parser.add_argument("--out", type=Path, help="by default runs/priors/DATA")
parser.add_argument("--steps", type=int, default=20_000)
parser.add_argument("--seeds", type=int, default=3)
parser.add_argument("--priors", nargs="*", default=list(PRIORS), choices=list(PRIORS))
parser.add_argument("--conditions", nargs="*", default=list(CONDITIONS), choices=list(CONDITIONS))
parser.add_argument("--rows", type=int, default=50_000, help="how many training images")
parser.add_argument("--test", type=int, default=2000, help="how many test images, evenly spaced")
parser.add_argument("--samples", type=int, default=1000, help="of z, for −log p(x|y)")
args = parser.parse_args()
out = args.out or Path("runs/priors") / args.data

data = pv.data.load(args.data, root=args.root, binarize="dynamic")
data = dataclasses.replace(data, train=data.train.head(args.rows))
test = data.test.subset(torch.linspace(0, len(data.test) - 1, min(args.test, len(data.test))).long())
epochs = math.ceil(args.steps / math.ceil(len(data.train) / 100))
settings = {name: getattr(args, name) for name in ("data", "steps", "rows")}
out.mkdir(parents=True, exist_ok=True)
if not (out / "settings.json").exists():
    (out / "settings.json").write_text(json.dumps(settings))
elif (before := json.loads((out / "settings.json").read_text())) != settings:
    raise SystemExit(f"{out} was made with {before}, and asked for is {settings}: give another --out")


def measured(name: str, condition: str, seed: int) -> dict[str, Any]:
    """−log p(x|y) of every test image, and whether to trust it, of a model that is trained now or was before."""
    folder = out / f"{name}-{condition}-{seed}"
    path, asked = folder / "measured.json", {"test": len(test), "samples": args.samples}
    if path.exists() and asked.items() <= (before := json.loads(path.read_text())).items():
        return before
    model = pv.load(folder) if (folder / "model.json").exists() else trained(name, condition, seed, folder)
    y = test.y if condition == "y" else None
    found = pv.evaluation.log_likelihood(model, test.x, y, samples=args.samples, seed=seed)
    new = asked | {"values": (-found.values).tolist(), "good": found.good.tolist()}
    path.write_text(json.dumps(new))
    return new


def trained(name: str, condition: str, seed: int, folder: Path) -> pv.VAE:
    """A model, trained from where it was left, and saved."""
    torch.manual_seed(seed)
    options = {"prior": PRIORS[name], "network": pv.networks.GatedMLP, "hidden": (300, 300)}
    build = functools.partial(pv.cvae, classes=10) if condition == "y" else pv.vae
    model = build(data.x_shape, 40, **options)
    pv.fit(
        model,
        data.train,
        epochs=epochs,
        batch_size=100,
        lr=5e-4,
        beta=pv.objectives.warmup(max(1, epochs // 5)),
        seed=seed,
        checkpoint=folder / "state",
        resume=True,
    )
    pv.save(model, folder)
    return model


def mean_and_error(values: torch.Tensor) -> tuple[float, float]:
    """The mean of (seeds, images), and its standard error: of so few images, and of so few seeds, which all share."""
    seeds, images = values.shape
    of_images = values.mean(0).var().item() / images
    return values.mean().item(), (of_images + (values.mean(1).var().item() / seeds if seeds > 1 else 0.0)) ** 0.5


# Seed by seed, so that a run that was stopped has models of all priors.
columns = [(name, condition) for condition in args.conditions for name in args.priors]
found = [{column: measured(*column, seed) for column in columns} for seed in range(args.seeds)]
table, good = (
    {column: torch.tensor([by[column][what] for by in found]).double() for column in columns}
    for what in ("values", "good")
)
trusted = {column: each.mean().item() for column, each in good.items()}

numbers: dict[str, dict[str, Any]] = {condition: {} for condition in args.conditions}
lines = ["| prior | " + " | ".join(f"{CONDITIONS[c]} | less {args.priors[0]}'s" for c in args.conditions) + " |"]
lines += ["|---" + "|---:" * (2 * len(args.conditions)) + "|"]
for name in args.priors:
    cells = [name]
    for condition in args.conditions:
        each, first = table[name, condition], table[args.priors[0], condition]
        over_seeds = f" ± {each.mean(1).std().item():.2f}" if args.seeds > 1 else ""
        # By image, because all models see the same ones.
        mean, error = mean_and_error(each - first)
        less = {f"less {args.priors[0]}'s": mean, "its standard error": error}
        numbers[condition][name] = {"by seed": each.mean(1).tolist(), **less, "trusted": trusted[name, condition]}
        cells += [
            f"{each.mean().item():.2f}{over_seeds}",
            "" if name == args.priors[0] else f"{mean:+.2f} ± {error:.2f}",
        ]
    lines.append("| " + " | ".join(cells) + " |")
errors = [mean_and_error(table[args.priors[0], condition])[1] for condition in args.conditions]
print(f"\n{args.data}: {len(test)} test images, {args.samples} samples, {args.steps} steps, {args.seeds} seeds; nats.")
print("A mean ± its spread over seeds; a difference by image ± its standard error over images and seeds. The standard")
print(f"error of a mean is {max(errors):.2f}, most of which all have in common, the images being the same.")
worst, condition = fewest = min(trusted, key=trusted.__getitem__)
print(
    f"k̂ says to trust {100 * torch.stack([*good.values()]).mean().item():.1f}% of the estimates, and fewest of ", end=""
)
print(f"{worst} ({CONDITIONS[condition][1:]}): {100 * trusted[fewest]:.1f}%.\n".replace("\\", ""))
print("\n".join(lines))
asked = {**settings, "test": len(test), "samples": args.samples, "seeds": args.seeds}
(out / "priors.json").write_text(json.dumps({**asked, "unit": "nats", "neg_log_prob": numbers}, indent=1) + "\n")

figure = Figure(figsize=(4 * len(args.conditions), 3.8), layout="constrained")
for axes, condition in zip(figure.subplots(1, len(args.conditions), squeeze=False)[0], args.conditions, strict=True):
    for i, name in enumerate(args.priors):
        differences = table[name, condition] - table[args.priors[0], condition]
        mean, error = mean_and_error(differences)
        axes.errorbar(mean, i, xerr=error, fmt="o", color=f"C{i}", capsize=3)
        axes.plot(differences.mean(1), [i] * args.seeds, "|", color=f"C{i}", markersize=10)
    axes.axvline(0, color="0.8", linewidth=1, zorder=0)
    axes.set(yticks=range(len(args.priors)), yticklabels=args.priors)
    axes.set(xlabel=f"nats more than {args.priors[0]}", title=CONDITIONS[condition].replace("\\", ""))
    axes.invert_yaxis()
figure.suptitle(f"{args.data}, test images; a dash a seed")
print(pv.plots.save(figure, out / "priors.png"))
