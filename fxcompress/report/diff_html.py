"""A difference as one self-contained HTML page: both graphs side by side, what changed, and the numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fxcompress.report import diff_rows, units
from fxcompress.report.diff_data import MAX_DRAWN, Names, data
from fxcompress.report.diff_values import Phrase, plain
from fxcompress.report.findings import Finding, Told, told
from fxcompress.report.markup import asset, document, section, table, text, tiles

if TYPE_CHECKING:
    from fxcompress.report.difference import Difference, Sides

Steps = Sequence[tuple[str, "Difference"]]

WORDS = {"-": "removed", "+": "added", "~": "rewired", ">": "moved", "=": "merged", "*": "changed"}
"""What the signs of findings say; the page's legend."""


def page(difference: Difference) -> str:
    """The whole page of one difference."""
    return _document(plain(diff_rows.title(difference)), (("", difference),))


def steps_page(title: str, steps: Steps) -> str:
    """One page that steps through differences, each against the one before; ``title`` and the texts of steps are plain text."""
    return _document(title, steps)


def _document(title: str, steps: Steps) -> str:
    found = data([difference for _, difference in steps])
    shown = [step is not None for step in found["steps"]]
    parts = "".join(_step(at, difference, shown[at], bool(name)) for at, (name, difference) in enumerate(steps))
    body = f"""<a class="skip" href="#graphs">Skip to the graphs</a>
<header><h1>{text(title)}</h1></header>{_ladder(steps)}
<main>{parts or "<p>Nothing changed.</p>"}{_graphs() if any(shown) else "<div id='graphs'></div>"}</main>"""
    style, script = asset("page.css", "diff_page.css"), asset("page_parts.js", "diff_panel.js", "diff_view.js", "diff_page.js")
    return document(title, body, found, style=style, script=script)


def _ladder(steps: Steps) -> str:
    """Buttons for the steps; nothing where there is only one without a name."""
    if not any(name for name, _ in steps):
        return ""
    items = "".join(
        f"<button type='button' role='tab' id='tab-{at}' aria-controls='step-{at}' aria-selected='{'true' if at == 0 else 'false'}' "
        f"tabindex='{0 if at == 0 else -1}'><span class='small'>{at + 1}</span> {text(units.clip(name, 60))}</button>"
        for at, (name, _) in enumerate(steps)
    )
    return (
        "<nav id='steps' aria-label='steps'><button type='button' data-turn='-1' aria-label='step before'>&lsaquo;</button>"
        f"<div role='tablist' aria-label='steps'>{items}</div>"
        "<button type='button' data-turn='1' aria-label='next step'>&rsaquo;</button></nav>"
    )


def _step(at: int, difference: Difference, drawn: bool, named: bool) -> str:
    hidden = (f" role='tabpanel' aria-labelledby='tab-{at}'" if named else "") + (" hidden" if at else "")
    beside = "".join(_beside(difference))
    changes = section(f"changes-{at}", "Changes", _changes(at, difference))
    columns = f"<div class='cards'>{changes}{beside}</div>"
    note = "" if drawn else f"<p class='small'>{_undrawn(difference.sides)}</p>"
    summary = f"<p class='facts'>{text(diff_rows.summary(difference))}</p>"
    return f"<div class='step' id='step-{at}' data-step='{at}'{hidden}>{summary}{_tiles(difference)}{columns}{note}</div>"


def _undrawn(sides: Sides | None) -> str:
    if sides is None or not (sides.base or sides.head):
        return "The graphs themselves are not part of this difference, so they are not drawn."
    most = max(len(sides.base), len(sides.head))
    if most > MAX_DRAWN:
        return f"{most} nodes are too many to draw (the limit is {MAX_DRAWN})."
    return "So many long lines run beside each other in these graphs that they are not drawn."


def _tiles(difference: Difference) -> str:
    """The few numbers that most readers came for."""
    d = difference
    cells = []
    verdict = diff_rows.verdict(d)
    if verdict:
        bad = diff_rows.violated(d)
        cells.append(("gates", verdict, ", ".join(gate.name for gate in bad)))
    nodes = str(d.head_nodes) if d.base_nodes == d.head_nodes else f"{d.base_nodes} \u2192 {d.head_nodes}"
    cells.append(("nodes", nodes, _counts(d) or "the same graph"))
    for name, _, head, ratio in diff_rows.cost_rows(d):
        if plain(name) in ("multiply-adds", "weights"):
            cells.append((plain(name), plain(head), plain(ratio)))
    if d.numbers.outputs:
        worst = diff_rows.output_rows(d)[0]
        cells.append(("numbers", f"SQNR {plain(worst[1])}", f"largest error {plain(worst[2])}"))
    if d.numbers.latency is not None:
        cells.append(("latency", d.numbers.latency.verdict, diff_rows.latency_sentence(d.numbers.latency)))
    return tiles(cells)


def _counts(d: Difference) -> str:
    listed = {"removed": d.removed, "added": d.added, "changed": d.changed, "rewired": d.rewired, "moved": d.moved, "merged": d.groups}
    return ", ".join(f"{len(found)} {word}" for word, found in listed.items() if found)


def _beside(d: Difference) -> list[str]:
    """Gates, contract, costs and numbers, those that there are."""
    every = [
        ("gates", "Gates", _gates(d)),
        ("contract", "Contract", _rows(diff_rows.CONTRACT_HEAD, diff_rows.contract_rows(d), "Contract")),
        ("cost", "Cost", _rows(diff_rows.COST_HEAD, diff_rows.cost_rows(d), "Cost")),
        ("numbers", "Numbers", _numbers(d)),
    ]
    return [section(name, title, body).replace("<section id=", "<section class=") for name, title, body in every if body]


