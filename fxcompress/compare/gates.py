"""Gates: whether a difference between two versions of a network holds its budgets."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from fxcompress.compare.budgets import Budget
from fxcompress.compare.limits import Form, Limit
from fxcompress.compare.schema import Snapshot
from fxcompress.compare.widening import widened
from fxcompress.report import units
from fxcompress.report.diff_rows import contract_sentences
from fxcompress.report.diff_values import between, percent, plain
from fxcompress.report.difference import Change, Difference, Gate, NodeChange, Place

_COSTS = ("params", "macs", "weight_bytes", "peak_bytes")
_LIMITS = {"approved": "unchanged", "same": "unchanged", "no-widen": "no wider"}


@dataclass(frozen=True)
class Versions:
    """What is judged. ``base`` is None where there is no baseline; ``latency``: of the head in seconds, where it was measured."""

    difference: Difference
    base: Snapshot | None
    head: Snapshot
    latency: float | None = None


def judged(budgets: Iterable[Budget], versions: Versions) -> Difference:
    """The difference with its gates. Without a baseline those that need one are left out: that it is missing is a gate of its own."""
    chosen = [budget for budget in budgets if versions.base is not None or not budget.needs_baseline]
    return replace(versions.difference, gates=versions.difference.gates + tuple(_gate(budget, versions) for budget in chosen))


def missing(place: str) -> Gate:
    """The violated gate of a baseline that is not there."""
    return Gate("baseline", False, place, "none", "run 'fxcompress check --update' and commit the file")


def _gate(budget: Budget, versions: Versions) -> Gate:
    holds, measured = (_number if isinstance(budget.limit, Limit) else _sameness)(budget, versions)
    text = budget.limit if isinstance(budget.limit, str) else str(budget.limit)
    return Gate(budget.name, holds, _LIMITS.get(text, text), measured, budget.message)


def _number(budget: Budget, versions: Versions) -> tuple[bool, str]:
    assert isinstance(budget.limit, Limit)
    if budget.name in _COSTS:
        return _cost(budget.name, budget.limit, versions)
    if budget.name == "latency":
        return _latency(budget.limit, versions)
    return _quality(budget.name, budget.limit, versions)


def _cost(name: str, limit: Limit, versions: Versions) -> tuple[bool, str]:
    head = getattr(versions.head.cost, name)
    base = 0 if versions.base is None else getattr(versions.base.cost, name)
    measured = limit.shown(head, base)
    if limit.form is not Form.ABSOLUTE and head != base:
        form = units.count if name in ("params", "macs") else units.size
        measured += f" ({form(base)} -> {form(head)})"
    return limit.holds(head, base), measured


def _latency(limit: Limit, versions: Versions) -> tuple[bool, str]:
    change = versions.difference.numbers.latency
    if limit.form is Form.ABSOLUTE:
        seconds = versions.latency if change is None else change.head_ms / 1e3
        return (False, "not measured") if seconds is None else (limit.holds(seconds), limit.shown(seconds))
    if change is None:
        return False, "not measured: the baseline has no weights"
    base, head = change.base_ms / 1e3, change.head_ms / 1e3
    times = f"{units.milliseconds(change.base_ms)} -> {units.milliseconds(change.head_ms)}"
    if change.verdict == "~":
        return True, f"~ ({times}: no significant difference)"
    return limit.holds(head, base), f"{limit.shown(head, base)} ({times})"


def _quality(name: str, limit: Limit, versions: Versions) -> tuple[bool, str]:
    """The worst output counts. What could not be compared does not hold: a gate that looks at nothing must not be green."""
    numbers = versions.difference.numbers
    reason = _not_compared(name, versions)
    if reason:
        return False, reason
    values = [(_value(name, output), output) for output in numbers.outputs]
    worst = min(((v, o) for v, o in values if v is not None), key=lambda pair: (pair[0] == pair[0], pair[0]), default=None)
    if worst is None:
        return True, "equal" if name == "sqnr" else "100%"
    value, output = worst
    marks = [f"output {units.clip(output.name, 60)}"] if len(values) > 1 else []
    marks += ["estimated"] if output.estimated else []
    text = "equal" if value == float("inf") else limit.shown(value)
    return limit.holds(value), text + (f" ({', '.join(marks)})" if marks else "")


def _value(name: str, output: Any) -> float | None:
    if name == "top1":
        return output.top1
    return float("inf") if output.sqnr_db is None else output.sqnr_db


def _not_compared(name: str, versions: Versions) -> str:
    assert versions.base is not None
    for side, text in ((versions.base, "the baseline"), (versions.head, "the model")):
        if side.numbers is None:
            return f"not compared: {text} has no numbers"
        if name == "top1" and not any(output.classes for output in side.numbers.outputs):
            return f"not compared: no output of {text} has classes"
    note = versions.difference.numbers.note
    return f"not compared: {units.clip(note.removeprefix('not compared: '), 200)}" if note else ""


def _sameness(budget: Budget, versions: Versions) -> tuple[bool, str]:
    found = _FINDERS["no-widen" if budget.limit == "no-widen" else budget.name](versions)
    return not found, _few(found) if found else _LIMITS[str(budget.limit)]


def _few(found: list[str]) -> str:
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    return units.clip(found[0], 80) + more


def _topology(versions: Versions) -> list[str]:
    d = versions.difference
    return (
        [f"{_name(place)} ({place.kind}) added" for place in d.added]
        + [f"{_name(place)} ({place.kind}) removed" for place in d.removed]
        + [f"{_name(rewired.head)} reads another node" for rewired in d.rewired]
        + [f"{_name(moved.head)} moved" for moved in d.moved]
        + [group.kind for group in d.groups]
        + [line for node in d.changed for line in _other_operation(node)]
    )


def _other_operation(node: NodeChange) -> list[str]:
    if node.base.kind != node.head.kind:
        return [f"{_name(node.head)} {node.base.kind} -> {node.head.kind}"]
    return [_line(_name(node.head), change) for change in node.changes if change.what == "target"]


def _name(place: Place) -> str:
    """As people know the node: by the module that it calls, if any."""
    return place.path or place.name


def _contract(versions: Versions) -> list[str]:
    return [plain(sentence) for sentence in contract_sentences(versions.difference)]


def _changes(*kinds: str) -> Callable[[Versions], list[str]]:
    """Finds what changed at nodes in one of these ways ("attribute", "tensor", ...)."""

    def find(versions: Versions) -> list[str]:
        difference = versions.difference
        nodes = [(_name(node.head), change) for node in difference.changed for change in node.changes]
        nodes += [(group.kind, change) for group in difference.groups for change in group.changes]
        return [_line(name, change) for name, change in nodes if change.what in kinds]

    return find


def _line(name: str, change: Change) -> str:
    words = change.note or ("" if change.what == "tensor" else plain(between(change.base, change.head)))
    amount = f"by {percent(change.amount)}" if change.amount is not None and not words else ""
    return " ".join(part for part in (f"{name}.{change.name}" if change.name else name, words, amount) if part)


_FINDERS: dict[str, Callable[[Versions], list[str]]] = {
    "topology": _topology,
    "attributes": _changes("attribute", "mode", "shape"),
    "weights": _changes("tensor"),
    "quantization": _changes("quantization", "dtype"),
    "dtypes": _changes("dtype"),
    "contract": _contract,
    "no-widen": lambda versions: widened(versions.difference, versions.base, versions.head),
}
