"""What a difference says besides the graphs: verdict, gates, contract, costs and numbers, as sentences and rows of text."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from fxcompress.report import units
from fxcompress.report.diff_values import Name, Phrase, between, cosine, share, shorten
from fxcompress.report.findings import label

if TYPE_CHECKING:
    from fxcompress.report.difference import Difference, Gate, LatencyChange, OutputNumbers

Cells = tuple[Phrase, ...]

GATE_HEAD = ("gate", "measured", "limit", "")
COST_HEAD = ("", "base", "head", "")
OUTPUT_HEAD = ("output", "SQNR", "largest error", "cosine", "top-1")
CONTRACT_HEAD = ("", "name", "what", "base", "head")

_SHORT = 60  # characters of a name
_COSTS = {"params": "parameters", "macs": "multiply-adds", "weight_bytes": "weights", "peak_bytes": "peak activations"}


def title(difference: Difference) -> Phrase:
    """ "resnet18 -> resnet18-int8"; one name where both have it."""
    base, head = (Name(shorten(name, _SHORT)) for name in (difference.base or "base", difference.head or "head"))
    return (base,) if base == head else (base, " -> ", head)


def violated(difference: Difference) -> list[Gate]:
    """The gates that do not hold."""
    return [gate for gate in difference.gates if not gate.holds]


def nothing(difference: Difference) -> bool:
    """Neither graphs nor costs nor numbers differ."""
    return difference.same_function and not difference.cost and not difference.numbers.outputs


def summary(difference: Difference) -> str:
    """How much differs, in one sentence."""
    d = difference
    parts = [
        _number(len(d.contract), "change of the contract", "changes of the contract"),
        _number(len(d.rewired), "rewired"),
        _number(len(d.removed), "removed"),
        _number(len(d.added), "added"),
        _number(len(d.moved), "moved"),
        _number(len(d.changed), "changed"),
        _number(len(d.groups), "group merged", "groups merged"),
    ]
    found = ", ".join(part for part in parts if part)
    size = f"{d.base_nodes} nodes" + (f" -> {d.head_nodes}" if d.head_nodes != d.base_nodes else "")
    if found:
        return f"{size}: {found}; {d.matched} matched"
    if nothing(d):
        return f"no difference: all {units.plural(d.matched, 'node')} match" if d.matched else "no difference"
    return f"{size}, the same graph; only costs or numbers differ"


def _number(count: int, one: str, many: str | None = None) -> str:
    return f"{count} {one if count == 1 else many or one}" if count else ""


def verdict(difference: Difference) -> str:
    """What the gates say; "" where there are none."""
    gates, bad = len(difference.gates), len(violated(difference))
    if not gates:
        return ""
    if bad:
        return f"{bad} of {units.plural(gates, 'gate')} violated"
    return "the gate holds" if gates == 1 else f"all {gates} gates hold"


def gate_rows(difference: Difference) -> list[Cells]:
    """The violated ones first."""
    gates = sorted(difference.gates, key=lambda gate: gate.holds)
    return [((Name(g.name),), (Name(g.measured),), (Name(g.limit),), (g.message if not g.holds else "",)) for g in gates]


def gate_sentence(gate: Gate) -> Phrase:
    """ "weight_bytes: measured 12.3 MiB, limit 10 MiB (message)"."""
    message = (f" ({gate.message})",) if gate.message else ()
    name, measured, limit = (Name(units.clip(text, _SHORT)) for text in (gate.name, gate.measured, gate.limit))
    return (name, ": measured ", measured, ", limit ", limit, *message)


def contract_rows(difference: Difference) -> list[Cells]:
    return [
        ((c.where,), (Name(c.name),), (c.what,), (between(c.base, c.head)[0],), (between(c.base, c.head)[2],)) for c in difference.contract
    ]


def contract_sentences(difference: Difference) -> list[Phrase]:
    """ "output logits: dtype float32 -> float16"."""
    return [
        (c.where, *((" ", Name(shorten(c.name, _SHORT))) if c.name else ()), f": {c.what} ", *between(c.base, c.head))
        for c in difference.contract
    ]


def cost_rows(difference: Difference) -> list[Cells]:
    rows: list[Cells] = []
    for c in difference.cost:
        show = units.size if c.name.endswith("bytes") else units.count
        was, now, by = show(c.base), show(c.head), units.ratio(c.base, c.head)
        if was == now:  # too little to be seen in three digits
            by += f" ({'+' if c.head > c.base else '-'}{show(abs(c.head - c.base))})"
        rows.append(((_COSTS.get(c.name, c.name),), (was,), (now,), (by,)))
    return rows


def worst_outputs(difference: Difference) -> list[OutputNumbers]:
    """The outputs with the lowest SQNR first; NaN before all."""
    return sorted(difference.numbers.outputs, key=lambda o: _badness(o.sqnr_db))


def _badness(sqnr: float | None) -> float:
    return math.inf if sqnr is None else -math.inf if math.isnan(sqnr) else sqnr


def output_rows(difference: Difference) -> list[Cells]:
    return [tuple((cell,) for cell in _output_cells(o)) for o in worst_outputs(difference)]


def _output_cells(o: OutputNumbers) -> tuple[str, ...]:
    about = "about " if o.estimated else ""
    sqnr = "exact" if o.sqnr_db is None else about + units.decibel(round(o.sqnr_db, 1) + 0.0)
    return (Name(shorten(o.name, _SHORT)), sqnr, about + units.small(o.max_abs), cosine(o.cosine), "-" if o.top1 is None else share(o.top1))


def output_sentences(difference: Difference) -> list[Phrase]:
    """ "logits: SQNR 32.1 dB, largest error 3.1e-02, cosine 0.9997, top-1 the same for 98 %"."""
    lines: list[Phrase] = []
    for o in worst_outputs(difference):
        name, sqnr, error, angle, top1 = _output_cells(o)
        agree = f", top-1 agrees on {top1}" if o.top1 is not None else ""
        lines.append((name, f": SQNR {sqnr}, largest error {error}, cosine {angle}{agree}"))
    return lines


def first_drop(difference: Difference) -> Phrase:
    """The first node where quality drops, with the SQNR before and there; empty where none is known."""
    place, nodes = difference.numbers.first_drop, difference.numbers.nodes
    if place is None:
        return ()
    at = next((i for i, node in enumerate(nodes) if node.head == place.name), None)
    here = f" to {units.decibel(nodes[at].sqnr_db)}" if at is not None else ""
    before = f" from {units.decibel(nodes[at - 1].sqnr_db)}" if at else ""
    return ("quality drops first at ", Name(units.clip(place.kind, _SHORT)), " ", label(place), f"{before}{here}")


def number_sentences(difference: Difference) -> list[Phrase]:
    """Outputs, the first drop and the remark on what could not be compared."""
    drop, note = first_drop(difference), difference.numbers.note
    return [*output_sentences(difference), *([drop] if drop else []), *([(note,)] if note else [])]


def latency_sentence(latency: LatencyChange) -> str:
    """ "12.3 ms -> 10.1 ms, 1.22x faster (p = 0.001)"; "~" in front where the difference is not significant."""
    base, head = units.milliseconds(latency.base_ms), units.milliseconds(latency.head_ms)
    chance = f"p = {latency.p_value:.2g}"
    if latency.verdict == "~":
        return f"~ {base} -> {head}, no significant difference ({chance})"
    quick, slow = sorted((latency.base_ms, latency.head_ms))
    factor = f"{slow / quick:.2f}x " if quick > 0 else ""
    return f"{base} -> {head}, {factor}{latency.verdict} ({chance})"
