"""Log-likelihoods by pythae, for ``likelihood.py``, which runs this in an environment of its own.

``VAE.get_nll`` on a model of the same architecture. Answers every line, a number of calls, with their seconds.
"""

from __future__ import annotations

import argparse

import torch
from common import Turns, say
from pythae_model import make
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


torch.manual_seed(0)
model = make(args.hidden, args.latent, nn.ReLU).to(args.device).eval()
x = (torch.rand(args.rows, 1, 28, 28) < 0.13).float().to(args.device)
turns = Turns(args.device)
say(ready=True)
while (calls := turns.wait()) is not None:
    with torch.no_grad():
        for _ in range(int(calls)):
            model.get_nll(x, n_samples=args.samples, batch_size=args.batch)
    turns.done()
