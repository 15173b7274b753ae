"""R4: static binarised MNIST, an MLP VAE by pythae's protocol.

python examples/reproduce/r4.py --layers 1      784-400-z40, the published protocol: 89.78
python examples/reproduce/r4.py --layers 2      784-400-400-z40; the published figure's architecture is unconfirmed

Batches of 100, 500 epochs, Adam at 1e-4, times 10^(−1/5) after epochs 200 and 350, the weights of the best validation
−ELBO, 200 importance samples (Chadebec, Vincent and Allassonnière, 2022).
"""

from common import arguments, run

import ppl_vae as pv

parser = arguments(__doc__)
parser.add_argument("--layers", type=int, default=1)
args = parser.parse_args()


def lr(epoch: int) -> float:
    """Counted from 1."""
    return 1e-4 * 10 ** (-0.2 * ((epoch > 200) + (epoch > 350)))


data = pv.data.load("binarized-mnist", root=args.root)


def make(seed: int) -> pv.VAE:
    """A fresh model."""
    return pv.vae(data.x_shape, 40, hidden=(400,) * args.layers)


run(
    f"r4-{args.layers}",
    args,
    make,
    data.train,
    data.valid,
    data.test,
    epochs=500,
    samples=200,
    batch_size=100,
    lr=lr,
    patience=500,
)
