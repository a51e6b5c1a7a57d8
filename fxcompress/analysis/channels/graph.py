"""Which channels must be removed together: the answer as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from fxcompress.analysis.base import Analyses, Analysis
from fxcompress.analysis.channels import joins, layers, moves, values
from fxcompress.analysis.channels.labels import FIXED, Array
from fxcompress.analysis.channels.run import LabelRun, Read
from fxcompress.analysis.channels.value import Value, axes
from fxcompress.analysis.shapes import Shapes, attribute
from fxcompress.ir.inputs import Inputs
from fxcompress.ir.verify import source_line
from fxcompress.ir.view import view

Role = Literal["producer", "consumer", "follower"]
Mask = NDArray[np.bool_]

PINNED = -1  # in place of a class: this index is never removed
_ROLES: dict[str, tuple[Role, Role]] = {
    "linear": ("producer", "consumer"),
    "conv": ("producer", "consumer"),
    "conv_transpose": ("consumer", "producer"),
    "embedding": ("follower", "producer"),
}


@dataclass(frozen=True)
class Slot:
    """One axis of a parameter or buffer that loses channels. A producer makes them, a consumer reads them, a follower
    (bias, norm, per-channel scale) goes along."""

    parameter: str
    axis: int
    role: Role


@dataclass(frozen=True)
class ChannelGroup:
    """Classes that live in the same slots, such as all channels of one residual stream. Each class is removed as a whole."""

    index: int
    classes: Array
    slots: tuple[Slot, ...]


@dataclass(frozen=True)
class Pinned:
    """An axis of a parameter of which ``count`` indices can never be removed, and why."""

    parameter: str
    axis: int
    count: int
    why: str
    node: str
    source: str | None


class ChannelDependencyGraph(Analysis):
    """Channel classes of a graph: which indices of which parameter axes must be kept or removed together.

    The graph is run on channel labels (see :mod:`fxcompress.analysis.channels.run`); the result does not refer to it.
    No data and no gradient is needed, so it works on frozen, half-precision and meta-device models.

    Attributes:
        classes: the number of removable classes.
        slots: for every (parameter or buffer, axis) that has channels, the class of each index, or ``PINNED``.
        groups: classes that live in the same slots.
        pinned: what can never be removed, with the reason.
        reads: where channels end: in a contraction, or in a statistic.
    """

    def __init__(self, module: GraphModule, inputs: Inputs, analyses: Analyses) -> None:
        super().__init__(module, inputs, analyses)
        run = LabelRun(module, analyses.get(Shapes), {**values.handlers(), **layers.handlers(), **moves.handlers(), **joins.handlers()})
        run.run()
        self._run = run
        self.reads: tuple[Read, ...] = tuple(run.reads)
        self._number = self._numbered(run)
        self.slots = {slot: self.classes_of(labels) for slot, labels in run.parameters.items()}
        self.groups = self._grouped()
        self.pinned = self._explained()

    def classes_of(self, labels: Array) -> Array:
        """The class of every label; PINNED for those that cannot be removed."""
        return self._number[self._run.labels.find(labels)]

    def kept(self, node: Node, keep: Mask) -> Any:
        """For every tensor that ``node`` gives, a dict from axis to the mask of the positions that remain.

        Args:
            keep: one flag per class.
        """
        return pytree.tree_map_only(Value, lambda value: self._kept_of(value, keep), self._run.values[node])

    def channel_axes(self, node: Node) -> set[int]:
        """The axes of the node's tensor that hold channels of some parameter."""
        value = self._run.values[node]
        return {axis for factor in value.factors for axis in axes(factor)} if isinstance(value, Value) else set()

    def along(self, node: Node) -> dict[int, tuple[Array, ...]]:
        """For every axis of the node's tensor that holds channels, the class at each position, or ``PINNED``.

        Where an axis has several arrays, a position remains when all of its classes do. Empty for a node that does not
        give one tensor.
        """
        value = self._run.values[node]
        return self._along(value) if isinstance(value, Value) else {}

    def along_parameter(self, path: str) -> dict[int, Array]:
        """The same of the parameter or buffer at ``path``, under whichever of its names."""
        name = self._run.name_of(path)
        rank = attribute(self.module, path).ndim
        return {axis: self.slots[name, axis] for axis in range(rank) if (name, axis) in self.slots}

    def _along(self, value: Value) -> dict[int, tuple[Array, ...]]:
        found: dict[int, tuple[Array, ...]] = {}
        for factor in self._run.settled(value).factors:
            axis = axes(factor)[0]
            found[axis] = (*found.get(axis, ()), self.classes_of(factor).ravel())
        return found

    def classes_along(self, node: Node, axis: int) -> Array | None:
        """The class of every position along ``axis`` of the node's tensor; None where it holds no channels."""
        value = self._run.values[node]
        for factor in self._run.settled(value).factors if isinstance(value, Value) else ():
            if axes(factor) == (axis,):
                return self.classes_of(factor).ravel()
        return None

    def _kept_of(self, value: Value, keep: Mask) -> dict[int, Mask]:
        flags = np.append(keep, True)
        masks = {axis: np.logical_and.reduce([flags[c] for c in classes]) for axis, classes in self._along(value).items()}
        return {axis: mask for axis, mask in masks.items() if not mask.all()}

    def _numbered(self, run: LabelRun) -> Array:
        """Dense numbers for the roots that can be removed."""
        roots = run.labels.find(np.arange(run.labels.count))
        pinned = np.zeros(run.labels.count, dtype=bool)
        pinned[FIXED] = True
        for pin in run.pins:
            pinned[run.labels.find(pin.labels)] = True
        for labels in run.parameters.values():  # what would leave nothing stays
            found = np.unique(run.labels.find(labels))
            if len(found) == 1:
                pinned[found] = True
        owned = np.zeros(run.labels.count, dtype=bool)
        for labels in run.parameters.values():
            owned[run.labels.find(labels)] = True
        removable = (roots == np.arange(run.labels.count)) & owned & ~pinned
        number = np.full(run.labels.count, PINNED, dtype=np.int64)
        number[removable] = np.arange(int(removable.sum()))
        self.classes = int(removable.sum())
        return number

    def _grouped(self) -> tuple[ChannelGroup, ...]:
        signature = np.zeros(self.classes, dtype=np.uint64)
        for place, classes in enumerate(self.slots.values()):
            found, counts = np.unique(classes[classes != PINNED], return_counts=True)
            signature[found] += _mixed(np.uint64(place) * np.uint64(1 << 32) + counts.astype(np.uint64))
        for place, labels in enumerate(self._run.parts, start=len(self.slots)):  # of every piece something must stay
            found = np.unique(self.classes_of(labels))
            signature[found[found != PINNED]] += _mixed(np.asarray([place], dtype=np.uint64) * np.uint64(1 << 32))
        _, first, group = np.unique(signature, return_index=True, return_inverse=True)
        order = np.argsort(first)
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        group = rank[group]
        members: list[list[Slot]] = [[] for _ in order]
        roles = self._roles()
        for (name, axis), classes in self.slots.items():
            for index in np.unique(group[classes[classes != PINNED]]) if self.classes else ():
                members[index].append(Slot(name, axis, roles.get((name, axis), "follower")))
        by_group = (
            np.split(np.argsort(group, kind="stable"), np.cumsum(np.bincount(group, minlength=len(order)))[:-1]) if len(order) else []
        )
        return tuple(ChannelGroup(i, np.sort(found), tuple(members[i])) for i, found in enumerate(by_group))

    def _roles(self) -> dict[tuple[str, int], Role]:
        roles: dict[tuple[str, int], Role] = {}
        names = self._run.names
        for read in self._run.reads:  # x @ w: the axis of w that is contracted reads, the others make
            if read.how == "contract" and read.operand.op == "get_attr":
                name = self._run.name_of(str(read.operand.target))
                for axis in range(attribute(self.module, str(read.operand.target)).ndim):
                    if axis == read.axis or (name, axis) not in roles:
                        roles[name, axis] = "consumer" if axis == read.axis else "producer"
        for node in self.module.graph.nodes:
            op = view(node, "recurrent") if node.op == "call_module" else None
            if op is not None and op.module is not None:
                for leaf, tensor in op.module.named_parameters():
                    if tensor.ndim == 2:
                        name = names.get(id(tensor), f"{node.target}.{leaf}")
                        roles[name, 0], roles[name, 1] = "producer", "consumer"
            op = view(node, *_ROLES) if node.op.startswith("call_") else None
            if op is None:
                continue
            weight = op.operands.get("weight")
            if op.module is not None:
                name = names.get(id(op.module.weight), f"{node.target}.weight")
            elif isinstance(weight, Node) and weight.op == "get_attr":
                name = self._run.name_of(str(weight.target))
            else:
                continue
            for axis, role in enumerate(_ROLES[op.kind]):
                roles[name, axis] = role
        return roles

    def _explained(self) -> tuple[Pinned, ...]:
        reasons: dict[int, tuple[str, Node]] = {}
        for pin in self._run.pins:
            for root in np.unique(self._run.labels.find(pin.labels)).tolist():
                reasons.setdefault(root, (pin.why, pin.node))
        lines = []
        for (name, axis), classes in self.slots.items():
            stuck = self._run.labels.find(self._run.parameters[name, axis])[classes == PINNED]
            if not stuck.size:
                continue
            why, node = reasons.get(int(stuck[0]), ("all its channels go together", None))
            lines.append(Pinned(name, axis, stuck.size, why, node.name if node else "", source_line(node) if node else None))
        return tuple(lines)


def _mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64 (Steele et al., 2014), so that sums of different numbers differ."""
    z = numbers + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
