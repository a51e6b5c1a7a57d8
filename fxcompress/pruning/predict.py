"""What a network costs after a removal, without removing anything.

Multiply-adds and sizes of tensors are products of axis sizes, and the channel classes say how many positions of every
axis remain. So one pass over a few arrays gives for any choice of channels what :class:`fxcompress.analysis.Cost` gives
for the sliced graph: a search for a budget needs no slicing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.utils.flop_counter import FlopCounterMode

from fxcompress.analysis import Analyses, Analysis, Cost, Shapes
from fxcompress.analysis.channels import ChannelDependencyGraph, Mask
from fxcompress.analysis.channels.labels import Array
from fxcompress.analysis.cost import distinct_tensors
from fxcompress.analysis.shapes import attribute
from fxcompress.ir.inputs import Inputs
from fxcompress.ir.view import Op, view
from fxcompress.pruning.counts import Axis, Counted, Counts, Products
from fxcompress.pruning.sizes import Sizes


@dataclass(frozen=True)
class PredictedCost:
    """Multiply-adds on the example inputs, elements of distinct parameters, bytes of distinct parameters and buffers."""

    macs: int
    params: int
    weight_bytes: int


def predicted(deps: ChannelDependencyGraph, keep: Mask) -> PredictedCost:
    """The cost of ``sliced(deps, keep)``, exactly.

    Args:
        keep: one flag per class of ``deps``.
    """
    return deps.analyses.get(CostModel).cost(keep)


class CostModel(Analysis):
    """Cost of a graph as products of axis sizes; made once per graph."""

    def __init__(self, module: GraphModule, inputs: Inputs, analyses: Analyses) -> None:
        super().__init__(module, inputs, analyses)
        self.deps = analyses.get(ChannelDependencyGraph)
        self.counts = Counts(self.deps)
        self._known = analyses.get(Cost).by_node
        self._fixed_macs = 0
        self._macs = Products()
        self._recounted: list[_Recount] = []
        for node, macs in self._known.items():
            self._add_node(node, macs)
        self._tensors = Products()
        tensors = distinct_tensors(module)
        for name, tensor, _ in tensors:
            self._tensors.add(self.counts.parameter(name, tensor))
        self._is_parameter = np.array([is_parameter for _, _, is_parameter in tensors], dtype=np.int64)
        self._element_bytes = np.array([tensor.element_size() for _, tensor, _ in tensors], dtype=np.int64)
        self._indices = [found for node in module.graph.nodes for found in self._written_indices(node)]

    def cost(self, keep: Mask) -> PredictedCost:
        """See :func:`predicted`."""
        counted = self.counts(keep)
        macs = self._fixed_macs + int(self._macs(counted).sum()) + sum(one.macs(counted, keep) for one in self._recounted)
        elements = self._tensors(counted)
        params, size = elements @ self._is_parameter, elements @ self._element_bytes
        return PredictedCost(macs, int(params), int(size) + sum(index.bytes(keep) for index in self._indices))

    def _add_node(self, node: Node, macs: int) -> None:
        """By formula where that gives what was counted for the network as it is; else counted anew for every choice."""
        op = view(node) if macs else None
        if op is None or op.kind not in _FORMULAS:
            self._fixed_macs += macs  # nobody has taught it, so it reads and gives what it did
            return
        terms = _FORMULAS[op.kind](self.counts, op)
        if not any(axis.row for term in terms for axis in term):
            self._fixed_macs += macs
        elif op.kind != "einsum" and sum(_full(term) for term in terms) == macs:
            for term in terms:
                self._macs.add(term)
        else:
            self._recounted.append(_Recount(self.deps, node, [axis for term in terms for axis in term]))

    def _written_indices(self, node: Node) -> Iterator[_Index]:
        """Indices into channels that slicing has to write out; they become buffers of the sliced graph."""
        op = view(node, "index_select", "getitem") if node.op.startswith("call_") else None
        source = op.operands.get("input") if op is not None else None
        if op is None or not isinstance(source, Node) or not self.deps.along(source):
            return
        along = self.deps.along(source)
        shapes = self.analyses.get(Shapes)
        rank = len(shapes.shape(source) or ())
        if op.kind == "index_select":
            places = {torch.fx.node.map_arg(op["dim"], shapes.value) % rank: op["index"]}
        else:
            places = _by_axis(op["index"], rank)
        for axis, item in places.items():
            known = torch.fx.node.map_arg(item, shapes.value) if isinstance(item, slice) else _constant(self.module, item)
            is_plain = isinstance(known, slice) and known.step in (None, 1)
            if known is not None and not is_plain and axis in along:
                yield _Index(along[axis], known)


@dataclass(frozen=True)
class _Index:
    """A constant index along an axis of channels."""

    classes: tuple[Array, ...]
    item: slice | Tensor

    def bytes(self, keep: Mask) -> int:
        """Size of the int64 buffer that stands for the index after the removal; 0 where none is needed."""
        flags = np.append(keep, True)
        mask = np.logical_and.reduce([flags[c] for c in self.classes])
        if mask.all():
            return 0
        if isinstance(self.item, Tensor):
            return 8 * (int(mask[self.item.numpy()].sum()) if self.item.ndim == 1 else self.item.numel())
        steps = np.diff((np.cumsum(mask) - 1)[self.item][mask[self.item]])
        return 0 if len(steps) == 0 or (steps == steps[0]).all() else 8 * (len(steps) + 1)


def _by_axis(index: Any, rank: int) -> dict[int, Any]:
    """The parts of an index by the axis that each reads."""
    items = list(index) if isinstance(index, tuple) else [index]
    real = [item for item in items if item is not None]
    if Ellipsis not in [item if item is Ellipsis else None for item in real]:
        return dict(enumerate(real))
    at = next(i for i, item in enumerate(real) if item is Ellipsis)
    behind = real[at + 1 :]
    return {**dict(enumerate(real[:at])), **dict(enumerate(behind, rank - len(behind)))}


def _constant(module: GraphModule, item: Any) -> Tensor | None:
    """A list or tensor of places; None for a number and for what is computed."""
    if isinstance(item, Node):
        item = attribute(module, str(item.target)) if item.op == "get_attr" else None
    if isinstance(item, Tensor) or (isinstance(item, list) and all(isinstance(i, int) for i in item)):
        return torch.as_tensor(item).cpu()
    return None


class _Recount:
    """Multiply-adds of one call, by torch's counter on the shapes that remain."""

    def __init__(self, deps: ChannelDependencyGraph, node: Node, axes: list[Axis]) -> None:
        self.deps, self.node, self.axes = deps, node, axes
        self._known: dict[tuple[int, ...], int] = {}

    def macs(self, counted: Counted, keep: Mask) -> int:
        key = tuple(axis.left(counted) for axis in self.axes)
        if key not in self._known:
            self._known[key] = self._count(Sizes(self.deps, keep))
        return self._known[key]

    def _count(self, sizes: Sizes) -> int:
        def smaller(node: Node) -> Any:
            if not isinstance(sizes.shapes.value(node), Tensor):
                return sizes.number(node)
            return torch.empty(sizes.new(node), dtype=sizes.shapes.dtype(node), device="meta")

        args, kwargs = torch.fx.node.map_arg((self.node.args, self.node.kwargs), smaller)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            if self.node.op == "call_method":
                getattr(args[0], str(self.node.target))(*args[1:], **kwargs)
            else:
                assert callable(self.node.target), f"{self.node} is a module without a formula"
                self.node.target(*args, **kwargs)
        return counter.get_total_flops() // 2


