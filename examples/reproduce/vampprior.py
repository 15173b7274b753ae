"""R1 and R2: dynamic MNIST, gated layers, an N(0, I) prior or a VampPrior.

python examples/reproduce/vampprior.py                  R1, N(0, I): 84.45
python examples/reproduce/vampprior.py --prior Vamp     R2, 500 pseudo-inputs: 82.29

Two gated layers of 300 each side, 40 latent features, log σ² of q in [−6, 2]; batches of 100, Adam at 5e-4, up to 2,000
epochs with β rising over the first 100, patience 50, 5,000 importance samples (Tomczak and Welling, 2018). Three
things are not the paper's code: pseudo-inputs start at training images and are not clamped; patience counts from the
first epoch and not from the end of the rise (before which −ELBO at β = 1 keeps falling); and validation and test images
are binarised once by other draws.
"""

import functools

from common import arguments, run

import ppl_vae as pv

PRIORS = {"Standard": "Standard", "Vamp": {"name": "Vamp", "components": 500}}

parser = arguments(__doc__)
parser.add_argument("--prior", choices=list(PRIORS), default="Standard")
args = parser.parse_args()

data = pv.data.load("mnist", root=args.root, binarize="dynamic", seed=777)
make = functools.partial(
    pv.vae,
    data.x_shape,
    40,
    prior=PRIORS[args.prior],
    encoder={"name": "Gaussian", "clamp": (-6.0, 2.0)},
    network=pv.networks.GatedMLP,
    hidden=(300, 300),
)
row = {"Standard": "r1", "Vamp": "r2"}[args.prior]
options = {"batch_size": 100, "lr": 5e-4, "beta": pv.objectives.warmup(100), "patience": 50}
run(row, args, make, data.train, data.valid, data.test, epochs=2000, samples=5000, **options)
