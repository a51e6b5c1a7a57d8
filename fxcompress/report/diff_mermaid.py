"""The neighbourhood of the worst changes as a Mermaid flow chart, small enough to read in a pull request."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fxcompress.report.findings import findings, label, told
from fxcompress.report.inert import mermaid

if TYPE_CHECKING:
    from fxcompress.report.difference import Difference, Group, SideNode, Sides

NODES = 14
"""More are not drawn."""

_STYLES = {
    "added": "fill:#dafbe1,stroke:#1a7f37,color:#1f2328,stroke-width:2px",
    "removed": "fill:#ffebe9,stroke:#cf222e,color:#1f2328,stroke-dasharray:5 3",
    "changed": "fill:#fff8c5,stroke:#9a6700,color:#1f2328,stroke-width:2px",
    "merged": "fill:#ddf4ff,stroke:#0969da,color:#1f2328,stroke-width:2px",
    "same": "fill:#f6f8fa,stroke:#8c959f,color:#57606a",
}
_ROWS = {"added": "added", "removed": "removed", "changed": "changed", "merged": "merged"}


@dataclass
class _Union:
    """Both graphs as one: a matched pair is one point, and so is a group."""

    state: dict[str, str] = field(default_factory=dict)  # of each point
    texts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    base: dict[str, str] = field(default_factory=dict)  # the point of each node of base
    head: dict[str, str] = field(default_factory=dict)
    old: dict[tuple[str, str], None] = field(default_factory=dict)  # edges of base
    new: dict[tuple[str, str], None] = field(default_factory=dict)


def render(difference: Difference, limit: int = NODES) -> str:
    """The text of the chart, without the fence around it; "" where there is nothing to draw."""
    if difference.sides is None or difference.same_function:
        return ""
    union = _union(difference, difference.sides)
    chosen = _chosen(union, _seeds(difference, union), limit)
    return _chart(union, chosen) if chosen else ""


def _union(difference: Difference, sides: Sides) -> _Union:
    union = _Union()
    for number, group in enumerate(difference.groups):
        _add_group(union, f"g{number}", group)
    for match in sides.matches:
        if match.base not in union.base and match.head not in union.head:
            union.base[match.base] = union.head[match.head] = f"m{len(union.base)}"
    changed = {finding.place.name for finding in findings(difference) if finding.sign in "~>*"}
    for nodes, points, gone in ((sides.head, union.head, "added"), (sides.base, union.base, "removed")):
        for node in nodes:
            point = points.setdefault(node.id, f"{gone[0]}{len(points)}")
            state = gone if point[0] in "ar" else "changed" if node.id in changed and gone == "added" else "same"
            union.state.setdefault(point, state)
            union.texts.setdefault(point, (node.kind, _title(node)))
    union.new.update(dict.fromkeys(_edges(sides.head, union.head)))
    union.old.update(dict.fromkeys(_edges(sides.base, union.base)))
    return union


def _add_group(union: _Union, point: str, group: Group) -> None:
    union.state[point] = "merged"
    union.texts[point] = (group.kind.replace("->", "→"), label((group.head or group.base)[0]))
    union.base.update((place.name, point) for place in group.base)
    union.head.update((place.name, point) for place in group.head)


def _title(node: SideNode) -> str:
    return node.path or node.name


def _edges(nodes: tuple[SideNode, ...], points: dict[str, str]) -> list[tuple[str, str]]:
    edges = [(points[source], points[node.id]) for node in nodes for source in node.inputs if source in points]
    return [(source, target) for source, target in edges if source != target]


def _seeds(difference: Difference, union: _Union) -> list[str]:
    """The points that differ, the worst first."""
    stories = [story.findings for story in told(difference)]
    turns = [findings[at] for at in range(NODES) for findings in stories if at < len(findings)]  # an example of each theme first
    points = [(union.base if f.sign == "-" else union.head).get(f.place.name) or union.base.get(f.place.name) for f in turns]
    return [point for point in dict.fromkeys(points) if point is not None and union.state.get(point, "same") != "same"]


def _chosen(union: _Union, seeds: list[str], limit: int) -> list[str]:
    """Seeds with their neighbours, as many as are drawn, in the order of the graph."""
    near: dict[str, list[str]] = defaultdict(list)
    for source, target in (*union.new, *union.old):
        near[source].append(target)
        near[target].append(source)
    chosen: dict[str, None] = {}
    for seed in seeds:
        wanted = [point for point in dict.fromkeys([seed, *near[seed][:6]]) if point not in chosen]
        if chosen and len(chosen) + len(wanted) > limit:
            break
        chosen.update(dict.fromkeys(wanted[:limit]))
    return [point for point in union.state if point in chosen]


def _chart(union: _Union, chosen: list[str]) -> str:
    ids = {point: f"n{number}" for number, point in enumerate(chosen)}
    lines = ["flowchart TD"]
    for point in chosen:
        state = union.state[point]
        words = [*union.texts[point], *([state] if state != "same" else [])]
        lines.append(f'  {ids[point]}["{"<br>".join(mermaid(word) for word in words if word)}"]:::{state}')
    for source, target in dict.fromkeys([*union.new, *union.old]):
        if source in ids and target in ids:
            lines.append(f"  {ids[source]} {_arrow(union, (source, target))} {ids[target]}")
    used = dict.fromkeys(union.state[point] for point in chosen)
    return "\n".join([*lines, *(f"  classDef {state} {_STYLES[state]}" for state in used)])


def _arrow(union: _Union, edge: tuple[str, str]) -> str:
    """Solid where both have it, thick where only head has it, dotted where only base had it."""
    if edge in union.new and edge in union.old:
        return "-->"
    return "==>" if edge in union.new else "-.->"
