"""Pairs of nodes from what they compute: two graphs that were run on the same inputs have equal numbers where they do the same."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from fxcompress.compare.hashes import LEVELS, Side
from fxcompress.compare.pairing import Pairing
from fxcompress.compare.schema import Sketch
from fxcompress.compare.sketch import distance

SAME = 1e-4
"""Relative L2 distance of one value that was computed in two orders."""

_NEAR = 16  # values of like length that are looked at
_UP = 4  # edges above a value up to the layer that makes it


def by_values(pairing: Pairing) -> None:
    """Pair unpaired operations of one kind that alone give a value in both graphs, then layers that make it, a few nodes above.

    "conv + bn + relu" and "conv+relu" give one value; the layers in them are one layer if their weights have one shape (or else if they
    are of one kind).
    """
    twins = [] if pairing.done else _twins(pairing)
    for i, j in twins:
        if _free(pairing, i, j) and pairing.base.labels[_OPERATION][i] == pairing.head.labels[_OPERATION][j]:
            pairing.join(i, j, "values")
    for level in (_WEIGHTS, _FAMILY):
        for i, j in twins:
            _layers(pairing, i, j, level)


_WEIGHTS, _OPERATION, _FAMILY = LEVELS.index("weights"), LEVELS.index("operation"), LEVELS.index("family")


def _free(pairing: Pairing, i: int, j: int) -> bool:
    return pairing.head_of[i] < 0 and pairing.base_of[j] < 0


def _twins(pairing: Pairing) -> list[tuple[int, int]]:
    """Nodes (base, head) that alone give one value; nodes that pass a value on do not count."""
    base, head = _valued(pairing.base, pairing.head_of), _valued(pairing.head, pairing.base_of)
    ours, theirs = _nearest(pairing.base, pairing.head, base, head), _nearest(pairing.head, pairing.base, head, base)
    return [(i, j) for i, j in ours.items() if theirs.get(j) == i]


def _valued(side: Side, partner: Sequence[int]) -> list[int]:
    """Unpaired nodes with a value of their own: that no operand of theirs has."""
    found = []
    for node, record in enumerate(side.nodes):
        value = record.print
        if partner[node] >= 0 or value is None or not value.norm or not side.inputs[node]:
            continue
        if not any(_same(value, side.nodes[source].print) for source in side.inputs[node]):
            found.append(node)
    return found


def _nearest(side: Side, other: Side, nodes: list[int], others: list[int]) -> dict[int, int]:
    """The only one of ``others`` with the value of each node."""
    prints = {node: value for node in others if (value := other.nodes[node].print) is not None}
    ordered = sorted((value.count, value.norm, node) for node, value in prints.items())
    found = {}
    for node in nodes:
        value = side.nodes[node].print
        if value is None:
            continue
        start = bisect_left(ordered, (value.count, value.norm * (1 - SAME), -1))
        near = [at for count, norm, at in ordered[start : start + _NEAR] if count == value.count and norm <= value.norm * (1 + SAME)]
        same = [at for at in near if _same(value, prints[at])]
        if len(same) == 1:
            found[node] = same[0]
    return found


def _same(a: Sketch, b: Sketch | None) -> bool:
    return b is not None and (a.count, len(a.buckets)) == (b.count, len(b.buckets)) and distance(a, b) <= SAME * a.norm


def _layers(pairing: Pairing, i: int, j: int, level: int) -> None:
    """Pair the nearest layers of one label, at most a few unpaired nodes above base node i and head node j, which give one value."""
    ours = _above(pairing.base, i, pairing.head_of)
    theirs = _above(pairing.head, j, pairing.base_of)
    labels = pairing.base.labels[level], pairing.head.labels[level]
    found = [(ours[a] + theirs[b], a, b) for a in ours for b in theirs if labels[0][a] == labels[1][b]]
    if found:
        _, a, b = min(found)
        pairing.join(a, b, "values")


def _above(side: Side, start: int, partner: Sequence[int]) -> dict[int, int]:
    """Unpaired layers (with tensors) and how far they are above ``start``, through unpaired nodes."""
    if partner[start] >= 0:
        return {}
    seen, edge = {start: 0}, [start]
    for far in range(1, _UP + 1):
        edge = [n for n in dict.fromkeys(n for node in edge for n in side.inputs[node]) if partner[n] < 0 and n not in seen]
        seen.update(dict.fromkeys(edge, far))
    return {node: far for node, far in seen.items() if side.values[node] >= 0 and side.inputs[node]}
