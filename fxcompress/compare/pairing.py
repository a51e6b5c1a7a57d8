"""Pairs of nodes found so far, and the two ways in which more are found: by places that only one node has, and along edges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from fxcompress.compare.hashes import Numbering, Side, ancestors, around, descendants

Finder: TypeAlias = Callable[[Side, Sequence[int], Sequence[int], Numbering], list[int]]


class Pairing:
    """Which node is which, while it is found out. ``head_of[i]``, ``base_of[j]``: the partner or -1; ``how``: by base node."""

    def __init__(self, base: Side, head: Side) -> None:
        self.base, self.head = base, head
        self.head_of = [-1] * base.size
        self.base_of = [-1] * head.size
        self.how: dict[int, str] = {}

    def join(self, i: int, j: int, how: str) -> None:
        self.head_of[i], self.base_of[j] = j, i
        self.how[i] = how

    def part(self, i: int) -> None:
        self.base_of[self.head_of[i]] = -1
        self.head_of[i] = -1
        del self.how[i]

    def free_base(self) -> list[int]:
        return [i for i, j in enumerate(self.head_of) if j < 0]

    def free_head(self) -> list[int]:
        return [j for j, i in enumerate(self.base_of) if i < 0]

    @property
    def done(self) -> bool:
        """One side has no node left."""
        return len(self.how) in (self.base.size, self.head.size)

    def agreeing(self, i: int, j: int) -> int:
        """Edges of base node i whose partners are edges of head node j at the same operand place."""
        votes = sum(self.head_of[a] == b for a, b in zip(self.base.inputs[i], self.head.inputs[j], strict=False))
        if self.base.users[i] and self.head.users[j]:
            readers = set(self.head.users[j])
            votes += sum((self.head_of[user], place) in readers for user, place in self.base.users[i])
        return votes

    def likeness(self, i: int, j: int) -> int:
        """How alike two nodes are by themselves, wherever they stand; for choosing between candidates."""
        base, head = self.base, self.head
        alike = sum(ours[i] == theirs[j] for ours, theirs in zip(base.labels, head.labels, strict=True))
        return 2 * alike + (base.outputs[i] == head.outputs[j])

    def agreement(self, i: int, j: int) -> float:
        """Share of the edges of both that agree, 0 to 1 (Jaccard index)."""
        votes, edges = self.agreeing(i, j), self.base.degree(i) + self.head.degree(j)
        return votes / (edges - votes) if edges > votes else 1.0


def by_place(pairing: Pairing, level: int) -> None:
    """Pair nodes of one label that alone have their ancestors and descendants (up to paired nodes) in both graphs; then by either alone."""
    if pairing.done:
        return
    both = pairing.base, pairing.head
    up, down = _numbers(pairing, level, ancestors), _numbers(pairing, level, descendants)
    unique(pairing, list(zip(up[0], down[0], strict=True)), list(zip(up[1], down[1], strict=True)), "place")
    read = [_where(side.users, row) for side, row in zip(both, down, strict=True)]
    fed = [_where(side.inputs, row) for side, row in zip(both, up, strict=True)]
    unique(pairing, read[0], read[1], "descendants")
    unique(pairing, fed[0], fed[1], "ancestors")


def _where(edges: Sequence[object], keys: Sequence[int]) -> list[int | None]:
    """The keys of the nodes that have such edges at all."""
    return [key if edge else None for edge, key in zip(edges, keys, strict=True)]


def by_surroundings(pairing: Pairing, level: int) -> None:
    """Pair nodes of one label that alone have their near surroundings in both graphs."""
    if not pairing.done:
        base, head = _numbers(pairing, level, around)
        unique(pairing, base, head, "surroundings")


def by_tensors(pairing: Pairing) -> None:
    """Pair nodes that alone have their tensors, bit by bit, in both graphs."""
    if not pairing.done:
        base, head = ([value if value >= 0 else None for value in side.values] for side in (pairing.base, pairing.head))
        unique(pairing, base, head, "tensors")


def by_ends(pairing: Pairing) -> None:
    """Pair inputs by their place in the signature, if there are as many, and the output."""
    base, head = (
        [label if node.kind in ("input", "output") else None for node, label in zip(side.nodes, side.labels[-1], strict=True)]
        for side in (pairing.base, pairing.head)
    )
    unique(pairing, base, head, "signature")


def by_order(pairing: Pairing) -> None:
    """Pair what is left of equal nodes that read nothing or are not read, in their order: hardly anything says more of them."""
    left: dict[int, list[int]] = {}
    for j in pairing.free_head():
        if not (pairing.head.inputs[j] and pairing.head.users[j]):
            left.setdefault(pairing.head.labels[0][j], []).append(j)
    for i in pairing.free_base():
        same = left.get(pairing.base.labels[0][i], [])
        if same and not (pairing.base.inputs[i] and pairing.base.users[i]):
            pairing.join(i, same.pop(0), "order")


def unique(pairing: Pairing, base: Sequence[object], head: Sequence[object], how: str) -> None:
    """Pair unpaired nodes whose key (None: no key) no other unpaired node of their graph has."""
    ours, theirs = _alone(base, pairing.head_of), _alone(head, pairing.base_of)
    for key, i in ours.items():
        if i is not None and (j := theirs.get(key)) is not None:
            pairing.join(i, j, how)


def _alone(keys: Sequence[object], partner: Sequence[int]) -> dict[object, int | None]:
    found: dict[object, int | None] = {}
    for node, key in enumerate(keys):
        if key is not None and partner[node] < 0:
            found[key] = None if key in found else node
    return found


def _numbers(pairing: Pairing, level: int, find: Finder) -> tuple[list[int], list[int]]:
    number = Numbering()
    fixed = ([i if j >= 0 else -1 for i, j in enumerate(pairing.head_of)], pairing.base_of)
    base, head = (find(side, side.labels[level], marks, number) for side, marks in zip((pairing.base, pairing.head), fixed, strict=True))
    return base, head
