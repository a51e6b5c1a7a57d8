"""Finds what takes more bits than it did: an int8 node that became float, float16 that became float32."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from fxcompress.compare.schema import NodeRecord, Snapshot
from fxcompress.report.difference import Change, Difference, Place

_FLOAT_BITS = 32


def widened(difference: Difference, base: Snapshot | None, head: Snapshot) -> list[str]:
    """A line for every node whose values take more bits in the head than in the base.

    Nodes that were matched tell it by their changes. An integer layer and the float layer in its place may also be so different that
    they count as removed and added; they are one layer where operation and multiply-adds, or their module's path, are the same.
    """
    found = {node.head.name: line for node in difference.changed for line in _lines(node.head.path or node.head.name, node.changes)}
    found |= {group.kind: line for group in difference.groups for line in _lines(group.kind, group.changes)}
    if base is not None:
        found = _replaced(difference, base, head) | found
    return list(found.values())


def _lines(name: str, changes: tuple[Change, ...]) -> list[str]:
    wider = (_wider(change) for change in changes)
    return [f"{name}: {words}" for words in wider if words][:1]


def _wider(change: Change) -> str:
    """In words, or "" where a change takes no more bits."""
    if change.what in ("dtype", "tensor"):
        names = [value.get("dtype") if isinstance(value, Mapping) else value for value in (change.base, change.head)]
        was, now = bits(names[0]), bits(names[1])
        return f"{change.name} {names[0]} -> {names[1]}".lstrip() if was and now and now > was else ""
    if change.what == "quantization":
        was, now = bits(change.base), bits(change.head) or _FLOAT_BITS
        return f"{was} bits -> {f'{now} bits' if bits(change.head) else 'float'}" if was and now > was else ""
    return ""


def bits(value: Any) -> int:
    """Of one element of a dtype ("torch.int8", "uint8") or of a grid ({"bits": 8}); 0 where ``value`` is neither."""
    if isinstance(value, Mapping):
        held = value.get("bits", 0)
        return held if isinstance(held, int) else 0
    dtype = getattr(torch, value.removeprefix("torch."), None) if isinstance(value, str) else None
    return dtype.itemsize * 8 if isinstance(dtype, torch.dtype) else 0


def _replaced(difference: Difference, base: Snapshot, head: Snapshot) -> dict[str, str]:
    gone = _layers(base, (*difference.removed, *(place for group in difference.groups for place in group.base)), integer=True)
    new = _layers(head, (*difference.added, *(place for group in difference.groups for place in group.head)), integer=False)
    found = {}
    for node in new:
        twin = next((other for other in gone if _one_layer(other, node)), None)
        if twin is not None:
            found[node.name] = f"{node.path or node.name}: {_bits_of(twin)} bits -> {node.outputs[0].dtype}"
    return found


def _layers(snapshot: Snapshot, places: tuple[Place, ...], *, integer: bool) -> list[NodeRecord]:
    """Nodes with multiply-adds that compute in integers, or that do not."""
    names = {place.name for place in places}
    return [n for n in snapshot.nodes if n.name in names and n.macs and n.outputs and bool(_bits_of(n)) is integer]


def _bits_of(node: NodeRecord) -> int:
    """Of the integers that a node gives; 0 for floating-point values."""
    first = node.outputs[0]
    if first.grid is not None:
        return first.grid.bits
    return 0 if "float" in first.dtype else bits(first.dtype)


def _one_layer(base: NodeRecord, head: NodeRecord) -> bool:
    kinds = [node.kind.partition("+")[0] for node in (base, head)]
    return kinds[0] == kinds[1] and (base.macs == head.macs or (base.path != "" and base.path == head.path))
