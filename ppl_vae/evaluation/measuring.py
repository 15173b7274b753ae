r"""What every measurement shares: it leaves the model as it was, draws numbers of its own, says how sure a mean is.

.. math:: \bar v = \frac1N \sum_i v_i, \qquad \mathrm{se}(\bar v)^2 = \frac{1}{N (N - 1)} \sum_i (v_i - \bar v)^2
"""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..devices import seeded
from ..model import VAE
from ..modes import evaluating

__all__ = ["GREY", "SEEN", "Report", "digest", "frozen", "mean_and_error", "measuring", "named", "plain", "share"]


class Report:
    """What a measurement found: shown as the table that ``str`` makes, at a prompt and in a notebook too."""

    def __repr__(self) -> str:
        return str(self)


@contextmanager
def measuring(vae: VAE, seed: int | None, what: str) -> Iterator[None]:
    """Run in ``eval()`` mode, in the precision of the model, with random numbers of this seed and measurement alone.

    A batch normalisation must not learn from test data. And were the numbers the seed's own, a measurement of x that
    were drawn with the same seed would begin with the very z that made them: importance sampling with 64 of them was 2
    nats too high. A seed of None runs with the caller's generators. Whether the caller is inside ``torch.autocast`` is
    nothing that a number should depend on.
    """
    own, device = None if seed is None else seed ^ zlib.crc32(what.encode()), vae._beta.device
    with evaluating(vae), seeded(own, device), torch.autocast(device.type, enabled=False):
        yield


@contextmanager
def frozen(vae: nn.Module) -> Iterator[None]:
    """Let no parameter ask for a gradient: those in z need nothing kept for them."""
    learned = [p for p in vae.parameters() if p.requires_grad]
    try:
        for p in learned:
            p.requires_grad_(False)
        yield
    finally:
        for p in learned:
            p.requires_grad_(True)


def plain(value: Any) -> Any:
    """Return a tree of numbers, lists, dicts and tensors as JSON has it: what is not finite is None.

    Example:
        >>> plain({"mean": torch.tensor([1.0, float("nan")]), "rows": 2})
        {'mean': [1.0, None], 'rows': 2}
    """
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, Tensor):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# What stands under every table of a model whose likelihood is none.
GREY = "grey values under a Bernoulli: not a density"
SEEN = "of what is seen, {:.1%} of the pixels, and not of all of x"


def share(mask: Tensor | None) -> float | None:
    """Return how much of a mask is True; None for none.

    Example:
        >>> share(torch.tensor([[True, False]])), share(None)
        (0.5, None)
    """
    return None if mask is None else mask.double().mean().item()


def digest(mask: Tensor | None) -> str | None:
    """Return what a mask of this shape has to itself, in 16 hexadecimal digits; None for none.

    Example:
        >>> digest(torch.tensor([[True, False]])), digest(torch.tensor([[False, True]]))
        ('7f5c1ac2248adc06', '66336d36deb81409')
    """
    if mask is None:
        return None
    bits = np.packbits(mask.cpu().numpy()).tobytes()
    return hashlib.sha256(repr(tuple(mask.shape)).encode() + bits).hexdigest()[:16]


def named(terms: Mapping[str, tuple[float, float]]) -> dict[str, dict[str, float]]:
    """Return means with their standard errors, both by name."""
    return {name: {"mean": mean, "standard_error": error} for name, (mean, error) in terms.items()}


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """Return the mean of values (N,), and its standard error, NaN for one of them.

    Example:
        >>> [round(value, 3) for value in mean_and_error(torch.tensor([1.0, 3.0]))]
        [2.0, 1.0]
    """
    values = values.double()
    error = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return values.mean().item(), error
