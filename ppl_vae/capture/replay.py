r"""Replays: a recorded graph and the ways to run it.

.. math:: (x, \theta) \mapsto (\ell, \nabla \ell) \qquad \text{or, the whole step on the device:} \qquad
    (x, \theta_t) \mapsto \theta_{t+1}
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from .guard import size_of
from .ledger import Ledger, count
from .optimiser import Together
from .recording import Generators
from .rewriting import keep_draws

__all__ = ["Replay", "StaticStep"]

# What "auto" believes of an operation in a graph: the seconds that a compiler saves of it in every step, by fusing it
# with others; and those that it takes to compile, beside what it takes for a graph of none.
_SAVED, _COMPILING_ONE, _COMPILING = {"cpu": 8e-6, "cuda": 1e-6}, 0.035, 15.0


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
        self.static: StaticStep | None = None
        self.watched: dict[str, Tensor] = {}

    @property
    def operations(self) -> int:
        """How many operators a run calls; a view costs nothing, and is left out."""
        # What is no operator of torch's takes tuples apart.
        called = [node.target for node in self.graph.graph.nodes if node.op == "call_function"]
        return sum(not getattr(target, "is_view", True) for target in called)

    def compile(self, tensors: Sequence[Tensor]) -> None:
        """Run it through inductor from now on; it is run once, on these inputs, to compile it now."""
        keep_draws(self.graph)
        # The eager generators, so that a seed gives the same numbers as without a compiler.
        compiled = torch.compile(self.graph, dynamic=False, options={"fallback_random": True})
        with torch.no_grad():
            compiled(*tensors)
        self.run, self.compiled = compiled, True

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


class StaticStep:
    """A whole step on buffers that stay where they are: replay, guard, optimiser and sums; nothing is read on the host.

    On a CUDA device it is captured in one CUDA graph. Elsewhere the same code runs as it is, which is how it is tested
    without one. The first step that is not finite raises a flag on the device. The optimiser takes the flag as its
    ``found_inf`` and does nothing, then and in every later step, until somebody looks.

    Arguments:
        replay: the recorded graph.
        optim: with an optimiser that is fused, which is what understands ``found_inf``, and on CUDA capturable.
        tensors: inputs like those of every step.
        ledger: holds the flag, shared by all the graphs of a program, and the sums.
    """

    def __init__(self, replay: Replay, optim: Together, tensors: Sequence[Tensor], ledger: Ledger) -> None:
        self.replay, self.optim, self.flag = replay, optim, ledger.flag
        self.totals = ledger.totals(replay.watched)
        self.inputs = [tensor.clone() for tensor in tensors]
        self._count: Callable[..., None] = count
        self.cuda_graph: Any = None
        device = self.flag.device
        if device.type != "cuda":
            return
        if replay.compiled:
            self._count = torch.compile(count, dynamic=False)
        state = Generators([device])
        # Libraries set themselves up in their first runs, which must be over, on another stream, before a capture.
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(3):
                loss, gradients = replay(self.inputs)
                self._add_up(loss, gradients, torch.zeros_like(self.flag), torch.zeros_like(self.totals))
        torch.cuda.current_stream(device).wait_stream(stream)
        state.restore()
        self.cuda_graph = torch.cuda.CUDAGraph()
        # On a stream of that device, whichever is the current one.
        with torch.cuda.graph(self.cuda_graph, stream=stream):
            self._step()

    @torch.no_grad()
    def _add_up(self, loss: Tensor, gradients: dict[str, Tensor], flag: Tensor, totals: Tensor) -> None:
        self._count(loss, size_of(gradients.values()), list(self.replay.watched.values()), flag, totals)

    @torch.no_grad()
    def _step(self) -> None:
        self.loss, gradients = self.replay(self.inputs)
        self._add_up(self.loss, gradients, self.flag, self.totals)
        self.optim.optimizer.found_inf = self.flag
        for name, gradient in gradients.items():
            self.optim.leaves[name].grad = gradient
        self.optim([self.optim.leaves[name] for name in gradients])

    def __call__(self, tensors: Sequence[Tensor]) -> Tensor:
        """Take the step; return its loss, which is not read yet, in memory that the next step writes to."""
        for buffer, tensor in zip(self.inputs, tensors, strict=True):
            buffer.copy_(tensor, non_blocking=True)
        if self.cuda_graph is None:
            self._step()
        else:
            self.cuda_graph.replay()
        return self.loss
