"""R3 and R5: dynamic MNIST by the protocol of the IWAE paper, class-conditional or not.

python examples/reproduce/iwae.py --k 5                     R5: 85.54; with 1 sample 86.76, with 50 84.78
python examples/reproduce/iwae.py --conditional --k 5       R3, with p(z|y) learned: 81.41; 82.32; 80.78
python examples/reproduce/iwae.py --k 5 --dreg              the doubly reparameterised gradient of the same bound

784-200-200-z, tanh, 50 latent features (R3: 100); 60,000 training images in batches of 20; 3,280 epochs in eight stages
of 3^i at 1e-3 · 10^(−i/7), Adam with ε = 1e-4, the output bias at the logit of the mean image, the last weights, 5,000
importance samples (Burda, Grosse and Salakhutdinov, 2016). Test images are the draws of the code behind R3's figures,
which also has its own R5. One thing differs from it: there σ of q is exp(r) + 1e-6 of what the network gives, here
exp(r / 2).
"""

import functools

import torch
from common import arguments, drawn, run

import ppl_vae as pv

parser = arguments(__doc__)
parser.add_argument("--k", type=int, default=1, help="samples in the bound")
parser.add_argument("--conditional", action="store_true")
parser.add_argument("--dreg", action="store_true")
args = parser.parse_args()

ENDS = [sum(3**i for i in range(stage + 1)) for stage in range(8)]


def lr(epoch: int) -> float:
    """Counted from 1: stage i has 3^i epochs."""
    return 1e-3 * 10 ** (-sum(epoch > end for end in ENDS[:-1]) / 7)


# The protocol trains on all 60,000 images and holds none out.
grey = pv.data.load("mnist", root=args.root)
images, labels = (torch.cat([getattr(split, name) for split in (grey.train, grey.valid)]) for name in "xy")
train = pv.data.Split(images / 255, labels, binarize="dynamic")
test = pv.data.Split(*drawn(123, grey.test.x.double() / 255), grey.test.y)


def make(seed: int) -> pv.VAE:
    """A fresh model, its pixels starting at the mean image."""
    network = functools.partial(pv.networks.MLP, activation="tanh")
    shared = {"network": network, "hidden": (200, 200)}
    if args.conditional:
        model = pv.cvae(grey.x_shape, 100, 10, prior={"name": "Gaussian", **shared}, **shared)
    else:
        model = pv.vae(grey.x_shape, 50, **shared)
    model.likelihood.start_from(train)
    return model


name = f"{'r3' if args.conditional else 'r5'}-{'dreg' if args.dreg else 'iwae'}-{args.k}"
objective = (pv.objectives.DReG if args.dreg else pv.objectives.IWAE)(args.k)
adam = functools.partial(torch.optim.Adam, eps=1e-4)
run(
    name,
    args,
    make,
    train,
    None,
    test,
    epochs=ENDS[-1],
    samples=5000,
    batch_size=20,
    lr=lr,
    optim=adam,
    objective=objective,
)
