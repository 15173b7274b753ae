"""A VAE on MNIST, two latent dimensions, binarised afresh at every step: the manifold of digits.

python examples/vae_mnist.py --root data --out runs/vae_mnist
"""

import argparse
import dataclasses
from pathlib import Path

import torch

import ppl_vae as pv

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--root", type=Path, default=Path("data"), help="where MNIST is, or goes")
parser.add_argument("--out", type=Path, default=Path("runs/vae_mnist"))
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--rows", type=int, default=50_000, help="how many training images")
args = parser.parse_args()

data = pv.data.load("mnist", root=args.root, binarize="dynamic")
data = dataclasses.replace(data, train=data.train.head(args.rows))
torch.manual_seed(0)
vae = pv.vae(data.x_shape, features=2, prior="Standard", likelihood="Bernoulli", hidden=(500, 500))
history = pv.fit(vae, data.train, valid=data.valid, epochs=args.epochs)

test = data.test.head(1000)
print(pv.evaluate(vae, test.x))
print(pv.audit(vae, test.x[:64], particles=50).line)

# Equal steps of probability, not of z: the whole of N(0, I) is on the picture.
axis = torch.distributions.Normal(0.0, 1.0).icdf(torch.linspace(0.03, 0.97, 18))
grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1)
with torch.no_grad():
    images = vae.decode(grid).mean.cpu()
pictures = {
    "manifold": pv.plots.manifold(images, axis, axis, vrange=(0, 1), title="the mean of p(x|z) over z"),
    "latents": pv.plots.latents(vae.embed(test.x).cpu(), test.y, title="means of q(z|x), test images"),
    "history": pv.plots.history(history, title="VAE on MNIST"),
}
for name, figure in pictures.items():
    print(pv.plots.save(figure, args.out / f"{name}.png"))
