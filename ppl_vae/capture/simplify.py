r"""Simplification: a recorded graph computes nothing twice and copies nothing for nothing.

.. math:: f(a) = f(a)

What a program writes twice, the recording holds twice: a prior evaluated for the loss and for what is watched, a
transpose for the forward and for the backward pass. Only operations without randomness, on tensors that nothing writes
to, are merged, so every number stays what it was. A factorisation that fails, which stops a stock step with an error,
gives NaN.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Interpreter, Node

__all__ = ["separate", "simplify", "written"]

aten = torch.ops.aten
# Operations that give back what they were given, if shape and dtype are what they were.
_IDENTITIES = (aten.alias.default, aten.expand.default, aten.view.default, aten.detach.default, aten._to_copy.default)


def simplify(graph: GraphModule, inputs: Any) -> None:
    """Merge equal operations and drop those that do nothing, in place.

    Arguments:
        graph: from ``make_fx``.
        inputs: to run it on once, for the shapes.
    """
    kinds = _Kinds(graph)
    kinds.run(*inputs)
    dirty = written(graph)
    seen: dict[Any, Node] = {}
    spoilt: set[Node] = set()
    for node in list(graph.graph.nodes):
        if node.op == "get_attr" and node not in dirty:
            _merge(node, seen, ("get_attr", id(getattr(graph, node.target))))
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        if node.target is aten._linalg_check_errors.default:
            _spoil(node, dirty, kinds, spoilt)
            continue
        touched = {node, *node.all_input_nodes} & dirty
        if touched or node.target._schema.is_mutable or torch.Tag.nondeterministic_seeded in node.target.tags:
            continue
        if node.target in _IDENTITIES and kinds.of.get(node) == kinds.of.get(node.args[0]) is not None:
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
            continue
        _merge(node, seen, (node.target, _frozen(node.args), _frozen(node.kwargs)))
    graph.graph.eliminate_dead_code(lambda node: node.is_impure() or bool(_statistics(node)))
    graph.recompile()


def _statistics(node: Node) -> list[Node]:
    """The running statistics that a batch norm writes to in training; its schema does not say that it does."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return []
    names = [argument.name for argument in node.target._schema.arguments]
    given = dict(zip(names, node.args, strict=False)) | node.kwargs
    if not {"running_mean", "running_var", "training"} <= set(names) or given.get("training") is False:
        return []
    return [value for value in (given["running_mean"], given["running_var"]) if isinstance(value, Node)]


def _merge(node: Node, seen: dict[Any, Node], key: Any) -> None:
    if (first := seen.setdefault(key, node)) is not node:
        node.replace_all_uses_with(first)
        node.graph.erase_node(node)


def _spoil(check: Node, dirty: set[Node], kinds: _Kinds, spoilt: set[Node]) -> None:
    """Make a factorisation NaN where it failed, which the loss shows; the check would stop the device to read a flag.

    A check of anything else, or of results that are written to, stays.
    """
    info = check.args[0]
    if not isinstance(info, Node) or info.target is not operator.getitem:
        return
    source, place = info.args
    if not isinstance(source, Node) or not isinstance(source.target, torch._ops.OpOverload):
        return
    returns = source.target._schema.returns
    if not isinstance(place, int) or place >= len(returns) or returns[place].name != "info":
        return
    outputs = [user for user in source.users if user.target is operator.getitem and user in kinds.of]
    floats = [node for node in outputs if kinds.of[node][2].is_floating_point or kinds.of[node][2].is_complex]
    if not floats or {info, *floats} & dirty:
        return
    for result in floats:
        if result in spoilt:
            continue
        spoilt.add(result)
        users = list(result.users)
        # The flag is fetched once more, as where it was it may come only after a use of the result.
        made = _after(result, operator.getitem, source, place)
        made = _after(made, aten.ne.Scalar, made, 0)
        for _ in range(len(kinds.of[result][0]) - len(kinds.of[info][0])):
            made = _after(made, aten.unsqueeze.default, made, -1)
        made = _after(made, aten.masked_fill.Scalar, result, made, math.nan)
        kinds.of[made] = kinds.of[result]
        for user in users:
            user.replace_input_with(result, made)
    check.graph.erase_node(check)


