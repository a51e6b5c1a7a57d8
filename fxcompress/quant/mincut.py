"""The cheapest way to give each of many things one of two labels.

Every cost is paid when one thing has the first label and another the second; the minimum over all labellings is a minimum cut
(Greig, Porteous and Seheult, "Exact maximum a posteriori estimation for binary images", 1989). Solved with Dinic's algorithm
(Soviet Mathematics Doklady 11, 1970).
"""

from __future__ import annotations

from collections.abc import Hashable

__all__ = ["NEVER", "Labelling"]

NEVER = 10**15
"""A cost that is never paid while there is another way."""


class Labelling:
    """Costs between hashable things; costs are whole numbers, so that the answer does not depend on rounding."""

    def __init__(self) -> None:
        self._index: dict[Hashable, int] = {}
        self._heads: list[int] = []  # of edge e; edge e ^ 1 is its reverse
        self._room: list[int] = []
        self._edges: list[list[int]] = []
        self._first, self._second = self._number("first"), self._number("second")

    def if_first(self, thing: Hashable, cost: int) -> None:
        """Paid when ``thing`` has the first label."""
        self._edge(self._number((thing,)), self._second, cost)

    def if_second(self, thing: Hashable, cost: int) -> None:
        """Paid when ``thing`` has the second label."""
        self._edge(self._first, self._number((thing,)), cost)

    def if_differ(self, first: Hashable, second: Hashable, cost: int = NEVER) -> None:
        """Paid when ``first`` has the first label and ``second`` the second; by default that must not be."""
        self._edge(self._number((first,)), self._number((second,)), cost)

    def solve(self) -> frozenset[Hashable]:
        """The things with the first label in a cheapest labelling: of several the one with the fewest of them."""
        while True:
            level = self._levels()
            if self._second not in level:
                break
            self._augment(level)
        reached = self._levels()
        return frozenset(thing[0] for thing, at in self._index.items() if at in reached and isinstance(thing, tuple))

    def _number(self, key: Hashable) -> int:
        if key not in self._index:
            self._index[key] = len(self._edges)
            self._edges.append([])
        return self._index[key]

    def _edge(self, tail: int, head: int, cost: int) -> None:
        if cost <= 0:
            return
        for at, to, room in ((tail, head, cost), (head, tail, 0)):
            self._edges[at].append(len(self._heads))
            self._heads.append(to)
            self._room.append(room)

    def _levels(self) -> dict[int, int]:
        """The distance from the first label's end of everything that more can flow to."""
        level, queue = {self._first: 0}, [self._first]
        for at in queue:
            for edge in self._edges[at]:
                head = self._heads[edge]
                if self._room[edge] and head not in level:
                    level[head] = level[at] + 1
                    queue.append(head)
        return level

    def _augment(self, level: dict[int, int]) -> None:
        """Fill all shortest paths."""
        left = {at: list(self._edges[at]) for at in level}
        path: list[int] = []
        at = self._first
        while True:
            if at == self._second:
                self._fill(path)
                path, at = [], self._first
            rest = left[at]
            while rest and not (self._room[rest[-1]] and level.get(self._heads[rest[-1]]) == level[at] + 1):
                rest.pop()
            if rest:
                path.append(rest[-1])
                at = self._heads[rest[-1]]
            elif path:
                at = self._heads[path.pop() ^ 1]
                left[at].pop()
            else:
                return

    def _fill(self, path: list[int]) -> None:
        flow = min(self._room[edge] for edge in path)
        for edge in path:
            self._room[edge] -= flow
            self._room[edge ^ 1] += flow
