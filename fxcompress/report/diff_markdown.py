"""A difference as GitHub-flavoured Markdown, for a step summary or a comment of a pull request."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from fxcompress.report import diff_mermaid, diff_rows, units
from fxcompress.report.diff_rows import Cells
from fxcompress.report.diff_values import Name, Phrase, joined
from fxcompress.report.findings import Told, told
from fxcompress.report.inert import markdown, prose

if TYPE_CHECKING:
    from fxcompress.report.difference import Difference, Place

COMMENT_LIMIT = 65_536
"""GitHub's limit for a comment, in characters; texts are kept under it in bytes, of which there are never fewer."""
SUMMARY_LIMIT = 1024 * 1024
"""GitHub's limit for what one step adds to its summary, in bytes."""

_SEEN = 12  # rows that are seen without a click
_FACTS = 50
_EXAMPLES = 6
_STORY_HEAD = ("", "node", "what", "at")


def render(difference: Difference, limit: int = COMMENT_LIMIT) -> str:
    """The whole difference in at most ``limit`` bytes of UTF-8; what does not fit is left out with a remark."""
    page = _Page(limit)
    _head(page, difference)
    _facts(page, difference)
    stories = told(difference)
    if stories:
        page.text("### Graph")
        chart = diff_mermaid.render(difference)
        page.text(f"```mermaid\n{chart}\n```" if chart else "")
        page.table(_STORY_HEAD, map(_story, stories), len(stories), "clll", _SEEN)
        _details(page, stories)
    return page.finish()


class _Page:
    """Blocks of Markdown, as long as there is room."""

    _REMARK = 200  # bytes that every remark on what was left out fits in

    def __init__(self, limit: int) -> None:
        self._blocks: list[str] = []
        self._room = limit - 2 * self._REMARK

    def text(self, block: str) -> None:
        """Add a block, or nothing when it does not fit."""
        size = len(block.encode()) + 2
        if block and size <= self._room:
            self._blocks.append(block)
            self._room -= size

    def table(
        self, head: Sequence[str], rows: Iterable[Cells], total: int, align: str, most: int, before: str = "", after: str = ""
    ) -> None:
        """Add a table with the first ``most`` of ``total`` rows at most, fewer when they do not fit, and say how many are missing."""
        rules = {"l": ":--", "r": "--:", "c": ":-:"}
        lines = [_row(name or " " for name in head), _row(rules[a] for a in align)]
        room = self._room - sum(len(line.encode()) + 1 for line in (before, *lines, after)) - 4
        if not total or room < 0:
            return
        for cells in islice(rows, most):
            line = _row(markdown(cell) or " " for cell in cells)
            room -= len(line.encode()) + 1
            if room < 0:
                break
            lines.append(line)
        missing = total - (len(lines) - 2)
        more = f"\n\n... and {missing} more; the JSON and HTML forms list all." if missing else ""
        block = before + "\n".join(lines) + more + after
        self._blocks.append(block)
        self._room -= len(block.encode()) + 2 - len(more.encode())

    def finish(self) -> str:
        return "\n\n".join(self._blocks) + "\n"


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _head(page: _Page, difference: Difference) -> None:
    title = " → ".join(markdown((piece,)) for piece in diff_rows.title(difference) if isinstance(piece, Name))
    page.text(f"## {title}")
    verdict, said = diff_rows.verdict(difference), diff_rows.summary(difference)
    mark = "❌" if diff_rows.violated(difference) else "✅"
    page.text(f"{mark} **{prose(_capital(verdict))}.** {prose(_capital(said))}." if verdict else f"**{prose(_capital(said))}.**")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _facts(page: _Page, difference: Difference) -> None:
    """Everything but the graphs."""
    bad = len(diff_rows.violated(difference))
    gates = [(("❌" if at < bad else "✅",), *row) for at, row in enumerate(diff_rows.gate_rows(difference))]
    for title, head, rows, align, notes in (
        ("Gates", ("", *diff_rows.GATE_HEAD), gates, "clrrl", []),
        ("Contract", diff_rows.CONTRACT_HEAD, diff_rows.contract_rows(difference), "lllll", []),
        ("Numbers", diff_rows.OUTPUT_HEAD, diff_rows.output_rows(difference), "lrrrr", _remarks(difference)),
        ("Cost", diff_rows.COST_HEAD, diff_rows.cost_rows(difference), "lrrr", _latency(difference)),
    ):
        if rows or notes:
            page.text(f"### {title}")
            page.table(head, rows, len(rows), align, _FACTS)
        for note in notes:
            page.text(note)


def _remarks(difference: Difference) -> list[str]:
    numbers = difference.numbers
    drop, place = diff_rows.first_drop(difference), numbers.first_drop
    at = f" ({_source(place.source)})" if place is not None and place.source else ""
    found = f"{_capital(markdown(drop))}{at}." if drop else ""
    remark = f"Remark: {prose(numbers.note)}" if numbers.note else ""
    return [note for note in (found, remark) if note]


def _latency(difference: Difference) -> list[str]:
    latency = difference.numbers.latency
    return [f"Latency: {prose(diff_rows.latency_sentence(latency))}"] if latency is not None else []


def _source(source: str | None) -> str:
    return markdown((Name(units.place(source)),)) if source else ""


def _story(story: Told) -> Cells:
    """A row for one theme: several nodes are named as examples."""
    examples = story.examples(_EXAMPLES if story.details_agree else _EXAMPLES // 2)
    more = len(story.findings) - len(examples)
    names = (": ", *joined(examples), *((f" and {more} more",) if more > 0 else ())) if examples else ()
    where: Phrase = (Name(units.place(story.first.place.source)),) if story.first.place.source else ()
    return ((Name(story.first.sign),), story.subject, (*story.statement, *names), where if not examples else ())


def _details(page: _Page, stories: list[Told]) -> None:
    """Every node with all that is said of it, folded, where the table above does not have it."""
    nodes: dict[tuple[Place, bool], list[Told]] = defaultdict(list)
    for finding in (finding for story in stories for finding in story.findings):
        nodes[finding.place, finding.sign == "-"].append(Told((finding,)))
    if len(nodes) > len(stories) or len(stories) > _SEEN:
        before = f"<details><summary>All {len(nodes)} nodes, one by one</summary>\n\n"
        page.table(_STORY_HEAD, map(_node, nodes.values()), len(nodes), "clll", len(nodes), before, "\n\n</details>")


def _node(stories: list[Told]) -> Cells:
    first = stories[0].first
    where: Phrase = (Name(units.place(first.place.source)),) if first.place.source else ()
    return ((Name(first.sign),), stories[0].subject, joined([story.statement for story in stories], "; "), where)
