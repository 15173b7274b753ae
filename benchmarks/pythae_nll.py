"""Log-likelihoods by pythae, for ``likelihood.py``, which runs this in an environment of its own.

``VAE.get_nll`` on a model of the same architecture. Answers every line, a number of calls, with their seconds.
"""

from __future__ import annotations

import argparse

import torch
from common import Turns, say
from pythae.models import VAE, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from torch import nn

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--rows", type=int, default=8)
parser.add_argument("--samples", type=int, default=5000)
parser.add_argument("--hidden", type=int, default=400)
parser.add_argument("--latent", type=int, default=20)
parser.add_argument("--batch", type=int, default=100)
parser.add_argument("--device", default="cpu")
parser.add_argument("--threads", type=int, default=0)
args = parser.parse_args()
if args.threads:
    torch.set_num_threads(args.threads)


class Encoder(BaseEncoder):
    """784 to hidden to a mean and a log-variance."""

    def __init__(self) -> None:
        BaseEncoder.__init__(self)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(784, args.hidden), nn.ReLU())
        self.head = nn.Linear(args.hidden, 2 * args.latent)

    def forward(self, x: torch.Tensor) -> ModelOutput:
        """The parameters of q(z | x)."""
        mean, log_variance = self.head(self.body(x)).chunk(2, -1)
        return ModelOutput(embedding=mean, log_covariance=log_variance)


class Decoder(BaseDecoder):
    """Latent to hidden to the probabilities of 784 pixels."""

    def __init__(self) -> None:
        BaseDecoder.__init__(self)
        self.body = nn.Sequential(nn.Linear(args.latent, args.hidden), nn.ReLU(), nn.Linear(args.hidden, 784))

    def forward(self, z: torch.Tensor) -> ModelOutput:
        """The mean of p(x | z)."""
        return ModelOutput(reconstruction=self.body(z).sigmoid().unflatten(-1, (1, 28, 28)))


torch.manual_seed(0)
config = VAEConfig(input_dim=(1, 28, 28), latent_dim=args.latent, reconstruction_loss="bce")
model = VAE(config, Encoder(), Decoder()).to(args.device).eval()
x = (torch.rand(args.rows, 1, 28, 28) < 0.13).float().to(args.device)
turns = Turns(args.device)
say(ready=True)
while (calls := turns.wait()) is not None:
    with torch.no_grad():
        for _ in range(int(calls)):
            model.get_nll(x, n_samples=args.samples, batch_size=args.batch)
    turns.done()
