"""A report as GitHub-flavoured Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fxcompress.report import quant_rows, rows

if TYPE_CHECKING:
    from fxcompress.report.model import Report

GROUPS = 25


def render(report: Report) -> str:
    """The whole report."""
    blocks = [f"# {escape(report.title or report.model)}", "\n".join(f"- {escape(line)}" for line in rows.fact_lines(report))]
    blocks.append(_table(rows.COST_HEAD, rows.cost_rows(report), "lrrl"))
    if report.pruned:
        blocks += ["## Channels", _table(rows.PRUNED_HEAD, rows.pruned_rows(report), "lrrrll")]
    if report.quantized is not None:
        blocks += ["## Quantization", "\n".join(f"- {escape(line)}" for line in quant_rows.fact_lines(report.quantized))]
        blocks += [_table(head, body, align) for head, body, align in quant_rows.tables(report.quantized, limit=GROUPS)]
    if report.passes:
        blocks += ["## Passes", _table(rows.PASS_HEAD, rows.pass_rows(report), "lcrrr")]
    if report.race:
        blocks += ["## Race", _table(rows.RACE_HEAD, rows.race_rows(report), "lrrll")]
    if report.missed:
        blocks += ["## Not rewritten", _missed(report)]
    return "\n\n".join(block for block in blocks if block) + "\n"


def escape(text: str) -> str:
    """``text`` in one line in which nothing is markup."""
    return re.sub(r"([\\`*_{}\[\]<>#|~$&!])", r"\\\1", " ".join(text.split()))


def _table(head: rows.Row, body: Sequence[rows.Row], align: str) -> str:
    rules = {"l": ":--", "r": "--:", "c": ":-:"}
    lines = [[name or " " for name in head], [rules[a] for a in align], *([escape(cell) for cell in row] for row in body)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _missed(report: Report) -> str:
    groups = rows.missed_groups(report)
    lines = [f"- {len(g.lines)} x {escape(g.reason)}: {', '.join(escape(e) for e in g.examples(3))}" for g in groups[:GROUPS]]
    if len(groups) > GROUPS:
        lines.append(f"- and {len(groups) - GROUPS} more reasons")
    return "\n".join(lines)
