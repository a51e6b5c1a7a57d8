"""One scale for what is joined: the quantizations of an observed graph after calibration.

The tensors that ``cat`` joins must lie on one grid. Observers of them are merged, unless that costs somebody else more than a bit:
a value that is read elsewhere, too, and whose range is less than half of the whole keeps its own scale, and is brought to the
common one on its way into the ``cat``.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch.fx import Node

from fxcompress.quant.affine import QParams
from fxcompress.quant.observers_base import Observer
from fxcompress.quant.regions import Regions, is_quantizer, joins

__all__ = ["Shared", "shared_qparams"]

WORTH_A_RESCALE = 2.0
"""How many times wider the common range must be: a factor of two is one bit."""


@dataclass
class Shared:
    """``qparams`` of every observer node; ``rescaled``: (cat, operand) -> the qparams that this operand is brought to."""

    qparams: dict[Node, QParams] = field(default_factory=dict)
    rescaled: dict[tuple[Node, Node], QParams] = field(default_factory=dict)


def shared_qparams(regions: Regions, observers: Mapping[Node, Observer]) -> Shared:
    """From observers that have seen the data, to what each becomes."""
    classes = _Classes(observers)
    edges: list[tuple[Node, Node, Node]] = []  # cat, operand, a quantizer of the cat's class
    for node, reading in regions.readings.items():
        if joins(node) and node in regions.integer:
            edges += _join(node, regions, classes)
        elif node in regions.grid and not is_quantizer(node):
            regions.grid[node] = regions.grid[reading.operands[0]]
    rescaled = {(cat, operand): classes.qparams(other) for cat, operand, other in edges}
    return Shared({node: classes.qparams(node) for node in observers}, rescaled)


def _join(cat: Node, regions: Regions, classes: _Classes) -> list[tuple[Node, Node, Node]]:
    """Unite the grids of what ``cat`` joins, but for those that had better be rescaled."""
    operands = list(dict.fromkeys(regions.readings[cat].operands))
    wide = classes.joint_width([regions.grid[n] for n in operands])
    keep = [n for n in operands if _needs_own(n, cat, regions) and classes.width(regions.grid[n]) * WORTH_A_RESCALE < wide]
    together = [n for n in operands if n not in keep]
    first = regions.grid[together[0]]
    for operand in together[1:]:
        classes.unite(first, regions.grid[operand])
    regions.grid[cat] = first
    return [(cat, n, first) for n in keep if not classes.same(regions.grid[n], first)]


def _needs_own(operand: Node, cat: Node, regions: Regions) -> bool:
    """Whether the grid of ``operand`` is read by anything that computes, other than through ``cat``."""
    seen: set[Node] = set()
    pending = [regions.grid[operand]]
    while pending:
        node = pending.pop()
        for user in node.users:
            if user is cat or user in seen:
                continue
            seen.add(user)
            if user not in regions.grid:
                return True
            pending.append(user)
    return False


class _Classes:
    """Observers united in classes; each class has one joint observer."""

    def __init__(self, observers: Mapping[Node, Observer]) -> None:
        self._parent: dict[Node, Node] = {}
        self._observers = dict(observers)
        self._found: dict[Node, QParams] = {}

    def find(self, node: Node) -> Node:
        while node in self._parent:
            node = self._parent[node]
        return node

    def same(self, a: Node, b: Node) -> bool:
        return self.find(a) is self.find(b)

    def unite(self, a: Node, b: Node) -> None:
        a, b = self.find(a), self.find(b)
        if a is b:
            return
        joint = copy.deepcopy(self._observers[a])
        joint.merge(self._observers[b])
        self._observers[a], self._parent[b] = joint, a
        self._found.pop(a, None)

    def qparams(self, node: Node) -> QParams:
        root = self.find(node)
        if root not in self._found:
            self._found[root] = self._observers[root].qparams()
        return self._found[root]

    def width(self, node: Node) -> float:
        low, high = self.qparams(node).range if self._observers[self.find(node)].seen else (0.0, 0.0)
        return high - low

    def joint_width(self, nodes: list[Node]) -> float:
        ranges = [self.qparams(node).range for node in nodes if self._observers[self.find(node)].seen]
        return max((high for _, high in ranges), default=0.0) - min((low for low, _ in ranges), default=0.0)
