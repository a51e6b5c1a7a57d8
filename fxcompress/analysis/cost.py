"""What a graph costs: parameters, multiply-adds, bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from fxcompress.analysis.base import Analyses, Analysis
from fxcompress.analysis.shapes import Shapes
from fxcompress.ir.inputs import Inputs
from fxcompress.ir.ops import Trait
from fxcompress.ir.view import module_of, spec_of

_CONTRACTIONS = {
    "conv",
    "conv_transpose",
    "linear",
    "matmul",
    "bmm",
    "mm",
    "addmm",
    "baddbmm",
    "einsum",
    "attention",
    "multihead_attention",
    "recurrent",
}


class Cost(Analysis):
    """Cost on the example inputs.

    ``macs``: multiply-adds of convolutions, linears, matrix products and attention (one multiply-add = one MAC), for
    the whole batch. ``params``: elements of distinct parameters. ``weight_bytes``: bytes of distinct parameters and
    buffers. ``peak_bytes``: the largest sum of activations alive at one node when each is freed after its last reader,
    the inputs among them; views count with what they look at.
    """

    def __init__(self, module: GraphModule, inputs: Inputs, analyses: Analyses) -> None:
        super().__init__(module, inputs, analyses)
        self._shapes = analyses.get(Shapes)
        self.by_node: dict[Node, int] = {node: self._macs(node) for node in module.graph.nodes if node.op.startswith("call_")}
        self.macs = sum(self.by_node.values())
        self.params, self.weight_bytes = weight_cost(module)
        self.peak_bytes = self._peak()

    def _macs(self, node: Node) -> int:
        """Convolutions and linears by their formula; other contractions, and what is unknown, by torch's counter."""
        spec, layer = spec_of(node), module_of(node)
        if self._shapes.value(node) is None or (spec is not None and spec.kind not in _CONTRACTIONS):
            return 0
        if isinstance(layer, nn.modules.conv._ConvNd) and not layer.transposed:
            per_output = math.prod(layer.kernel_size) * layer.in_channels // layer.groups
            return math.prod(self._shapes.shape(node) or (0,)) * per_output
        if isinstance(layer, nn.Linear):
            return math.prod(self._shapes.shape(node) or (0,)) * layer.in_features
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            self._shapes.run(node)
        return counter.get_total_flops() // 2

    def _peak(self) -> int:
        """Largest memory alive at once; a view keeps its source alive instead of having memory of its own."""
        nodes = list(self.module.graph.nodes)
        source = {node: self._source(node) for node in nodes}
        for node in nodes:
            source[node] = source[source[node]]  # in order, so chains of views end at their owner
        last: dict[Node, int] = {}
        for place, node in enumerate(nodes):
            for used in (*node.all_input_nodes, node):
                last[source[used]] = place
        ends: dict[int, list[Node]] = {}
        for node, place in last.items():
            ends.setdefault(place, []).append(node)
        alive = peak = 0
        for place, node in enumerate(nodes):
            if source[node] is node:
                alive += self._bytes(node)
            peak = max(peak, alive)
            alive -= sum(self._bytes(dead) for dead in ends.get(place, ()))
        return peak

    def _source(self, node: Node) -> Node:
        spec = spec_of(node)
        is_view = spec is not None and Trait.VIEW in spec.traits and node.args and isinstance(node.args[0], Node)
        return node.args[0] if is_view else node  # type: ignore[return-value]

    def _bytes(self, node: Node) -> int:
        if node.op in ("get_attr", "output"):
            return 0
        leaves = pytree.tree_leaves(self._shapes.value(node))
        return sum(t.numel() * t.element_size() for t in leaves if isinstance(t, Tensor))


@dataclass(frozen=True)
class ModelCost:
    """Cost of a whole model, captured in one or several parts."""

    params: int
    macs: int
    weight_bytes: int
    peak_bytes: int


def weight_cost(module: nn.Module) -> tuple[int, int]:
    """(elements of distinct parameters, bytes of distinct parameters and buffers). Float buffers of a lowered module
    named like parameters count as parameters: they hold the same numbers."""
    tensors = distinct_tensors(module)
    params = sum(t.numel() for _, t, is_parameter in tensors if is_parameter)
    return params, sum(t.numel() * t.element_size() for _, t, _ in tensors)


def distinct_tensors(module: nn.Module) -> list[tuple[str, Tensor, bool]]:
    """Every parameter and buffer once, by the first of its names, and whether it counts as a parameter."""
    lowered = {
        id(b)
        for m in module.modules()
        if not m._parameters
        for name, b in m._buffers.items()
        if b is not None and name in ("weight", "bias")
    }
    named = (*module.named_buffers(), *module.named_parameters())
    return [(name, t, isinstance(t, nn.Parameter) or id(t) in lowered) for name, t in {id(t): (name, t) for name, t in named}.values()]
