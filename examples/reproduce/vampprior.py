"""R1 and R2: dynamic MNIST, gated layers, an N(0, I) prior or a VampPrior.

python examples/reproduce/vampprior.py                  R1, N(0, I): 84.45
python examples/reproduce/vampprior.py --prior Vamp     R2, 500 pseudo-inputs: 82.29

Two gated layers of 300 each side, 40 latent features, weights from N(0, 2 / inputs), log σ² of q in [−6, 2]; batches of
100, Adam at 5e-4, up to 2,000 epochs with β rising over the first 100, until 50 epochs after that have brought nothing
better; the paper's own draws of the validation and test images; 5,000 importance samples (Tomczak and Welling, 2018).
One thing is not the paper's code: pseudo-inputs start at training images, and are not clamped.
"""

import math

import torch
from common import arguments, drawn, run
from torch import nn

import ppl_vae as pv

PRIORS = {"Standard": "Standard", "Vamp": {"name": "Vamp", "components": 500}}
WARMUP, PATIENCE = 100, 50

parser = arguments(__doc__)
parser.add_argument("--prior", choices=list(PRIORS), default="Standard")
args = parser.parse_args()

grey = pv.data.load("mnist", root=args.root, scale="unit")
train = pv.data.Split(grey.train.x, grey.train.y, binarize="dynamic")
valid, test = (pv.data.Split(x) for x in drawn(777, grey.valid.x, grey.test.x))


def make(seed: int) -> pv.VAE:
    """A fresh model; every weight at He's scale, the biases as torch has them."""
    model = pv.vae(
        grey.x_shape,
        40,
        prior=PRIORS[args.prior],
        encoder={"name": "Gaussian", "clamp": (-6.0, 2.0)},
        network=pv.networks.GatedMLP,
        hidden=(300, 300),
    )
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0.0, math.sqrt(2 / module.in_features))
    return model


def enough(vae: pv.VAE, history: pv.History) -> bool:
    """More than 50 epochs since the best, of which those count that come after the rise of β."""
    values = torch.tensor(history.column("valid_neg_elbo"))
    return len(history) - max(int(values.argmin()) + 1, WARMUP - 1) > PATIENCE


# The best of all epochs is kept, and when to stop is the callback's.
options = {"batch_size": 100, "lr": 5e-4, "beta": pv.objectives.warmup(WARMUP), "patience": 2000}
row = {"Standard": "r1", "Vamp": "r2"}[args.prior]
run(row, args, make, train, valid, test, epochs=2000, samples=5000, callbacks=[enough], **options)
