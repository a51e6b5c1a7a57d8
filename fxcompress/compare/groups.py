"""Nodes that became other nodes together: "conv + bn + relu" is one "conv+relu" now.

Nothing is known of operations here. A node without a partner is explained by a *host*: a pair that has changed, beside it or beside
another node that the host explains, and whose other version now gives the value that was read from the node, or reads what the node read.
What cannot be explained like that, but stands where other nodes stand on the other side, became those nodes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from fxcompress.compare.hashes import Side
from fxcompress.compare.origins import Origins
from fxcompress.compare.pairing import Pairing
from fxcompress.compare.sketch import distance
from fxcompress.compare.values import SAME

_SURE, _LIKELY, _BESIDE = 1.0, 0.9, 0.7  # by origins or numbers; by who reads it; by standing beside a changed node


@dataclass(frozen=True)
class GroupMatch:
    """Nodes of BASE that became nodes of HEAD together (places in both, ascending). Pairs may be among them: "conv + bn -> conv"."""

    base: tuple[int, ...]
    head: tuple[int, ...]
    confidence: float


def groups(pairing: Pairing, origins: Origins) -> tuple[GroupMatch, ...]:
    """All groups, ascending; no node is in two of them, and every one has nodes of both sides; three at least."""
    base = _View(pairing, origins, "base")
    head = _View(pairing, origins, "head")
    base.explain()
    head.explain()
    return _joined(base, head)


class _View:
    """One side, as seen from it: its unpaired nodes and the hosts that explain them.

    ``host[x]``: the own node of the pair that explains x, ``sure[x]``: how sure that is.
    """

    def __init__(self, pairing: Pairing, origins: Origins, which: Literal["base", "head"]) -> None:
        forward = which == "base"
        self.own: Side = pairing.base if forward else pairing.head
        self.other: Side = pairing.head if forward else pairing.base
        self.partner = pairing.head_of if forward else pairing.base_of
        self.back = pairing.base_of if forward else pairing.head_of
        self._origins = origins if forward else origins.inverse()
        self.free = [node for node, other in enumerate(self.partner) if other < 0]
        self.changed = {node for node, other in enumerate(self.partner) if other >= 0 and self._differs(node, other)}
        self._layered = self._with_layers()
        self.host: dict[int, int] = {}
        self.sure: dict[int, float] = {}
        self.instead = {node: self._instead(node) for node in self.free}
        self._inherit()

    def explain(self) -> None:
        """Find hosts: above, from the first node to the last, then below, from the last to the first, until no more are found."""
        pending = list(self.free)
        while pending and self.changed:
            for node in pending:
                self._settle(node, self._above(node))
            for node in reversed(pending):
                if node not in self.host:
                    self._settle(node, self._below(node))
            left = [node for node in pending if node not in self.host]
            if len(left) == len(pending):
                return
            pending = left

    def _differs(self, node: int, other: int) -> bool:
        """It does something else now; whether it does so in place is nothing that explains other nodes."""
        if self.own.labels[0][node] == self.other.labels[0][other]:
            return False
        ours, theirs = (
            (record.kind, record.target, {name: value for name, value in record.attributes.items() if name != "inplace"})
            for record in (self.own.nodes[node], self.other.nodes[other])
        )
        return ours != theirs or self.own.values[node] != self.other.values[other]

    def _with_layers(self) -> set[int]:
        """The unpaired nodes that are connected with an unpaired layer that has weights of two dimensions or more."""
        pending = [n for n in self.free if n in self.own.layers]
        found = set(pending)
        while pending:
            node = pending.pop()
            for other in (*self.own.inputs[node], *(user for user, _ in self.own.users[node])):
                if self.partner[other] < 0 and other not in found:
                    found.add(other)
                    pending.append(other)
        return found

    def _reshaped(self, host: int) -> bool:
        """More than the values of its tensors has changed."""
        return self.own.labels[1][host] != self.other.labels[1][self.partner[host]]

    # -- who is read instead ---------------------------------------------------------------------------------

    def _instead(self, node: int) -> set[int]:
        """Other nodes that the partners of the users of ``node`` read in its place."""
        found = set()
        for user, place in self.own.users[node]:
            twin = self.partner[user]
            if twin >= 0 and len(self.other.inputs[twin]) == len(self.own.inputs[user]):
                found.add(self.other.inputs[twin][place])
        return found

    def _inherit(self) -> None:
        """Who is read in the place of a node's users is read in its place too."""
        for node in reversed(self.free):
            if not self.instead[node]:
                for user, _ in self.own.users[node]:
                    self.instead[node] |= self.instead.get(user, set())

    # -- hosts -----------------------------------------------------------------------------------------------

    def _settle(self, node: int, found: tuple[int, float] | None) -> None:
        if found is not None:
            self.host[node], self.sure[node] = found

    def _hosts(self, free: int, nodes: tuple[int, ...]) -> list[int]:
        """The hosts among ``nodes``, and of those of them that have one, that may explain the node ``free``."""
        found = [self.host.get(node, node) for node in nodes]
        if free in self._layered:  # whole blocks came or went: that a layer beside them was trained says nothing
            found = [node for node in found if node in self.changed and self._reshaped(node)]
        return list(dict.fromkeys(node for node in found if node in self.changed))

    def _above(self, node: int) -> tuple[int, float] | None:
        """A host above whose partner may give the value of ``node`` now."""
        hosts = self._hosts(node, self.own.inputs[node])
        for host in hosts:
            if self._origins.same(node, self.partner[host]):
                return host, _SURE
        near = [host for host in hosts if self._nearer(node, host)]
        if near:  # in a chain of residuals several may be near
            return min(near, key=lambda host: self._far(node, host)), _SURE
        hosts = [host for host in hosts if not self._keeps(host)]
        for host in hosts:
            if self.partner[host] in self.instead[node]:
                return host, _LIKELY
        for host in hosts:
            if self._feeds(host, node):
                return host, _LIKELY
        if hosts and (not self.instead[node] or any(self._open(other) for other in self.instead[node])):
            return hosts[0], _BESIDE
        return None

    def _below(self, node: int) -> tuple[int, float] | None:
        """A host below whose partner reads now what ``node`` reads."""
        hosts = self._hosts(node, tuple(user for user, _ in self.own.users[node]))
        for host in hosts:
            if self._origins.same(node, self.partner[host]):
                return host, _SURE
        sources = {self.partner[source] for source in self._sources(node)}
        for host in hosts:
            if sources & set(self.other.inputs[self.partner[host]]):
                return host, _LIKELY
        return (hosts[0], _BESIDE) if hosts and (not self.own.inputs[node] or not sources) else None

    def _sources(self, node: int) -> set[int]:
        """The paired nodes that ``node`` is computed from."""
        found, pending = set(), [node]
        seen = {node}
        while pending:
            for source in self.own.inputs[pending.pop()]:
                if self.partner[source] >= 0:
                    found.add(source)
                elif source not in seen:
                    seen.add(source)
                    pending.append(source)
        return found

    def _open(self, other: int) -> bool:
        """A node of the other side that is not simply one of this side, unchanged."""
        back = self.back[other]
        return back < 0 or back in self.changed

    # -- numbers ---------------------------------------------------------------------------------------------

    def _keeps(self, host: int) -> bool:
        """The host gives the value that it gave before: nothing was added to it."""
        own, other = self.own.nodes[host].print, self.other.nodes[self.partner[host]].print
        return own is not None and other is not None and own.count == other.count and distance(own, other) <= SAME * own.norm

    def _nearer(self, node: int, host: int) -> bool:
        """The partner of the host gives the value of ``node`` rather than that of the host."""
        value, own, other = self.own.nodes[node].print, self.own.nodes[host].print, self.other.nodes[self.partner[host]].print
        if value is None or own is None or other is None or value.count != other.count:
            return False
        far = distance(own, other) if own.count == other.count else own.norm + other.norm
        return far > SAME * own.norm and distance(value, other) < far / 4

    def _far(self, node: int, host: int) -> float:
        """The distance between the value of ``node`` and that of the partner of ``host``."""
        value, other = self.own.nodes[node].print, self.other.nodes[self.partner[host]].print
        return distance(value, other) if value is not None and other is not None else math.inf

    def _feeds(self, host: int, node: int) -> bool:
        """The host's partner is read by a changed node that is read in the place of ``node``."""
        other = self.partner[host]
        return any(self._open(found) and other in self.other.inputs[found] for found in self.instead[node])


