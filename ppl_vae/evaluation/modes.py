"""What every measurement does first: it takes the model as it is, and leaves it so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["evaluating"]


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
