"""What the sizes of a graph's values, and the numbers computed from them, are after channels are removed."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node
from torch.utils import _pytree as pytree

from fxcompress.analysis import Shapes
from fxcompress.analysis.channels import ChannelDependencyGraph, Mask

Kept = dict[int, Mask]


class Sizes:
    """Shapes and numbers of every node before and after a removal, on the example inputs.

    Args:
        keep: one flag per class of ``deps``.
    """

    def __init__(self, deps: ChannelDependencyGraph, keep: Mask) -> None:
        self.deps, self.keep = deps, keep
        self.shapes = deps.analyses.get(Shapes)
        self._kept: dict[Node, Any] = {}
        self._numbers: dict[Node, Any] = {}

    def kept(self, node: Node) -> Any:
        """Per axis, which positions of the node's tensor remain; axes that lose nothing are absent."""
        if node not in self._kept:
            self._kept[node] = self.deps.kept(node, self.keep)
        return self._kept[node]

    def axes(self, node: Node) -> Kept:
        """:meth:`kept` of a node that gives one tensor."""
        kept = self.kept(node)
        return kept if isinstance(kept, dict) and all(isinstance(axis, int) for axis in kept) else {}

    def old(self, node: Node) -> tuple[int, ...]:
        shape = self.shapes.shape(node)
        assert shape is not None
        return shape

    def new(self, node: Node) -> tuple[int, ...]:
        """The shape of the node's tensor after the removal."""
        kept = self.axes(node)
        return tuple(int(kept[a].sum()) if a in kept else size for a, size in enumerate(self.old(node)))

    # -- numbers -------------------------------------------------------------------------------------------------------

    def is_number(self, node: Node) -> bool:
        """Whether the node gives sizes or numbers made of them rather than tensors."""
        value = self.shapes.value(node)
        leaves = pytree.tree_leaves(value, is_leaf=lambda v: isinstance(v, torch.Size))
        return value is not None and all(isinstance(v, (int, float, torch.Size)) for v in leaves)

    def number(self, operand: Any) -> Any:
        """What a size operand of the graph becomes, as the graph stands."""
        return torch.fx.node.map_arg(operand, self._of)

    def was(self, operand: Any) -> Any:
        """What a size operand of the graph was."""
        return torch.fx.node.map_arg(operand, self.shapes.value)

    def changes(self, node: Node) -> bool:
        return self.is_number(node) and self._of(node) != self.shapes.value(node)

    def _of(self, node: Node) -> Any:
        if node not in self._numbers:
            self._numbers[node] = self._compute(node)
        return self._numbers[node]

    def _compute(self, node: Node) -> Any:
        if not self.is_number(node) or node.op == "placeholder":
            return self.shapes.value(node)
        first = node.args[0] if node.args else None
        if isinstance(first, Node) and isinstance(self.shapes.value(first), Tensor):
            return self._size_of(node, first)
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), self._of)
        if node.op == "call_method":  # of a torch.Size
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        if node.op != "call_function" or not callable(node.target):
            return self.shapes.value(node)
        return node.target(*args, **kwargs)

    def _size_of(self, node: Node, tensor: Node) -> Any:
        """``x.shape``, ``x.size(1)``, ``x.numel()`` and the like."""
        empty = torch.empty(self.new(tensor), device="meta", dtype=self.shapes.dtype(tensor))
        args, kwargs = torch.fx.node.map_arg((node.args[1:], node.kwargs), self._of)
        if node.op == "call_method":
            return getattr(empty, str(node.target))(*args, **kwargs)
        assert callable(node.target)
        return node.target(empty, *args, **kwargs)


def moved(mask: Mask, index: int) -> int:
    """Where the boundary before ``index`` lies after a removal."""
    return int(mask[:index].sum())


def places(mask: Mask, chosen: Any) -> list[int]:
    """The new places of those of the ``chosen`` positions that remain."""
    order = np.cumsum(mask) - 1
    return [int(order[i]) for i in chosen if mask[i]]
