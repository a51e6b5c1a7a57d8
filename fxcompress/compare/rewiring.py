"""Operands that come from somewhere else, and nodes that stand somewhere else.

An operand is rewired when no added, removed, grouped or moved node explains where it comes from now: A -> B that became A -> X -> B is one
added X, and B is as it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher

from fxcompress.compare.correspondence import Correspondence, outside
from fxcompress.compare.places import place, places
from fxcompress.compare.schema import Snapshot
from fxcompress.report.difference import Moved, Place, Rewired

Operand = tuple[int, int | None, int | None]
"""Its place, the node that it was and the node that it is."""


def rewired(nodes: Correspondence) -> tuple[Rewired, ...]:
    """All operands of matched nodes that are not explained, in the order of base."""
    found: list[tuple[int, int, Operand]] = []
    for pair in nodes.free_pairs():
        if (pair.base, pair.head) not in nodes.moved:
            found += [(pair.base, pair.head, operand) for operand in _operands(nodes, pair.base, pair.head)]
    for number, group in enumerate(nodes.matching.groups):
        i, j = nodes.anchor(group)
        found += [(i, j, operand) for operand in _boundary(nodes, number)]
    return tuple(_record(nodes, *one) for one in sorted(found, key=lambda one: (one[0], one[1], one[2][0])))


def _record(nodes: Correspondence, base: int, head: int, operand: Operand) -> Rewired:
    at, was, now = operand
    return Rewired(place(nodes.base, base), place(nodes.head, head), at, _maybe(nodes.base, was), _maybe(nodes.head, now))


def _maybe(snapshot: Snapshot, index: int | None) -> Place | None:
    return None if index is None else place(snapshot, index)


def _operands(nodes: Correspondence, base: int, head: int) -> Iterator[Operand]:
    """The operands of a pair that are not explained."""
    was, now = nodes.base.nodes[base].inputs, nodes.head.nodes[head].inputs
    if len(was) == len(now):
        aligned: list[Operand] = [(at, i, j) for at, (i, j) in enumerate(zip(was, now, strict=True))]
    else:
        aligned = _aligned(nodes, was, now)
    return (operand for operand in aligned if not nodes.explained(operand[1], operand[2]))


def _aligned(nodes: Correspondence, was: Sequence[int], now: Sequence[int]) -> list[Operand]:
    """Operands of which there are more on one side (of a concatenation), put against each other by what they are."""
    left, right = nodes.sides
    keys = (
        [_key(left.token(i), left.pair.get(i), -2 * i - 2) for i in was],
        [_key(right.token(j), right.pair.get(j), -2 * j - 3) for j in now],
    )
    longer = len(was) > len(now)  # always the longer side first, so that both directions are aligned alike
    first, second = keys if longer else keys[::-1]
    found: list[Operand] = []
    for _, a1, a2, b1, b2 in SequenceMatcher(None, first, second, autojunk=False).get_opcodes():
        i1, i2, j1, j2 = (a1, a2, b1, b2) if longer else (b1, b2, a1, a2)
        for step in range(max(i2 - i1, j2 - j1)):
            i, j = (i1 + step if i1 + step < i2 else None), (j1 + step if j1 + step < j2 else None)
            at = min(k for k in (i, j) if k is not None)
            found.append((at, None if i is None else was[i], None if j is None else now[j]))
    return found


def _key(token: int, pair: int | None, own: int) -> tuple[int, int]:
    """Equal for two nodes that are one; that of a node without a partner is its own."""
    return (0, token) if token >= 0 else (1, pair) if pair is not None else (2, own)


def _boundary(nodes: Correspondence, number: int) -> Iterator[Operand]:
    """What a group reads from outside of it and does not read on the other side."""
    group = nodes.matching.groups[number]
    was, now = outside(nodes.base.nodes, group.base), outside(nodes.head.nodes, group.head)
    lost = [i for i in was if not any(nodes.explained(i, j) for j in now)]
    gained = [j for j in now if not any(nodes.explained(i, j) for i in was)]
    for at in range(max(len(lost), len(gained))):
        i, j = (lost[at] if at < len(lost) else None), (gained[at] if at < len(gained) else None)
        if not (i is None or j is None) or not nodes.explained(i, j):
            yield at, i, j


def moved(nodes: Correspondence) -> tuple[Moved, ...]:
    """Nodes that stand at another place, in the order of base."""
    return tuple(
        Moved(
            place(nodes.base, i),
            place(nodes.head, j),
            places(nodes.base, nodes.base.nodes[i].inputs),
            places(nodes.head, nodes.head.nodes[j].inputs),
        )
        for i, j in sorted(nodes.matching.moved)
    )
