"""A class-conditional VAE on MNIST, p(z|y) p(x|z,y): ten rows of digits drawn by label.

python examples/cvae_mnist.py --root data --out runs/cvae_mnist
"""

import argparse
import dataclasses
from pathlib import Path

import torch

import ppl_vae as pv

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--root", type=Path, default=Path("data"), help="where MNIST is, or goes")
parser.add_argument("--out", type=Path, default=Path("runs/cvae_mnist"))
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--rows", type=int, default=50_000, help="how many training images")
args = parser.parse_args()

data = pv.data.load("mnist", root=args.root, binarize="dynamic")
data = dataclasses.replace(data, train=data.train.head(args.rows))
torch.manual_seed(0)
cvae = pv.VAE(
    prior=pv.priors.Gaussian(20, context=10),
    likelihood=pv.likelihoods.Bernoulli(data.x_shape, 20, context=10),
    encoder=pv.encoders.Gaussian(20, data.x_shape, context=10),
    condition=pv.OneHot(10),
)
history = pv.fit(cvae, data.train, valid=data.valid, epochs=args.epochs)
pv.save(cvae, args.out)

test = data.test.head(1000)
print(pv.evaluate(cvae, test.x, test.y, samples=200))
print(pv.audit(cvae, test.x[:64], test.y[:64], particles=50).line)

labels = torch.arange(10)
styles = torch.stack([(test.y == k).nonzero()[0, 0] for k in labels])
moved = cvae.translate(test.x[styles], test.y[styles], to=labels[:, None], carry=True).transpose(0, 1)
samples = cvae.sample(10, y=labels, mean=True).cpu()
pictures = {
    "samples": pv.plots.samples(samples, labels, vrange=(0, 1), title="one digit a row, drawn from p(z|y)"),
    "styles": pv.plots.translations(
        test.x[styles], moved.cpu(), labels, vrange=(0, 1), title="one style in every label"
    ),
    "history": pv.plots.history(history, title="CVAE on MNIST"),
}
for name, figure in pictures.items():
    print(pv.plots.save(figure, args.out / f"{name}.png"))
