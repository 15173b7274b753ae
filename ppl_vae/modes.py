r"""Modes: a module runs in evaluation mode for a while, and every layer of it comes back in the mode that it was in.

.. math:: \text{train} \to \text{eval} \to \text{train}

In evaluation mode batch normalisation's running means and dropout's random numbers stay untouched.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["evaluating", "same_modes"]


@contextmanager
def same_modes(module: nn.Module) -> Iterator[None]:
    """Give every layer back the mode that it has now, whatever is done to it meanwhile.

    Example:
        >>> layer = torch.nn.Dropout()
        >>> with same_modes(layer):
        ...     _ = layer.eval()
        >>> layer.training
        True
    """
    modes = [(layer, layer.training) for layer in module.modules()]
    try:
        yield
    finally:
        for layer, mode in modes:
            layer.training = mode


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Run a module in ``eval()`` mode.

    Example:
        >>> layer = torch.nn.Dropout()
        >>> with evaluating(layer):
        ...     layer(torch.ones(2))
        tensor([1., 1.])
    """
    with same_modes(module):
        module.eval()
        yield
