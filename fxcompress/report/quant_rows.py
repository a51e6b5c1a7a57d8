"""The part of a report that tells of quantization, as rows of text."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING

from fxcompress.report import units
from fxcompress.report.rows import Row, shorten

if TYPE_CHECKING:
    from fxcompress.report.model import Quantized, QuantLine

WHY_HEAD: Row = ("nodes", "form", "for example", "why")
NODE_HEAD: Row = ("node", "form", "SQNR", "at", "why")
RANK_HEAD: Row = ("alone in int8", "costs", "stays in")
WORST_HEAD: Row = ("lowest SQNR", "SQNR", "at")


def fact_lines(quantized: Quantized) -> list[str]:
    """What was decided and what it brought, in a few sentences."""
    q = quantized
    forms = counts(q)
    lines = [f"quantization: {q.verdict}", f"options: {q.options}" if q.options else ""]
    if forms:
        nodes = ", ".join(units.plural(n, "node") + f" {form}" for form, n in forms.items())
        lines.append(f"{nodes}; {q.quantizes} quantize in, {q.dequantizes} dequantize out")
    numbers = [
        f"weights {units.size(q.float_bytes)} in float, {units.size(q.int8_bytes)} quantized ({units.ratio(q.float_bytes, q.int8_bytes)})"
        if q.int8_bytes
        else "",
        f"outputs {units.decibel(q.sqnr_db)} SQNR" if q.sqnr_db is not None else "",
        _gain(q),
        f"calibrated on {q.batches} batch{'es' if q.batches != 1 else ''}" if q.batches else "",
    ]
    lines.append(", ".join(part for part in numbers if part))
    return [line for line in (*lines, f"budget: {q.budget}" if q.budget else "", *q.notes) if line]


def _gain(q: Quantized) -> str:
    if q.float_ms is None or q.int8_ms is None:
        return ""
    return (
        f"{units.milliseconds(q.float_ms)} in the fastest float form, {units.milliseconds(q.int8_ms)} quantized "
        f"({q.float_ms / q.int8_ms:.2f}x)"
    )


def counts(quantized: Quantized) -> dict[str, int]:
    """How many nodes have each form, the most frequent first."""
    found: dict[str, int] = defaultdict(int)
    for line in quantized.lines:
        found[line.form] += 1
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def tables(quantized: Quantized, *, limit: int) -> list[tuple[Row, list[Row], str]]:
    """Head, rows and alignment of each table: reasons, the ranking of a budget, the layers with the lowest SQNR."""
    found: list[tuple[Row, list[Row], str]] = []
    if quantized.lines:
        found.append((WHY_HEAD, why_rows(quantized), "rlll"))
    if quantized.ranking:
        found.append((RANK_HEAD, [_rank_row(line.node, line.cost, line.in_float) for line in quantized.ranking[:limit]], "lrl"))
    compared = sorted((line for line in quantized.lines if line.sqnr_db is not None), key=_sqnr)
    if compared:
        found.append((WORST_HEAD, [(shorten(li.node, 48), units.decibel(_sqnr(li)), units.place(li.source)) for li in compared[:5]], "lrl"))
    return found


def _sqnr(line: QuantLine) -> float:
    return float("inf") if line.sqnr_db is None else line.sqnr_db


def _rank_row(node: str, cost: float, in_float: bool) -> Row:
    return shorten(node, 48), f"{cost:.4g}", "float" if in_float else "int8"


def why_rows(quantized: Quantized) -> list[Row]:
    """Nodes with the same form and reason in one row, with the reason of one of them; int8 first, then by number."""
    groups: dict[tuple[str, str], list[QuantLine]] = defaultdict(list)
    for line in quantized.lines:
        groups[line.form, reason(line.why)].append(line)
    ordered = sorted(groups.items(), key=lambda item: (item[0][0] == "float", -len(item[1]), item[0]))
    return [(str(len(lines)), form, shorten(lines[0].node, 28), lines[0].why) for (form, _), lines in ordered]


def reason(why: str) -> str:
    """``why`` without names and numbers, so that equal reasons are equal texts."""
    return re.sub(r"\b\d+(\.\d+)?\b", "..", re.sub(r"'[^']*'", "'...'", why))


def node_rows(quantized: Quantized) -> list[Row]:
    """Every node in a row of its own."""
    return [
        (shorten(li.node, 60), li.form, "" if li.sqnr_db is None else units.decibel(li.sqnr_db), units.place(li.source), li.why)
        for li in quantized.lines
    ]
