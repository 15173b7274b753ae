r"""The bodies of the parts: from a joined input to a distribution's raw parameters.

.. math:: (a, c) \mapsto \mathrm{body}([a; c]) \in \mathbb{R}^{\text{out}}

where ``a`` is a z or a flattened x and ``[a; c]`` broadcasts leading sample dimensions. A body is any module that
maps a joined input ``(N, in + context)`` to raw parameters ``(N, out)``; the classes here are made by calling them with
``(in_shape, out_shape, context, hidden)``, and so is any class of yours.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from pyro.poutine.util import is_validation_enabled
from torch import Tensor, nn

from .errors import LabelError, PartError, ShapeError
from .parts import Part, check_context, check_positive

__all__ = ["MLP", "Conv", "Network", "OneHot", "join"]

Body = nn.Module | Callable[..., nn.Module]


def join(a: Tensor, c: Tensor) -> Tensor:
    """Concatenate ``a`` (*, A) and ``c`` (*, C) along the last dimension, broadcasting all the others.

    A z drawn by vectorised particles has one leading dimension more than its context.

    Example:
        >>> join(torch.zeros(5, 3, 20), torch.zeros(3, 10)).shape
        torch.Size([5, 3, 30])
    """
    batch = torch.broadcast_shapes(a.shape[:-1], c.shape[:-1])
    return torch.cat([a.expand(*batch, -1), c.expand(*batch, -1)], dim=-1)


class Network(nn.Module):
    """A body with its shapes: ``network(a, c)`` takes a (*, *in_shape) and c (*, context) to (*, *out_shape).

    Arguments:
        in_shape: the shape of one input; ``()`` for a network of the context alone, which is called with ``a=None``.
        out_shape: the shape of one output.
        context: the number of context features.
        hidden: the widths of the hidden layers.
        network: None for an :class:`MLP`; a class such as :class:`Conv` (or ``functools.partial`` of one); or a module
            that maps the joined input (N, in + context) to the raw parameters (N, out).

    Raises:
        ShapeError: if the body's output has another size than the raw parameters need. It is run once, on zeros, when
            this is made, not in the middle of training.
        PartError: if ``network`` is neither a class nor a module.

    Example:
        >>> encoder = Network((1, 28, 28), (40,), context=10)
        >>> encoder(torch.zeros(7, 1, 28, 28), torch.zeros(7, 10)).shape
        torch.Size([7, 40])
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        context: int = 0,
        hidden: Sequence[int] = (400,),
        network: Body | None = None,
    ) -> None:
        super().__init__()
        if context:
            check_positive(context=context)
        self.in_shape, self.out_shape, self.context = tuple(in_shape), tuple(out_shape), context
        if isinstance(network, nn.Module):
            self.body = network
        elif network is None or callable(network):
            self.body = (network or MLP)(self.in_shape, self.out_shape, context, tuple(hidden))
        else:
            raise PartError(f"network: expected None, a class or a module, got {network!r}")
        self._dry_run()

    @property
    def joined(self) -> int:
        """The width of the joined input."""
        return (math.prod(self.in_shape) if self.in_shape else 0) + self.context

    @torch.no_grad()
    def _dry_run(self) -> None:
        # In eval mode, so that batch normalisation's running means and dropout's random numbers stay untouched.
        modes = [(m, m.training) for m in self.body.modules()]
        self.body.eval()
        tensor = next((p for p in self.body.parameters() if not nn.parameter.is_lazy(p)), torch.empty(0))
        try:
            out = self.body(tensor.new_zeros(2, self.joined))
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise ShapeError(
                f"network: expected a module that takes (N, {self.joined}), the input {self.in_shape} flattened and "
                f"joined with {self.context} context features; it failed with: {error}"
            ) from error
        finally:
            for module, mode in modes:
                module.training = mode
        expected = (2, math.prod(self.out_shape))
        got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        if got != expected:
            raise ShapeError(
                f"network: expected the output (N, {expected[1]}) for raw parameters {self.out_shape}, got {got} "
                f"for N = 2"
            )

    def forward(self, a: Tensor | None, c: Tensor | None = None) -> Tensor:
        """Return the raw parameters (*, *out_shape)."""
        check_context(self, c, self.context)
        if a is None:
            h = c
        else:
            event = a.dim() - len(self.in_shape)
            if event < 0 or tuple(a.shape[event:]) != self.in_shape:
                raise ShapeError(f"expected {self.in_shape} behind any batch dimensions, got {tuple(a.shape)}")
            h = a.flatten(event) if self.in_shape != tuple(a.shape[-1:]) else a
            h = h if c is None else join(h, c)
        batch = h.shape[:-1]  # type: ignore[union-attr]
        # One batch dimension for the body, whatever stands in front: users' convolutions take no more.
        raw = self.body(h.reshape(-1, self.joined))  # type: ignore[union-attr]
        # Under mixed precision the products are in bfloat16, and densities are not to be.
        return raw.to(h.dtype).reshape(*batch, *self.out_shape)  # type: ignore[union-attr]


