"""The best MLP with an N(0, I) prior on static MNIST that an hour of two cores gives; the IWAE paper's figure is 88.7.

python examples/reproduce/static_best.py --search     every candidate, one seed: −log p of validation images
                                                      (with --candidate NAME that one alone)
python examples/reproduce/static_best.py              the best of them, three seeds, and the test images

A search writes what it found to results/search, and the second command reads it there: nothing is chosen by hand, or
on test images. All candidates have two layers each side, 40 latent features, captured steps in batches of 100, β that
rises over 30 of 100 epochs, output biases that start at the mean image, AdamW at 1e-3, which falls to a tenth over the
second half, and the weights that are the best on validation images.
"""

import functools
import json
from typing import Any

import torch
from common import arguments, run

import ppl_vae as pv

GATED, TANH = pv.networks.GatedMLP, functools.partial(pv.networks.MLP, activation="tanh")
CANDIDATES: dict[str, dict[str, Any]] = {
    "gated-300": {"network": GATED, "width": 300, "decay": 0.0},
    "gated-300-decay": {"network": GATED, "width": 300, "decay": 0.1},
    "gated-500-decay": {"network": GATED, "width": 500, "decay": 0.1},
    "tanh-500": {"network": TANH, "width": 500, "decay": 0.0},
    "tanh-500-decay": {"network": TANH, "width": 500, "decay": 0.1},
}
EPOCHS = 100
parser = arguments(__doc__)
parser.add_argument("--search", action="store_true")
parser.add_argument("--candidate", choices=list(CANDIDATES), help="this one, whatever a search found")
args = parser.parse_args()

data = pv.data.load("binarized-mnist", root=args.root)


def lr(epoch: int) -> float:
    """Constant over the first half, then falling exponentially."""
    return 1e-3 * 10 ** -max(0.0, 2 * epoch / EPOCHS - 1)


def row(name: str, candidate: str, test: pv.data.Split, samples: int) -> None:
    """Train a candidate and measure it."""
    chosen = CANDIDATES[candidate]
    args.candidate = candidate

    def make(seed: int) -> pv.VAE:
        model = pv.vae(data.x_shape, 40, network=chosen["network"], hidden=2 * (chosen["width"],))
        model.likelihood.start_from(data.train.x)
        return model

    run(
        name,
        args,
        make,
        data.train,
        data.valid,
        test,
        epochs=EPOCHS,
        samples=samples,
        batch_size=100,
        lr=lr,
        optim=functools.partial(torch.optim.AdamW, weight_decay=chosen["decay"]),
        beta=pv.objectives.warmup(30),
        patience=EPOCHS,
    )


def best() -> str:
    """The candidate of the least −log p of validation images."""
    files = {name: args.results / "search" / f"static-best-{name}.json" for name in CANDIDATES}
    if missing := [name for name, path in files.items() if not path.exists()]:
        raise SystemExit(f"no search has been made of {', '.join(missing)}: give --search first, or --candidate")
    found = {name: json.loads(path.read_text())["mean"] for name, path in files.items()}
    print("validation, −log p:", ", ".join(f"{name} {value:.2f}" for name, value in found.items()))
    return min(found, key=found.__getitem__)


if args.search:
    args.results, args.seeds = args.results / "search", args.seeds[:1]
    for name in [args.candidate] if args.candidate else CANDIDATES:
        # Evenly spaced, as the images may be sorted.
        few = data.valid.subset(torch.linspace(0, len(data.valid) - 1, min(2000, len(data.valid))).long())
        row(f"static-best-{name}", name, few, samples=1000)
else:
    row("static-best", args.candidate or best(), data.test, samples=5000)
