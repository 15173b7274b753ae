r"""Replays: a recorded graph and the ways to run it, one by one or compiled.

.. math:: (x, \theta) \mapsto (\ell, \nabla \ell)
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from .guard import first_line
from .rewriting import keep_draws

__all__ = ["Replay", "quietly"]

# What "auto" believes of an operation in a graph: the seconds that a compiler saves of it in every step, by fusing it
# with others; and those that it takes to compile, beside what it takes for a graph of none.
_SAVED, _COMPILING_ONE, _COMPILING = {"cpu": 8e-6, "cuda": 1.5e-6}, 0.035, 15.0


@contextmanager
def quietly() -> Iterator[None]:
    """Compile and capture without a word of torch's on TF32, which nobody asked for, on its own parts, and on waits."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch._prims_common", FutureWarning)
        warnings.filterwarnings("ignore", "TensorFloat32")
        warnings.filterwarnings("ignore", "Synchronization debug mode")
        yield


class Replay:
    """A recorded graph, and the numbers that the program could reach when it was recorded.

    Arguments:
        graph: from :func:`~ppl_vae.capture.recording.record`.
        names: of the gradients, in their order.
        numbers: of the program, by name.
    """

    def __init__(self, graph: GraphModule, names: Sequence[str], numbers: dict[str, Any]) -> None:
        self.graph, self.names, self.numbers = graph, list(names), numbers
        self.run: Callable[..., Any] = graph
        self.runs = 0
        self.compiled = False
        self.static: Any = None
        self.watched: dict[str, Tensor] = {}

    @property
    def operations(self) -> int:
        """How many operators a run calls; a view costs nothing, and is left out."""
        # What is no operator of torch's takes tuples apart.
        called = [node.target for node in self.graph.graph.nodes if node.op == "call_function"]
        return sum(not getattr(target, "is_view", True) for target in called)

    def compile(self, tensors: Sequence[Tensor]) -> str | None:
        """Run it through inductor from now on, or return why not; it is run once on these inputs, to compile it now."""
        keep_draws(self.graph)
        # The eager generators, so that a seed gives the same numbers as without a compiler.
        compiled = torch.compile(self.graph, dynamic=False, options={"fallback_random": True})
        try:
            with torch.no_grad(), quietly():
                compiled(*tensors)
        except (RuntimeError, OSError) as error:  # the compiler's own errors are RuntimeErrors
            return first_line(error)
        self.run, self.compiled = compiled, True
        return None

    def repays_compiling(self, steps: int, device: torch.device) -> bool:
        """Whether so many steps repay a compiler, by the size of the graph, so that one run always chooses the same."""
        if shutil.which(os.environ.get("CXX", "g++")) is None:
            return False
        saved = self.operations * _SAVED["cuda" if device.type == "cuda" else "cpu"] * steps
        return saved > _COMPILING + self.operations * _COMPILING_ONE

    @torch.no_grad()
    def __call__(self, tensors: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and the gradients by name."""
        self.runs += 1
        loss, gradients, self.watched = self.run(*tensors)
        return loss, dict(zip(self.names, gradients, strict=True))

    @torch.no_grad()
    def as_recorded(self, tensors: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the same without a compiler."""
        loss, gradients, _ = self.graph(*tensors)
        return loss, dict(zip(self.names, gradients, strict=True))
