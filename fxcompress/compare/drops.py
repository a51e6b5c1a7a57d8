"""Where along the graph the numbers of two versions come apart."""

from __future__ import annotations

import math

from fxcompress.compare.correspondence import Correspondence
from fxcompress.compare.places import place
from fxcompress.compare.schema import Sketch
from fxcompress.compare.sketch import distance
from fxcompress.report.difference import NodeNumbers, Place

_GOOD = 60.0
"""dB: a value that is closer than this to that of the other side is as good as equal, when one asks where quality drops."""


def along(nodes: Correspondence, equal_db: float) -> tuple[NodeNumbers, ...]:
    """SQNR of all matched nodes that are not equal, in the order of base; estimated from the sketches of their values.

    Values above ``equal_db`` differ by rounding only.
    """
    found = []
    same = [(pair.base, pair.head) for pair in nodes.free_pairs()] + [nodes.results(group) for group in nodes.matching.groups]
    for base, head in same:
        was, now = nodes.base.nodes[base], nodes.head.nodes[head]
        sqnr = None if was.print is None or now.print is None else _sqnr(was.print, now.print)
        if sqnr is not None and not sqnr >= equal_db:
            found.append(NodeNumbers(was.name, now.name, sqnr, base, head))
    return tuple(sorted(found, key=lambda one: (one.base_index, one.head_index)))


def _sqnr(base: Sketch, head: Sketch) -> float | None:
    """In dB, the signal being the geometric mean of both powers; None where values have no distance."""
    if base.count != head.count or not (math.isfinite(base.max_abs) and math.isfinite(head.max_abs)):
        return None
    error = distance(base, head)
    if error == 0:
        return math.inf
    signal = base.norm * head.norm
    return 10 * math.log10(signal) - 20 * math.log10(error) if signal > 0 else -math.inf


def first_drop(nodes: Correspondence, path: tuple[NodeNumbers, ...]) -> tuple[Place | None, Place | None]:
    """The node (in base and in head) at which the SQNR falls by most from what it reads; the first of several.

    What is above 60 dB counts as 60 dB, so that the first node in int8 is not where quality drops just because all before it is exact.
    Where values could not be compared in between, as they have other sizes, it is the first of those.
    """
    worst = _worst(nodes, {(one.base_index, one.head_index): one.sqnr_db for one in path})
    if worst is None:
        return None, None
    spots = nodes.spots()
    while above := [token for token in nodes.read_by(worst) if token in spots and _resized(nodes, *spots[token])]:
        worst = min(above, key=lambda token: _order(*spots[token]))
    base, head = spots[worst]
    return place(nodes.base, base), place(nodes.head, head)


def _worst(nodes: Correspondence, path: dict[tuple[int, int], float]) -> int | None:
    """The token of the value at which the SQNR falls by most."""
    known = {token: path[spot] for token, spot in nodes.spots().items() if spot in path}
    if not known:
        return None
    ceiling = _GOOD if min(known.values()) < _GOOD else math.inf

    def fall(token: int) -> float:
        before = min([ceiling, *(known[read] for read in nodes.read_by(token) if read in known)])
        return before - min(ceiling, known[token]) if before != known[token] else 0.0

    spots = nodes.spots()
    return min(known, key=lambda token: (-fall(token), _order(*spots[token])))


def _order(base: int, head: int) -> tuple[int, int]:
    """The order of the graphs, the same from both sides."""
    return base + head, min(base, head)


def _resized(nodes: Correspondence, base: int, head: int) -> bool:
    was, now = nodes.base.nodes[base].print, nodes.head.nodes[head].print
    return was is not None and now is not None and was.count != now.count
