"""Labels for the channels of values; see :mod:`~fxcompress.passes.scale_groups`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.fx import Node

from fxcompress.passes.scale_intervals import Interval


@dataclass(frozen=True)
class Channels:
    """The labels of a value, one per channel along ``axis``, and bounds of the numbers in each channel."""

    axis: int
    labels: Tensor  # (C,) int64
    interval: Interval


@dataclass(frozen=True)
class Writer:
    """A layer or an affine norm whose output channels carry ``labels``."""

    node: Node
    labels: Tensor
    kind: str


@dataclass(frozen=True)
class Reader:
    """A layer whose input channels carry ``labels``."""

    node: Node
    labels: Tensor

    @property
    def source(self) -> Node:
        """The value that is read."""
        return self.node.all_input_nodes[0]


@dataclass(frozen=True)
class Group:
    """Labels that are scaled together; ``least`` is the smallest scale that each may have (1 and nothing else where ``fixed``)."""

    labels: Tensor  # (n,) int64, sorted
    fixed: Tensor  # (n,) bool
    least: Tensor  # (n,) float64
    writers: tuple[Writer, ...]
    readers: tuple[Reader, ...]

    def places(self, labels: Tensor) -> Tensor:
        """Where in the group these labels are."""
        return torch.searchsorted(self.labels, labels)


@dataclass
class Labels:
    """Union-find over labels; some are pinned, some bounded."""

    parent: list[int] = field(default_factory=list)
    pinned: set[int] = field(default_factory=set)
    bounds: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # labels, least scales
    tied: list[Tensor] = field(default_factory=list)  # labels of one value

    def new(self, count: int) -> Tensor:
        start = len(self.parent)
        self.parent.extend(range(start, start + count))
        return torch.arange(start, start + count)

    def find(self, label: int) -> int:
        while self.parent[label] != label:
            self.parent[label] = self.parent[self.parent[label]]
            label = self.parent[label]
        return label

    def unite(self, a: Tensor, b: Tensor) -> None:
        for one, other in zip(a.tolist(), b.tolist(), strict=True):
            self.parent[self.find(one)] = self.find(other)

    def pin(self, labels: Tensor) -> None:
        self.pinned.update(labels.tolist())

    def roots(self, labels: Tensor) -> Tensor:
        return torch.tensor([self.find(label) for label in labels.tolist()], dtype=torch.int64)


def connected(values: Sequence[Tensor], count: int) -> list[Tensor]:
    """Sets of labels that stand together in a value, directly or over others; each sorted."""
    sets = Labels()
    sets.new(count)
    seen = torch.zeros(count, dtype=torch.bool)
    for labels in values:
        seen[labels] = True
        sets.unite(labels[:-1], labels[1:])
    used = seen.nonzero().flatten()
    roots = sets.roots(used)
    return [used[roots == root] for root in roots.unique().tolist()]
