"""What a node gives: how many tensors, in which dtype, of which shape, and on which grid of integers.

A value that differs only because the values that it is made of do (the dtype of a relu behind a conv that became float16) is told at its
source and not at each node behind it. A node that gained or lost its integers is always told: it is what "no float islands" asks for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict

from fxcompress.compare.correspondence import Correspondence
from fxcompress.compare.schema import Grid, NodeRecord, Value
from fxcompress.report.difference import Change

_SOURCES = ("input", "output")
"""Kinds whose shapes and dtypes the contract tells."""


def values(nodes: Correspondence, base: int, head: int, own: list[Change]) -> Iterator[Change]:
    """The changes of the outputs of a matched node. ``own``: what else has changed at it."""
    was, now = nodes.base.nodes[base], nodes.head.nodes[head]
    if len(was.outputs) != len(now.outputs):
        yield Change("shape", "number of outputs", len(was.outputs), len(now.outputs))
        return
    inherited = _Inherited(nodes, base, head)
    for place, (old, new) in enumerate(zip(was.outputs, now.outputs, strict=True)):
        if old != new:
            name = str(place) if len(was.outputs) > 1 else ""
            yield from _value(name, old, new, was, own, inherited)


class _Inherited:
    """What has changed at the values that a node reads."""

    def __init__(self, nodes: Correspondence, base: int, head: int) -> None:
        was, now = nodes.base.nodes[base].inputs, nodes.head.nodes[head].inputs
        known = [(i, j) for i, j in zip(was, now, strict=False) if nodes.partner.get(i) == j]
        read = [(nodes.base.nodes[i].outputs, nodes.head.nodes[j].outputs) for i, j in known]
        #: some operand is another one than before, so its values say nothing
        self.other = len(known) < max(len(was), len(now))
        self.pairs = [pair for olds, news in read for pair in zip(olds, news, strict=False)]
        self.shape = self.other or any(len(olds) != len(news) for olds, news in read) or any(a.shape != b.shape for a, b in self.pairs)
        self.dtype = self.other or any(a.dtype != b.dtype for a, b in self.pairs)

    def grid(self, old: Grid, new: Grid) -> bool:
        return any((a.grid, b.grid) == (old, new) for a, b in self.pairs)


def _value(name: str, old: Value, new: Value, node: NodeRecord, own: list[Change], inherited: _Inherited) -> Iterator[Change]:
    told = node.kind in _SOURCES
    if old.dtype != new.dtype and not told and (not inherited.dtype or _touches(own, "dtype")):
        yield Change("dtype", name, old.dtype, new.dtype)
    if old.shape != new.shape and not told and (not inherited.shape or _touches(own, "shape")):
        yield Change("shape", name, list(old.shape), list(new.shape))
    if old.grid != new.grid and not (old.grid and new.grid and inherited.grid(old.grid, new.grid)):
        yield Change("quantization", name, _plain(old.grid), _plain(new.grid), _amount(old.grid, new.grid))


def _touches(own: list[Change], aspect: str) -> bool:
    """Whether a change of the node itself may change the dtype or shape of its output."""
    return any(
        change.what in ("target", "attribute")
        or (change.what == "tensor" and (change.base is None or change.head is None or change.base[aspect] != change.head[aspect]))
        for change in own
    )


def _plain(grid: Grid | None) -> dict[str, float | int] | None:
    return None if grid is None else asdict(grid)


def _amount(old: Grid | None, new: Grid | None) -> float | None:
    """How far the scales are apart, relative to the larger one."""
    if old is None or new is None or old.scale == new.scale:
        return None
    larger = max(abs(old.scale), abs(new.scale))
    return abs(old.scale - new.scale) / larger if math.isfinite(larger) else None
