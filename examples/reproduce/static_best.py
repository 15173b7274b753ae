"""The best MLP with an N(0, I) prior on static MNIST that an hour of two cores gives; the IWAE paper's figure is 88.7.

python examples/reproduce/static_best.py

What was chosen was chosen on validation images.
"""

import functools

from common import arguments, run

import ppl_vae as pv

parser = arguments(__doc__)
parser.add_argument("--hidden", type=int, nargs="*", default=[300, 300])
parser.add_argument("--features", type=int, default=40)
parser.add_argument("--warmup", type=int, default=50)
parser.add_argument("--lr", type=float, default=1e-3)
parser.add_argument("--batch", type=int, default=100)
parser.add_argument("--length", type=int, default=200, help="epochs, over the second half of which lr falls to a tenth")
parser.add_argument("--name", default="static-best")
args = parser.parse_args()


def lr(epoch: int) -> float:
    """Constant over the first half, then falling exponentially."""
    return args.lr * 10 ** -max(0.0, 2 * epoch / args.length - 1)


data = pv.data.load("binarized-mnist", root=args.root)


def make() -> pv.VAE:
    """A fresh model, its pixels starting at the mean image."""
    model = pv.vae(data.x_shape, args.features, network=pv.networks.GatedMLP, hidden=args.hidden)
    model.likelihood.start_from(data.train.x)
    return model


beta = pv.objectives.warmup(args.warmup)
options = {"batch_size": args.batch, "lr": lr, "beta": beta, "patience": args.length}
run(
    args.name,
    args,
    functools.partial(make),
    data.train,
    data.valid,
    data.test,
    epochs=args.length,
    samples=5000,
    **options,
)
