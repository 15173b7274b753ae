"""The same conditional VAE under four priors: swapping one is passing another argument.

python examples/swap_priors.py --out runs/swap_priors
"""

import argparse
from pathlib import Path

import pyro.distributions as dist
import torch
import zuko
from matplotlib.figure import Figure

import ppl_vae as pv

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", type=Path, default=Path("runs/swap_priors"))
parser.add_argument("--epochs", type=int, default=60)
args = parser.parse_args()

data = pv.data.load("digits")
latent = 8
priors = {
    "N(0, I), y ignored": lambda: pv.priors.Standard(latent),
    "Laplace, a function": lambda: lambda c: dist.Laplace(c.new_zeros(latent), 1.0).to_event(1),
    "Gaussian p(z|y)": lambda: pv.priors.Gaussian(latent, context=10),
    "spline flow p(z|y)": lambda: zuko.flows.NSF(latent, 10, transforms=2, hidden_features=(64,)),
}

histories, rows = {}, []
for name, make in priors.items():
    torch.manual_seed(0)
    cvae = pv.VAE(
        prior=make(),
        likelihood=pv.likelihoods.Binomial(data.x_shape, latent, context=10, total_count=16),
        encoder=pv.encoders.Gaussian(latent, data.x_shape, context=10, scale=16.0),
        condition=pv.OneHot(10),
    )
    histories[name] = pv.fit(cvae, data.train, valid=data.valid, epochs=args.epochs, batch_size=64)
    result = pv.evaluate(cvae, data.test.x, data.test.y)
    rows.append(f"{name:22s} {result['neg_elbo']:9.2f} {result['kl']:9.2f} {result['neg_log_prob']:12.2f}")

print(f"{'nats per test image':22s} {'−ELBO':>9s} {'KL':>9s} {'−log p(x|y)':>12s}", *rows, sep="\n")

figure = Figure(figsize=(7, 4), layout="constrained")
axes = figure.subplots()
for name, history in histories.items():
    axes.plot(history.column("epoch"), history.column("valid_neg_elbo"), label=name)
worst = max(history.column("valid_neg_elbo")[len(history) // 4] for history in histories.values())
best = min(min(history.column("valid_neg_elbo")) for history in histories.values())
axes.set(xlabel="epoch", ylabel="validation −ELBO (nats per image)", ylim=(best - 2, worst + 2))
axes.set_title("One conditional VAE under four priors")
axes.legend(frameon=False)
print(pv.plots.save(figure, args.out / "priors.png"))
