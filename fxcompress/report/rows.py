"""The tables of a report as rows of text, before any form (plain, Markdown, HTML) is given to them."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fxcompress.report import units

if TYPE_CHECKING:
    from fxcompress.report.model import MissedLine, PrunedLine, Report

Row = tuple[str, ...]

COST_HEAD: Row = ("", "before", "after", "")
PASS_HEAD: Row = ("pass", "changed", "rewrites", "time", "error")
PRUNED_HEAD: Row = ("channels of", "before", "after", "", "read by", "note")
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


def pruned_rows(report: Report) -> list[Row]:
    """The groups of channels, in the order of the network."""
    return [
        (shorten(line.name, 40), str(line.channels), str(line.kept), units.ratio(line.channels, line.kept), _readers(line), line.why)
        for line in report.pruned
    ]


def _readers(line: PrunedLine) -> str:
    """The first layer that reads the channels, and how many more do."""
    first = [shorten(name.removesuffix(".weight"), 24) for name in line.consumers[:1]]
    return " + ".join([*first, *([str(len(line.consumers) - 1)] if len(line.consumers) > 1 else [])])


def changed_text(report: Report) -> str:
    """Where the function itself changed, in one sentence; "" for nowhere."""
    if not report.changed:
        return ""
    nodes = list(dict.fromkeys(_example(line.node, line.source) for line in report.changed))
    more = f" and {len(nodes) - 3} more" if len(nodes) > 3 else ""
    return f"statistics over fewer channels, so that the function itself changes there: {', '.join(nodes[:3])}{more}"


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
    return [line for line in (*lines, changed_text(report), *report.capture_notes) if line]


@dataclass(frozen=True)
class MissedGroup:
    """Refusals with one reason. ``reason`` has names of nodes replaced by "..."."""

    reason: str
    lines: tuple[MissedLine, ...]

    def examples(self, limit: int) -> list[str]:
        """ "node (file:line)" of the first few."""
        shown = [_example(line.node, line.source) for line in self.lines[:limit]]
        more = len(self.lines) - len(shown)
        return [*shown, f"and {more} more"] if more else shown


def _example(name: str, source: str | None) -> str:
    where, node = units.place(source), shorten(name, 36)
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
