"""R6: predict the rest of a digit from one, two or three of its quadrants.

python examples/reproduce/quadrants.py --seen 1                 as in Pyro's tutorial: 71.8 (2: 51.0, 3: 24.2)
python examples/reproduce/quadrants.py --seen 1 --honest        the same as a likelihood

A conditional VAE whose y is the image with the unseen quadrants blank: p(z|y) and q(z|x,y) have 500-500 ReLU layers
each, z 200, batches of 128, Adam at 1e-3. The tutorial's convention: grey pixels under a Bernoulli, a decoder that sees
z alone, −ELBO of 10 draws on the unseen pixels, and the weights that are best on the very 10,000 images that are
reported. Two things are not the tutorial's: there p(z|y) is also told what a first network, trained beforehand, expects
in the unseen quadrants, and q(z|x,y) sees them with the others as one image; here both see blanks. The honest one:
binarised targets, a validation split, a decoder that sees the quadrants too, and 5,000 importance samples.
"""

from typing import Any

import torch
from common import arguments, run

import ppl_vae as pv

parser = arguments(__doc__, seeds=1)
parser.add_argument("--seen", type=int, choices=[1, 2, 3], default=1)
parser.add_argument("--honest", action="store_true")
args = parser.parse_args()

# One quadrant is the one at the lower left, two are the left half, three are all but the lower right.
seen = torch.zeros(28, 28, dtype=torch.bool)
seen[14:, :14] = True
if args.seen > 1:
    seen[:, :14] = True
if args.seen > 2:
    seen[:14] = True


def split(rows: pv.data.Split) -> tuple[torch.Tensor, torch.Tensor]:
    """The unseen pixels, and the image without them."""
    image = rows.x[:, 0]
    return image[:, ~seen], torch.where(seen, image, torch.zeros(()))[:, None].flatten(1)


def make() -> pv.VAE:
    """A fresh model; in the tutorial's convention its decoder ignores y."""
    unseen, hidden = int((~seen).sum()), (500, 500)
    context = 784 if args.honest else 0
    likelihood = pv.likelihoods.Bernoulli((unseen,), 200, context=context, hidden=hidden, grey=not args.honest)
    return pv.VAE(
        prior=pv.priors.Gaussian(200, context=784, hidden=hidden),
        likelihood=likelihood if args.honest else pv.Unconditional(likelihood),
        encoder=pv.encoders.Gaussian(200, (unseen,), context=784, hidden=hidden),
        condition=pv.conditions.Continuous(784),
    )


if args.honest:
    data = pv.data.load("mnist", root=args.root, binarize="static")
    splits = [split(rows) for rows in (data.train, data.valid, data.test)]
else:
    data = pv.data.load("mnist", root=args.root, scale="unit")
    whole = pv.data.Split(torch.cat([data.train.x, data.valid.x]))
    splits = [split(whole), split(data.test), split(data.test)]


def measure(vae: pv.VAE) -> dict[str, float]:
    """−ELBO as the tutorial has it."""
    return {"neg_elbo": pv.evaluate(vae, *splits[2], samples=1, draws=10)["neg_elbo"]}


row = f"r6-{args.seen}-{'honest' if args.honest else 'tutorial'}"
options: dict[str, Any] = {"batch_size": 128, "lr": 1e-3, "patience": 10}
if not args.honest:
    options["figure"] = "neg_elbo"
run(row, args, make, *splits, epochs=100, samples=5000 if args.honest else 100, measure=measure, **options)
