r"""Simulated data: what a model draws, with the z that made it.

.. math:: z \sim p(z \mid y), \quad x \sim p(x \mid z, y) \qquad \Rightarrow \qquad z \sim p(z \mid x, y)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..data import as_tensor
from ..errors import LabelError, check_positive
from ..model import VAE
from ..model.checks import check_not_nan
from .measuring import measuring

__all__ = ["simulate"]


@torch.no_grad()
def simulate(
    vae: VAE, n: int, y: Any = None, *, batch_size: int = 250, seed: int = 0
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Draw data with the z that made them, which is an exact draw from their posterior p(z|x,y).

    Arguments:
        vae: the model, in ``eval()`` mode.
        n: how many rows.
        y: one for every row, or one for all.
        batch_size: rows at a time.
        seed: of the draws; the caller's generators are left as they were.

    Returns:
        x (n, *x_shape), y (n, ...) or None, and z (n, latent).

    Raises:
        LabelError: if there are not n of y, or y is missing, unwanted or none of the condition's.
        NoDensityError: if the model has no prior.

    Example:
        >>> x, y, z = simulate(pv.cvae((4,), 2, 3), 6, y=torch.arange(6) % 3)
        >>> x.shape, y.shape, z.shape
        (torch.Size([6, 4]), torch.Size([6]), torch.Size([6, 2]))
    """
    check_positive(n=n, batch_size=batch_size)
    check_not_nan(vae, "simulate")
    if y is None or vae.condition is None:
        vae._context(y)
    else:
        y = as_tensor(y)
        vae._check_one_batch(y)
        y = y if vae.per_row(y) else y.expand(n, *y.shape)
        if len(y) != n:
            raise LabelError(f"expected one y a row, or one for all, got {len(y)} for {n} rows")
    rows = []
    with measuring(vae, seed, "simulate"):
        for first in range(0, n, batch_size):
            size, some = min(batch_size, n - first), None if y is None else y[first : first + batch_size]
            z = vae.prior_given(some).expand((size,)).sample()
            rows.append((vae.decode(z, some).sample(), z))
    x, z = (torch.cat(column) for column in zip(*rows, strict=True))
    return x, y, z
