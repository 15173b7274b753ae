r"""Rewriting: the same numbers, but for rounding, in fewer passes over memory and with fewer logarithms.

.. math:: b + hW = hW - (-b), \qquad
    \sum_d \log p(x_d) = \sum_d \bigl(x_d a_d - \max(a_d, 0)\bigr) - \sum_j \log \prod_{d \in j} (1 + e^{-|a_d|})

A product that starts at a bias has it written to every row first, and reads it back; one that comes after the product
is added by whatever reads the result next. The second is for pixels of 0 and 1 with logits a: a logarithm costs more
than all else that is done to a pixel, and where no gradient is asked for, one does for many factors. These lie between
1 and 2, so 64 of them overflow nowhere; in float32 a pixel's term is off by 6e-8 at most, by which 1 + e^(−|a|) is
rounded.

Both are for the CPU, and for a compiler that makes one loop of what would be several here. What a compiler would draw
in another way than the program is written here so that it does not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

__all__ = ["keep_draws", "rewrite"]

aten = torch.ops.aten
# The most factors of a product, and the fewest products side by side: as many as the widest registers hold.
_FACTORS, _ABREAST = 64, 16


def rewrite(graph: GraphModule) -> None:
    """Rewrite what is on the CPU, in place.

    Arguments:
        graph: from ``make_fx``, without gradients.
    """
    for node in graph.graph.find_nodes(op="call_function", target=aten.addmm.default):
        if _value(node).device.type == "cpu":
            _bias_afterwards(node)
    for node in graph.graph.find_nodes(op="call_function", target=aten.binary_cross_entropy_with_logits.default):
        if _value(node).device.type == "cpu":
            _one_logarithm(node)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def keep_draws(graph: GraphModule) -> None:
    """Keep a compiler from drawing in its own way, in place: the same seed is to give the same numbers.

    Of ``bernoulli(p)`` inductor makes ``rand() < p``, which on a GPU is another draw; in place it is left as it is.
    """
    for node in graph.graph.find_nodes(op="call_function", target=aten.bernoulli.default):
        with graph.graph.inserting_before(node):
            empty = graph.graph.call_function(aten.empty_like.default, node.args[:1])
            drawn = graph.graph.call_function(aten.bernoulli_.Tensor, (empty, *node.args), node.kwargs)
        node.replace_all_uses_with(drawn)
        graph.graph.erase_node(node)
    graph.recompile()


def _bias_afterwards(node: Node) -> None:
    """Add the bias to the product. A compiler would put b + hW together again, and leaves hW − (−b) as it is."""
    bias, first, second, *scales = node.args
    if scales or node.kwargs or _value(bias).dim() != 1:
        return
    with node.graph.inserting_before(node):
        new = node.graph.call_function
        product = new(aten.mm.default, (first, second))
        after = new(aten.sub.Tensor, (product, new(aten.neg.default, (bias,))))
    node.replace_all_uses_with(after)


def _one_logarithm(node: Node) -> None:
    """Sum log p over an event by products of its factors."""
    logits, value, *options = node.args
    chain = _followed(node, aten.neg.default, aten.view.default, aten.sum.dim_IntList)
    if options != [None, None, 0] or chain is None or chain[-1].args[1:] != ([-1],):
        return
    *batch, pixels = _value(chain[1]).shape
    divisors = [n for n in range(min(_ABREAST, pixels), pixels + 1) if pixels % n == 0]
    abreast = next(n for n in divisors if pixels <= n * _FACTORS)
    factors = pixels // abreast
    if factors == 1 or _value(node).dtype not in (torch.float32, torch.float64):
        return
    with node.graph.inserting_before(node):
        new = node.graph.call_function
        inner = new(aten.mul.Tensor, (logits, value))
        linear = new(aten.sub.Tensor, (inner, new(aten.relu.default, (logits,))))
        factor = new(aten.exp.default, (new(aten.neg.default, (new(aten.abs.default, (logits,)),)),))
        # 1 for every number, infinities too, that has looked at x: the sum and the product, over the same dimension,
        # become one loop, with one pass over the logits, only where both read the same.
        factor = new(aten.add.Tensor, (factor, new(aten.clamp.default, (inner, 1, 1))))
        linear, factor = (new(aten.reshape.default, (v, [*batch, factors, abreast])) for v in (linear, factor))
        linear, product = new(aten.sum.dim_IntList, (linear, [-2])), new(aten.prod.dim_int, (factor, -2))
        total = new(aten.sub.Tensor, (linear, new(aten.log.default, (product,))))
        total = new(aten.sum.dim_IntList, (total, [-1]))
    chain[-1].replace_all_uses_with(total)


def _value(node: Any) -> Tensor:
    """What the recording noted of a result: its shape, dtype and device."""
    return node.meta["val"]


def _followed(node: Node, *targets: object) -> list[Node] | None:
    """The nodes after this one, if each is the only use of the one before, and these are their operations."""
    chain = []
    for target in targets:
        (node, *others) = node.users
        if others or node.target is not target:
            return None
        chain.append(node)
    return chain
