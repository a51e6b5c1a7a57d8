"""A report as one self-contained HTML page: no network, no foreign code, everything from the model escaped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fxcompress.report import quant_rows, rows, units
from fxcompress.report.markup import asset, document, section, table, text, tiles

if TYPE_CHECKING:
    from fxcompress.report.model import GraphPair, GraphView, Quantized, Report

MAX_DRAWN = 3000
"""Graphs with more nodes are not drawn; a browser would be slow with them."""


def page(report: Report) -> str:
    """The whole page."""
    title = report.title or report.model
    body = f"""<a class="skip" href="#graphs">Skip to the graphs</a>
<header><h1>{text(title)}</h1>{_facts(report)}{_tiles(report)}</header>
<main>{_sections(report)}</main>"""
    return document(title, body, _data(report), style=asset("page.css"), script=asset("page_parts.js", "page.js"))


def fragment(report: Report) -> str:
    """A short table for notebooks: costs before and after."""
    return f"<div><b>{text(report.title or report.model)}</b>{table(rows.COST_HEAD, rows.cost_rows(report), 'Before and after')}</div>"


def _facts(report: Report) -> str:
    return "<ul class='facts'>" + "".join(f"<li>{text(line)}</li>" for line in rows.fact_lines(report)) + "</ul>"


def _tiles(report: Report) -> str:
    """The four numbers that most readers came for."""
    old, new = report.before, report.after
    cells: list[tuple[str, str, str]] = []
    if new.latency_ms is not None:
        speed = rows.verdict(report) or units.milliseconds(new.latency_ms)
        cells.append(("latency", speed, f"{units.milliseconds(old.latency_ms)} to {units.milliseconds(new.latency_ms)}"))
    for name, before, after, unit in (
        ("multiply-adds", old.macs, new.macs, units.count),
        ("weights", old.weight_bytes, new.weight_bytes, units.size),
    ):
        cells.append((name, unit(after), units.ratio(before, after)))
    if report.accuracy is not None:
        cells.append(("numbers", f"SQNR {units.decibel(report.accuracy.sqnr_db)}", f"largest error {units.small(report.accuracy.max_abs)}"))
    return tiles(cells)


def _sections(report: Report) -> str:
    beside = ""
    if report.race:
        beside += section("race", "Race of the targets", _bars(report) + table(rows.RACE_HEAD, rows.race_rows(report), "Race"))
    if report.passes:
        beside += section("passes", "Passes", table(rows.PASS_HEAD, rows.pass_rows(report), "Passes"))
    cost = section("cost", "Before and after", table(rows.COST_HEAD, rows.cost_rows(report), "Before and after"))
    top = f"<div class='columns'>{cost}<div>{beside}</div></div>"
    if report.pruned:
        top += section("channels", "Channels", table(rows.PRUNED_HEAD, rows.pruned_rows(report), "Channels"))
    if report.quantized is not None:
        top += section("quantized", "Quantization", _quantized(report.quantized))
    if report.missed:
        top += section("missed", "Not rewritten", _missed(report))
    graphs = "".join(_graphs(pair, place) for place, pair in enumerate(report.graphs))
    return top + (f"<section id='graphs'>{graphs}</section>" if graphs else "<div id='graphs'></div>")


def _bars(report: Report) -> str:
    """Latencies as bars, the kept one marked."""
    ran = sorted((c for c in report.race if c.latency_ms), key=lambda c: c.latency_ms or 0.0)
    if len(ran) < 2:
        return ""
    longest = max(c.latency_ms or 0.0 for c in ran)
    lines = []
    for place, c in enumerate(ran):
        length, y = 340 * (c.latency_ms or 0.0) / longest, 26 * place
        lines.append(
            f"<g class='{'kept' if c.kept else 'lost'}'><text class='who' x='112' y='{y + 16}'>{text(units.clip(c.target, 16))}</text>"
            f"<rect x='120' y='{y + 3}' width='{length:.1f}' height='18' rx='3'/>"
            f"<text x='{126 + length:.1f}' y='{y + 16}'>{text(units.milliseconds(c.latency_ms))}</text></g>"
        )
    label = text("Latency of " + ", ".join(f"{c.target} {units.milliseconds(c.latency_ms)}" for c in ran))
    return f"<svg class='bars' viewBox='0 0 540 {26 * len(ran)}' role='img' aria-label='{label}'>{''.join(lines)}</svg>"


def _quantized(quantized: Quantized) -> str:
    facts = "".join(f"<li>{text(line)}</li>" for line in quant_rows.fact_lines(quantized))
    tables = [table(head, body, "Quantization") for head, body, _ in quant_rows.tables(quantized, limit=MAX_DRAWN)]
    nodes = table(quant_rows.NODE_HEAD, quant_rows.node_rows(quantized), "Every node") if quantized.lines else ""
    every = f"<details><summary><b>{len(quantized.lines)}</b> nodes, one by one</summary>{nodes}</details>" if nodes else ""
    return f"<ul class='facts'>{facts}</ul>{''.join(tables)}{every}"


def _missed(report: Report) -> str:
    groups = rows.missed_groups(report)
    items = []
    for group in groups:
        lines = "".join(
            f"<li><code>{text(m.node)}</code> {text(m.why)}<span class='small'> {text(units.place(m.source))}</span></li>"
            for m in group.lines
        )
        items.append(f"<details><summary><b>{len(group.lines)}</b> {text(group.reason)}</summary><ul>{lines}</ul></details>")
    return "".join(items)


def _graphs(pair: GraphPair, place: int) -> str:
    title = f"Graph of {text(pair.part)}" if pair.part else "Graph"
    panels = _panel(pair.before, f"{place}-before", "before") + _panel(pair.after, f"{place}-after", "after")
    return f"""<h2>{title}</h2>
