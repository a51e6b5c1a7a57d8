"""What the script of the page of a difference draws: graphs, places, folds and what is known of each node, as short JSON.

Texts stand once in one list and are named by their places in it; a graph that is the head of one step and the base of the
next is there once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from fxcompress.report import units
from fxcompress.report.diff_align import Aligned, Column, align
from fxcompress.report.diff_folds import Fold, Row, folds
from fxcompress.report.diff_values import plain
from fxcompress.report.drawing import FAMILIES, family
from fxcompress.report.findings import Finding, findings

if TYPE_CHECKING:
    from fxcompress.report.difference import Difference, Group, Place, SideNode, Sides

MAX_DRAWN = 3000
"""Graphs with more nodes are not drawn; a browser would be slow with them."""

_FAMILIES = (*FAMILIES, "other")


class Names:
    """Where the nodes of a difference stand in its sides."""

    def __init__(self, sides: Sides) -> None:
        self._places = [{node.id: at for at, node in enumerate(nodes)} for nodes in (sides.base, sides.head)]

    def base(self, place: Place | None) -> int:
        """-1 where it is not drawn."""
        return -1 if place is None else self._places[0].get(place.name, -1)

    def head(self, place: Place | None) -> int:
        return -1 if place is None else self._places[1].get(place.name, -1)

    def members(self, group: Group) -> tuple[list[int], list[int]]:
        """The nodes of a group on both sides, without those that are not drawn."""
        return [at for at in map(self.base, group.base) if at >= 0], [at for at in map(self.head, group.head) if at >= 0]

    def of(self, finding: Finding) -> tuple[int, int]:
        """Side (0 base, 1 head) and place of the node of a finding; the place is -1 where it is not drawn."""
        if finding.sign == "-" or self.head(finding.place) < 0:
            return 0, self.base(finding.place)
        return 1, self.head(finding.place)


class Tables:
    """Texts and graphs that are written once."""

    def __init__(self) -> None:
        self.texts: dict[str, int] = {}
        self.graphs: list[dict[str, Any]] = []
        self._known: dict[tuple[SideNode, ...], int] = {}

    def text(self, value: str) -> int:
        return self.texts.setdefault(units.printable(value), len(self.texts))

    def graph(self, nodes: tuple[SideNode, ...]) -> int:
        if nodes not in self._known:
            self._known[nodes] = len(self.graphs)
            self.graphs.append(self._columns(nodes))
        return self._known[nodes]

    def _columns(self, nodes: tuple[SideNode, ...]) -> dict[str, Any]:
        place = {node.id: at for at, node in enumerate(nodes)}
        return {
            "id": [self.text(node.id) for node in nodes],
            "name": [self.text(node.name) for node in nodes],
            "kind": [self.text(node.kind) for node in nodes],
            "family": [_FAMILIES.index(family(node.kind)) for node in nodes],
            "detail": [self.text(node.detail) for node in nodes],
            "shape": [self.text(node.shape) for node in nodes],
            "source": [self.text(node.source or "") for node in nodes],
            "path": [self.text(node.path) for node in nodes],
            "from": [[self.text(name) for name in node.from_] for node in nodes],
            "in": [[place[i] for i in dict.fromkeys(node.inputs) if i in place and i != node.id] for node in nodes],
            "macs": [node.macs for node in nodes],
            "bytes": [node.bytes for node in nodes],
        }


def drawn(sides: Sides | None) -> bool:
    """Whether there is something to draw, and not too much."""
    return sides is not None and 0 < max(len(sides.base), len(sides.head)) <= MAX_DRAWN


def data(steps: Sequence[Difference]) -> dict[str, Any]:
    """All steps; a step that is not drawn is None."""
    tables = Tables()
    listed = [_step(tables, difference) for difference in steps]
    return {"texts": list(tables.texts), "families": list(_FAMILIES), "graphs": tables.graphs, "steps": listed}


def _step(tables: Tables, difference: Difference) -> dict[str, Any] | None:
    sides = difference.sides
    if sides is None or not drawn(sides):
        return None
    aligned = align(difference, sides)
    if aligned is None:
        return None
    names = Names(sides)
    base = {node.id: at for at, node in enumerate(sides.base)}
    head = {node.id: at for at, node in enumerate(sides.head)}
    signs = marks(difference, names)
    return {
        "graphs": [tables.graph(sides.base), tables.graph(sides.head)],
        "rows": aligned.rows,
        "places": [_places(sides.base, aligned.base), _places(sides.head, aligned.head)],
        "couples": [[base[one], head[other]] for one, other in aligned.couples],
        "pairs": [
            [base[m.base], head[m.head], round(100 * m.confidence), tables.text(m.how)]
            for m in sides.matches
            if m.base in base and m.head in head
        ],
        "marks": [[[at, side[at]] for at in sorted(side)] for side in signs],
        "groups": [[*names.members(g), tables.text(g.kind), round(100 * g.confidence)] for g in difference.groups],
        "notes": [
            [*names.of(f), tables.text(f.sign), tables.text(plain(f.what)), tables.text(plain(f.detail))] for f in findings(difference)
        ],
        "folds": [_fold(tables, fold) for fold in folds(_rows(difference, sides, aligned, signs))],
        "sqnr": _sqnr(difference, base, head),
        "drop": [names.base(difference.numbers.first_drop_base), names.head(difference.numbers.first_drop)],
    }


def marks(difference: Difference, names: Names) -> tuple[dict[int, str], dict[int, str]]:
    """For each side the nodes that are not as they were, with one sign for each reason (see :class:`Finding`)."""
    d = difference
    every: list[tuple[str, Iterable[Place], Iterable[Place]]] = [
        ("-", d.removed, ()),
        ("+", (), d.added),
        ("*", (c.base for c in d.changed), (c.head for c in d.changed)),
        ("~", (r.base for r in d.rewired), (r.head for r in d.rewired)),
        (">", (m.base for m in d.moved), (m.head for m in d.moved)),
        ("=", (p for g in d.groups for p in g.base), (p for g in d.groups for p in g.head)),
        ("*", (g.base[0] for g in d.groups if g.base and g.changes), (g.head[0] for g in d.groups if g.head and g.changes)),
    ]
    signs: tuple[dict[int, str], dict[int, str]] = ({}, {})
    for sign, base, head in every:
        for side, found in ((0, map(names.base, base)), (1, map(names.head, head))):
            for at in found:
                if at >= 0 and sign not in signs[side].get(at, ""):
                    signs[side][at] = signs[side].get(at, "") + sign
    return signs


def _places(nodes: tuple[SideNode, ...], column: Column) -> dict[str, Any]:
    return {
        "row": [column.row[node.id] for node in nodes],
        "x": [round(column.x[node.id]) for node in nodes],
        "via": [_runs([round(x) for x in column.via[node.id]]) for node in nodes],
    }


def _runs(values: Sequence[int]) -> list[int]:
    """Value, how often, value, how often: long lines run straight."""
    runs: list[int] = []
    for value in values:
        if runs and runs[-2] == value:
            runs[-1] += 1
        else:
            runs += [value, 1]
    return runs


def _rows(difference: Difference, sides: Sides, aligned: Aligned, signs: tuple[dict[int, str], dict[int, str]]) -> list[Row]:
    """What the rows hold. The changes of a node count by their themes: of two blocks with the same new stride one is folded."""
    themes: dict[tuple[int, int], list[tuple[str, ...]]] = defaultdict(list)
    names = Names(sides)
    for finding in findings(difference):
        themes[names.of(finding)].append(finding.theme)
    tokens: list[list[tuple[Any, ...]]] = [[] for _ in range(aligned.rows)]
    paths = [""] * aligned.rows
    sizes = [[0, 0] for _ in range(aligned.rows)]
    for side, nodes, column in ((0, sides.base, aligned.base), (1, sides.head, aligned.head)):
        for at, node in enumerate(nodes):
            row = column.row[node.id]
            tokens[row].append((side, node.kind, len(node.inputs), signs[side].get(at, ""), tuple(themes.get((side, at), ()))))
            paths[row] = paths[row] or node.path
            sizes[row][side] += 1
    changed = {column.row[nodes[at].id] for side, nodes, column in _sides(sides, aligned) for at in signs[side]}
    return [Row(tuple(sorted(token)), row in changed, paths[row], max(sizes[row])) for row, token in enumerate(tokens)]


def _sides(sides: Sides, aligned: Aligned) -> Iterable[tuple[int, tuple[SideNode, ...], Column]]:
    return ((0, sides.base, aligned.base), (1, sides.head, aligned.head))


def _fold(tables: Tables, fold: Fold) -> list[Any]:
    return [fold.first, fold.last, tables.text(fold.title), tables.text(fold.where), [_fold(tables, inner) for inner in fold.inner]]


def _sqnr(difference: Difference, base: dict[str, int], head: dict[str, int]) -> list[list[Any]]:
    """Base node, head node, dB; a number that JSON does not know (inf, nan) is left out."""
    listed = [[base.get(n.base, -1), head.get(n.head, -1), round(n.sqnr_db, 2)] for n in difference.numbers.nodes if abs(n.sqnr_db) < 1e6]
    return [line for line in listed if line[0] >= 0 and line[1] >= 0]
