"""What a difference says about the graphs, as sentences, the worst first, before any form is given to them.

A finding is one sentence about one node. Findings with one theme ("batch_norm removed") are told together, with the
number of their nodes and a few of them as examples, so that a change of every layer is a line and not a page.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fxcompress.report import units
from fxcompress.report.diff_values import Name, Phrase, joined, shorten
from fxcompress.report.sentences import Sentence, sentences

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fxcompress.report.difference import Difference, Group, Moved, NodeChange, Place, Rewired

GRAPH, CHANGED, GROUPS = "graph", "changed", "merged"
"""Sections, in this order."""

_LABEL, _KIND = 44, 32  # characters


@dataclass(frozen=True)
class Finding:
    """One sentence about one node.

    Attributes:
        section: GRAPH, CHANGED or GROUPS.
        theme: equal for findings that may be told together.
        sign: "-", "+", "~" (rewired), ">" (moved), "=" (merged) or "*" (changed).
        what: what happened, without the node ("removed").
        detail: what is not the same for all nodes of the theme ("by 3.1 %"); may be empty.
        place: the node, of head unless it is gone there.
        rank: smaller is worse, within its section.
        note: what is told only where the node has a line for itself.
    """

    section: str
    theme: tuple[str, ...]
    sign: str
    what: Phrase
    detail: Phrase
    place: Place
    rank: tuple[float, ...] = ()
    note: Phrase = ()

    @property
    def label(self) -> Name:
        """How the node is called: its module path, else its name."""
        return label(self.place)


@dataclass(frozen=True)
class Told:
    """Findings that are told together, the worst first."""

    findings: tuple[Finding, ...]

    @property
    def first(self) -> Finding:
        return self.findings[0]

    @property
    def subject(self) -> Phrase:
        """ "conv layer1.0.conv1", or "20 conv" for many."""
        one, kinds = len(self.findings) == 1, {f.place.kind for f in self.findings}
        if self.first.section == GROUPS:  # whose kinds are told by what happened
            return (self.first.label,) if one else (f"{len(self.findings)} times",)
        if one:
            return (_kind(self.first.place), " ", self.first.label)
        return (f"{len(self.findings)} ", _kind(self.first.place) if len(kinds) == 1 else "nodes")

    @property
    def details_agree(self) -> bool:
        return len({f.detail for f in self.findings}) == 1

    @property
    def statement(self) -> Phrase:
        """What is true of all its nodes: "stride (1, 1) -> (2, 2)"."""
        first = self.first
        detail = (" ", *first.detail) if self.details_agree and first.detail else ()
        note = (", ", *first.note) if len(self.findings) == 1 and first.note else ()
        return (*first.what, *detail, *note)

    def examples(self, limit: int) -> tuple[Phrase, ...]:
        """The first nodes, each with its detail where they are not the same for all; none for a single one."""
        if len(self.findings) == 1:
            return ()
        shown = self.findings[:limit]
        often = Counter(f.label for f in shown)  # one module may be called at several places
        names = [(f.label, *((" at ", Name(shorten(f.place.name, _LABEL))) if often[f.label] > 1 else ())) for f in shown]
        return tuple(name if self.details_agree or not f.detail else (*name, " ", *f.detail) for name, f in zip(names, shown, strict=True))


def label(place: Place) -> Name:
    """A node in one short word: the module path where there is one, else the name."""
    return Name(shorten(place.path or place.name, _LABEL))


def _kind(place: Place) -> Name:
    return Name(units.clip(place.kind, _KIND))


def told(difference: Difference) -> list[Told]:
    """Everything about the graphs, the worst first."""
    themes: dict[tuple[str, ...], list[Finding]] = defaultdict(list)
    for finding in findings(difference):
        themes[(finding.section, *finding.theme)].append(finding)
    clusters = [Told(tuple(sorted(group, key=lambda f: (f.rank, f.place.index)))) for group in themes.values()]
    sections = (GRAPH, CHANGED, GROUPS)
    return sorted(clusters, key=lambda t: (sections.index(t.first.section), t.first.rank, -len(t.findings)))


def findings(difference: Difference) -> list[Finding]:
    """One sentence for each thing that differs at a node, in the order of the graphs."""
    d = difference
    return [
        *(_rewired(r) for r in d.rewired),
        *(Finding(GRAPH, ("removed", p.kind), "-", ("removed",), (), p, (1,)) for p in d.removed),
        *(Finding(GRAPH, ("added", p.kind), "+", ("added",), (), p, (2,)) for p in d.added),
        *(_moved(m) for m in d.moved),
        *(_changed(said, node.head) for node in d.changed for said in sentences(node.changes)),
        *(_unexplained(node) for node in d.changed if not node.changes),
        *(_group(group) for group in d.groups),
        *(_changed(said, _stands_for(group)) for group in d.groups for said in sentences(group.changes)),
    ]


def _rewired(r: Rewired) -> Finding:
    was, now = (label(p) if p is not None else "nothing" for p in (r.was, r.now))
    return Finding(GRAPH, ("rewired",), "~", ("rewired",), (f"(operand {r.operand}: ", was, " -> ", now, ")"), r.head, (0,))


def _moved(m: Moved) -> Finding:
    was, now = (_names(places) for places in (m.after_base, m.after_head))
    return Finding(GRAPH, ("moved", m.head.kind), ">", ("moved",), ("(after ", *was, " -> after ", *now, ")"), m.head, (3,))


def _names(places: Iterable[Place]) -> Phrase:
    return joined([(label(p),) for p in places], " and ") or ("nothing",)


def _group(g: Group) -> Finding:
    kind = (Name(units.clip(g.kind, 2 * _LABEL)),)
    return Finding(GROUPS, ("group", g.kind), "=", kind, _unsure(g.confidence), _stands_for(g), (-len(g.base),))


def _stands_for(g: Group) -> Place:
    """The node of head that has the name of one in base, else the last one."""
    known = {place.path for place in g.base if place.path}
    return next((place for place in g.head if place.path in known), (g.head or g.base)[-1])


def _unsure(confidence: float) -> Phrase:
    return () if confidence >= 0.5 else (f"(match is a guess, {confidence:.0%})",)


def _unexplained(node: NodeChange) -> Finding:
    return Finding(CHANGED, ("other",), "*", ("not the same",), _unsure(node.confidence), node.head, (math.inf,))


def _changed(said: Sentence, place: Place) -> Finding:
    return Finding(CHANGED, ("changed", *said.what), "*", said.what, said.detail, place, said.rank, said.note)
