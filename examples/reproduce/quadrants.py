"""R6: predict the rest of a digit from one, two or three of its quadrants.

python examples/reproduce/quadrants.py --seen 1                 as in Pyro's tutorial: 71.8 (2: 51.0, 3: 24.2)
python examples/reproduce/quadrants.py --seen 1 --network       its first network alone: 100.4 (61.9, 25.4)
python examples/reproduce/quadrants.py --seen 1 --honest        the same task as a likelihood

The tutorial's convention: a network of 500-500 ReLU units learns to complete the image; then p(z|y) is told the image
so completed, and q(z|x,y) the true one, by 500-500 units each; z has 200 features, and the decoder sees z alone. Grey
pixels under a Bernoulli, batches of 128, Adam at 1e-3, at most 101 epochs; training stops when three of them have
brought nothing better on the very 10,000 images that are reported, by the −ELBO on the unseen pixels: of one draw an
image where it is chosen by, of ten where it is reported. One thing differs: there σ of z is exp(r) of what a network
gives, here exp(r / 2).

The honest one: binarised targets, a validation split, p(z|y) and q(z|x,y) that see the quadrants as they are, a decoder
that sees them too, and 5,000 importance samples.
"""

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import torch
from common import arguments, run
from torch import Tensor, nn

import ppl_vae as pv

parser = arguments(__doc__)
parser.add_argument("--seen", type=int, choices=[1, 2, 3], default=1)
parser.add_argument("--honest", action="store_true")
parser.add_argument("--network", action="store_true")
args = parser.parse_args()
# Which rows are made is no setting of theirs.
network_alone = vars(args).pop("network")

# One quadrant is the one at the lower left, two are the left half, three are all but the lower right.
seen = torch.zeros(28, 28, dtype=torch.bool)
seen[14:, :14] = True
if args.seen > 1:
    seen[:, :14] = True
if args.seen > 2:
    seen[:14] = True
UNSEEN = int((~seen).sum())


def split(rows: pv.data.Split) -> tuple[Tensor, Tensor]:
    """x, the unseen pixels, and y, the image in which they are 0 or, in the tutorial's convention, −1."""
    image = rows.x[:, 0]
    blank = torch.tensor(0.0 if args.honest else -1.0)
    return image[:, ~seen], torch.where(seen, image, blank)[:, None].flatten(1)


def completed(y: Tensor, x: Tensor) -> Tensor:
    """The images (N, 784) with x in the unseen places."""
    image = y.clone()
    image[..., (~seen).flatten()] = x
    return image


class WithoutLatent(nn.Module):
    """p(x | y) by a likelihood that is given y where z would be."""

    def __init__(self) -> None:
        super().__init__()
        self.likelihood = pv.likelihoods.Bernoulli((UNSEEN,), 784, hidden=(500, 500), grey=True)
        self.density = False

    def forward(self, z: Tensor, c: Tensor) -> Any:
        return self.likelihood(c.expand(*z.shape[:-1], -1), None)


def network() -> pv.VAE:
    """The tutorial's first network: a model whose z says nothing and costs nothing, so that −ELBO is −log p(x | y)."""
    return pv.VAE(
        prior=pv.priors.Standard(1),
        likelihood=WithoutLatent(),
        encoder=lambda x, c: dist.Normal(x.new_zeros(len(x), 1), 1.0).to_event(1),
        condition=pv.conditions.Continuous(784),
    )


class Completed(pv.conditions.Continuous):
    """The image with the unseen quadrants as a network expects them, which is not trained any further."""

    def __init__(self, expected: nn.Module) -> None:
        super().__init__(784)
        self.expected = expected.requires_grad_(False)

    def forward(self, y: Tensor) -> Tensor:
        y = super().forward(y)
        return completed(y, self.expected(y, None).mean)


class OfTheWhole(nn.Module):
    """q(z | x, y) by an encoder of the true image: x, and of c the quadrants that are seen."""

    def __init__(self, encoder: pv.encoders.Gaussian) -> None:
        super().__init__()
        self.encoder, self.features = encoder, encoder.features

    def forward(self, x: Tensor, c: Tensor) -> Any:
        return self.encoder(completed(c, x), None)


def same_network(run: Path, first: pv.VAE) -> None:
    """Stop at a run that was begun upon another first network, whose weights its state would bring back."""
    digest = hashlib.sha256()
    for tensor in first.state_dict().values():
        digest.update(tensor.cpu().numpy().tobytes())
    path, now = run / "network.json", {"sha256": digest.hexdigest()}
    if not (run / "state").exists():
        path.write_text(json.dumps(now) + "\n")
    elif not path.exists() or json.loads(path.read_text()) != now:
        raise SystemExit(
            f"{run} was begun upon another first network than there is now, or does not say upon which: remove that "
            "folder to begin it anew, or give another --out"
        )


def make(seed: int) -> pv.VAE:
    """A fresh model."""
    hidden = (500, 500)
    prior = pv.priors.Gaussian(200, context=784, hidden=hidden)
    if args.honest:
        return pv.VAE(
            prior=prior,
            likelihood=pv.likelihoods.Bernoulli((UNSEEN,), 200, context=784, hidden=hidden),
            encoder=pv.encoders.Gaussian(200, (UNSEEN,), context=784, hidden=hidden),
            condition=pv.conditions.Continuous(784),
        )
    first = pv.load(args.out / f"r6-{args.seen}-network-{seed}", into=network())
    same_network(args.out / f"r6-{args.seen}-tutorial-{seed}", first)
    return pv.VAE(
        prior=prior,
        likelihood=pv.Unconditional(pv.likelihoods.Bernoulli((UNSEEN,), 200, hidden=hidden, grey=True)),
        encoder=OfTheWhole(pv.encoders.Gaussian(200, (784,), hidden=hidden)),
        condition=Completed(first.likelihood.likelihood),
    )


if args.honest:
    data = pv.data.load("mnist", root=args.root, binarize="static")
    splits = [split(rows) for rows in (data.train, data.valid, data.test)]
else:
    data = pv.data.load("mnist", root=args.root, scale="unit")
    whole = pv.data.Split(torch.cat([data.train.x, data.valid.x]))
    splits = [split(whole), split(data.test), split(data.test)]


def measure(vae: pv.VAE, x: Tensor, y: Tensor | None) -> dict[str, float]:
    """−ELBO as the tutorial has it."""
    return {"neg_elbo": pv.evaluate(vae, x, y, samples=1, draws=10)["neg_elbo"]}


protocol: dict[str, Any] = {"epochs": 101, "measure": measure, "batch_size": 128, "lr": 1e-3}
row = functools.partial(run, args=args, train=splits[0], valid=splits[1], test=splits[2], **protocol)
if args.honest:
    row(f"r6-{args.seen}-honest", make=make, samples=5000, patience=10)
else:
    row(f"r6-{args.seen}-network", make=lambda seed: network(), samples=1, patience=3, figure="neg_elbo")
    if not network_alone:
        row(f"r6-{args.seen}-tutorial", make=make, samples=100, patience=3, figure="neg_elbo")
