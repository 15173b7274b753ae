r"""An input and its context as one, and a linear layer of them without making them one.

.. math:: W [a; c] + b = W_a a + (W_c c + b)

Where ``a`` and ``c`` broadcast against each other, the right-hand side multiplies every row of each once, and the left
every pair of rows: importance samples z (S, N, latent) share their contexts (N, context), and pseudo-inputs (K, D) go
with every context (N, 1, context).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

__all__ = ["join", "separable", "through"]


def join(a: Tensor, c: Tensor) -> Tensor:
    """Concatenate ``a`` (*, A) and ``c`` (*, C) along the last dimension, broadcasting all the others.

    A z drawn by vectorised particles has one leading dimension more than its context.

    Example:
        >>> join(torch.zeros(5, 3, 20), torch.zeros(3, 10)).shape
        torch.Size([5, 3, 30])
    """
    batch = torch.broadcast_shapes(a.shape[:-1], c.shape[:-1])
    return torch.cat([a.expand(*batch, -1), c.expand(*batch, -1)], dim=-1)


def through(module: nn.Module, a: Tensor, c: Tensor) -> Tensor:
    """Return ``module(join(a, c))``, without joining them where their rows are shared and the module can do without.

    Example:
        >>> layer, a, c = torch.nn.Linear(5, 4), torch.randn(7, 3, 2), torch.randn(3, 3)
        >>> torch.allclose(through(layer, a, c), layer(join(a, c)), atol=1e-6)
        True
    """
    if a.shape[:-1] == c.shape[:-1] or not separable(module):
        return module(join(a, c))
    if isinstance(module, nn.Linear):
        of_a, of_c = module.weight.split([a.shape[-1], c.shape[-1]], dim=-1)
        return linear(a, of_a) + linear(c, of_c, module.bias)
    return module.apart(a, c)  # type: ignore[operator]


def separable(module: nn.Module) -> bool:
    """Whether a module can take its input and context apart, and nothing that calling it runs would be passed by."""
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
        return False
    if type(module) is nn.Linear:
        return True
    # A subclass that has a forward of its own, and no apart to go with it, is not what its parent is.
    methods = [name for cls in type(module).__mro__ for name in ("apart", "forward") if name in vars(cls)]
    return methods[:1] == ["apart"]
