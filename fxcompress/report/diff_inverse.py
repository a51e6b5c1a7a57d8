"""A difference read the other way round."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from fxcompress.report import diff_notes

if TYPE_CHECKING:
    from fxcompress.report.difference import (
        Change,
        Channels,
        ContractChange,
        CostChange,
        Difference,
        Group,
        LatencyChange,
        Match,
        Moved,
        NodeChange,
        NodeNumbers,
        NumbersChange,
        OutputNumbers,
        Rewired,
        Sides,
    )

T = TypeVar("T")
_VERDICTS = {"faster": "slower", "slower": "faster"}


def inverse(difference: Difference) -> Difference:
    """What leads from head back to base. The gates are left out: they are asked of head."""
    d = difference
    return replace(
        d,
        base=d.head,
        head=d.base,
        base_nodes=d.head_nodes,
        head_nodes=d.base_nodes,
        added=d.removed,
        removed=d.added,
        changed=_sorted(map(_node, d.changed), _by_places),
        rewired=_sorted(map(_rewired, d.rewired), lambda r: (*_by_places(r), r.operand)),
        moved=_sorted(map(_moved, d.moved), _by_places),
        groups=_sorted(map(_group, d.groups), lambda g: [[p.index for p in side] for side in (g.base, g.head)]),
        contract=tuple(map(_contract, d.contract)),
        cost=tuple(map(_cost, d.cost)),
        numbers=_numbers(d.numbers),
        gates=(),
        sides=None if d.sides is None else _sides(d.sides),
    )


def _sorted(items: Iterable[T], key: Callable[[T], Any]) -> tuple[T, ...]:
    return tuple(sorted(items, key=key))


def _by_places(item: NodeChange | Rewired | Moved) -> tuple[int, ...]:
    return item.base.index, item.head.index


def _change(c: Change) -> Change:
    turned = replace(c, base=c.head, head=c.base, channels=tuple(map(_channels, c.channels)))
    return replace(turned, note=diff_notes.note(turned))


def _channels(c: Channels) -> Channels:
    return replace(c, removed=c.added, added=c.removed)


def _node(n: NodeChange) -> NodeChange:
    return replace(n, base=n.head, head=n.base, changes=tuple(map(_change, n.changes)))


def _rewired(r: Rewired) -> Rewired:
    return replace(r, base=r.head, head=r.base, was=r.now, now=r.was)


def _moved(m: Moved) -> Moved:
    return replace(m, base=m.head, head=m.base, after_base=m.after_head, after_head=m.after_base)


def _group(g: Group) -> Group:
    return replace(g, base=g.head, head=g.base, kind=diff_notes.group_kind(g.head, g.base), changes=tuple(map(_change, g.changes)))


def _contract(c: ContractChange) -> ContractChange:
    names = (c.head_name, c.name) if c.head_name else (c.name, "")
    return replace(c, base=c.head, head=c.base, name=names[0], head_name=names[1])


def _cost(c: CostChange) -> CostChange:
    return replace(c, base=c.head, head=c.base)


def _numbers(n: NumbersChange) -> NumbersChange:
    return replace(
        n,
        outputs=tuple(map(_output, n.outputs)),
        nodes=_sorted(map(_node_numbers, n.nodes), lambda one: (one.base_index, one.head_index)),
        first_drop=n.first_drop_base,
        first_drop_base=n.first_drop,
        latency=None if n.latency is None else _latency(n.latency),
    )


def _output(o: OutputNumbers) -> OutputNumbers:
    return replace(o, sqnr_db=o.sqnr_head_db, sqnr_head_db=o.sqnr_db)


def _node_numbers(n: NodeNumbers) -> NodeNumbers:
    return replace(n, base=n.head, head=n.base, base_index=n.head_index, head_index=n.base_index)


def _latency(latency: LatencyChange) -> LatencyChange:
    verdict = _VERDICTS.get(latency.verdict, latency.verdict)
    return replace(latency, base_ms=latency.head_ms, head_ms=latency.base_ms, verdict=verdict)


def _sides(sides: Sides) -> Sides:
    return replace(sides, base=sides.head, head=sides.base, matches=_sorted(map(_match, sides.matches), lambda m: (m.base, m.head)))


def _match(m: Match) -> Match:
    return replace(m, base=m.head, head=m.base)
