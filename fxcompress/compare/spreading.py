"""Pairs of nodes from pairs beside them: along edges, across nodes that only one graph has, and in the place of one another.

Greedy percolation as in graph alignment (Kazemi, Hassani, Grossglauser 2015, "Growing a graph matching from a handful of seeds"): every
pair votes for the pairs of its neighbours at the same operand place, and the candidates with the largest share of agreeing edges are taken
first.
"""

from __future__ import annotations

import heapq
import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence

from fxcompress.compare.hashes import Side
from fxcompress.compare.pairing import Pairing

_CROWD = 64  # so many pairs of users of one node are tried against each other; above, users are paired in order
_BRIDGE = 4  # edges through unpaired nodes that are looked across
_REACH = 24  # nodes that are looked at there
_MOST = 0.5  # share of the edges of two operations that have to agree if one replaced the other
_ALONE = frozenset(("input", "output", "constant"))  # never stand in the place of an operation

Labels = tuple[Sequence[int], Sequence[int]]


def spread(pairing: Pairing, level: int, *, across: bool = False) -> None:
    """Pair nodes of one label that are beside pairs; with ``across`` also those that have a few unpaired nodes between them."""
    if pairing.done:
        return
    spreading = _Spreading(pairing, (pairing.base.labels[level], pairing.head.labels[level]))
    spreading.run()
    if across:
        spreading.bridge()


class _Spreading:
    """Pairs nodes of equal ``labels`` (of base and head) that are beside pairs."""

    def __init__(self, pairing: Pairing, labels: Labels) -> None:
        self.pairing = pairing
        self.base, self.head = pairing.base, pairing.head
        self.labels = labels
        self._fresh: list[int] = []  # base nodes that were paired since the last look across
        self._votes: dict[tuple[int, int], int] = defaultdict(int)
        self._heap: list[tuple[float, int, int, int, int]] = []

    def run(self) -> None:
        """Along edges until nothing is left to pair."""
        for i in self._beside():
            self._spread(i, self.pairing.head_of[i])
        self._drain()

    def bridge(self) -> None:
        """Across a few unpaired nodes where edges lead no further, nearest first, and along edges from there."""
        open_pairs, self._fresh = self._beside(), []
        while open_pairs and not self.pairing.done:
            open_pairs, near = self._across(open_pairs)
            before = len(self.pairing.how)
            for _, _, i, j in near:
                if self._free(i, j):
                    self._take(i, j)
                    self._drain()
            if len(self.pairing.how) == before:
                return
            open_pairs, self._fresh = [*open_pairs, *self._fresh], []

    def _beside(self) -> list[int]:
        """Base nodes of the pairs that have an unpaired node beside them."""
        head_of, found = self.pairing.head_of, dict[int, None]()
        for free in self.pairing.free_base():
            for other in (*self.base.inputs[free], *(user for user, _ in self.base.users[free])):
                if head_of[other] >= 0:
                    found[other] = None
        return list(found)

    def _free(self, i: int, j: int) -> bool:
        return self.pairing.head_of[i] < 0 and self.pairing.base_of[j] < 0

    def _take(self, i: int, j: int) -> None:
        self.pairing.join(i, j, "neighbours")
        self._fresh.append(i)
        self._spread(i, j)

    def _drain(self) -> None:
        while self._heap:
            *_, i, j = heapq.heappop(self._heap)
            if self._free(i, j):
                self._take(i, j)

    # -- along edges -----------------------------------------------------------------------------------------

    def _spread(self, i: int, j: int) -> None:
        ours, theirs = self.base.inputs[i], self.head.inputs[j]
        for a, b in zip(ours, theirs, strict=False):
            self._vote(a, b, i, j)
        if len(ours) != len(theirs):  # one operand more or less in front: the others may be counted from the end
            for a, b in zip(reversed(ours), reversed(theirs), strict=False):
                self._vote(a, b, i, j)
        groups = self._readers(self.head, j, self.pairing.base_of, self.labels[1])
        if not groups:
            return
        for key, users in self._readers(self.base, i, self.pairing.head_of, self.labels[0]).items():
            for a, b in _pairs(users, groups.get(key, [])):
                self._vote(a, b, i, j)

    @staticmethod
    def _readers(side: Side, node: int, partner: Sequence[int], labels: Sequence[int]) -> dict[tuple[int, int], list[int]]:
        found: dict[tuple[int, int], list[int]] = {}
        for user, place in side.users[node]:
            if partner[user] < 0:
                found.setdefault((labels[user], place), []).append(user)
        return found

    def _vote(self, a: int, b: int, i: int, j: int) -> None:
        if not self._free(a, b) or self.labels[0][a] != self.labels[1][b]:
            return
        votes = self._votes[a, b] = self._votes[a, b] + 1
        share = votes / max(self.base.degree(a) + self.head.degree(b) - votes, 1)
        heapq.heappush(self._heap, (-share, -self.pairing.likeness(a, b), abs((a - i) - (b - j)), a, b))

    # -- across unpaired nodes -------------------------------------------------------------------------------

    def _across(self, pairs: list[int]) -> tuple[list[int], list[tuple[float, int, int, int]]]:
        """The pairs beside which there are candidates (fewer and fewer, as nodes are paired), and the candidates, best first."""
        still, weights = dict[int, None](), defaultdict[tuple[int, int], float](float)
        for i in pairs:
            for up in (True, False):
                ours = _reach(self.base, i, self.pairing.head_of, up)
                theirs = _reach(self.head, self.pairing.head_of[i], self.pairing.base_of, up) if ours else {}
                for a, b in itertools.product(ours, theirs):
                    if self.labels[0][a] == self.labels[1][b]:
                        weights[a, b] += 1 / (ours[a] + theirs[b])
                        still[i] = None
        return list(still), sorted((-weight, -self.pairing.likeness(a, b), a, b) for (a, b), weight in weights.items())


