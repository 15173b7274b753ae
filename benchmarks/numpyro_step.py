"""NumPyro's jitted ``svi.update`` of the MLP CVAE, for ``step_time.py``, which runs this in an environment of its own.

Waits for a number of steps a line, takes them, and answers with the seconds.
"""

from __future__ import annotations

import argparse
import os

import numpy as np
from common import Turns, say

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--batch", type=int, default=128)
parser.add_argument("--hidden", type=int, default=400)
parser.add_argument("--latent", type=int, default=20)
parser.add_argument("--threads", type=int, default=0)
parser.add_argument("--device", default="cpu")
args = parser.parse_args()

os.environ["JAX_PLATFORMS"] = "cuda" if args.device.startswith("cuda") else "cpu"
os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
if args.threads and hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])

import jax  # noqa: E402  (after the settings that it reads when imported)
import jax.numpy as jnp  # noqa: E402
import numpyro  # noqa: E402
import numpyro.distributions as dist  # noqa: E402
from numpyro.infer import SVI, Trace_ELBO  # noqa: E402

# float32 products as torch computes them by default.
jax.config.update("jax_default_matmul_precision", "highest")
rng = np.random.default_rng(0)


def linear(name: str, fan_in: int, fan_out: int, h: jax.Array) -> jax.Array:
    """A dense layer with torch's initial scale."""
    bound = fan_in**-0.5
    weight = numpyro.param(f"{name}.weight", rng.uniform(-bound, bound, (fan_in, fan_out)).astype(np.float32))
    return h @ weight + numpyro.param(f"{name}.bias", rng.uniform(-bound, bound, fan_out).astype(np.float32))


def gaussian(raw: jax.Array) -> dist.Distribution:
    """The diagonal Gaussian of a mean and a log-variance."""
    loc, log_variance = jnp.split(raw, 2, axis=-1)
    return dist.Normal(loc, jnp.exp(0.5 * log_variance)).to_event(1)


def model(x: jax.Array, y: jax.Array) -> None:
    """p(z | y) p(x | z, y)."""
    c = jax.nn.one_hot(y, 10)
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", gaussian(linear("prior", 10, 2 * args.latent, c)))
        h = jax.nn.relu(linear("decoder1", args.latent + 10, args.hidden, jnp.concatenate([z, c], -1)))
        logits = linear("decoder2", args.hidden, 784, h)
        numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)


def guide(x: jax.Array, y: jax.Array) -> None:
    """q(z | x, y)."""
    c = jax.nn.one_hot(y, 10)
    with numpyro.plate("data", len(x)):
        h = jax.nn.relu(linear("encoder1", 794, args.hidden, jnp.concatenate([x, c], -1)))
        numpyro.sample("z", gaussian(linear("encoder2", args.hidden, 2 * args.latent, h)))


svi = SVI(model, guide, numpyro.optim.Adam(1e-3), Trace_ELBO())
batches = [
    (
        jnp.asarray((rng.random((args.batch, 784)) < 0.13).astype(np.float32)),
        jnp.asarray(rng.integers(0, 10, args.batch)),
    )
    for _ in range(4)
]
state = svi.init(jax.random.PRNGKey(0), *batches[0])
# The old state is given up, so that it is updated in place.
update = jax.jit(svi.update, donate_argnums=0)
state, loss = update(state, *batches[0])
loss.block_until_ready()
say(ready=True, versions=f"numpyro {numpyro.__version__}, jax {jax.__version__}")

turns = Turns()
while (steps := turns.wait()) is not None:
    for i in range(int(steps)):
        state, loss = update(state, *batches[i % 4])
    jax.block_until_ready((state, loss))
    turns.done(loss=float(loss) / args.batch)
