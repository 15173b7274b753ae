"""The two programs with stock Pyro and nothing else: ``pyro.infer.SVI``, ``Trace_ELBO``, a loop.

python examples/svi_by_hand.py
"""

import argparse

import pyro
from pyro.infer import SVI, Trace_ELBO

import ppl_vae as pv

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--epochs", type=int, default=20)
epochs = parser.parse_args().epochs

pyro.set_rng_seed(0)
data = pv.data.load("digits")
cvae = pv.cvae(data.x_shape, 16, classes=10, likelihood="Binomial", levels=17, range=data.range)
svi = SVI(cvae.model, cvae.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
for epoch in range(epochs):
    batches = zip(data.train.x.split(64), data.train.y.split(64), strict=True)
    loss = sum(svi.step(x, y) for x, y in batches) / len(data.train)
    print(f"epoch {epoch + 1:3d}   −ELBO {loss:7.2f} nats per image")
print(pv.evaluate(cvae, data.test.x, data.test.y))
