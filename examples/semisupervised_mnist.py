"""MNIST with a hundred labels: the others are summed out.

python examples/semisupervised_mnist.py --root data --out runs/semisupervised

Labelled rows are repeated, so that every batch has some; all other rows have y = −1.
"""

import argparse
from pathlib import Path

import torch

import ppl_vae as pv

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--root", type=Path, default=Path("data"), help="where MNIST is, or goes")
parser.add_argument("--out", type=Path, default=Path("runs/semisupervised"))
parser.add_argument("--epochs", type=int, default=30)
parser.add_argument("--rows", type=int, default=50_000, help="how many training images")
parser.add_argument("--labels", type=int, default=100, help="how many of them have a label, as many of each class")
parser.add_argument("--hidden", type=int, nargs="*", default=[400])
parser.add_argument("--alpha", type=float, default=50.0, help="the weight of log q(y|x) on labelled rows")
parser.add_argument("--repeat", type=int, default=50, help="how often an epoch has a labelled row")
args = parser.parse_args()

data = pv.data.load("mnist", root=args.root, binarize="dynamic").head(args.rows)
known = torch.cat([(data.train.y == k).nonzero()[: args.labels // 10, 0] for k in range(10)])
y = torch.full_like(data.train.y, -1)
y[known] = data.train.y[known]
rows = torch.cat([torch.arange(len(y)), known.repeat(args.repeat)])
train = pv.data.Split(data.train.x[rows], y[rows], binarize="dynamic")

torch.manual_seed(0)
network = {"hidden": args.hidden}
model = pv.SemiSupervised(
    pv.cvae(data.x_shape, 50, 10, prior="Standard", **network),
    classifier=pv.encoders.Classifier(10, data.x_shape, **network),
    alpha=args.alpha,
)
accuracies = []


def accuracy(model, history):
    """Of argmax q(y|x) on validation images, after every epoch."""
    right = model.classify(data.valid.x).logits.argmax(-1) == data.valid.y
    accuracies.append(right.double().mean().item())
    print(f"epoch {len(history)}: {accuracies[-1]:.4f} of the validation images", flush=True)


pv.fit(model, train, epochs=args.epochs, batch_size=200, lr=1e-3, callbacks=[accuracy], progress=False)

test = data.test
with torch.no_grad():
    right = (model.classify(test.x).logits.argmax(-1) == test.y).double()
print(f"test accuracy at {len(known)} labels: {right.mean():.4f} ± {right.std() / len(right) ** 0.5:.4f}")
print(pv.evaluate(model, test.x[:1000], test.y[:1000], samples=100))
labels = torch.arange(10)
figure = pv.plots.samples(
    model.sample(10, y=labels, mean=True).cpu(),
    labels,
    vrange=(0, 1),
    title=f"drawn by label, of which {len(known)} were seen",
)
print(pv.plots.save(figure, args.out / "samples.png"))