# -- formulas: the multiply-adds of a call are a sum of products of axis sizes ---------------------------------------------

_Terms = list[list[Axis]]


def _full(term: list[Axis]) -> int:
    return math.prod(axis.size for axis in term)


def _conv(counts: Counts, op: Op) -> _Terms:
    """Every output reads the window over the channels of its group."""
    return [[*counts.node(op.node), *counts.operand(op, "weight")[1:]]]


def _conv_transpose(counts: Counts, op: Op) -> _Terms:
    """Every input is spread with the whole weight of its group."""
    source, weight = counts.node(op.input), counts.operand(op, "weight")
    channel = len(source) - len(weight) + 1
    return [[*source[:channel], *source[channel + 1 :], *weight]]


def _linear(counts: Counts, op: Op) -> _Terms:
    return [[*counts.node(op.node), counts.operand(op, "weight")[1]]]


def _matmul(counts: Counts, op: Op) -> _Terms:
    left = op.spec.operands[1 if op.kind in ("addmm", "baddbmm") else 0]
    return [[*counts.node(op.node), counts.node(op[left])[-1]]]


def _einsum(counts: Counts, op: Op) -> _Terms:
    """One product over all letters; counted anew, since torch multiplies without counting where a summed axis has size 1
    and takes three operands and more by pairs."""
    letters: dict[str, Axis] = {}
    if not isinstance(op["equation"], str):
        return []
    for term, operand in zip(op["equation"].replace(" ", "").partition("->")[0].split(","), op["operands"], strict=True):
        axes = counts.node(operand)
        named = term.replace("...", "")
        inner = "".join(str(i) for i in reversed(range(len(axes) - len(named))))
        for letter, axis in zip(term.replace("...", inner), axes, strict=True):
            letters[letter] = max(axis, letters.get(letter, axis), key=lambda a: a.size)
    return [list(letters.values())]


def _attention(counts: Counts, op: Op) -> _Terms:
    """q k^T, then the product with v."""
    query, key, value = (counts.node(op[name]) for name in ("query", "key", "value"))
    return [[*query, key[-2]], [*query[:-1], *value[-2:]]]


def _recurrent(counts: Counts, op: Op) -> _Terms:
    """Every weight matrix once per step and sample."""
    module = op.module
    assert isinstance(module, nn.RNNBase)
    outer = counts.node(op.input)[:-1]
    weights = [name for names in module._all_weights for name in names if name.startswith("weight")]
    return [[*outer, *counts.parameter(f"{op.node.target}.{name}", getattr(module, name))] for name in weights]


_FORMULAS: dict[str, Callable[[Counts, Op], _Terms]] = {
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "linear": _linear,
    **dict.fromkeys(("matmul", "bmm", "mm", "addmm", "baddbmm"), _matmul),
    "einsum": _einsum,
    "attention": _attention,
    "recurrent": _recurrent,
}
