r"""Dense bodies: linear layers with something between them.

.. math:: h_l = \sigma(W_l h_{l-1} + b_l) \qquad\text{or, gated,}\qquad
    h_l = (W_l h_{l-1} + b_l) \odot \mathrm{sigmoid}(V_l h_{l-1} + c_l)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor, nn

from ..errors import PartError, check_positive, known
from .joining import join, separable, through

__all__ = ["ACTIVATIONS", "MLP", "Activation", "GatedMLP", "activate", "widths"]

Activation = str | Callable[[], nn.Module]

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
}


def activate(activation: Activation) -> nn.Module:
    """Make an activation out of its name, or by calling what makes it.

    Raises:
        ConfigError: for a name that is none of ``ACTIVATIONS``; names the nearest.
        PartError: for anything else that makes no module, such as a function of tensors.

    Example:
        >>> activate("tanh"), activate(torch.nn.Softplus)
        (Tanh(), Softplus(beta=1.0, threshold=20.0))
    """
    make = activation
    if isinstance(make, str):
        known("activation", make, ACTIVATIONS)
        make = ACTIVATIONS[make]
    names = ", ".join(map(repr, ACTIVATIONS))
    complaint = PartError(f"activation: expected {names} or a class such as nn.Tanh, got {activation!r}")
    try:
        made = make()
    except TypeError as error:
        raise complaint from error
    if not isinstance(made, nn.Module):
        raise complaint
    return made


def widths(in_shape: Sequence[int], context: int, hidden: Sequence[int]) -> list[int]:
    """Return the widths of the joined input and the hidden layers; ``()`` is no input beside the context."""
    check_positive(**{f"hidden[{i}]": width for i, width in enumerate(hidden)})
    return [(math.prod(in_shape) if in_shape else 0) + context, *hidden]


class MLP(nn.Sequential):
    r"""Linear layers with an activation between them.

    .. math:: h_0 = [x; c], \qquad h_{i+1} = \phi(W_i h_i + b_i), \qquad \text{and the last without } \phi

    Arguments:
        in_shape, out_shape: the shapes of one input and one output.
        context: the number of context features.
        hidden: the widths of the hidden layers.
        activation: "relu", "tanh", "softplus", "elu", "silu" or "gelu"; or what makes a module, such as ``nn.Tanh``.

    Reference:
        Learning Representations by Back-Propagating Errors (Rumelhart, Hinton and Williams, 1986)

    Example:
        >>> MLP((1, 8, 8), (32,), context=10, hidden=(32,))(torch.zeros(5, 74)).shape
        torch.Size([5, 32])
    """

    numbers_per_unit = 1

    def __init__(
        self,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        context: int = 0,
        hidden: Sequence[int] = (400,),
        activation: Activation = "relu",
    ) -> None:
        sizes = widths(in_shape, context, hidden)
        layers: list[nn.Module] = []
        for i, o in pairwise(sizes):
            layers += [nn.Linear(i, self.numbers_per_unit * o), activate(activation)]
        super().__init__(*layers, nn.Linear(sizes[-1], math.prod(out_shape)))

    def apart(self, a: Tensor, c: Tensor) -> Tensor:
        """Return what the joined input gives, (*, out), for ``a`` (*, in) and ``c`` (*, context)."""
        first, *rest = self
        h, rest = (through(first, a, c), rest) if separable(first) else (join(a, c), [first, *rest])
        batch = h.shape[:-1]
        # What is put between or before the layers may be for rows (N, D) alone, as batch normalisation is.
        h = h.reshape(-1, h.shape[-1])
        for layer in rest:
            h = layer(h)
        return h.reshape(*batch, h.shape[-1])


class GatedMLP(MLP):
    r"""Linear layers whose hidden units each have a gate.

    .. math:: h_l = (W_l h_{l-1} + b_l) \odot \mathrm{sigmoid}(V_l h_{l-1} + c_l)

    Arguments:
        in_shape, out_shape: the shapes of one input and one output.
        context: the number of context features.
        hidden: the widths of the hidden layers, gates not counted.

    References:
        Language Modeling with Gated Convolutional Networks (Dauphin, Fan, Auli and Grangier, 2017);
        VAE with a VampPrior (Tomczak and Welling, 2018).

    Example:
        >>> GatedMLP((1, 8, 8), (32,), context=10, hidden=(32,))(torch.zeros(5, 74)).shape
        torch.Size([5, 32])
    """

    numbers_per_unit = 2

    def __init__(
        self,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        context: int = 0,
        hidden: Sequence[int] = (400,),
    ) -> None:
        super().__init__(in_shape, out_shape, context, hidden, nn.GLU)
