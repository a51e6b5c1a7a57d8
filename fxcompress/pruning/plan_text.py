"""Plans as tables for people, and the difference of two plans."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from tabulate import tabulate

from fxcompress.ir.verify import place
from fxcompress.pruning import ranges
from fxcompress.pruning.plan_data import Costs, PlanGroup, PlanPart

if TYPE_CHECKING:
    from fxcompress.pruning.plan import PruningPlan

MANY = 2
"""So many producers or consumers of a group are named; of more only the number is given."""


_HEAD = ("group", "kept", "of", "", "producers", "consumers", "importance gone, kept", "params", "MACs", "why")

Row = tuple[str, ...]


def render(plan: PruningPlan) -> str:
    """The whole plan: what it costs and brings, the groups, what is pinned, where the function itself changes."""
    blocks = [f"pruning plan {plan.fingerprint[:12]}: {plan.options}\ninputs {plan.inputs}"]
    for part in plan.parts:
        head = [f"part '{part.path}'"] if part.path else []
        blocks.append("\n".join([*head, *_cost_lines(part.before, part.after)]))
        blocks.append(_table(_HEAD, _rows(part), "lrrrlllrrl"))
        blocks += _section("never removed", _pinned(part))
        changed = [f"{s.node}, axis {s.axis}{_at(s.source)}" for s in part.statistics]
        blocks += _section("the function changes: a statistic runs over fewer channels", changed)
        blocks += _section("numbers in the graph that change", [f"{r.before} -> {r.after}{_at(r.source)}" for r in part.rewritten])
    return "\n\n".join(block for block in blocks if block) + "\n"


def _rows(part: PlanPart) -> list[Row]:
    rows: list[Row] = []
    for group in part.groups:
        share = f"{group.remaining / group.channels:.0%}" if group.channels else ""
        saved = _saved(part.before, group.alone)
        names = (_named(group.producers), _named(group.consumers))
        rows.append((group.name, str(group.remaining), str(group.channels), share, *names, _importance(group), *saved, group.reason))
    return rows


def _named(parameters: Sequence[str]) -> str:
    names = [name.removesuffix(".weight") for name in dict.fromkeys(parameters)]
    return ", ".join(names) if len(names) <= MANY else f"{names[0]} and {len(names) - 1} more"


def _importance(group: PlanGroup) -> str:
    """The means of what goes and of what is kept."""
    if not group.importance:
        return ""
    kept, values = ranges.mask(group.kept, group.channels), np.array(group.importance)
    return ", ".join(f"{part.mean():.3g}" if part.size else "-" for part in (values[~kept], values[kept]))


def _saved(before: Costs | None, alone: Costs | None) -> tuple[str, str]:
    if before is None or alone is None:
        return "", ""
    return f"{alone.params - before.params:+,}", f"{alone.macs - before.macs:+,}"


def _cost_lines(before: Costs | None, after: Costs | None) -> list[str]:
    if before is None or after is None:
        return []
    rows = zip(_numbers(before), _numbers(after), strict=True)
    lines = [f"{name}: {old:,} -> {new:,}" + (f" (x{new / old:.3g})" if old else "") for (name, old), (_, new) in rows]
    if before.latency is not None and after.latency is not None:
        lines.append(f"latency: {before.latency * 1e3:.3g} ms -> {after.latency * 1e3:.3g} ms")
    return lines


def _pinned(part: PlanPart) -> list[str]:
    """One line per reason and place, with the first of the axes to which it applies."""
    axes: dict[str, list[str]] = {}
    for one in part.pinned:
        axes.setdefault(one.why + _at(one.source), []).append(f"{one.parameter} axis {one.axis}")
    return [f"{reason}: " + ", ".join(found[:MANY]) + _more(len(found) - MANY) for reason, found in axes.items()]


def _more(count: int) -> str:
    return f" and {count} more" if count > 0 else ""


def _at(source: str | None) -> str:
    return f" at {place(source)}" if source else ""


def _section(title: str, lines: Iterable[str]) -> list[str]:
    lines = list(lines)
    return ["\n".join([f"{title}:", *(f"  {line}" for line in lines)])] if lines else []


def _table(head: Row, rows: list[Row], align: str) -> str:
    used = [i for i in range(len(head)) if any(row[i] for row in rows)]
    if not rows:
        return "no channels can be removed"
    sides = {"l": "left", "r": "right"}
    cells = [[row[i] for i in used] for row in rows]
    made = tabulate(cells, [head[i] for i in used], tablefmt="simple", colalign=[sides[align[i]] for i in used], disable_numparse=True)
    return "\n".join(line.rstrip() for line in made.splitlines())


# -- difference -----------------------------------------------------------------------------------------------------------


def difference(old: PruningPlan, new: PruningPlan) -> str:
    """What ``new`` does otherwise than ``old``, one line each; "" when they are equal."""
    lines = [] if old.options == new.options else [f"options: {old.options} -> {new.options}"]
    before, after = ({part.path: part for part in plan.parts} for plan in (old, new))
    for path in dict.fromkeys((*before, *after)):
        where = f"part '{path}': " if path else ""
        if path not in before or path not in after:
            lines.append(f"{where}only in the {'new' if path in after else 'old'} plan")
        else:
            lines += [where + line for line in _part_lines(before[path], after[path])]
    if not lines and old != new:
        lines.append("the plans remove the same channels; other entries (inputs, importance, reasons) differ")
    return "".join(f"{line}\n" for line in lines)


def _part_lines(old: PlanPart, new: PlanPart) -> list[str]:
    found = old.structure.difference(new.structure)
    lines = [f"another network: {found}"] if found else []
    costs = zip(_numbers(old.after), _numbers(new.after), strict=True) if old.after and new.after else ()
    for (name, a), (_, b) in costs:
        if a != b:
            lines.append(f"{name}: {a:,} -> {b:,}" + (f" ({(b - a) / a:+.1%})" if a else ""))
    mine, theirs = ({group.name: group for group in part.groups} for part in (old, new))
    for name in dict.fromkeys((*mine, *theirs)):
        if name not in theirs or name not in mine:
            lines.append(f"{name}: only in the {'new' if name in theirs else 'old'} plan")
        elif mine[name].kept != theirs[name].kept or mine[name].channels != theirs[name].channels:
            lines.append(f"{name}: {_change(mine[name], theirs[name])}")
    return lines


def _numbers(costs: Costs) -> list[tuple[str, int]]:
    return [("parameters", costs.params), ("MACs", costs.macs), ("bytes of weights", costs.weight_bytes)]


def _change(old: PlanGroup, new: PlanGroup) -> str:
    if old.channels != new.channels:
        return f"{old.channels} -> {new.channels} channels"
    before, after = ranges.mask(old.kept, old.channels), ranges.mask(new.kept, new.channels)
    parts = [(word, np.flatnonzero(chosen)) for word, chosen in (("also removes", before & ~after), ("keeps", after & ~before))]
    count = f"{old.remaining} -> {new.remaining} of {new.channels}"
    return "; ".join([count, *(f"{word} {ranges.encode(chosen)}" for word, chosen in parts if chosen.size)])
