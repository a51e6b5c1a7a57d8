"""The forms of what ``fxcompress check`` found out about all models."""

from __future__ import annotations

import json
from collections.abc import Sequence

from fxcompress.cli.outcome import Outcome, Status, worst
from fxcompress.report import diff_github, diff_json, diff_junit, diff_markdown, diff_rows, diff_text, units
from fxcompress.report.diff_html import steps_page
from fxcompress.report.diff_values import plain
from fxcompress.report.difference import Difference
from fxcompress.report.inert import markdown as inert

SCHEMA_VERSION = 1
FORMS = ("text", "md", "json", "junit", "html", "github")

_LINES = diff_text.LINES
_SHORTEST = 12  # lines that the difference of one model needs to be of use
_MARKS = {Status.HOLDS: "ok", Status.VIOLATED: "FAIL", Status.FAILED: "ERROR"}
_SIGNS = {Status.HOLDS: "✅", Status.VIOLATED: "❌", Status.FAILED: "⚠️"}
_MOST_ROWS = 200


def rendered(outcomes: Sequence[Outcome], form: str, width: int) -> str:
    """The form of ``FORMS`` that was asked for."""
    if form == "text":
        return text(outcomes, width)
    forms = {"md": markdown, "json": to_json, "junit": junit, "html": html, "github": github}
    return forms[form](outcomes)


# -- text ------------------------------------------------------------------------------------------------------------


