r"""Two stages: a function that draws random numbers, recorded once and split where chance comes in.

.. math:: f(a, \varepsilon) = g\bigl(h(a), \varepsilon\bigr)

An estimate by sampling calls the same function on the same inputs many times. What does not depend on chance, such as
an encoder or the components of a prior, is h and is run once for all the calls; g is what is left of the graph.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import pyro
import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from ..devices import mixed, uncast
from ..errors import CaptureError
from .guard import first_line
from .recording import CaptureWarning, Generators, no_host_reads
from .replay import quietly
from .rewriting import keep_draws, rewrite
from .simplify import simplify, written

__all__ = ["TwoStages"]

# How far g(h(a)) may be from f(a) with the same random numbers, of what f gives; a compiler reorders sums.
_RECORDED, _COMPILED, _MIXED = 1e-6, 1e-4, 2e-2


class TwoStages:
    """A function of tensors that draws, without gradients: ``prepare`` on inputs, then call as often as one likes.

    The same generators are used in the same order as by the function itself, so that a seed gives the same draws.

    Arguments:
        function: from tensors to one tensor; its shapes must not depend on values.
        inputs: like those it will be prepared on.
        compile: through inductor, if there is a compiler; ``compiled`` says so.
        precision: "32", or "bf16-mixed" for matrix products in bfloat16.
        devices: CUDA devices that it draws on.

    Raises:
        CaptureError: if it cannot be recorded, or the graph does not give what the function gives.

    Example:
        >>> noisy = TwoStages(lambda a: a.exp() + torch.normal(torch.zeros(3), torch.ones(3)), [torch.ones(3)])
        >>> noisy.prepare(torch.zeros(3))
        >>> _ = torch.manual_seed(0)
        >>> noisy() - 1, noisy() - 1
        (tensor([ 1.5410, -0.2934, -2.1788]), tensor([ 0.5684, -1.0845, -1.3986]))
    """

    @uncast
    def __init__(
        self,
        function: Callable[..., Tensor],
        inputs: Sequence[Tensor],
        *,
        compile: bool = False,
        precision: Literal["32", "bf16-mixed"] = "32",
        devices: Sequence[torch.device] = (),
    ) -> None:
        from torch.fx.experimental.proxy_tensor import make_fx  # a second's import, which only a recording should pay

        self._mixed = precision != "32"

        def run(*tensors: Tensor) -> Tensor:
            with mixed(self._mixed):
                return function(*tensors)

        with torch.no_grad():
            before = Generators(devices)
            # In the precision of the recording, whose rounding is no mistake of it.
            expected = run(*inputs)
            before.restore()
            try:
                # Validation looks at values, which a recording must not; it was on in the run before this one.
                with no_host_reads(), pyro.validation_enabled(False):
                    graph = make_fx(run)(*inputs)
            except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
                before.restore()
                raise CaptureError(f"cannot be recorded as a graph: {first_line(error)}") from error
            simplify(graph, inputs)
            if compile:
                rewrite(graph)
                keep_draws(graph)
            self.first, self._second = split(graph)
            self.second: Callable[..., Any] = self._second
            self.prepare(*inputs)
            before.restore()
            found = self._compiled() if compile else None
            self.compiled = found is not None
            if found is None:
                before.restore()
                found = self()
            before.restore()
            # What the second part wrote to would not be there as it was for the next draw.
            again = self()
            before.restore()
        for each in (found, again):
            self._compare(each, expected)

    def _compiled(self) -> Tensor | None:
        """Compile, and return the first draw; None where that fails, as it does without a C++ compiler."""
        self.second = torch.compile(self._second, dynamic=False, options={"fallback_random": True})
        try:
            with quietly():
                return self()
        except (RuntimeError, OSError) as error:
            warnings.warn(f"not compiled, but replayed as recorded: {first_line(error)}", CaptureWarning, stacklevel=5)
            self.second = self._second
            return None

    def _compare(self, found: Tensor, expected: Tensor) -> None:
        finite = expected.isfinite()
        if not torch.allclose(found[~finite], expected[~finite], equal_nan=True):
            raise CaptureError("the recorded graph is finite where the function is not, or infinite elsewhere")
        found, expected = found[finite], expected[finite]
        difference, size = (v.abs().max().item() if v.numel() else 0.0 for v in (found - expected, expected))
        tolerance = _MIXED if self._mixed else _COMPILED if self.compiled else _RECORDED
        if not difference <= tolerance * max(1.0, size):
            raise CaptureError(f"the recorded graph is off by {difference:.3g}, for values up to {size:.3g}")

    @uncast
    @torch.no_grad()
    def prepare(self, *inputs: Tensor) -> None:
        """Run the part that chance does not touch."""
        self._held = self.first(*inputs)

    @uncast
    @torch.no_grad()
    def __call__(self) -> Tensor:
        """Draw once more, into a tensor of its own."""
        return self.second(*self._held)


def split(graph: GraphModule) -> tuple[GraphModule, GraphModule]:
    """Split a recorded graph: inputs → what is needed of them, and that → the result, with every random operation.

    What is written to is made anew by the second each time.
    """
    chancy = written(graph)
    if any(node.op == "placeholder" for node in chancy):
        raise CaptureError("cannot be recorded as a graph: it writes to its inputs")
    for node in graph.graph.nodes:
        if node.op != "call_function":
            continue
        target = node.target
        random = isinstance(target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in target.tags
        if random or not chancy.isdisjoint(node.all_input_nodes):
            chancy.add(node)
    (output,) = [node for node in graph.graph.nodes if node.op == "output"]
    needed = [
        node
        for node in graph.graph.nodes
        if node not in chancy
        and node.op not in ("output", "get_attr")
        and any(u in chancy | {output} for u in node.users)
    ]
    first, second = Graph(), Graph()
    of_first: dict[Node, Node] = {}
    for node in graph.graph.nodes:
        if node.op != "output" and node not in chancy:
            of_first[node] = first.node_copy(node, of_first.__getitem__)
    first.output(tuple(of_first[node] for node in needed))
    of_second = {node: second.placeholder(node.name) for node in needed}
    for node in graph.graph.nodes:
        if node in chancy or node.op == "get_attr" or node is output:
            of_second[node] = second.node_copy(node, of_second.__getitem__)
    parts = []
    for part in (first, second):
        part.eliminate_dead_code()
        parts.append(GraphModule(graph, part))
    return parts[0], parts[1]
