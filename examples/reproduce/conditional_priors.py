"""Held-out −log p(x|y) of class-conditional VAEs under seven priors, on binarised MNIST and Fashion-MNIST.

python examples/reproduce/conditional_priors.py --data mnist --prior NSF
for every prior and both data sets

The network of R1; images binarised anew in every step, those that are measured once; batches of 100, Adam at 5e-4, 100
epochs, β rising over the first 20, the weights of the best validation −ELBO, 5,000 importance samples.
"""

import functools

from common import arguments, run

import ppl_vae as pv

PRIORS = {
    "Standard": "Standard",
    "Gaussian": {"name": "Gaussian", "hidden": []},
    "Mixture": {"name": "Mixture", "components": 50, "hidden": []},
    "Vamp": "Vamp",
    "MAF": {"name": "MAF", "transforms": 3, "hidden_features": [100, 100]},
    "NSF": {"name": "NSF", "transforms": 2, "hidden_features": [100, 100]},
    "NICE": {"name": "NICE", "transforms": 4, "hidden_features": [100]},
}

parser = arguments(__doc__)
parser.add_argument("--data", choices=["mnist", "fashion-mnist"], default="mnist")
parser.add_argument("--prior", choices=list(PRIORS), default="Standard")
args = parser.parse_args()

data = pv.data.load(args.data, root=args.root, binarize="dynamic")
shared = {"network": pv.networks.GatedMLP, "hidden": (300, 300)}
make = functools.partial(pv.cvae, data.x_shape, 40, 10, prior=PRIORS[args.prior], **shared)
options = {"batch_size": 100, "lr": 5e-4, "beta": pv.objectives.warmup(20), "patience": 100}
run(
    f"conditional-{args.data}-{args.prior}",
    args,
    make,
    data.train,
    data.valid,
    data.test,
    epochs=100,
    samples=5000,
    **options,
)
