"""Both graphs of a difference under common rows: a node and its partner stand at the same height.

The two graphs are laid over each other so that partners are one node; longest paths in this union give the rows, and each
side is then drawn on its own (see :mod:`fxcompress.report.layout`) under the rows that are given.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING

from fxcompress.report.layout import across_layers, inputs_of, levels
from fxcompress.report.model import NodeView

if TYPE_CHECKING:
    from fxcompress.report.difference import Difference, Group, SideNode, Sides

MAX_POINTS = 120_000
"""Points that the lines of one graph may pass; with more it is not drawn."""

Couple = tuple[str, str]


@dataclass(frozen=True)
class Column:
    """One side. ``row``, ``x``: of each node. ``via``: x of the line of a node in the rows below it, as far as its last reader."""

    row: dict[str, int]
    x: dict[str, float]
    via: dict[str, list[float]]


@dataclass(frozen=True)
class Aligned:
    """``couples``: (base, head) that stand at one height; ``rows``: how many there are."""

    base: Column
    head: Column
    couples: tuple[Couple, ...]
    rows: int


def align(difference: Difference, sides: Sides) -> Aligned | None:
    """Rows and places of all nodes; None where so many long lines run beside each other that nobody could read it."""
    couples = _couples(difference, sides)
    ordered = _union(sides, couples)
    if ordered is None:
        couples = _rising(couples, sides)
        ordered = _union(sides, couples) or []
    level = levels(ordered, {node.id: list(node.inputs) for node in ordered})
    dense = {row: place for place, row in enumerate(sorted(set(level.values())))}
    keys = _keys(couples)
    rows = [{node.id: dense[level[keys[side].get(node.id, _key(side, node.id))]] for node in nodes} for side, nodes in _both(sides)]
    columns = [_column(nodes, rows[side]) for side, nodes in _both(sides)]
    return Aligned(columns[0], columns[1], tuple(couples), len(dense)) if columns[0] and columns[1] else None


def _both(sides: Sides) -> Iterable[tuple[int, tuple[SideNode, ...]]]:
    return enumerate((sides.base, sides.head))


def _couples(difference: Difference, sides: Sides) -> list[Couple]:
    """Partners, each node once, without the moved ones, and the nodes of groups that stand for each other."""
    moved = {move.head.name for move in difference.moved}
    known = [{node.id for node in nodes} for _, nodes in _both(sides)]
    wanted = [(m.base, m.head) for m in sides.matches if m.head not in moved]
    wanted += [couple for group in difference.groups for couple in anchors(group)]
    used: tuple[set[str], set[str]] = (set(), set())
    couples = []
    for couple in wanted:
        if all(name in known[side] and name not in used[side] for side, name in enumerate(couple)):
            couples.append(couple)
            for side, name in enumerate(couple):
                used[side].add(name)
    return couples


def anchors(group: Group) -> list[Couple]:
    """Each node of head beside the first node of base of its kind; a single one beside the first node, whatever that is."""
    left = {place.name: place.kind for place in group.base}
    found = []
    for place in group.head:
        kind = place.kind.split("+")[0]
        same = next((name for name, other in left.items() if other.split("+")[0] == kind), None)
        if same is None and len(group.head) == 1:
            same = next(iter(left), None)
        if same is not None:
            found.append((same, place.name))
            del left[same]
    return found


def _key(side: int, name: str) -> str:
    return f"{side}{name}"


def _keys(couples: Iterable[Couple]) -> tuple[dict[str, str], dict[str, str]]:
    """For each side, the names of the nodes in the union that have a partner."""
    listed = list(couples)
    return {base: _key(0, base) for base, _ in listed}, {head: _key(0, base) for base, head in listed}


def _union(sides: Sides, couples: Sequence[Couple]) -> list[NodeView] | None:
    """The union, its nodes after all that they read; None when it has a cycle."""
    keys = _keys(couples)
    kinds: dict[str, str] = {}
    reads: dict[str, list[str]] = {}
    for side, nodes in _both(sides):
        for name, inputs in inputs_of(nodes).items():
            key = keys[side].get(name, _key(side, name))
            reads.setdefault(key, []).extend(keys[side].get(i, _key(side, i)) for i in inputs)
        kinds.update((keys[side].get(node.id, _key(side, node.id)), node.kind) for node in nodes)
    try:
        order = list(TopologicalSorter(reads).static_order())
    except CycleError:
        return None
    return [NodeView(key, "", kinds[key], inputs=tuple(dict.fromkeys(reads[key]))) for key in order]


def _rising(couples: Sequence[Couple], sides: Sides) -> list[Couple]:
    """The most couples whose order is the same in both graphs (longest increasing subsequence); their union has no cycle."""
    place = [{node.id: at for at, node in enumerate(nodes)} for _, nodes in _both(sides)]
    ordered = sorted(couples, key=lambda couple: place[0][couple[0]])
    tails: list[int] = []
    ends: list[int] = []
    before: list[int] = []
    for at, (_, head) in enumerate(ordered):
        length = bisect_left(tails, place[1][head])
        before.append(ends[length - 1] if length else -1)
        tails[length:] = [place[1][head], *tails[length + 1 :]]
        ends[length:] = [at, *ends[length + 1 :]]
    chain, at = [], ends[-1] if ends else -1
    while at >= 0:
        chain.append(ordered[at])
        at = before[at]
    return chain[::-1]


def _column(nodes: tuple[SideNode, ...], row: dict[str, int]) -> Column | None:
    inputs = inputs_of(nodes)
    last = dict(row)
    for name, sources in inputs.items():
        for source in sources:
            last[source] = max(last[source], row[name])
    if sum(last[name] - row[name] for name in row) > MAX_POINTS:
        return None
    across = across_layers(inputs, row)
    left = min((across[(name, at)] for name, at in row.items()), default=0.0)
    x = {name: across[(name, at)] - left for name, at in row.items()}
    via = {name: [across[(name, at)] - left for at in range(row[name] + 1, last[name])] for name in row}
    return Column(row, x, via)