class MLP(nn.Sequential):
    """Linear layers with an activation between them.

    Example:
        >>> MLP((1, 8, 8), (32,), context=10, hidden=(32,))(torch.zeros(5, 74)).shape
        torch.Size([5, 32])
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        context: int = 0,
        hidden: Sequence[int] = (400,),
        activation: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        check_positive(**{f"hidden[{i}]": width for i, width in enumerate(hidden)})
        sizes = [(math.prod(in_shape) if in_shape else 0) + context, *hidden]
        layers: list[nn.Module] = []
        for i, o in pairwise(sizes):
            layers += [nn.Linear(i, o), activation()]
        super().__init__(*layers, nn.Linear(sizes[-1], math.prod(out_shape)))


class Conv(nn.Module):
    r"""A convolutional body for images of any size: down where the input is an image, up where the output is one.

    Each layer halves (doubles) height and width, rounding up; the condition joins at the dense end.

    Arguments:
        in_shape, out_shape: exactly one of them ends in (H, W), with any dimensions (channels) before.
        context: the number of context features.
        hidden: the widths of the dense layers between the features and the other side.
        channels: the channels of the convolutions, from the image inwards.

    Raises:
        ShapeError: if neither or both of the sides are images.

    Example:
        >>> Conv((1, 28, 20), (32,), context=10)(torch.zeros(5, 570)).shape
        torch.Size([5, 32])
        >>> Conv((16,), (1, 28, 20), context=10)(torch.zeros(5, 26)).shape
        torch.Size([5, 560])
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        context: int = 0,
        hidden: Sequence[int] = (400,),
        channels: Sequence[int] = (32, 64),
    ) -> None:
        super().__init__()
        self.down = len(in_shape) >= 2
        if not self.down and len(out_shape) < 2:
            raise ShapeError(
                f"Conv: expected an image (channels, H, W) on one side, got {tuple(in_shape)} -> {tuple(out_shape)}: "
                f"give x_shape its channels, or use the default MLP"
            )
        image = tuple(in_shape if self.down else out_shape)
        self.image = (math.prod(image[:-2]), *image[-2:])
        sizes = [self.image[1:]]
        for _ in channels:
            sizes.append((math.ceil(sizes[-1][0] / 2), math.ceil(sizes[-1][1] / 2)))
        self.small = (channels[-1], *sizes[-1])
        layers: list[nn.Module] = []
        widths = [self.image[0], *channels]
        if self.down:
            for i, o in pairwise(widths):
                layers += [nn.Conv2d(i, o, 3, stride=2, padding=1), nn.ReLU()]
            self.dense = MLP((math.prod(self.small),), out_shape, context, hidden)
        else:
            for k in reversed(range(len(channels))):
                # What a halving rounded up is undone here: an even side needs one more row than an odd one.
                extra = sizes[k][0] - 2 * sizes[k + 1][0] + 1, sizes[k][1] - 2 * sizes[k + 1][1] + 1
                layers += [
                    nn.ReLU(),
                    nn.ConvTranspose2d(widths[k + 1], widths[k], 3, stride=2, padding=1, output_padding=extra),
                ]
            self.dense = MLP(in_shape, self.small, context, hidden)
        self.convolutions = nn.Sequential(*layers)

    def forward(self, joined: Tensor) -> Tensor:
        """Map a joined input (N, in + context) to (N, out)."""
        if not self.down:
            return self.convolutions(self.dense(joined).unflatten(-1, self.small)).flatten(1)
        x, c = joined.tensor_split([math.prod(self.image)], dim=-1)
        return self.dense(torch.cat([self.convolutions(x.unflatten(-1, self.image)).flatten(1), c], dim=-1))


class OneHot(Part):
    """The condition of labels: an integer y in 0 … classes − 1 becomes a row of the identity.

    Arguments:
        classes: the number of labels.

    Example:
        >>> OneHot(3)(torch.tensor([0, 2]))
        tensor([[1., 0., 0.],
                [0., 0., 1.]])
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        check_positive(classes=classes)
        self.classes = classes
        self.seen: Tensor
        # Which labels training has shown; none means that nobody kept count.
        self.register_buffer("seen", torch.zeros(classes, dtype=torch.bool))

    def observe(self, y: Tensor) -> None:
        """Remember that these labels were trained on; others asked for later give a warning."""
        self.seen[y.unique().long().to(self.seen.device)] = True

    def check(self, y: Any) -> None:
        """Raise a LabelError unless every label is a whole number in 0 … classes − 1; warn of one never trained on."""
        y = torch.as_tensor(y)
        if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
            raise LabelError(f"expected integer labels, got {y.dtype}: pass y.long() if they are whole numbers")
        if not y.numel():
            return
        if y.min() < 0 or y.max() >= self.classes:
            raise LabelError(f"expected labels 0 … {self.classes - 1}, got {y.min().item()} … {y.max().item()}")
        unseen = ~self.seen[y.long().to(self.seen.device)]
        if unseen.any() and self.seen.any():
            labels = y.to(unseen.device)[unseen].unique().tolist()
            warnings.warn(f"label {', '.join(map(str, labels))} was never seen in training", stacklevel=2)

    def forward(self, y: Tensor) -> Tensor:
        """Return floats (*, classes) for integers y (*)."""
        if is_validation_enabled():
            self.check(y)
        return (y.unsqueeze(-1) == torch.arange(self.classes, device=y.device)).to(torch.get_default_dtype())
