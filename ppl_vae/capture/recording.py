r"""Recording: one run of a Pyro program becomes a graph of tensor operations, loss and gradients in one.

.. math:: (x, \theta) \mapsto \bigl(\ell(x, \theta),\ \nabla_\theta \ell(x, \theta)\bigr)

Python runs as it always does, effect handlers and all; what is recorded is every tensor operation below autograd,
backward pass included (``torch.fx.experimental.proxy_tensor.make_fx``). Parameters and buffers are held by reference,
so a replay sees what an optimiser did to them in place; random numbers are drawn anew by every replay, from the same
generator in the same order as the program would.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.fx import GraphModule

from .simplify import separate, simplify

__all__ = ["CaptureWarning", "Generators", "Watch", "cannot_record", "no_host_reads", "record"]

_one_at_a_time = threading.RLock()


class CaptureWarning(UserWarning):
    """What runs slower than was asked for, and why."""


class Watch(Messenger):
    """Stands outside a program and sees its sites pass; its ``values()`` are there beside the loss of every step."""

    def values(self) -> dict[str, Tensor]:
        """Return what was seen; nothing, unless a subclass looks."""
        return {}


def record(
    loss_of: Callable[..., Tensor], leaves: Sequence[Tensor], batch: Any, watch: Any, inputs: Sequence[Tensor]
) -> tuple[GraphModule, list[int]]:
    """Record the loss of a program, with its gradient.

    Arguments:
        loss_of: from the program's arguments to its differentiable loss.
        leaves: the unconstrained parameters to take gradients of.
        batch: from the inputs to the program's ``(args, kwargs)``; recorded too.
        watch: makes a messenger to stand outside the program, with ``values()`` to return beside the loss.
        inputs: tensors like those of every replay.

    Returns:
        A module, inputs → (loss, gradients, watched values); and which leaves the gradients are of.
    """

    def run(*tensors: Tensor) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
        args, kwargs = batch(*tensors)
        with watch() as watched:
            loss = loss_of(*args, **kwargs)
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
        # A parameter that the loss does not reach has no gradient, which is not a gradient of zero to an optimiser.
        reached[:] = [i for i, gradient in enumerate(gradients) if gradient is not None]
        there = [gradient for gradient in gradients if gradient is not None]
        return loss.detach(), there, watched.values()

    reached: list[int] = []

    from torch.fx.experimental.proxy_tensor import make_fx  # a second's import, which only a recording should pay

    # Validation looks at values, which a recording must not; it was on in the run before this one.
    with no_host_reads(), pyro.validation_enabled(False):
        graph = make_fx(run)(*inputs)
    with torch.no_grad():
        simplify(graph, inputs)
    separate(graph, [leaves[i] for i in reached])
    return graph, reached


@torch.no_grad()
def cannot_record(guide: Callable[..., Any], args: Any, kwargs: Any) -> str | None:
    """Return what about a guide no graph of this kind can hold, if anything."""
    for name, site in poutine.trace(guide).get_trace(*args, **kwargs).nodes.items():
        if site["type"] != "sample" or site["is_observed"] or site_is_subsample(site):
            continue
        if site["infer"].get("enumerate"):
            return f"site {name!r} is enumerated"
        if not getattr(site["fn"], "has_rsample", False):
            return f"site {name!r} is not reparameterised ({type(site['fn']).__name__})"
    return None


@contextlib.contextmanager
def no_host_reads() -> Iterator[None]:
    """While recording, Pyro's ``.item()`` is ``.detach()`` and its look for NaN is none: both would stop the device.

    They are the process's own, so there is one recording at a time.
    """
    swaps: dict[str, Callable[..., Any]] = {
        "torch_item": lambda x: x.detach() if isinstance(x, Tensor) else x,
        "warn_if_nan": lambda value, *args, **kwargs: value,
    }
    with _one_at_a_time:
        saved = []
        modules = [
            module for name, module in list(sys.modules.items()) if name.startswith("pyro.") and module is not None
        ]
        try:
            for module in modules:
                for name, swap in swaps.items():
                    if name in vars(module):
                        saved.append((module, name, vars(module)[name]))
                        setattr(module, name, swap)
            yield
        finally:
            for module, name, original in saved:
                setattr(module, name, original)


class Generators:
    """The state of the random number generators a step draws from, and of the buffers it writes to."""

    def __init__(self, devices: Sequence[torch.device], buffers: Sequence[Tensor] = ()) -> None:
        self.devices = devices
        self.cpu = torch.get_rng_state()
        self.cuda = [torch.cuda.get_rng_state(device) for device in devices]
        self.buffers = [(buffer, buffer.detach().clone()) for buffer in buffers]

    def restore(self) -> None:
        """Put everything back to where it was."""
        torch.set_rng_state(self.cpu)
        for device, state in zip(self.devices, self.cuda, strict=True):
            torch.cuda.set_rng_state(state, device)
        with torch.no_grad():
            for buffer, value in self.buffers:
                buffer.copy_(value)