def _rows(head: tuple[str, ...], body: Sequence[tuple[Phrase, ...]], label: str) -> str:
    return table(head, [tuple(plain(cell) for cell in row) for row in body], label) if body else ""


def _gates(d: Difference) -> str:
    if not d.gates:
        return ""
    lines = "".join(
        f"<tr class='{'holds' if gate.holds else 'violated'}'><th scope='row'>{text(gate.name)}</th><td>{text(gate.measured)}</td>"
        f"<td>{text(gate.limit)}</td>"
        f"<td><b>{'holds' if gate.holds else 'violated'}</b> {text('' if gate.holds else gate.message)}</td></tr>"
        for gate in sorted(d.gates, key=lambda gate: gate.holds)
    )
    top = "".join(f"<th scope='col'>{cell}</th>" if cell else "<td></td>" for cell in diff_rows.GATE_HEAD)
    return f"<div class='scroll'><table aria-label='Gates'><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>"


def _numbers(d: Difference) -> str:
    lines = [plain(diff_rows.first_drop(d)), d.numbers.note]
    lines.append(f"latency {diff_rows.latency_sentence(d.numbers.latency)}" if d.numbers.latency is not None else "")
    notes = "".join(f"<li>{text(line)}</li>" for line in lines if line)
    outputs = _rows(diff_rows.OUTPUT_HEAD, diff_rows.output_rows(d), "Outputs")
    return outputs + (f"<ul class='facts'>{notes}</ul>" if notes else "")


def _changes(at: int, difference: Difference) -> str:
    """A table of everything about the graphs; equal changes of many nodes are one row that opens."""
    names = Names(difference.sides) if difference.sides is not None else None
    bodies = "".join(_told(f"{at}", place, one, names) for place, one in enumerate(told(difference)))
    if not bodies:
        return "<p class='small'>The graphs are the same.</p>"
    top = "<tr><td></td><th scope='col'>node</th><th scope='col'>what</th></tr>"
    return f"<div class='scroll changes'><table aria-label='Changes'><thead>{top}</thead>{bodies}</table></div>"


def _told(step: str, place: int, told_: Told, names: Names | None) -> str:
    if len(told_.findings) == 1:
        return f"<tbody>{_line(step, told_.first, names)}</tbody>"
    name = f"told-{step}-{place}"
    head = (
        f"<tr><td>{_sign(told_.first.sign)}</td><th scope='row'>"
        f"<button type='button' class='more' aria-expanded='true' aria-controls='{name}'>"
        f"{text(plain(told_.subject))}</button></th><td>{text(plain(told_.statement))}</td></tr>"
    )
    lines = "".join(_line(step, finding, names) for finding in told_.findings)
    return f"<tbody>{head}</tbody><tbody id='{name}' class='each'>{lines}</tbody>"


def _line(step: str, finding: Finding, names: Names | None) -> str:
    label = f"{text(plain((finding.place.kind, ' ')))} {text(finding.label)}"
    side, at = names.of(finding) if names is not None else (0, -1)
    if at >= 0:
        label = f"<button type='button' class='link' data-node='{step}-{('base', 'head')[side]}-{at}'>{label}</button>"
    what = text(" ".join(part for part in (plain(finding.what), plain(finding.detail)) if part))
    source = text(units.place(finding.place.source))
    where = f" <span class='small'>{source}</span>" if source else ""
    return f"<tr><td>{_sign(finding.sign)}</td><th scope='row'>{label}</th><td>{what}{where}</td></tr>"


def _sign(sign: str) -> str:
    word = WORDS[sign]
    return f"<span class='sign {word}' title='{word}' role='img' aria-label='{word}'>{text(sign)}</span>"


def _graphs() -> str:
    """The frame that the script fills."""
    legend = "".join(f"<li>{_sign(sign)} {word}</li>" for sign, word in WORDS.items())
    buttons = "".join(
        f"<button type='button' data-do='{step}' aria-label='{label}' title='{label} ({key})'>{sign}</button>"
        for step, sign, label, key in (
            ("back", "&uarr;", "change before", "p"),
            ("next", "&darr;", "next change", "n"),
            ("fold", "fold", "fold what is unchanged", "f"),
            ("unfold", "unfold", "unfold everything", "u"),
            ("out", "&minus;", "zoom out", "-"),
            ("in", "+", "zoom in", "+"),
            ("fit", "fit", "fit the width", "0"),
        )
    )
    panels = "".join(
        f"<div class='panel' data-side='{side}'><div class='bar'><h3>{side}</h3><span class='small'></span></div>"
        f"<div class='canvas' tabindex='0' role='region' aria-label='graph of {side}'></div></div>"
        for side in ("base", "head")
    )
    return f"""<section id="graphs"><h2>Graphs</h2>
<noscript><p>The graphs are drawn by the script of this page; everything else is above.</p></noscript>
<div class="tools"><input type="search" placeholder="find a node" aria-label="find a node" spellcheck="false">
<output class="small"></output>
<ul class="legend" aria-label="signs">{legend}</ul>{buttons}</div>
<div class="graph">{panels}
<aside aria-live="polite" aria-label="Details of the chosen node"></aside></div></section>
<section id="layers"><h2>Layers</h2><div id="strips"></div></section>"""
