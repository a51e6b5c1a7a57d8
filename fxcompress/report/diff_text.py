"""A difference for the terminal: the worst first, and never more lines than a screen has."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tabulate import tabulate

from fxcompress.report import diff_rows, units
from fxcompress.report.diff_values import plain
from fxcompress.report.findings import CHANGED, GRAPH, GROUPS, Told, told

if TYPE_CHECKING:
    from fxcompress.report.difference import Difference

LINES = 40
_GUTTER = 10
_NARROWEST = 40
_EXAMPLES = 6


@dataclass(frozen=True)
class Block:
    """One section: a title in the margin and its lines, the worst first. ``more``: lines that no screen has room for, not made."""

    title: str
    lines: tuple[str, ...]
    more: int = 0


def render(difference: Difference, width: int = 96, lines: int = LINES) -> str:
    """At most ``lines`` lines of at most ``width`` characters (no less than 40)."""
    width = max(width, _NARROWEST)
    head = [_fit(plain(diff_rows.title(difference)), width), *_status(difference, width)]
    for tall in (2, 1):  # lines that one sentence may have
        blocks = [block for block in _blocks(difference, width - _GUTTER, tall) if block.lines]
        if sum(len(block.lines) + block.more + 1 for block in blocks) <= lines - len(head):
            break
    shares = _shares([len(block.lines) + block.more for block in blocks], lines - len(head) - len(blocks))
    body = [_with_margin(block.title, _cut(block, share, width - _GUTTER)) for block, share in zip(blocks, shares, strict=True)]
    return "\n\n".join(["\n".join(head), *body]) + "\n"


def _status(difference: Difference, width: int) -> list[str]:
    verdict = diff_rows.verdict(difference)
    said = f"{verdict}; " if verdict else ""
    return textwrap.wrap(said + diff_rows.summary(difference), width, max_lines=3, placeholder=" ...")


def _blocks(difference: Difference, width: int, tall: int) -> list[Block]:
    """All sections, the one that matters most first."""
    stories = told(difference)
    sections = {name: [t for t in stories if t.first.section == name] for name in (GRAPH, CHANGED, GROUPS)}
    numbers, latency = diff_rows.number_sentences(difference), difference.numbers.latency
    return [
        _block("gates", _gates(difference), width, tall),
        _block("contract", [plain(said) for said in diff_rows.contract_sentences(difference)], width, tall),
        _block("numbers", [plain(said) for said in numbers], width, tall),
        *(_stories(name, found, width, tall) for name, found in sections.items()),
        Block("cost", _costs(difference, width)),
        Block("latency", (_fit(diff_rows.latency_sentence(latency), width),) if latency else ()),
    ]


def _block(title: str, said: list[str], width: int, tall: int, more: int = 0) -> Block:
    shown = said[:LINES]
    return Block(title, tuple(line for text in shown for line in _wrapped(text, width, tall)), len(said) - len(shown) + more)


def _wrapped(line: str, width: int, tall: int) -> list[str]:
    if tall == 1 or len(line) <= width:
        return [_fit(line, width)]
    return textwrap.wrap(line, width, subsequent_indent=" " * 6, max_lines=tall, placeholder=" ...", break_on_hyphens=False)


def _fit(line: str, width: int) -> str:
    """A printable line, cut. (``units.clip`` would make one space of the several between columns.)"""
    return line if len(line) <= width else line[: width - 3] + "..."


def _fits(line: str, width: int, tall: int) -> bool:
    """Whether nothing of it is cut."""
    return len(line) <= width if tall == 1 else len(_wrapped(line, width, tall + 1)) <= tall


def _gates(difference: Difference) -> list[str]:
    bad = ["FAIL  " + plain(diff_rows.gate_sentence(gate)) for gate in diff_rows.violated(difference)]
    holding = [units.clip(gate.name, 40) for gate in difference.gates if gate.holds]
    return [*bad, *(["hold  " + ", ".join(holding)] if holding else [])]


def _costs(difference: Difference, width: int) -> tuple[str, ...]:
    rows = diff_rows.cost_rows(difference)
    if not rows:
        return ()
    cells = [[plain(cell) for cell in row] for row in rows]
    made = tabulate(cells, tablefmt="plain", colalign=("left", "right", "right", "left"), disable_numparse=True)
    return tuple(_fit(line.rstrip(), width) for line in made.splitlines())


def _stories(title: str, stories: list[Told], width: int, tall: int) -> Block:
    said = [_line(story, width, tall) for story in stories[:LINES]]
    return _block(title, said, width, tall, len(stories) - len(said))


def _line(story: Told, width: int, tall: int) -> str:
    """One theme: what happened to how many, then the source line of one node, or as many names of several as fit."""
    start = f"{story.first.sign} {plain(story.subject)}: {plain(story.statement)}"
    more = _examples(story) if len(story.findings) > 1 else _source(story)
    return next((start + end for end in more if _fits(start + end, width, tall)), start)


def _source(story: Told) -> list[str]:
    where = units.printable(units.place(story.first.place.source))
    return [f"  ({where})"] if where else []


def _examples(story: Told) -> list[str]:
    """ "  (conv1, layer1.0.conv1 and 18 more)", with many names first."""
    names = [plain(name) for name in story.examples(_EXAMPLES if story.details_agree else _EXAMPLES // 2)]
    total = len(story.findings)
    ends = [f" and {total - shown} more" if total > shown else "" for shown in range(len(names) + 1)]
    return [f"  ({', '.join(names[:shown])}{ends[shown]})" for shown in range(len(names), 0, -1)]


def _shares(sizes: list[int], budget: int) -> list[int]:
    """How many lines each block gets: one more for each in turn, the worst first, until all are told or the screen is full."""
    shares = [0] * len(sizes)
    while budget > 0 and shares != sizes:
        for at, size in enumerate(sizes):
            if shares[at] < size and budget > 0:
                shares[at], budget = shares[at] + 1, budget - 1
    return shares


def _cut(block: Block, share: int, width: int) -> tuple[str, ...]:
    total = len(block.lines) + block.more
    if total <= share:
        return block.lines
    kept = max(0, share - 1)
    return (*block.lines[:kept], _fit(f"... and {total - kept} more; the other forms list them", width))


def _with_margin(title: str, lines: tuple[str, ...]) -> str:
    return "\n".join((f"{title:<{_GUTTER}}" if at == 0 else " " * _GUTTER) + line for at, line in enumerate(lines))
