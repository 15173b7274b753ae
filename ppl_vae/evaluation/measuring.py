r"""What every measurement shares: it leaves the model as it was, draws numbers of its own, says how sure a mean is.

.. math:: \bar v = \frac1N \sum_i v_i, \qquad \mathrm{se}(\bar v)^2 = \frac{1}{N (N - 1)} \sum_i (v_i - \bar v)^2
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from ..devices import seeded
from ..model import VAE

__all__ = ["mean_and_error", "measuring"]


@contextmanager
def measuring(vae: VAE, seed: int | None, what: str) -> Iterator[None]:
    """Run with every module in ``eval()`` mode, and with random numbers of this seed and this measurement alone.

    A batch normalisation must not learn from test data. And were the numbers the seed's own, a measurement of x that
    were drawn with the same seed would begin with the very z that made them: importance sampling with 64 of them was 2
    nats too high. A seed of None runs with the caller's generators.
    """
    modes = [(module, module.training) for module in vae.modules()]
    vae.eval()
    try:
        with seeded(None if seed is None else seed ^ zlib.crc32(what.encode()), vae._beta.device):
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """Return the mean of values (N,), and its standard error, NaN for one of them.

    Example:
        >>> [round(value, 3) for value in mean_and_error(torch.tensor([1.0, 3.0]))]
        [2.0, 1.0]
    """
    values = values.double()
    error = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return values.mean().item(), error
