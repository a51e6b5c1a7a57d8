"""Nodes that kept what they are and hold, and stand somewhere else."""

from __future__ import annotations

from fxcompress.compare.hashes import Side
from fxcompress.compare.pairing import Pairing
from fxcompress.compare.settling import first


def moves(pairing: Pairing) -> tuple[tuple[int, int], ...]:
    """Pairs of one content, with tensors, of which no edge above and no edge below agrees, looking through nodes without a partner.

    Every such node is out of the way for those after it: of two neighbours that changed places one has moved. Pairs like that without
    tensors are parted: nothing says that they are one.
    """
    base, head = pairing.base, pairing.head
    found: dict[int, int] = {}
    for i, j in list(enumerate(pairing.head_of)):
        if j < 0 or not _whole(base, i) or not _whole(head, j) or pairing.agreeing(i, j) or _stays(pairing, found, i, j):
            continue
        if base.labels[0][i] == head.labels[0][j] and base.values[i] >= 0:
            found[i] = j
        elif base.values[i] < 0 and head.values[j] < 0:
            pairing.part(i)
    return tuple(sorted(found.items()))


def _whole(side: Side, node: int) -> bool:
    """It reads something and is read."""
    return bool(side.inputs[node] and side.users[node])


def _stays(pairing: Pairing, moved: dict[int, int], i: int, j: int) -> bool:
    gone = set(moved.values())
    for up in (True, False):
        ours = {pairing.head_of[a] for a in first(pairing.base, i, lambda a: pairing.head_of[a] < 0 or a in moved, up=up)}
        if ours & set(first(pairing.head, j, lambda b: pairing.base_of[b] < 0 or b in gone, up=up)):
            return True
    return False
