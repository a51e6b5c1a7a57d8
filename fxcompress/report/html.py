"""A report as one self-contained HTML page: no network, no foreign code, everything from the model escaped.

The page's own style and script are allowed by their hashes in a content security policy, so even a text that slipped
through the escaping could not run.
"""

from __future__ import annotations

import base64
import hashlib
import html as markup
import json
from collections.abc import Sequence
from importlib.resources import files
from typing import TYPE_CHECKING

from fxcompress.report import quant_rows, rows, units

if TYPE_CHECKING:
    from fxcompress.report.model import GraphPair, GraphView, Quantized, Report

MAX_DRAWN = 3000
"""Graphs with more nodes are not drawn; a browser would be slow with them."""


def page(report: Report) -> str:
    """The whole page."""
    style, script = _asset("page.css"), _asset("page.js")
    policy = f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; base-uri 'none'; form-action 'none'"
    title = _text(report.title or report.model)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title} - fxcompress</title>
<style>{style}</style>
</head>
<body>
<a class="skip" href="#graphs">Skip to the graphs</a>
<header><h1>{title}</h1>{_facts(report)}{_tiles(report)}</header>
<main>{_sections(report)}</main>
<script type="application/json" id="data">{_data(report)}</script>
<script>{script}</script>
</body>
</html>
"""


def fragment(report: Report) -> str:
    """A short table for notebooks: costs before and after."""
    return f"<div><b>{_text(report.title or report.model)}</b>{_table(rows.COST_HEAD, rows.cost_rows(report), 'Before and after')}</div>"


def _text(text: str) -> str:
    """Text from the model, in one line without control characters, with nothing left that is markup."""
    return markup.escape(units.printable(text))


def _asset(name: str) -> str:
    return files("fxcompress.report").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _facts(report: Report) -> str:
    return "<ul class='facts'>" + "".join(f"<li>{_text(line)}</li>" for line in rows.fact_lines(report)) + "</ul>"


def _tiles(report: Report) -> str:
    """The four numbers that most readers came for."""
    old, new = report.before, report.after
    tiles: list[tuple[str, str, str]] = []
    if new.latency_ms is not None:
        speed = rows.verdict(report) or units.milliseconds(new.latency_ms)
        tiles.append(("latency", speed, f"{units.milliseconds(old.latency_ms)} to {units.milliseconds(new.latency_ms)}"))
    for name, before, after, unit in (
        ("multiply-adds", old.macs, new.macs, units.count),
        ("weights", old.weight_bytes, new.weight_bytes, units.size),
    ):
        tiles.append((name, unit(after), units.ratio(before, after)))
    if report.accuracy is not None:
        tiles.append(("numbers", f"SQNR {units.decibel(report.accuracy.sqnr_db)}", f"largest error {units.small(report.accuracy.max_abs)}"))
    cells = (f"<div><dt>{_text(name)}</dt><dd>{_text(value)}</dd><dd class='small'>{_text(note)}</dd></div>" for name, value, note in tiles)
    return f"<dl class='tiles'>{''.join(cells)}</dl>"


def _sections(report: Report) -> str:
    beside = ""
    if report.race:
        beside += _section("race", "Race of the targets", _bars(report) + _table(rows.RACE_HEAD, rows.race_rows(report), "Race"))
    if report.passes:
        beside += _section("passes", "Passes", _table(rows.PASS_HEAD, rows.pass_rows(report), "Passes"))
    cost = _section("cost", "Before and after", _table(rows.COST_HEAD, rows.cost_rows(report), "Before and after"))
    top = f"<div class='columns'>{cost}<div>{beside}</div></div>"
    if report.pruned:
        top += _section("channels", "Channels", _table(rows.PRUNED_HEAD, rows.pruned_rows(report), "Channels"))
    if report.quantized is not None:
        top += _section("quantized", "Quantization", _quantized(report.quantized))
    if report.missed:
        top += _section("missed", "Not rewritten", _missed(report))
    graphs = "".join(_graphs(pair, place) for place, pair in enumerate(report.graphs))
    return top + (f"<section id='graphs'>{graphs}</section>" if graphs else "<div id='graphs'></div>")


def _section(name: str, title: str, body: str) -> str:
    return f"<section id='{name}'><h2>{title}</h2>{body}</section>"


def _table(head: rows.Row, body: Sequence[rows.Row], label: str) -> str:
    top = "".join(f"<th scope='col'>{_text(cell)}</th>" if cell else "<td></td>" for cell in head)
    lines = ("<th scope='row'>" + _text(row[0]) + "</th>" + "".join(f"<td>{_text(cell)}</td>" for cell in row[1:]) for row in body)
    inner = f"<thead><tr>{top}</tr></thead><tbody>{''.join(f'<tr>{line}</tr>' for line in lines)}</tbody>"
    return f"<div class='scroll'><table aria-label='{_text(label)}'>{inner}</table></div>"


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
            f"<g class='{'kept' if c.kept else 'lost'}'><text class='who' x='112' y='{y + 16}'>{_text(units.clip(c.target, 16))}</text>"
            f"<rect x='120' y='{y + 3}' width='{length:.1f}' height='18' rx='3'/>"
            f"<text x='{126 + length:.1f}' y='{y + 16}'>{_text(units.milliseconds(c.latency_ms))}</text></g>"
        )
    label = _text("Latency of " + ", ".join(f"{c.target} {units.milliseconds(c.latency_ms)}" for c in ran))
    return f"<svg class='bars' viewBox='0 0 540 {26 * len(ran)}' role='img' aria-label='{label}'>{''.join(lines)}</svg>"


def _quantized(quantized: Quantized) -> str:
    facts = "".join(f"<li>{_text(line)}</li>" for line in quant_rows.fact_lines(quantized))
    tables = [_table(head, body, "Quantization") for head, body, _ in quant_rows.tables(quantized, limit=MAX_DRAWN)]
    nodes = _table(quant_rows.NODE_HEAD, quant_rows.node_rows(quantized), "Every node") if quantized.lines else ""
    every = f"<details><summary><b>{len(quantized.lines)}</b> nodes, one by one</summary>{nodes}</details>" if nodes else ""
    return f"<ul class='facts'>{facts}</ul>{''.join(tables)}{every}"


def _missed(report: Report) -> str:
    groups = rows.missed_groups(report)
    items = []
    for group in groups:
        lines = "".join(
            f"<li><code>{_text(m.node)}</code> {_text(m.why)}<span class='small'> {_text(units.place(m.source))}</span></li>"
            for m in group.lines
        )
        items.append(f"<details><summary><b>{len(group.lines)}</b> {_text(group.reason)}</summary><ul>{lines}</ul></details>")
    return "".join(items)


def _graphs(pair: GraphPair, place: int) -> str:
    title = f"Graph of {_text(pair.part)}" if pair.part else "Graph"
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


def _data(report: Report) -> str:
    """What the script needs of the nodes, as JSON that cannot end the script element."""
    graphs = {
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
    text = json.dumps(graphs, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