def _reach(side: Side, start: int, partner: Sequence[int], up: bool) -> dict[int, int]:
    """Unpaired nodes above or below, through unpaired ones, with how far they are."""
    found: dict[int, int] = {}
    edge = [start]
    for far in range(1, _BRIDGE + 1):
        beyond = [n for node in edge for n in (side.inputs[node] if up else (user for user, _ in side.users[node]))]
        edge = [n for n in dict.fromkeys(beyond) if partner[n] < 0 and n not in found][: _REACH - len(found)]
        if not edge:
            break
        found.update(dict.fromkeys(edge, far))
    return found


def _pairs(ours: list[int], theirs: list[int]) -> Iterator[tuple[int, int]]:
    if len(ours) * len(theirs) > _CROWD:
        return iter(list(zip(ours, theirs, strict=False)))
    return ((a, b) for a in ours for b in theirs)


def replaced(pairing: Pairing) -> bool:
    """Pair an operation with another one that stands in its place: most of their edges agree, some above and some below. Whether any is."""
    found = []
    for i in pairing.free_base() if not pairing.done else []:
        for j in _instead(pairing, i):
            share = pairing.agreement(i, j)
            if share >= _MOST and _same_ends(pairing, i, j):
                found.append((-share, i, j))
    for _, i, j in sorted(found):
        if pairing.head_of[i] < 0 and pairing.base_of[j] < 0:
            pairing.join(i, j, "place")
    return bool(found)


def _instead(pairing: Pairing, i: int) -> list[int]:
    """Unpaired head nodes that are read by what reads i, at the same place; for a node that is not read, those that read what it reads."""
    found = set[int]()
    for user, place in pairing.base.users[i]:
        if (twin := pairing.head_of[user]) >= 0:
            found.update(pairing.head.inputs[twin][place : place + 1])
    if not pairing.base.users[i]:
        for place, source in enumerate(pairing.base.inputs[i]):
            if (twin := pairing.head_of[source]) >= 0:
                found.update(user for user, at in pairing.head.users[twin] if at == place)
    return [j for j in sorted(found) if pairing.base_of[j] < 0]


def _same_ends(pairing: Pairing, i: int, j: int) -> bool:
    """Both are operations, some operand agrees, and some user where both are read."""
    if not _ALONE.isdisjoint((pairing.base.nodes[i].kind, pairing.head.nodes[j].kind)):
        return False
    above = any(pairing.head_of[a] == b for a, b in zip(pairing.base.inputs[i], pairing.head.inputs[j], strict=False))
    readers, twins = pairing.base.users[i], set(pairing.head.users[j])
    below = any((pairing.head_of[user], place) in twins for user, place in readers) if readers and twins else not readers and not twins
    return above and below
