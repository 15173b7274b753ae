r"""Feature-wise linear modulation: the context scales and shifts what the input has become.

.. math:: h_l = \sigma\bigl(\gamma_l(c) \odot (W_l h_{l-1} + b_l) + \beta_l(c)\bigr), \qquad
    (\gamma_l - 1, \beta_l)(c) = A_l c + d_l

A concatenation can only shift the first layer; this can switch every unit of every layer on or off.

Reference:
    FiLM: Visual Reasoning with a General Conditioning Layer (Perez, Strub, de Vries, Dumoulin and Courville, 2018)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from ..errors import ConfigError, ShapeError
from .mlp import Activation, activate, widths

__all__ = ["FiLM", "Modulation"]


class Modulation(nn.Module):
    r"""One modulation, :math:`\gamma(c) \odot h + \beta(c)`.

    Arguments:
        context: the number of context features.
        features: how many of h there are.
        dims: how many dimensions h has behind its features: 0 for vectors, 2 for the maps of a convolution.

    Raises:
        ConfigError: if there is no context to modulate by.

    Example:
        >>> Modulation(10, 32, dims=2)(torch.zeros(5, 32, 7, 7), torch.zeros(5, 10)).shape
        torch.Size([5, 32, 7, 7])
    """

    def __init__(self, context: int, features: int, dims: int = 0) -> None:
        super().__init__()
        if not context:
            raise ConfigError(
                "FiLM: expected a context to modulate by, got context=0: give the model a condition, or take a network "
                "without FiLM"
            )
        self.linear, self.dims = nn.Linear(context, 2 * features), dims

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        """Return h (*, features, ...) scaled and shifted by c (*, context)."""
        behind = (..., *[None] * self.dims)
        scale, shift = (part[behind] for part in self.linear(c).chunk(2, -1))
        return torch.addcmul(shift, h, 1 + scale)


class FiLM(nn.Module):
    r"""Linear layers with an activation between them, where the context modulates every hidden layer.

    .. math:: h_{i+1} = \phi\bigl(\gamma_i(c) \odot (W_i h_i + b_i) + \beta_i(c)\bigr)

    Arguments:
        in_shape, out_shape: the shapes of one input and one output.
        context: the number of context features.
        hidden: the widths of the hidden layers, at least one.
        activation: as :class:`~ppl_vae.networks.MLP` takes it.

    Raises:
        ConfigError: if there is no context, or no hidden layer for it to enter.
        ShapeError: if there is no input beside the context.

    Reference:
        FiLM: Visual Reasoning with a General Conditioning Layer (Perez, Strub, de Vries, Dumoulin and Courville, 2018)

    Example:
        >>> FiLM((1, 8, 8), (32,), context=10, hidden=(32,))(torch.zeros(5, 74)).shape
        torch.Size([5, 32])
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        context: int = 0,
        hidden: Sequence[int] = (400,),
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        if not in_shape:
            raise ShapeError("FiLM: expected an input beside the context, got none: take MLP for one of the context")
        if not hidden:
            raise ConfigError("FiLM: expected at least one hidden layer, where the context enters, got hidden=()")
        self.inputs, *sizes = widths(in_shape, 0, hidden)
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise([self.inputs, *sizes]))
        self.modulations = nn.ModuleList(Modulation(context, size) for size in sizes)
        self.activation = activate(activation)
        self.last = nn.Linear(sizes[-1], math.prod(out_shape))

    def forward(self, joined: Tensor) -> Tensor:
        """Map a joined input (N, in + context) to (N, out)."""
        return self.apart(*joined.tensor_split([self.inputs], dim=-1))

    def apart(self, a: Tensor, c: Tensor) -> Tensor:
        """Return what the joined input gives, (*, out), for ``a`` (*, in) and ``c`` (*, context)."""
        for layer, modulate in zip(self.layers, self.modulations, strict=True):
            a = self.activation(modulate(layer(a), c))
        return self.last(a)
