"""What nodes of one process remember: the captured nodes that they compute."""

from __future__ import annotations

from dataclasses import dataclass

from fxcompress.compare.pairing import Pairing
from fxcompress.compare.schema import NodeRecord

_AGREEMENT = 0.9  # share of the pairs of equal nodes that have to remember the same, else names mean different things on both sides


@dataclass(frozen=True)
class Origins:
    """Names of captured nodes by node of either side; empty where nothing is known."""

    base: tuple[frozenset[str], ...]
    head: tuple[frozenset[str], ...]

    @classmethod
    def of(cls, pairing: Pairing) -> Origins:
        """Those of the nodes, if the pairs of equal nodes agree on them: two captures may give one name to different nodes."""
        base, head = _sets(pairing.base.nodes), _sets(pairing.head.nodes)
        equal, labels = 0, (pairing.base.labels[0], pairing.head.labels[0])
        known = 0
        for i in pairing.how:
            j = pairing.head_of[i]
            if base[i] and head[j] and labels[0][i] == labels[1][j]:
                known += 1
                equal += not base[i].isdisjoint(head[j])
        if known and equal >= _AGREEMENT * known:
            return cls(base, head)
        return cls((frozenset(),) * len(base), (frozenset(),) * len(head))

    def same(self, i: int, j: int) -> bool:
        """Base node i and head node j compute some captured node together."""
        return not self.base[i].isdisjoint(self.head[j])

    def inverse(self) -> Origins:
        return Origins(self.head, self.base)


def by_origins(pairing: Pairing, origins: Origins, level: int) -> None:
    """Pair nodes of one label that alone remember a captured node in both graphs, where an edge agrees or none contradicts."""
    ours, theirs = _alone(origins.base, pairing.head_of), _alone(origins.head, pairing.base_of)
    for name, i in ours.items():
        j = theirs.get(name, -1)
        if i < 0 or j < 0 or pairing.head_of[i] >= 0 or pairing.base_of[j] >= 0:
            continue
        if pairing.base.labels[level][i] == pairing.head.labels[level][j] and (pairing.agreeing(i, j) or not _contradicted(pairing, i, j)):
            pairing.join(i, j, "origins")


def _sets(nodes: tuple[NodeRecord, ...]) -> tuple[frozenset[str], ...]:
    return tuple(frozenset(node.origins) for node in nodes)


def _alone(names: tuple[frozenset[str], ...], partner: list[int]) -> dict[str, int]:
    """The unpaired node by name that it alone has; -1 where several have it."""
    found: dict[str, int] = {}
    for node, mine in enumerate(names):
        if partner[node] < 0:
            for name in sorted(mine):
                found[name] = -1 if name in found else node
    return found


def _contradicted(pairing: Pairing, i: int, j: int) -> bool:
    """Some neighbours of both have partners, but none in common."""
    ours = [*pairing.base.inputs[i], *(user for user, _ in pairing.base.users[i])]
    theirs = [*pairing.head.inputs[j], *(user for user, _ in pairing.head.users[j])]
    return any(pairing.head_of[a] >= 0 for a in ours) and any(pairing.base_of[b] >= 0 for b in theirs)