def text(outcomes: Sequence[Outcome], width: int, lines: int = _LINES) -> str:
    """For the terminal, at most ``lines`` lines: the worst models first, with what differs; one line for each of the others."""
    order = _worst_first(outcomes)
    told = [outcome for outcome in order if outcome.status is not Status.HOLDS or outcome.note.partition("wrote ")[1]]
    room = lines - 2 - min(len(order), lines // 2)
    full = told[: max(1, room // _SHORTEST)]
    made: list[str] = []
    for outcome in order[: lines // 2]:
        made += [units.clip(_line(outcome), width)] if outcome.status is not Status.FAILED else _error(outcome, width, room)
        if outcome in full and outcome.status is not Status.FAILED:
            made += _details(outcome.difference, width - 2, room // len(full))
    rest = order[lines // 2 :]
    made += [units.clip(f"... and {units.plural(len(rest), 'model')} more: {', '.join(o.name for o in rest)}", width)] if rest else []
    return "\n".join([*made[: lines - 1], _summary(outcomes)]) + "\n"


def _worst_first(outcomes: Sequence[Outcome]) -> list[Outcome]:
    return sorted(outcomes, key=lambda outcome: -outcome.status)


def _line(outcome: Outcome) -> str:
    gates = outcome.difference.gates
    bad = [gate for gate in gates if not gate.holds]
    said = (
        f"{len(bad)} of {units.plural(len(gates), 'gate')} violated"
        if bad
        else f"{units.plural(len(gates), 'gate')} hold{'s' * (len(gates) == 1)}"
    )
    if not gates:
        said = "no gates"
    changed = "" if bad or outcome.note or _empty(outcome.difference) else ", though something changed"
    note = f"; {outcome.note}" if outcome.note else ""
    return f"{_MARKS[outcome.status]} {outcome.name}: {said}{changed}{note}"


def _error(outcome: Outcome, width: int, room: int) -> list[str]:
    first, *more = [line for line in outcome.error.splitlines() if line.strip()] or [""]
    shown = [
        f"{_MARKS[outcome.status]} {outcome.name}: {first}",
        *(f"      | {units.printable(line)}" for line in more[: max(2, room // 4)]),
    ]
    return [units.clip(line, 4 * width) if at == 0 else line for at, line in enumerate(shown)]


def _details(difference: Difference, width: int, lines: int) -> list[str]:
    """What differs, with the gates; only the violated ones where nothing does."""
    if _empty(difference):
        sentences = [units.clip(plain(diff_rows.gate_sentence(gate)), 2 * width) for gate in diff_rows.violated(difference)]
        return [f"  {sentence}" for sentence in sentences[:lines]]
    block = diff_text.render(difference, width, lines).rstrip("\n").splitlines()
    return [f"  {line}" if line else "" for line in block[1:]]  # without its title


def _empty(difference: Difference) -> bool:
    numbers = difference.numbers
    return difference.same_function and not (difference.cost or numbers.outputs or numbers.latency)


def _summary(outcomes: Sequence[Outcome]) -> str:
    counts = {status: sum(outcome.status is status for outcome in outcomes) for status in Status}
    words = {Status.HOLDS: "hold" if counts[Status.HOLDS] > 1 else "holds", Status.VIOLATED: "violated", Status.FAILED: "failed"}
    parts = [f"{number} {words[status]}" for status, number in counts.items() if number]
    return f"{units.plural(len(outcomes), 'model')}: {', '.join(parts)}"


# -- other forms -----------------------------------------------------------------------------------------------------


def markdown(outcomes: Sequence[Outcome], limit: int = diff_markdown.COMMENT_LIMIT) -> str:
    """GitHub-flavoured Markdown of at most ``limit`` bytes: a table of all models, then the differences, the worst first."""
    order = _worst_first(outcomes)
    head = [f"# fxcompress: {_summary(outcomes)}", "", "| | model | |", "|:-:|:--|:--|"]
    head += [f"| {_SIGNS[o.status]} | {inert((o.name,))} | {inert((_line(o).partition(': ')[2],))} |" for o in order[:_MOST_ROWS]]
    head += ["", f"... and {len(order) - _MOST_ROWS} more"] if len(order) > _MOST_ROWS else []
    blocks = ["\n".join(head)]
    for outcome in (o for o in order if o.status is not Status.HOLDS or not _empty(o.difference)):
        room = limit - sum(len(block.encode()) + 2 for block in blocks) - 1
        if room < 2_000:
            break
        blocks.append(outcome.difference.to_markdown(room).rstrip("\n"))
    return "\n\n".join(blocks) + "\n"


def to_json(outcomes: Sequence[Outcome]) -> str:
    """All models, each with its difference in the form of ``fxcompress diff --format json``."""
    models = [
        {
            "name": o.name,
            "status": o.status.word,
            "error": o.error or None,
            "note": o.note,
            "difference": json.loads(diff_json.encode(o.difference)),
        }
        for o in outcomes
    ]
    return json.dumps({"schema_version": SCHEMA_VERSION, "status": worst(outcomes).word, "models": models}, indent=1) + "\n"


def junit(outcomes: Sequence[Outcome]) -> str:
    """JUnit XML: a test suite for each model, a test case for each gate."""
    return diff_junit.render([outcome.difference for outcome in outcomes])


def html(outcomes: Sequence[Outcome]) -> str:
    """One page; for several models it steps from one to the next, the worst first."""
    order = _worst_first(outcomes)
    if len(order) == 1:
        return order[0].difference.to_html()
    return steps_page("fxcompress check", [(outcome.name, outcome.difference) for outcome in order])


def github(outcomes: Sequence[Outcome]) -> str:
    """Workflow commands for what does not hold; no more than GitHub shows of one step."""
    made: list[str] = []
    bad = [outcome for outcome in _worst_first(outcomes) if outcome.status is not Status.HOLDS]
    for at, outcome in enumerate(bad):
        room = diff_github.MOST - len(made)
        share = max(1, room // (len(bad) - at))
        made += (
            diff_github.render(_in_short(outcome.difference) if share < 3 else outcome.difference, limit=share).splitlines() if room else []
        )
    return "".join(f"{line}\n" for line in made)


def _in_short(difference: Difference) -> Difference:
    """Only its first violated gate, for when there is room for no more."""
    return Difference(difference.base, difference.head, 0, 0, 0, gates=tuple(diff_rows.violated(difference)[:1]))