<div class="graph" data-pair="{place}">{panels}
<aside aria-live="polite" aria-label="Details of the chosen node"><p class="small">Choose a node to see its settings, what it was made
of and where it stands in your code. Arrow keys go along the edges, + and - zoom, / searches.</p></aside></div>"""


def _panel(graph: GraphView, prefix: str, name: str) -> str:
    from fxcompress.report.drawing import svg  # which needs the dataclasses of the module that imports this one

    if len(graph.nodes) > MAX_DRAWN:
        return f"<div class='panel'><h3>{name}</h3><p>{len(graph.nodes)} nodes are too many to draw (the limit is {MAX_DRAWN}).</p></div>"
    tools = "".join(
        f"<button type='button' data-zoom='{step}' aria-label='{label}'>{sign}</button>"
        for step, sign, label in (("out", "&minus;", "zoom out"), ("in", "+", "zoom in"), ("fit", "fit", "fit the width"))
    )
    return f"""<div class="panel" data-graph="{prefix}"><div class="bar"><h3>{name}</h3>
<span class="small">{units.plural(len(graph.nodes), "node")}</span>
<input type="search" placeholder="find" aria-label="find a node {name}" spellcheck="false"><output class="small"></output>{tools}</div>
<div class="canvas" tabindex="0" role="region" aria-label="graph {name}">{svg(graph, f"graph {name}", prefix)}</div></div>"""


def _data(report: Report) -> dict[str, list[dict[str, Any]]]:
    """What the script needs of the nodes."""
    return {
        f"{place}-{name}": [
            {
                "name": n.name,
                "id": n.id,
                "kind": n.kind,
                "detail": n.detail,
                "shape": n.shape,
                "in": n.inputs,
                "from": n.from_,
                "source": n.source,
            }
            for n in view.nodes
        ]
        for place, pair in enumerate(report.graphs)
        for name, view in (("before", pair.before), ("after", pair.after))
        if len(view.nodes) <= MAX_DRAWN
    }
