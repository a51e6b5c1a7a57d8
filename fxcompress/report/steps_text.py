"""A pipeline, step by step, as plain text for a terminal.

Changes of one kind are told once, with the nodes of the first of them and the names of some others.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from fxcompress.report import units
from fxcompress.report.diff_rows import cost_rows
from fxcompress.report.diff_values import between, percent, plain
from fxcompress.report.difference import Change, Difference, Place, Rewired, SideNode

if TYPE_CHECKING:
    from fxcompress.report.explanation import ExplainedStep, Explanation

KINDS = 8
"""How many kinds of changes one step tells."""
NODES = 6
"""How many nodes of one change are told."""


def render(explanation: Explanation, width: int = 96) -> str:
    """The whole pipeline; no line is longer than ``width``."""
    blocks = [_wrapped(line, width) for line in _head(explanation)]
    for changed, steps in groupby(explanation.steps, lambda step: step.difference is not None):
        if changed:
            blocks += ["", *("\n".join([_wrapped(_title(step), width), *_body(step, width)]) + "\n" for step in steps)]
            blocks[-1] = blocks[-1].rstrip("\n")
        else:
            blocks += ["", _wrapped(f"no change: {', '.join(_unchanged(step) for step in steps)}", width)]
    return "\n".join(blocks) + "\n"


def _wrapped(line: str, width: int, indent: str = "") -> str:
    wrap = textwrap.TextWrapper(width, indent, indent + "    ", max_lines=6, placeholder=" ...", break_on_hyphens=False)
    return "\n".join(wrap.wrap(units.printable(line)))


def _head(explanation: Explanation) -> list[str]:
    changes = len(explanation.changes)
    lines = [
        f"{explanation.model}: {changes} of {units.plural(len(explanation.steps), 'pass').replace('passs', 'passes')} changed the graph"
    ]
    for whole in explanation.wholes:
        where = f" ({whole.base})" if len(explanation.wholes) > 1 else ""
        lines.append(f"in all{where}: {'; '.join([_nodes(whole), *_costs(whole)])}")
    return lines


def _unchanged(step: ExplainedStep) -> str:
    return step.title + (f" ({step.missed} refused)" if step.missed else "")


def _title(step: ExplainedStep) -> str:
    assert step.difference is not None
    facts = [units.plural(step.rewrites, "rewrite")] if step.rewrites else []
    facts += [f"{step.missed} refused"] if step.missed else []
    facts += [_nodes(step.difference), units.seconds(step.seconds)]
    if step.error is not None:
        facts.append("same values" if step.error == 0 else f"largest error {units.small(step.error)}")
    return f"{step.title}: {', '.join(facts)}"


def _nodes(difference: Difference) -> str:
    if difference.base_nodes == difference.head_nodes:
        return units.plural(difference.head_nodes, "node")
    return f"{difference.base_nodes} -> {units.plural(difference.head_nodes, 'node')}"


def _costs(difference: Difference) -> list[str]:
    """ "multiply-adds 2.00 M -> 1.00 M, x0.50"."""
    return ["{} {} -> {}, {}".format(*map(plain, row)) for row in cost_rows(difference)]


def _body(step: ExplainedStep, width: int) -> list[str]:
    assert step.difference is not None
    hunks = hunks_of(step.difference)
    kinds: dict[str, list[Hunk]] = {}
    for hunk in hunks:
        kinds.setdefault(hunk.kind, []).append(hunk)
    ordered = sorted(kinds.items(), key=lambda item: -len(item[1]))
    costs = _costs(step.difference)
    lines = [_wrapped("; ".join(costs), width, "  ")] if costs else []
    for kind, equal in ordered[:KINDS]:
        lines += _kind(kind, equal, width)
    if len(ordered) > KINDS:
        rest = sum(len(equal) for _, equal in ordered[KINDS:])
        lines.append(f"  and {units.plural(rest, 'change')} of {units.plural(len(ordered) - KINDS, 'other kind')}")
    return lines or ["  only names and settings that no node shows"]


def _kind(kind: str, equal: Sequence[Hunk], width: int) -> list[str]:
    first = equal[0]
    lines = [units.clip(f"{len(equal)} x {kind}" if len(equal) > 1 else kind, width - 2)]
    lines += ["  " + _columns(line, width - 4) for line in _shown(first.lines)]
    if len(equal) > 1:
        lines.append("  " + _others([hunk.name for hunk in equal[1:]], width - 4))
    return ["  " + line for line in lines]


def _shown(lines: Sequence[str]) -> Sequence[str]:
    """The first and the last of many, which say what came of them."""
    if len(lines) <= NODES:
        return lines
    return (*lines[: NODES - 2], f"  ... {len(lines) - NODES + 1} more", lines[-1])


def _others(names: Sequence[str], width: int) -> str:
    """As many names as fit."""
    for shown in range(min(4, len(names)), 0, -1):
        rest = f", and {len(names) - shown} more" if len(names) > shown else ""
        text = f"the same at {', '.join(names[:shown])}{rest}"
        if len(units.printable(text)) <= width:
            return units.printable(text)
    return units.clip(f"the same at {len(names)} others", width)


def _columns(line: str, width: int) -> str:
    """A line with what stands after a tab at its right."""
    left, _, right = line.partition("\t")
    right = units.clip(right, width // 2)
    room = width - len(right) - 2 if right else width
    left = left[:2] + units.clip(left[2:], room - 2)
    return f"{left:<{min(room, width - 30)}}  {right}" if right else left


# -- the changes -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hunk:
    """One change: what kind it is, where it is, and its nodes as lines with -, + or ~ in front."""

    kind: str
    name: str
    lines: tuple[str, ...]


def hunks_of(difference: Difference) -> list[Hunk]:
    """All changes of nodes, groups first."""
    draw = _Lines(difference)
    found = [
        Hunk(
            _shown_kind(group.kind, [c for c in group.changes if c.what != "target"]),
            _first(group.head or group.base).name,
            draw.replaced(group.base, group.head),
        )
        for group in difference.groups
    ]
    found += [Hunk(f"removed {place.kind}", place.name, (draw.base(place),)) for place in difference.removed]
    found += [Hunk(f"added {place.kind}", place.name, (draw.head(place),)) for place in difference.added]
    for node in difference.changed:
        lines = (draw.head(node.head, "~"), *(f"    {_change(c)}" for c in node.changes if c.what != "attribute"))
        found.append(Hunk(_shown_kind(node.head.kind, node.changes), node.head.name, lines))
    found += [Hunk(f"{wire.head.kind} reads another node", wire.head.name, (f"~ {_rewired(wire)}",)) for wire in difference.rewired]
    for moved in difference.moved:
        was, now = (", ".join(place.name for place in places) or "nothing" for places in (moved.after_base, moved.after_head))
        found.append(Hunk(f"{moved.head.kind} moved", moved.head.name, (f"~ {moved.head.name} stood after {was}, now after {now}",)))
    return found


def _first(places: Sequence[Place]) -> Place:
    return places[0] if places else Place("?", "?")


def _shown_kind(kind: str, changes: Iterable[Change]) -> str:
    """Equal for changes that read alike: the names of what changed, and the values of attributes."""
    told = dict.fromkeys(_change(change) if change.what == "attribute" else f"{change.what} {change.name}".strip() for change in changes)
    return f"{kind}: {', '.join(told)}" if told else kind


def _change(change: Change) -> str:
    text = f"{change.what} {change.name}".strip()
    if (change.base, change.head) != (None, None):
        text += f": {plain(between(change.base, change.head))}"
    if change.amount is not None:
        text += f", differs by {percent(change.amount)}"
    return text + (f" ({change.note})" if change.note else "")


def _rewired(wire: Rewired) -> str:
    was, now = (place.name if place is not None else "nothing" for place in (wire.was, wire.now))
    return f"{wire.head.name} reads {now} instead of {was} as operand {wire.operand}"


class _Lines:
    """Nodes as one line each: "+ name = kind(operands)", a tab, and what stands at the right."""

    def __init__(self, difference: Difference) -> None:
        sides = difference.sides
        self._base = {node.id: node for node in sides.base} if sides is not None else {}
        self._head = {node.id: node for node in sides.head} if sides is not None else {}

    def base(self, place: Place, sign: str = "-") -> str:
        return _node(sign, place, self._base.get(place.name))

    def head(self, place: Place, sign: str = "+") -> str:
        return _node(sign, place, self._head.get(place.name))

    def replaced(self, base: Iterable[Place], head: Iterable[Place]) -> tuple[str, ...]:
        return (*map(self.base, base), *map(self.head, head))


def _node(sign: str, place: Place, node: SideNode | None) -> str:
    operands = ", ".join(node.inputs) if node is not None else "..."
    right = ", ".join(text for text in ("" if node is None else node.shape, _file(place.source)) if text)
    return f"{sign} {place.name} = {place.kind}({operands})\t{right}"


def _file(source: str | None) -> str:
    """The last part of a path with its line: "resnet.py:268"."""
    return "" if source is None else source.replace("\\", "/").rpartition("/")[2]
