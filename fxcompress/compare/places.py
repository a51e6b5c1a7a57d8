"""Nodes of a snapshot as a reader finds them."""

from __future__ import annotations

from collections.abc import Iterable

from fxcompress.compare.schema import Snapshot
from fxcompress.report.difference import Place


def place(snapshot: Snapshot, index: int) -> Place:
    """Node ``index`` of ``snapshot``."""
    node = snapshot.nodes[index]
    return Place(node.name, node.kind, node.path, node.source, index)


def places(snapshot: Snapshot, indices: Iterable[int]) -> tuple[Place, ...]:
    """Several of them, in the order of the graph, each once."""
    return tuple(place(snapshot, index) for index in sorted(set(indices)))
