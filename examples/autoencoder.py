"""A plain autoencoder: a point for an encoder, squared error, no prior; what a VAE is without its probabilities.

python examples/autoencoder.py --out runs/autoencoder
"""

import argparse
import math
from pathlib import Path

import ppl_vae as pv

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", type=Path, default=Path("runs/autoencoder"))
parser.add_argument("--epochs", type=int, default=100)
args = parser.parse_args()

data = pv.data.load("digits", scale="unit")
ae = pv.ae(data.x_shape, features=2, hidden=(200, 200))
history = pv.fit(ae, data.train, valid=data.valid, epochs=args.epochs, batch_size=64)

# −log p(x|z) at σ² = ½ is the summed squared error plus (D/2) log π.
x_hat = ae.reconstruct(data.test.x).cpu()
error = (data.test.x - x_hat).square().flatten(1).sum(1).mean()
print(f"test: squared error {error:.3f} per image, −log p(x|z) {error + 32 * math.log(math.pi):.3f} nats")
print(pv.evaluate(ae, data.test.x))

labels = data.test.y[:20].tolist()
pictures = {
    "reconstructions": pv.plots.reconstructions(data.test.x[:20], x_hat[:20], labels, vrange=data.range),
    "latents": pv.plots.latents(ae.embed(data.test.x).cpu(), data.test.y, title="codes of the test images"),
}
for name, figure in pictures.items():
    print(pv.plots.save(figure, args.out / f"{name}.png"))
