"""A report as plain text for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tabulate import tabulate

from fxcompress.report import quant_rows, rows, units

if TYPE_CHECKING:
    from fxcompress.report.model import Quantized, Report

MISSED_LINES = 24
PRUNED_LINES = 40
QUANT_LINES = 12


def render(report: Report, width: int = 96) -> str:
    """The whole report; no line is longer than ``width``."""
    head = [units.clip(report.title or report.model, width)]
    for line in rows.fact_lines(report):
        head += textwrap.wrap(units.printable(line), width, subsequent_indent="  ", max_lines=3, placeholder=" ...")
    blocks = ["\n".join(head)]
    blocks.append(_table(rows.COST_HEAD, rows.cost_rows(report), "lrrl"))
    if report.pruned:
        blocks.append(_pruned(report, width))
    if report.quantized is not None:
        blocks += _quantized(report.quantized, width)
    if report.passes:
        blocks.append(_table(rows.PASS_HEAD, _fit(rows.PASS_HEAD, rows.pass_rows(report), 0, width), "lcrrr"))
    if report.race:
        blocks.append(_table(rows.RACE_HEAD, _fit(rows.RACE_HEAD, rows.race_rows(report), 4, width), "lrrll"))
    if report.missed:
        blocks.append("\n".join(_missed(report, width)))
    return "\n\n".join(blocks) + "\n"


def _table(head: rows.Row, body: Sequence[rows.Row], align: str) -> str:
    names = {"l": "left", "r": "right", "c": "center"}
    cells = [[units.printable(cell) for cell in row] for row in body]
    made = tabulate(cells, head, tablefmt="simple", colalign=[names[a] for a in align], disable_numparse=True)
    return "\n".join(line.rstrip() for line in made.splitlines())


def _fit(head: rows.Row, body: Sequence[rows.Row], column: int, width: int) -> list[rows.Row]:
    """The rows with one column cut so that the table is not wider than ``width``."""
    # tabulate makes every column two wider than its head
    others = sum(max(len(head[i]) + 2, *(len(row[i]) for row in body)) + 2 for i in range(len(head)) if i != column)
    room = max(8, width - others)
    return [tuple(units.clip(cell, room) if i == column else cell for i, cell in enumerate(row)) for row in body]


def _pruned(report: Report, width: int) -> str:
    body = rows.pruned_rows(report)
    more = [f"  and {len(body) - PRUNED_LINES} more; the JSON and HTML forms list all"] if len(body) > PRUNED_LINES else []
    fitting = _fit(rows.PRUNED_HEAD, body[:PRUNED_LINES], 5, width)
    return "\n".join([_table(rows.PRUNED_HEAD, _fit(rows.PRUNED_HEAD, fitting, 0, width), "lrrrll"), *more])


def _quantized(quantized: Quantized, width: int) -> list[str]:
    facts: list[str] = []
    for line in quant_rows.fact_lines(quantized):
        facts += textwrap.wrap(units.printable(line), width, subsequent_indent="  ", max_lines=3, placeholder=" ...")
    blocks = ["\n".join(facts)]
    for head, body, align in quant_rows.tables(quantized, limit=QUANT_LINES):
        blocks.append(_table(head, _fit(head, body, len(head) - 1, width), align))
    return blocks


def _missed(report: Report, width: int) -> list[str]:
    groups = rows.missed_groups(report)
    lines = [f"not rewritten ({units.plural(len(report.missed), 'place')}, {units.plural(len(groups), 'reason')})"]
    for place, group in enumerate(groups):
        if len(lines) >= MISSED_LINES:
            lines.append(f"  and {units.plural(len(groups) - place, 'more reason')}; the JSON and HTML forms list all")
            break
        lines.append(f"  {len(group.lines):>3} x  " + units.clip(group.reason, width - 9))
        lines.append(" " * 9 + units.clip(", ".join(group.examples(3)), width - 9))
    return lines
