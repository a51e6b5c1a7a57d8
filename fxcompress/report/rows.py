"""The tables of a report as rows of text, before any form (plain, Markdown, HTML) is given to them."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fxcompress.report import units

if TYPE_CHECKING:
    from fxcompress.report.model import MissedLine, Report

Row = tuple[str, ...]

COST_HEAD: Row = ("", "before", "after", "")
PASS_HEAD: Row = ("pass", "changed", "rewrites", "time", "error")
RACE_HEAD: Row = ("target", "latency", "spread", "", "note")


def cost_rows(report: Report) -> list[Row]:
    """The one table of before and after; latency and errors only where they are known."""
    old, new = report.before, report.after
    rows: list[Row] = [
        ("parameters", units.count(old.params), units.count(new.params), units.ratio(old.params, new.params)),
        ("multiply-adds", units.count(old.macs), units.count(new.macs), units.ratio(old.macs, new.macs)),
        ("weights", units.size(old.weight_bytes), units.size(new.weight_bytes), units.ratio(old.weight_bytes, new.weight_bytes)),
        ("peak activations", units.size(old.peak_bytes), units.size(new.peak_bytes), units.ratio(old.peak_bytes, new.peak_bytes)),
    ]
    if old.latency_ms is not None or new.latency_ms is not None:
        rows.append(("latency, median", units.milliseconds(old.latency_ms), units.milliseconds(new.latency_ms), verdict(report)))
    if old.latency_spread_ms is not None or new.latency_spread_ms is not None:
        rows.append(("latency, spread", units.milliseconds(old.latency_spread_ms), units.milliseconds(new.latency_spread_ms), ""))
    if report.accuracy is not None:
        rows.append(("largest error", "", units.small(report.accuracy.max_abs), f"relative {units.small(report.accuracy.relative)}"))
        rows.append(("SQNR", "", units.decibel(report.accuracy.sqnr_db), ""))
        if report.accuracy.relative64 is not None:
            rows.append(("error in float64", "", units.small(report.accuracy.relative64), "relative"))
    return rows


def verdict(report: Report) -> str:
    """ "1.43x faster", "1.10x slower" or "~ same"."""
    old, new = report.before, report.after
    return units.speedup(old.latency_ms, new.latency_ms, (old.latency_spread_ms, new.latency_spread_ms))


def pass_rows(report: Report) -> list[Row]:
    return [
        (line.text, "yes" if line.changed else "-", str(line.rewrites or "-"), units.seconds(line.seconds), units.small(line.error))
        for line in report.passes
    ]


def race_rows(report: Report) -> list[Row]:
    """The kept one first, then the others from fast to slow, then those that did not run."""
    order = sorted(report.race, key=lambda c: (not c.kept, c.latency_ms is None, c.latency_ms or 0.0))
    return [
        (
            units.clip(c.target, 24),
            units.milliseconds(c.latency_ms),
            units.milliseconds(c.latency_spread_ms),
            "kept" if c.kept else "",
            c.note,
        )
        for c in order
    ]


def fact_lines(report: Report) -> list[str]:
    """Where and how: capture, inputs, machine, time."""
    env = report.environment
    machine = [env.cpu or env.device, f"{env.threads} threads" if env.threads else "", f"torch {env.torch}" if env.torch else ""]
    if env.cpu and env.device != "cpu":
        machine.insert(0, env.device)
    how = [
        f"captured by {report.capture}",
        f"inputs {report.inputs}" if report.inputs else "",
        f"kept form: {report.target}" if report.target else "",
    ]
    how.append(f"took {units.seconds(report.seconds)}" if report.seconds else "")
    lines = [", ".join(part for part in how if part), ", ".join(part for part in machine if part)]
    if report.accuracy is not None and report.accuracy.note:
        lines.append(f"numbers: {report.accuracy.note}")
    return [line for line in (*lines, *report.capture_notes) if line]


@dataclass(frozen=True)
class MissedGroup:
    """Refusals with one reason. ``reason`` has names of nodes replaced by "..."."""

    reason: str
    lines: tuple[MissedLine, ...]

    def examples(self, limit: int) -> list[str]:
        """ "node (file:line)" of the first few."""
        shown = [_example(line) for line in self.lines[:limit]]
        more = len(self.lines) - len(shown)
        return [*shown, f"and {more} more"] if more else shown


def _example(line: MissedLine) -> str:
    where, node = units.place(line.source), shorten(line.node, 36)
    return f"{node} ({where})" if where else node


def shorten(text: str, width: int) -> str:
    """The end of a long name, which says most: "...layer1.conv2"."""
    return text if len(text) <= width else "..." + text[3 - width :]


def missed_groups(report: Report) -> list[MissedGroup]:
    """Refusals by reason, the most frequent first."""
    groups: dict[str, list[MissedLine]] = defaultdict(list)
    for line in report.missed:
        groups[reason(line.why)].append(line)
    found = [MissedGroup(lines[0].why if len(lines) == 1 else why, tuple(lines)) for why, lines in groups.items()]
    return sorted(found, key=lambda group: (-len(group.lines), group.reason))


def reason(why: str) -> str:
    """``why`` without the names of nodes, so that equal reasons are equal texts."""
    return re.sub(r"((?:also |only )?read by) .*", r"\1 others", re.sub(r"'[^']*'", "'...'", why))
