"""Follows the channels that are left through operations without weights: which of them arrive at the next layer."""

from __future__ import annotations

from typing import TypeAlias

from fxcompress.compare.correspondence import Correspondence, Side

Sizes: TypeAlias = tuple[int, int]
"""How long an axis is in base and in head."""

Known: TypeAlias = dict[Sizes, tuple[int, ...]]
"""Which places of the longer side are left on the shorter one, by the sizes of the axis."""


class Flow:
    """What is known of the axes of every value."""

    def __init__(self, nodes: Correspondence) -> None:
        self._nodes = nodes
        self._known: dict[int, Known] = {}

    def into(self, base: int, head: int) -> Known:
        """What is known of the values that a matched node reads."""
        merged: Known = {}
        for known in self._read(base, head):
            merged = {**known, **merged}
        return merged

    def note(self, base: int, head: int, own: Known) -> None:
        """Keep what is known of the value of a matched node. ``own``: from its weights."""
        sizes = self._axes(base, head)
        read = self._read(base, head)
        known: Known = {}
        for size in sizes:
            places = own.get(size)
            if places is None and not own:
                places = _passed(size, read) if len(read) == 1 else self._joined(size, base, head, read)
            if places is not None:
                known[size] = places
        token = self._token(self._nodes.sides[0], base)
        if known and token >= 0:
            self._known[token] = known

    def _axes(self, base: int, head: int) -> list[Sizes]:
        """The axes of the first output that have other sizes."""
        was, now = self._nodes.base.nodes[base].outputs, self._nodes.head.nodes[head].outputs
        if not was or not now or len(was[0].shape) != len(now[0].shape):
            return []
        return [(a, b) for a, b in zip(was[0].shape, now[0].shape, strict=True) if a != b]

    def _read(self, base: int, head: int) -> list[Known]:
        """By operand."""
        left, right = self._nodes.sides
        was, now = self._nodes.base.nodes[base].inputs, self._nodes.head.nodes[head].inputs
        tokens = [(self._token(left, i), self._token(right, j)) for i, j in zip(was, now, strict=False)]
        return [self._known.get(a, {}) if a == b else {} for a, b in tokens]

    def _token(self, side: Side, node: int) -> int:
        """Of a node, or of the only one that a node without partner is computed from; -1 when there are several."""
        token = side.token(node)
        if token >= 0:
            return token
        bits = side.reach(node)
        return bits.bit_length() - 1 if bits and not bits & (bits - 1) else -1

    def _joined(self, size: Sizes, base: int, head: int, read: list[Known]) -> tuple[int, ...] | None:
        """Of several operands: that of one that has this axis, or the operands' axes one after the other (a concatenation)."""
        same = next((known[size] for known in read if size in known), None)
        if same is not None:
            return same
        was, now = self._nodes.base.nodes[base], self._nodes.head.nodes[head]
        shapes = [
            (self._nodes.base.nodes[i].outputs, self._nodes.head.nodes[j].outputs) for i, j in zip(was.inputs, now.inputs, strict=False)
        ]
        axis = _axis_of(size, was.outputs[0].shape, now.outputs[0].shape)
        places: list[int] = []
        start = [0, 0]
        for (old, new), known in zip(shapes, read, strict=True):
            if not old or not new or len(old[0].shape) <= axis or len(new[0].shape) <= axis:
                return None
            part = old[0].shape[axis], new[0].shape[axis]
            kept = range(part[0]) if part[0] == part[1] else known.get(part)
            if kept is None:
                return None
            places += [start[size[0] < size[1]] + place for place in kept]
            start = [start[0] + part[0], start[1] + part[1]]
        return tuple(places) if tuple(start) == size else None


def _axis_of(size: Sizes, was: tuple[int, ...], now: tuple[int, ...]) -> int:
    return next(axis for axis, sizes in enumerate(zip(was, now, strict=True)) if sizes == size)


def _passed(size: Sizes, read: list[Known]) -> tuple[int, ...] | None:
    """Through an operation of one operand: the axis as it was, or with ``step`` places for each (flattened)."""
    for (was, now), places in read[0].items():
        step = size[0] // was if was and now else 0
        if step and (was * step, now * step) == size:
            return tuple(place * step + at for place in places for at in range(step))
    return None
