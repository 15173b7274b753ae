r"""Replays: a recorded graph and the ways to run it.

.. math:: (x, \theta) \mapsto (\ell, \nabla \ell) \qquad \text{or, the whole step on the device:} \qquad
    (x, \theta_t) \mapsto \theta_{t+1}
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from .guard import size_of
from .optimiser import Together
from .recording import Generators

__all__ = ["Replay", "StaticStep"]


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
        # The eager generators, so that a seed gives the same numbers as without a compiler.
        compiled = torch.compile(self.graph, dynamic=False, options={"fallback_random": True})
        with torch.no_grad():
            compiled(*tensors)
        self.run, self.compiled = compiled, True

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
    ``found_inf`` and does nothing, then and in every later step, until ``CapturedSVI.read`` looks.

    Arguments:
        replay: the recorded graph.
        optim: with an optimiser that is fused, which is what understands ``found_inf``, and on CUDA capturable.
        tensors: inputs like those of every step.
        flag: (), zero until a step is not finite; shared by all the graphs of a program.
        sums: double-precision sums over the steps that counted: ``loss``, ``steps``, and what is watched.
    """

    def __init__(
        self, replay: Replay, optim: Together, tensors: Sequence[Tensor], flag: Tensor, sums: dict[str, Tensor]
    ) -> None:
        self.replay, self.optim, self.flag, self.sums = replay, optim, flag, sums
        self.inputs = [tensor.clone() for tensor in tensors]
        for name in ("loss", "steps", *replay.watched):
            sums.setdefault(name, torch.zeros((), dtype=torch.float64, device=flag.device))
        self.cuda_graph: Any = None
        if flag.device.type == "cuda":
            state = Generators([flag.device])
            # Libraries set themselves up in their first runs, which must be over, on another stream, before a capture.
            stream = torch.cuda.Stream(flag.device)
            stream.wait_stream(torch.cuda.current_stream(flag.device))
            with torch.cuda.stream(stream):
                for _ in range(3):
                    replay(self.inputs)
            torch.cuda.current_stream(flag.device).wait_stream(stream)
            state.restore()
            self.cuda_graph = torch.cuda.CUDAGraph()
            # On a stream of that device, whichever is the current one.
            with torch.cuda.graph(self.cuda_graph, stream=stream):
                self._step()

    @torch.no_grad()
    def _step(self) -> None:
        self.loss, gradients = self.replay(self.inputs)
        finite = (self.loss + size_of(gradients.values())).isfinite()
        self.flag.copy_(torch.maximum(self.flag, (~finite).to(self.flag)))
        counts = self.flag == 0
        self.optim.optimizer.found_inf = self.flag
        for name, gradient in gradients.items():
            self.optim.leaves[name].grad = gradient
        self.optim([self.optim.leaves[name] for name in gradients])
        for name, value in {"loss": self.loss, "steps": counts.double(), **self.replay.watched}.items():
            self.sums[name].add_(torch.where(counts, value.double(), 0.0))

    def __call__(self, tensors: Sequence[Tensor]) -> Tensor:
        """Take the step; return its loss, which is not read yet."""
        for buffer, tensor in zip(self.inputs, tensors, strict=True):
            buffer.copy_(tensor, non_blocking=True)
        if self.cuda_graph is None:
            self._step()
        else:
            self.cuda_graph.replay()
        return self.loss.clone()
