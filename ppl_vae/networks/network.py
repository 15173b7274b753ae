r"""A body with its shapes: run once when it is made, and on any leading dimensions from there on.

.. math:: (a, c) \mapsto \mathrm{body}([a; c]), \qquad
    a \in \mathbb{R}^{* \times \text{in}},\ c \in \mathbb{R}^{* \times \text{context}}
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..data import check_finite
from ..errors import PartError, ShapeError, check_positive
from ..modes import evaluating
from ..parts import check_context
from .joining import join, separable, through
from .mlp import MLP

__all__ = ["Body", "Network", "widest"]

Body = nn.Module | Callable[..., nn.Module]


class Network(nn.Module):
    """A body with its shapes: ``network(a, c)`` takes a (*, *in_shape) and c (*, context) to (*, *out_shape).

    Arguments:
        in_shape: the shape of one input; ``()`` for a network of the context alone, which is called with ``a=None``.
        out_shape: the shape of one output.
        context: the number of context features.
        hidden: the widths of the hidden layers, or of the one there is.
        network: None for an :class:`MLP`; a class such as :class:`Conv` (or ``functools.partial`` of one), called as
            ``network(in_shape, out_shape, context, hidden)``; or a module that maps the joined input (N, in + context)
            to the raw parameters (N, out). One that starts with a ``Conv2d`` begins with ``nn.Unflatten(1, (1, 8, 8))``
            where x has that shape and there is no context.

    Raises:
        ShapeError: if the body's output has another size than the raw parameters need. It is run once, on zeros, when
            this is made, not in the middle of training.
        PartError: if ``network`` is neither a class nor a module, or a class that is called otherwise.

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
        hidden: Sequence[int] | int = (400,),
        network: Body | None = None,
    ) -> None:
        super().__init__()
        if context:
            check_positive(context=context)
        self.in_shape, self.out_shape, self.context = tuple(in_shape), tuple(out_shape), context
        if isinstance(network, nn.Module):
            self.body = network
        elif network is None or callable(network):
            network, widths = network or MLP, tuple(hidden) if isinstance(hidden, Iterable) else (hidden,)
            try:
                self.body = network(self.in_shape, self.out_shape, context, widths)
            except TypeError as error:
                if isinstance(error, PartError):
                    raise
                name = getattr(network, "__name__", type(network).__name__)
                raise PartError(
                    "network: expected a module, or a class that is called with (in_shape, out_shape, context, "
                    f"hidden), got {name}; it failed with: {error}"
                ) from error
        else:
            raise PartError(f"network: expected None, a class or a module, got {network!r}")
        self._dry_run()

    # How many numbers the largest layer gives for one input, as the dry run has seen it.
    widest: int

    @property
    def joined(self) -> int:
        """The width of the joined input."""
        return (math.prod(self.in_shape) if self.in_shape else 0) + self.context

    def _dry_run(self) -> None:
        sizes: list[int] = []

        def note(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                sizes.append(output.numel() // 2)

        hooks = []
        for module in self.body.modules():
            try:
                hooks.append(module.register_forward_hook(note))
            except RuntimeError:
                continue  # A scripted module takes none.
        try:
            out = self._on_zeros()
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise ShapeError(
                f"network: expected a module that takes (N, {self.joined}), the input {self.in_shape} flattened and "
                f"joined with {self.context} context features; it failed with: {error}"
            ) from error
        finally:
            for hook in hooks:
                hook.remove()
        self.widest = max(sizes, default=math.prod(self.out_shape))
        expected = (2, math.prod(self.out_shape))
        got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        if got != expected:
            raise ShapeError(
                f"network: expected the output (N, {expected[1]}) for raw parameters {self.out_shape}, got {got} "
                f"for N = 2"
            )

    @torch.no_grad()
    def _on_zeros(self) -> Tensor:
        """What the body makes of two rows of zeros."""
        tensor = next((p for p in self.body.parameters() if not nn.parameter.is_lazy(p)), torch.empty(0))
        with evaluating(self.body):
            return self.body(tensor.new_zeros(2, self.joined))

    @torch.no_grad()
    def start_at(self, values: Tensor) -> None:
        """Set the bias of the last layer, so that the output with weights of zero is ``values``.

        A convolution has one bias a channel, which becomes the mean of the channel's values.

        Arguments:
            values: (*out_shape), finite.

        Raises:
            ShapeError: if they have another shape.
            DataError: if they are not finite.
            PartError: if the body's last layer adds no bias to the output; nothing is changed then.

        Example:
            >>> network = Network((4,), (3,))
            >>> network.start_at(torch.tensor([5.0, -2.0, 0.5]))
            >>> network.body[-1].bias.data
            tensor([ 5.0000, -2.0000,  0.5000])
        """
        if tuple(values.shape) != self.out_shape:
            raise ShapeError(f"start_at: expected values {self.out_shape}, got {tuple(values.shape)}")
        check_finite(values.unsqueeze(0), "values to start at")
        last = getattr(self.body, "last", None)
        if not isinstance(last, nn.Module):
            # Of modules that do not say which it is, the last that has parameters of its own.
            last = next((m for m in reversed(list(self.body.modules())) if m._parameters), None)
        bias = getattr(last, "bias", None)
        if isinstance(bias, Tensor) and bias.dim() == 1 and values.numel() % len(bias) == 0:
            before, old = self._on_zeros(), bias.clone()
            bias.copy_(values.reshape(len(bias), -1).mean(1))
            moved = (bias - old).repeat_interleave(values.numel() // len(bias))
            # Seen, not believed: a body may do more after the layer that looks like its last.
            rounding = torch.finfo(bias.dtype).eps ** 0.5
            if torch.allclose(self._on_zeros(), before + moved, rounding, rounding):
                return
            bias.copy_(old)
        raise PartError(
            f"start_at: expected a body whose last layer adds a bias to each of the raw parameters {self.out_shape}, "
            f"got {type(self.body).__name__} ending in {type(last).__name__}"
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
            if c is not None and c.shape[:-1] != h.shape[:-1] and separable(self.body):
                raw = through(self.body, h, c)
                return raw.to(h.dtype).reshape(*raw.shape[:-1], *self.out_shape)
            h = h if c is None else join(h, c)
        batch = h.shape[:-1]  # type: ignore[union-attr]
        # One batch dimension for the body, whatever stands in front: users' convolutions take no more.
        raw = self.body(h.reshape(-1, self.joined))  # type: ignore[union-attr]
        # Under mixed precision the products are in bfloat16, and densities are not to be.
        return raw.to(h.dtype).reshape(*batch, *self.out_shape)  # type: ignore[union-attr]


def widest(part: Any, networks: bool = True) -> int:
    """Return how many numbers the largest layer of a part gives for one input; 0 where nothing says so.

    Arguments:
        part: whatever stands for one.
        networks: whether those of a :class:`Network` count, which priors and encoders run once a row, whatever z is.

    Example:
        >>> part = pv.likelihoods.Bernoulli((4,), 2, hidden=(64,))
        >>> widest(part), widest(part, networks=False)
        (64, 0)
    """
    if isinstance(part, Network):
        return part.widest * networks
    if not isinstance(part, nn.Module):
        return 0
    own = getattr(part, "out_features", 0)
    return max(own if isinstance(own, int) else 0, *(widest(child, networks) for child in part.children()), 0)
