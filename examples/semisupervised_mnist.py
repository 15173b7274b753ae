"""MNIST with a hundred labels: images become the codes of a VAE, and of the codes missing labels are summed out.

python examples/semisupervised_mnist.py --root data --out runs/semisupervised

The two models of Kingma, Mohamed, Rezende and Welling (2014), one on the other. The first, of all images and no
labels, finds codes that use some 16 dimensions. The second tells labels from these, by ten rows of each class and
50,000 with y = −1. On pixels (--pixels) the second alone gets little further than its classifier would: labels differ
by tens of nats there, and what has been decided first is what the rest is explained by.
"""

import argparse
import dataclasses
from pathlib import Path

import torch

import ppl_vae as pv

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--root", type=Path, default=Path("data"), help="where MNIST is, or goes")
parser.add_argument("--out", type=Path, default=Path("runs/semisupervised"))
parser.add_argument("--first", type=int, default=40, help="epochs of the first model")
parser.add_argument("--codes", type=int, default=16, help="of how many dimensions of the first")
parser.add_argument("--epochs", type=int, default=80, help="epochs of the second")
parser.add_argument("--rows", type=int, default=50_000, help="how many training images")
parser.add_argument("--labels", type=int, default=100, help="how many of them have a label, as many of each class")
parser.add_argument("--repeat", type=int, default=10, help="how many times more an epoch has a labelled row")
parser.add_argument("--alpha", type=float, default=50.0, help="the weight of log q(y|x) on labelled rows")
parser.add_argument("--hidden", type=int, nargs="*", default=[300])
parser.add_argument("--pixels", action="store_true", help="leave the first model out")
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()

both = (pv.data.load("mnist", root=args.root, **how) for how in ({"binarize": "dynamic"}, {"scale": "unit"}))
data, grey = (dataclasses.replace(kind, train=kind.train.head(args.rows)) for kind in both)
options = {"batch_size": 200, "seed": args.seed, "progress": False}
torch.manual_seed(args.seed)
if args.pixels:
    codes = [split.x.flatten(1) for split in (data.train, data.valid, data.test)]
    likelihood = "Bernoulli"
else:
    first = pv.vae(data.x_shape, 40, network=pv.networks.GatedMLP, hidden=(300, 300))
    beta = pv.objectives.warmup(max(1, args.first // 5))
    args.out.mkdir(parents=True, exist_ok=True)
    state = args.out / f"state-{args.seed}"
    pv.fit(first, data.train, epochs=args.first, lr=5e-4, beta=beta, checkpoint=state, resume=True, **options)
    codes = [first.embed(split.x) for split in (grey.train, grey.valid, grey.test)]
    # Dimensions that say nothing are 0 in all rows.
    used = codes[0].std(0).topk(args.codes).indices
    codes = [z[:, used] for z in codes]
    likelihood = "Gaussian"

# Which rows keep their label is the seed's choice, as many of each class.
order = torch.randperm(len(grey.train.y), generator=torch.Generator().manual_seed(args.seed))
known = torch.cat([order[grey.train.y[order] == k][: args.labels // 10] for k in range(10)])
y = torch.full_like(grey.train.y, -1)
y[known] = grey.train.y[known]
rows = torch.cat([torch.arange(len(y)), known.repeat(args.repeat)])
train = pv.data.Split(codes[0][rows], y[rows], binarize="dynamic" if args.pixels else "none")

size = codes[0].shape[1:]
model = pv.SemiSupervised(
    pv.cvae(size, 20, 10, prior="Standard", likelihood=likelihood, hidden=args.hidden),
    classifier=pv.encoders.Classifier(10, size, hidden=args.hidden),
    alpha=args.alpha,
)


def accuracy(model, history):
    """Of argmax q(y|x) on validation images, after every epoch."""
    right = model.classify(codes[1]).logits.argmax(-1).cpu() == grey.valid.y
    print(f"epoch {len(history)}: {right.double().mean():.4f} of the validation images", flush=True)


pv.fit(model, train, epochs=args.epochs, lr=1e-3, callbacks=[accuracy], **options)

with torch.no_grad():
    right = (model.classify(codes[2]).logits.argmax(-1).cpu() == grey.test.y).double()
print(f"test accuracy at {len(known)} labels: {right.mean():.4f} ± {right.std() / len(right) ** 0.5:.4f}")
labels = torch.arange(10)
drawn = model.sample(10, y=labels, mean=True)
if not args.pixels:
    z = drawn.new_zeros(*drawn.shape[:-1], 40)
    z[..., used] = drawn
    drawn = first.decode(z).mean
images = drawn.detach().cpu().reshape(10, 10, 1, 28, 28)
figure = pv.plots.samples(images, labels, vrange=(0, 1), title=f"drawn by label, of which {len(known)} were seen")
print(pv.plots.save(figure, args.out / "samples.png"))
