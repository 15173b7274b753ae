r"""A step that stays on the device: replay, guard, optimiser and sums on buffers that never move.

.. math:: (x, \theta_t) \mapsto \theta_{t+1}, \qquad \text{flag}, \text{sums}

Nothing is read on the host. On a CUDA device the whole step is one CUDA graph; elsewhere the same code runs as it is,
which is how it is tested without one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from ..errors import CaptureError
from .guard import first_line, size_of
from .ledger import Ledger, count
from .optimiser import Together
from .recording import Generators
from .replay import Replay, quietly
from .simplify import written

__all__ = ["StaticStep", "cannot_stay", "look_up"]

aten = torch.ops.aten
_INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)
# How a number in the text of a program is recorded: torch.tensor(2.0).
_LIFTED = aten.lift_fresh_copy.default
_COPIES = (aten._to_copy.default, aten.copy.default, aten.copy_.default)


def look_up(graph: GraphModule) -> None:
    """Put in place of ``nonzero(mask)``, of a mask that nothing in the graph writes to, what it finds.

    How many there are decides a shape, which a device would be stopped for in every step. Flows that split their
    features by a mask do this; one that is changed in place later is found when the step is next compared with stock.
    """
    dirty = written(graph)
    masks: dict[Node, Tensor] = {}
    for node in list(graph.graph.nodes):
        if node.op == "get_attr" and node not in dirty and getattr(graph, node.target).dtype == torch.bool:
            masks[node] = getattr(graph, node.target)
        if node.op != "call_function" or (node in dirty and node.target not in _INDEXED):
            continue
        if node.target in (aten.bitwise_not.default, aten.logical_not.default) and node.args[0] in masks:
            masks[node] = ~masks[node.args[0]]
        elif node.target is aten.nonzero.default and node.args[0] in masks:
            node.replace_all_uses_with(_held(graph, node, masks[node.args[0]].nonzero()))
            graph.graph.erase_node(node)
        elif node.target in _INDEXED:
            indices: list[Node | None] = []
            for index in node.args[1]:
                found = masks[index].nonzero(as_tuple=True) if index in masks else None
                indices += [index] if found is None else [_held(graph, node, i) for i in found]
            node.update_arg(1, indices)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _held(graph: GraphModule, before: Node, value: Tensor) -> Node:
    """A node for a constant."""
    name = f"_looked_up{sum(n.op == 'get_attr' for n in graph.graph.nodes)}"
    graph.register_buffer(name, value)
    with graph.graph.inserting_before(before):
        node = graph.graph.get_attr(name)
    node.meta["val"] = value
    return node


def cannot_stay(graph: GraphModule, device: torch.device) -> str | None:
    """Return what of a recorded graph no CUDA graph can hold, if anything: tensors elsewhere, and looks at values."""

    def value(node: Any) -> Any:
        return getattr(graph, str(node.target)) if node.op == "get_attr" else node.meta.get("val")

    def elsewhere(node: Node) -> bool:
        return isinstance(value(node), Tensor) and value(node).device != device

    for node in graph.graph.nodes:
        tags = getattr(node.target, "tags", ())
        looks = torch.Tag.dynamic_output_shape in tags or torch.Tag.data_dependent_output in tags
        if node.target in _INDEXED:
            # With places to look at, it is an operation like any other.
            looks = any(index is not None and value(index).dtype == torch.bool for index in node.args[1])
        if looks:
            return f"{node.target} looks at values"
        if elsewhere(node) and value(node).dim():
            return f"{node.name} is on {value(node).device}"
        # A number elsewhere that is always the same is an argument like any other, unless it is to be brought here.
        if node.target in _COPIES and any(map(elsewhere, node.all_input_nodes)):
            return f"{node.name} is brought to {device}"
        if elsewhere(node) and (node.op != "get_attr" or any(user.target is not _LIFTED for user in node.users)):
            made_of = [n for n in node.all_input_nodes if not elsewhere(n)]
            if node.op != "call_function" or torch.Tag.nondeterministic_seeded in tags or made_of:
                return f"{node.name}, a number on {value(node).device}, may change"
    return None


@contextmanager
def _waiting(allowed: bool) -> Iterator[None]:
    """Let the host wait for the device, or raise a RuntimeError where it does."""
    before = torch.cuda.get_sync_debug_mode()
    try:
        torch.cuda.set_sync_debug_mode(before if allowed else "error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


class StaticStep:
    """A whole step; the first that is not finite raises a flag on the device, and no parameter moves from then on.

    The optimiser takes the flag as its ``found_inf`` and does nothing, then and in every later step, until somebody
    looks.

    Arguments:
        replay: the recorded graph.
        optim: with an optimiser that is fused, which is what understands ``found_inf``, and on CUDA capturable.
        tensors: inputs like those of every step.
        ledger: holds the flag, shared by all the graphs of a program, and the sums.
        buffers: of the program, which a step may write to.

    Raises:
        CaptureError: if no CUDA graph can hold it.
    """

    def __init__(
        self,
        replay: Replay,
        optim: Together,
        tensors: Sequence[Tensor],
        ledger: Ledger,
        buffers: Sequence[Tensor] = (),
    ) -> None:
        self.replay, self.optim, self.flag = replay, optim, ledger.flag
        self.totals = ledger.totals(replay.watched)
        self.inputs = [tensor.detach().clone() for tensor in tensors]
        self.buffers = buffers
        self.places = self._places()
        self._count: Callable[..., None] = count
        self.cuda_graph: Any = None
        device = self.flag.device
        if device.type != "cuda":
            return
        if replay.compiled:
            self._count = torch.compile(count, dynamic=False)
        state = Generators([device], buffers)
        # Libraries set themselves up in their first runs, which must be over, on another stream, before a capture.
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        try:
            with torch.cuda.stream(stream), quietly():
                for allowed in (True, True, False):
                    # What makes the host wait would spoil a capture, so it is looked for before there is one.
                    with _waiting(allowed):
                        loss, gradients = replay(self.inputs)
                        self._add_up(loss, gradients, torch.zeros_like(self.flag), torch.zeros_like(self.totals))
            torch.cuda.current_stream(device).wait_stream(stream)
            state.restore()
            self.cuda_graph = torch.cuda.CUDAGraph()
            # On a stream of that device, whichever is the current one, and left even if the capture cannot be ended,
            # where torch's own context stays in it; other threads may go on.
            with (
                torch.cuda.stream(stream),
                torch.cuda.graph(self.cuda_graph, stream=stream, capture_error_mode="thread_local"),
            ):
                self._step()
        except RuntimeError as error:
            # What was begun there must not write any more to what is put back.
            torch.cuda.current_stream(device).wait_stream(stream)
            state.restore()
            raise CaptureError(f"no CUDA graph can hold this step: {first_line(error)}") from error

    def _places(self) -> list[Any]:
        """Where everything is that a CUDA graph reads and writes, and the numbers that it does not look up."""
        optimizer, graph = self.optim.optimizer, self.replay.graph
        held = (getattr(graph, str(node.target)) for node in graph.graph.nodes if node.op == "get_attr")
        state = (v for values in optimizer.state.values() for v in values.values())
        options = (v for group in optimizer.param_groups for k, v in group.items() if k != "params")
        every = *self.optim.leaves.values(), *self.buffers, *held, *state, *options, self.optim.clip
        return [v.data_ptr() if isinstance(v, Tensor) else v for v in every]

    @property
    def moved(self) -> bool:
        """Whether a CUDA graph would read or write where nothing is any more, or go by options that have changed."""
        return self.cuda_graph is not None and self.places != self._places()

    @torch.no_grad()
    def _add_up(self, loss: Tensor, gradients: dict[str, Tensor], flag: Tensor, totals: Tensor) -> None:
        self._count(loss, size_of(gradients.values()), list(self.replay.watched.values()), flag, totals)

    @torch.no_grad()
    def _step(self) -> None:
        self.loss, gradients = self.replay(self.inputs)
        self._add_up(self.loss, gradients, self.flag, self.totals)
        for name, gradient in gradients.items():
            self.optim.leaves[name].grad = gradient
        self.optim.optimizer.found_inf = self.flag
        try:
            self.optim([self.optim.leaves[name] for name in gradients])
        finally:
            # Nobody who takes a step with this optimiser elsewhere has raised the flag.
            del self.optim.optimizer.found_inf
        # What is left would be taken for a gradient of the next step, whose shape may not reach that parameter.
        self.optim.zero_grad()

    @torch.no_grad()
    def __call__(self, tensors: Sequence[Tensor]) -> Tensor:
        """Take the step; return its loss, which is not read yet, in memory that the next step writes to."""
        for buffer, tensor in zip(self.inputs, tensors, strict=True):
            # What is on the host may be written to as soon as this returns.
            buffer.copy_(tensor, non_blocking=tensor.is_cuda)
        if self.cuda_graph is None:
            self._step()
        else:
            self.cuda_graph.replay()
        return self.loss
