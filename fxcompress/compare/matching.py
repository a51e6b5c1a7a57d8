"""Which node of one graph is which node of another: without names, from what nodes do and where they stand."""

from __future__ import annotations

from dataclasses import dataclass

from fxcompress.compare.groups import GroupMatch, groups
from fxcompress.compare.hashes import LEVELS, sides, texts
from fxcompress.compare.moves import moves
from fxcompress.compare.origins import Origins, by_origins
from fxcompress.compare.pairing import Pairing, by_ends, by_order, by_place, by_surroundings, by_tensors
from fxcompress.compare.schema import Snapshot
from fxcompress.compare.settling import settle
from fxcompress.compare.spreading import replaced, spread
from fxcompress.compare.values import by_values

_ALIKE = (1.0, 0.9, 0.8, 0.8, 0.7)  # by level
_SAME_TENSORS, _REPLACED = 0.95, 0.5


@dataclass(frozen=True)
class Pair:
    """Node ``base`` of BASE is node ``head`` of HEAD. ``confidence`` 0 to 1; ``how``: what it was first seen by."""

    base: int
    head: int
    confidence: float
    how: str


@dataclass(frozen=True)
class Matching:
    """The nodes of two graphs side by side. All places are those in ``Snapshot.nodes``.

    Attributes:
        pairs: ascending by ``base``; no node is in two of them.
        removed, added: nodes of BASE and of HEAD that are in no pair and in no group, ascending.
        moved: pairs (base, head), all of them in ``pairs`` too, of the same operation with the same tensors at another place of the graph.
        groups: ascending; no node is in two of them.
    """

    pairs: tuple[Pair, ...]
    removed: tuple[int, ...]
    added: tuple[int, ...]
    moved: tuple[tuple[int, int], ...]
    groups: tuple[GroupMatch, ...]

    def head_of(self) -> dict[int, int]:
        """Partner in HEAD by place in BASE."""
        return {pair.base: pair.head for pair in self.pairs}

    def base_of(self) -> dict[int, int]:
        """Partner in BASE by place in HEAD."""
        return {pair.head: pair.base for pair in self.pairs}

    def inverse(self) -> Matching:
        """The same seen from HEAD."""
        pairs = [Pair(pair.head, pair.base, pair.confidence, pair.how) for pair in self.pairs]
        found = [GroupMatch(group.head, group.base, group.confidence) for group in self.groups]
        return Matching(
            pairs=tuple(sorted(pairs, key=lambda pair: pair.base)),
            removed=self.added,
            added=self.removed,
            moved=tuple(sorted((j, i) for i, j in self.moved)),
            groups=tuple(sorted(found, key=lambda group: (group.base, group.head))),
        )


def match(base: Snapshot, head: Snapshot) -> Matching:
    """Match the nodes of two graphs.

    ``match(head, base)`` is its inverse: both are found in the same direction. The same graph under other names, captured again or with
    its nodes in another topological order is matched completely, but for nodes that nobody reads and that are equal in all.
    """
    ours, theirs = (len(base.nodes), texts(base)), (len(head.nodes), texts(head))
    if ours == theirs:
        return Matching(tuple(Pair(i, i, 1.0, "place") for i in range(len(base.nodes))), (), (), (), ())
    return _match(base, head) if ours < theirs else _match(head, base).inverse()


def _match(base: Snapshot, head: Snapshot) -> Matching:
    pairing = Pairing(*sides(base, head))
    origins = _pair(pairing)
    moved = moves(pairing)
    found = groups(pairing, origins)
    inside = {i for group in found for i in group.base}, {j for group in found for j in group.head}
    return Matching(
        pairs=tuple(Pair(i, j, _confidence(pairing, i, j), pairing.how[i]) for i, j in enumerate(pairing.head_of) if j >= 0),
        removed=tuple(i for i in pairing.free_base() if i not in inside[0]),
        added=tuple(j for j in pairing.free_head() if j not in inside[1]),
        moved=moved,
        groups=found,
    )


def _pair(pairing: Pairing) -> Origins:
    """Find all pairs: the most certain first, and what is equal in all before what is only alike."""
    levels = range(len(LEVELS))
    by_ends(pairing)
    by_place(pairing, 0)
    by_tensors(pairing)
    by_surroundings(pairing, 0)
    spread(pairing, 0)
    by_values(pairing)
    origins = Origins.of(pairing)
    for level in levels:
        by_place(pairing, level)
        by_origins(pairing, origins, level)
        by_surroundings(pairing, level)
        spread(pairing, level)
    for level in levels:
        spread(pairing, level, across=True)
    by_order(pairing)
    if replaced(pairing):
        for level in levels:
            spread(pairing, level, across=True)
    settle(pairing)
    return origins


def _confidence(pairing: Pairing, i: int, j: int) -> float:
    """How alike both are by themselves, and how many of their edges agree."""
    base, head = pairing.base, pairing.head
    alike = next((_ALIKE[level] for level in range(len(LEVELS)) if base.labels[level][i] == head.labels[level][j]), _REPLACED)
    if base.values[i] >= 0 and base.values[i] == head.values[j]:
        alike = max(alike, _SAME_TENSORS)
    return round(alike * (0.6 + 0.4 * pairing.agreement(i, j)), 3)