def _after(node: Node, target: Any, *args: Any) -> Node:
    with node.graph.inserting_after(node):
        return node.graph.call_function(target, args)


def _frozen(value: Any) -> Any:
    """Arguments as something to look up: 1, 1.0 and True are three things."""
    if isinstance(value, list | tuple):
        return tuple(_frozen(v) for v in value)
    if isinstance(value, dict):
        return tuple((k, _frozen(v)) for k, v in value.items())
    return value if isinstance(value, Node) else (type(value), repr(value))


def separate(graph: GraphModule, leaves: Sequence[torch.Tensor]) -> None:
    """Give every gradient memory of its own, laid out as its parameter's, in place.

    Two may be one tensor, which clipping would scale twice; and fused optimisers read both as if they were laid out
    alike, whatever their strides.

    Arguments:
        graph: whose second output is the list of gradients.
        leaves: what they are of.
    """
    (output,) = graph.graph.find_nodes(op="output")
    loss, gradients, *rest = output.args[0]
    root, _ = _memory(graph)
    taken, own = {root.get(loss)}, []
    for node, leaf in zip(gradients, leaves, strict=True):
        value = node.meta.get("val")
        alike = isinstance(value, torch.Tensor) and value.stride() == leaf.stride()
        if not alike or root[node] in taken or root[node].op != "call_function":
            with graph.graph.inserting_before(output):
                empty = graph.graph.call_function(
                    aten.new_empty_strided.default, (node, list(leaf.shape), list(leaf.stride()))
                )
                node = graph.graph.call_function(aten.copy_.default, (empty, node))
        else:
            taken.add(root[node])
        own.append(node)
    output.args = ((loss, own, *rest),)
    graph.recompile()


def written(graph: GraphModule) -> set[Node]:
    """Every node that shares memory with one that an operation writes to."""
    root, dirty = _memory(graph)
    # Two tensors may be views of one memory: a buffer, and its `data`.
    storage = {n: getattr(graph, str(n.target)).untyped_storage()._cdata for n in root if n.op == "get_attr"}
    same = {storage[n] for n in dirty & storage.keys()}
    held = {n for n in storage if storage[n] in same}
    return {node for node, origin in root.items() if origin in dirty | held}


def _memory(graph: GraphModule) -> tuple[dict[Node, Node], set[Node]]:
    """Whose memory each node shows, and which of these are written to."""
    root: dict[Node, Node] = {}
    dirty: set[Node] = set()
    for node in graph.graph.nodes:
        root[node] = node
        if node.target is operator.getitem and root[node.args[0]] is not node.args[0]:
            # One of the views that an operation gave.
            root[node] = root[node.args[0]]
        elif node.target is aten._unsafe_view.default:
            # What it promises, that nobody will write to what it was given, says nothing of what it gives.
            root[node] = root[node.args[0]]
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        dirty.update(root[v] for v in _statistics(node))
        arguments = node.target._schema.arguments
        given = dict(zip((argument.name for argument in arguments), node.args, strict=False)) | node.kwargs
        for argument in arguments:
            value = given.get(argument.name)
            shown = [v for v in (value if isinstance(value, list | tuple) else [value]) if isinstance(v, Node)]
            if argument.alias_info is None or not shown:
                continue
            root[node] = root[shown[0]]
            if argument.alias_info.is_write:
                dirty.update(root[v] for v in shown)
    return root, dirty


class _Kinds(Interpreter):
    """Runs a graph and notes shape, stride and dtype of every result."""

    def __init__(self, graph: GraphModule) -> None:
        super().__init__(graph)
        self.of: dict[Node, Any] = {}

    def run_node(self, n: Node) -> Any:
        """Run one node and note what came of it."""
        value = super().run_node(n)
        if isinstance(value, torch.Tensor):
            self.of[n] = value.shape, value.stride(), value.dtype, value.device
        return value
