"""Which node stands for which, as the comparison of operands needs it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from fxcompress.compare.matching import GroupMatch, Matching, Pair
from fxcompress.compare.schema import NodeRecord, Snapshot


class Side:
    """One of both graphs with what became of its nodes.

    A node has a ``token`` when its value has a counterpart: matched nodes have that of their pair, all members of a group that of the
    group. Added, removed and moved nodes have none (-1): operands are looked up through them.
    """

    def __init__(self, nodes: tuple[NodeRecord, ...], tokens: dict[int, int], pairs: dict[int, int]) -> None:
        self.nodes = nodes
        self.pair = pairs
        self._tokens = tokens
        self._reach: dict[int, int] = {}

    def token(self, node: int) -> int:
        return self._tokens.get(node, -1)

    def reach(self, node: int) -> int:
        """The tokens that a node without one is computed from, as bits of a number: the first ones that each way upwards meets."""
        pending = [node]
        while pending:
            at = pending[-1]
            below = [i for i in self.nodes[at].inputs if self.token(i) < 0 and i not in self._reach]
            if below and at not in self._reach:
                pending += below
                continue
            pending.pop()
            found = 0
            for i in self.nodes[at].inputs:
                found |= self._reach[i] if self.token(i) < 0 else 1 << self.token(i)
            self._reach[at] = found
        return self._reach[node]


def outside(nodes: tuple[NodeRecord, ...], members: Sequence[int]) -> list[int]:
    """What some nodes read that none of them gives, each once."""
    inside = set(members)
    return list(dict.fromkeys(i for member in members for i in nodes[member].inputs if i not in inside))


@dataclass(frozen=True)
class Correspondence:
    """Two snapshots and who is who in them."""

    base: Snapshot
    head: Snapshot
    matching: Matching

    @cached_property
    def moved(self) -> frozenset[tuple[int, int]]:
        return frozenset(self.matching.moved)

    @cached_property
    def group_pairs(self) -> dict[tuple[int, int], int]:
        """Pairs that lie in a group, with the number of the group."""
        heads = [set(group.head) for group in self.matching.groups]
        found = {}
        for number, group in enumerate(self.matching.groups):
            for i in group.base:
                j = self.partner.get(i)
                if j is not None and j in heads[number]:
                    found[(i, j)] = number
        return found

    @cached_property
    def partner(self) -> dict[int, int]:
        """Nodes of base with those of head."""
        return {pair.base: pair.head for pair in self.matching.pairs}

    @cached_property
    def sides(self) -> tuple[Side, Side]:
        """Base and head, with tokens that agree."""
        pairs = self.matching.pairs
        tokens: tuple[dict[int, int], dict[int, int]] = ({}, {})
        for number, pair in enumerate(pairs):
            if (pair.base, pair.head) not in self.moved:
                tokens[0][pair.base] = tokens[1][pair.head] = number
        for number, group in enumerate(self.matching.groups):
            tokens[0].update(dict.fromkeys(group.base, len(pairs) + number))
            tokens[1].update(dict.fromkeys(group.head, len(pairs) + number))
        numbers = ({p.base: n for n, p in enumerate(pairs)}, {p.head: n for n, p in enumerate(pairs)})
        return Side(self.base.nodes, tokens[0], numbers[0]), Side(self.head.nodes, tokens[1], numbers[1])

    def same(self, base: int, head: int) -> bool:
        """Whether both nodes are the two sides of one pair, or lie in one group."""
        left, right = self.sides
        if left.token(base) >= 0:
            return left.token(base) == right.token(head)
        return self.partner.get(base) == head

    def explained(self, base: int | None, head: int | None) -> bool:
        """Whether an operand that was ``base`` and is ``head`` differs only by nodes that were added, removed or moved on the way to it."""
        left, right = self.sides
        if base is None or head is None:
            side, node = (right, head) if base is None else (left, base)
            return node is None or side.token(node) < 0
        if self.same(base, head):
            return True
        was, now = left.token(base), right.token(head)
        if was >= 0 and now >= 0:
            return False
        if was < 0 and now < 0:
            return True  # one node in the place of another: both are told by themselves
        return bool(right.reach(head) >> was & 1) if was >= 0 else bool(left.reach(base) >> now & 1)

    def anchor(self, group: GroupMatch) -> tuple[int, int]:
        """The node of either side that stands for a group: a pair in it if there is one, that with the most tensors first."""
        inside = [(i, self.partner[i]) for i in group.base if self.partner.get(i) in group.head]
        if inside:
            return max(inside, key=lambda ij: (len(self.base.nodes[ij[0]].tensors) + len(self.head.nodes[ij[1]].tensors), -ij[0] - ij[1]))
        sides = ((self.base.nodes, group.base), (self.head.nodes, group.head))
        first, second = (max(members, key=lambda n: (len(nodes[n].tensors), nodes[n].macs, -n)) for nodes, members in sides)
        return first, second

    def spots(self) -> dict[int, tuple[int, int]]:
        """Values that are there on both sides: the node that gives each in base and in head, by token."""
        left = self.sides[0]
        found = {left.token(pair.base): (pair.base, pair.head) for pair in self.free_pairs() if left.token(pair.base) >= 0}
        found |= {left.token(group.base[0]): self.results(group) for group in self.matching.groups}
        return found

    def read_by(self, token: int) -> set[int]:
        """The tokens of what the node or group with ``token`` reads on either side, from outside of it."""
        bits = 0
        for side, members in zip(self.sides, self._members(token), strict=True):
            for i in outside(side.nodes, members):
                bits |= side.reach(i) if side.token(i) < 0 else 1 << side.token(i)
        return {at for at, bit in enumerate(reversed(f"{bits:b}")) if bit == "1"}

    def _members(self, token: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        pairs = self.matching.pairs
        if token < len(pairs):
            return (pairs[token].base,), (pairs[token].head,)
        group = self.matching.groups[token - len(pairs)]
        return group.base, group.head

    def results(self, group: GroupMatch) -> tuple[int, int]:
        """The last node on either side of a group: what is read from it."""
        return max(group.base), max(group.head)

    def free_pairs(self) -> list[Pair]:
        """Pairs outside of groups, in the order of base."""
        inside = {i for group in self.matching.groups for i in group.base} | {-1 - j for group in self.matching.groups for j in group.head}
        free = [pair for pair in self.matching.pairs if pair.base not in inside and -1 - pair.head not in inside]
        return sorted(free, key=lambda pair: (pair.base, pair.head))
