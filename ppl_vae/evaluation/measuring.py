r"""What every measurement shares: it leaves the model as it was, and says how sure a mean is.

.. math:: \bar v = \frac1N \sum_i v_i, \qquad \mathrm{se}(\bar v)^2 = \frac{1}{N (N - 1)} \sum_i (v_i - \bar v)^2
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

__all__ = ["evaluating", "mean_and_error"]


@contextmanager
def evaluating(vae: nn.Module) -> Iterator[None]:
    """Put every module in ``eval()`` mode and back: a batch normalisation must not learn from test data."""
    modes = [(m, m.training) for m in vae.modules()]
    vae.eval()
    try:
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
