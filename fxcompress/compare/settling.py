"""Second thoughts on pairs: nodes of one content change their partners where more operands agree then."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from fxcompress.compare.hashes import Side
from fxcompress.compare.pairing import Pairing

_WORK = 200_000  # operands that are looked at in all; two graphs that have little in common would ask for many
_LOOK = 16  # unpaired nodes that are looked through from one operand

Change = dict[int, int]
"""New partners (head nodes, -1 for none) by base node."""


def settle(pairing: Pairing) -> None:
    """Exchange partners among nodes of one content, or with an unpaired one, as long as fewer operands are left that do not agree."""
    pending = [i for i in pairing.how if disagreeing(pairing, i)]
    work = 0
    for i in pending:  # which grows
        for change in list(_changes(pairing, i)) if work < _WORK and pairing.head_of[i] >= 0 else []:
            touched = _touched(pairing, change)
            work += sum(len(pairing.base.inputs[other]) for other in touched)
            if _improve(pairing, change, touched):
                pending += [other for other in touched if pairing.head_of[other] >= 0 and disagreeing(pairing, other)]
                break


def disagreeing(pairing: Pairing, i: int) -> int:
    """Operands of a paired base node that come from elsewhere, though no unpaired node explains it."""
    ours, theirs = pairing.base.inputs[i], pairing.head.inputs[pairing.head_of[i]]
    return abs(len(ours) - len(theirs)) + sum(not _explained(pairing, a, b) for a, b in zip(ours, theirs, strict=False))


def _explained(pairing: Pairing, a: int, b: int) -> bool:
    forward, back = pairing.head_of[a], pairing.base_of[b]
    if forward >= 0 and back >= 0:
        return forward == b
    if forward < 0 and back < 0:
        return True
    if forward >= 0:
        return forward in sources(pairing.head, b, pairing.base_of)
    return back in sources(pairing.base, a, pairing.head_of)


def sources(side: Side, start: int, partner: list[int]) -> set[int]:
    """The first paired nodes that an unpaired one is computed from."""
    return set(first(side, start, lambda node: partner[node] < 0))


def first(side: Side, start: int, through: Callable[[int], bool], *, up: bool = True) -> list[int]:
    """The first nodes on every way up (or down) that are not looked ``through``; ways that are very long are left."""
    found: list[int] = []
    pending, seen = [start], {start}
    while pending and len(seen) <= _LOOK:
        node = pending.pop()
        for other in side.inputs[node] if up else [user for user, _ in side.users[node]]:
            if other not in seen:
                seen.add(other)
                (pending if through(other) else found).append(other)
    return found


def _changes(pairing: Pairing, u: int) -> Iterator[Change]:
    """What may help base node u, whose operands do not all agree: other partners for them, then for itself."""
    v = pairing.head_of[u]
    for a, b in zip(pairing.base.inputs[u], pairing.head.inputs[v], strict=False):
        if pairing.head_of[a] != b and _alike(pairing, a, b):
            yield from _exchange(pairing, a, b)
    for place, a in enumerate(pairing.base.inputs[u]):
        if pairing.head_of[a] >= 0:
            for user, at in pairing.head.users[pairing.head_of[a]][:_LOOK]:
                if at == place and user != v and _alike(pairing, u, user):
                    yield from _exchange(pairing, u, user)
    for place, b in enumerate(pairing.head.inputs[v]):
        if pairing.base_of[b] >= 0:
            for user, at in pairing.base.users[pairing.base_of[b]][:_LOOK]:
                if at == place and user != u and _alike(pairing, user, v):
                    yield from _exchange(pairing, user, v)


def _alike(pairing: Pairing, i: int, j: int) -> bool:
    return pairing.base.labels[0][i] == pairing.head.labels[0][j]


def _exchange(pairing: Pairing, i: int, j: int) -> Iterator[Change]:
    """i gets j; who loses a partner by that gets that of the other, if it is of the same content."""
    before, rival = pairing.head_of[i], pairing.base_of[j]
    if rival < 0:
        yield {i: j}
    elif before < 0:
        yield {i: j, rival: -1}
    elif pairing.base.labels[1][rival] == pairing.head.labels[1][before]:
        yield {i: j, rival: before}


def _improve(pairing: Pairing, change: Change, touched: list[int]) -> bool:
    """Make the change if fewer operands of the touched nodes disagree then, or as many at fewer nodes: where one node has two operands
    exchanged, the nodes that it reads might as well have exchanged theirs, and nobody did that."""
    before = {i: pairing.head_of[i] for i in change}
    count = _count(pairing, touched)
    _apply(pairing, change)
    if _count(pairing, touched) < count:
        return True
    _apply(pairing, before)
    return False


def _apply(pairing: Pairing, change: Change) -> None:
    how = {i: pairing.how.get(i, "neighbours") for i in change}
    for i in change:
        if pairing.head_of[i] >= 0:
            pairing.part(i)
    for i, j in change.items():
        if j >= 0:
            pairing.join(i, j, how[i])


def _count(pairing: Pairing, nodes: Iterable[int]) -> tuple[int, int]:
    """Operands that disagree, and at how many nodes."""
    counts = [disagreeing(pairing, i) for i in nodes if pairing.head_of[i] >= 0]
    return sum(counts), sum(count > 0 for count in counts)


def _touched(pairing: Pairing, change: Change) -> list[int]:
    """The base nodes that change, and those that read them or their partners before and after, also through unpaired nodes."""
    found = list(change)
    for i in change:
        found += first(pairing.base, i, lambda node: pairing.head_of[node] < 0, up=False)
    for j in (*change.values(), *(pairing.head_of[i] for i in change)):
        if j >= 0:
            found += [pairing.base_of[user] for user in first(pairing.head, j, lambda node: pairing.base_of[node] < 0, up=False)]
    return list(dict.fromkeys(found))