class _Sets:
    """Disjoint sets of nodes of both sides: base nodes are 0, 1, ..., head nodes -1, -2, ..."""

    def __init__(self) -> None:
        self._parent: dict[int, int] = {}

    def find(self, node: int) -> int:
        root = node
        while (above := self._parent.setdefault(root, root)) != root:
            root = above
        while self._parent[node] != root:
            self._parent[node], node = root, self._parent[node]
        return root

    def join(self, a: int, b: int) -> None:
        self._parent[self.find(a)] = self.find(b)

    def members(self) -> list[list[int]]:
        found: dict[int, list[int]] = {}
        for node in sorted(self._parent):
            found.setdefault(self.find(node), []).append(node)
        return list(found.values())


def _joined(base: _View, head: _View) -> tuple[GroupMatch, ...]:
    sets, sure = _Sets(), dict[int, float]()
    for view, code in ((base, _base), (head, _head)):
        other = _head if code is _base else _base
        for node, host in view.host.items():
            sets.join(code(node), code(host))
            sets.join(code(host), other(view.partner[host]))
            sure[code(node)] = view.sure[node]
    _without_hosts(base, head, sets)
    found = []
    for members in sets.members():
        ours, theirs = tuple(n for n in members if n >= 0), tuple(sorted(-1 - n for n in members if n < 0))
        if ours and theirs and len(members) > 2:
            found.append(GroupMatch(ours, theirs, min((sure[n] for n in members if n in sure), default=_LIKELY)))
    return tuple(sorted(found, key=lambda group: (group.base, group.head)))


def _without_hosts(base: _View, head: _View, sets: _Sets) -> None:
    """Nodes that no host explains became each other where one is read in the place of the other; neighbours without a host go along."""
    for view, code, other in ((base, _base, _head), (head, _head, _base)):
        left = [node for node in view.free if node not in view.host]
        for node in left:
            for found in view.instead[node]:
                if view.back[found] < 0:
                    sets.join(code(node), other(found))
            for source in view.own.inputs[node]:
                if view.partner[source] < 0 and source not in view.host:
                    sets.join(code(node), code(source))


def _base(node: int) -> int:
    return node


def _head(node: int) -> int:
    return -1 - node
