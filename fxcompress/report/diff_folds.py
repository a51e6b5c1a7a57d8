"""Which rows of a drawing are folded at first: what did not change, and blocks that are like the one above.

Rows are compared by tokens. A block that repeats is a tandem repeat of the sequence of tokens, so blocks are found by
their structure and not by how somebody named them; paths only name what was found.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from fxcompress.report import units

CONTEXT = 1  # rows that stay open beside a change
SHORTEST = 4  # rows that are worth a fold
_SPLIT = 12  # rows in a fold that is opened step by step
_BARS = 24  # folds that show a graph in which nothing changed


@dataclass(frozen=True)
class Row:
    """``token``: equal for rows with the same operations and changes. ``path``: module path of a node in it; "" where none has one."""

    token: Hashable
    changed: bool
    path: str
    nodes: int


@dataclass(frozen=True)
class Fold:
    """Rows ``first`` to ``last`` as one bar with two lines of text; ``inner`` are the folds that remain when it is opened."""

    first: int
    last: int
    title: str
    where: str
    inner: tuple[Fold, ...] = ()


@dataclass(frozen=True)
class Repeat:
    """``count`` times ``period`` rows from row ``first`` on."""

    first: int
    period: int
    count: int

    @property
    def end(self) -> int:
        return self.first + self.period * self.count


def folds(rows: Sequence[Row]) -> tuple[Fold, ...]:
    """The folds from top to bottom; they do not overlap."""
    if not any(row.changed for row in rows):
        first, last = CONTEXT, len(rows) - 1 - CONTEXT
        return _overview(_worth(rows, first, last, "unchanged"))
    found: list[Fold] = []
    for repeat in repeats(rows, 0, len(rows)):
        if any(row.changed for row in rows[repeat.first : repeat.end]):
            found.append(_more(rows, repeat))
    edges = [-1, *(edge for fold in found for edge in (fold.first, fold.last)), len(rows)]
    for start, stop in zip(edges[::2], edges[1::2], strict=True):
        found += _stretches(rows, start + 1, stop)
    return tuple(sorted(found, key=lambda fold: fold.first))


def _overview(found: tuple[Fold, ...]) -> tuple[Fold, ...]:
    """Folds opened for as long as the graph stays short enough to be seen as a whole."""
    while True:
        opened = tuple(one for fold in found for one in (fold.inner or (fold,)))
        if opened == found or len(opened) > _BARS:
            return found
        found = opened


def repeats(rows: Sequence[Row], start: int, stop: int) -> list[Repeat]:
    """Blocks that repeat, from top to bottom: of all repeats the one that covers most, then what is left above and below it."""
    numbers: dict[Hashable, int] = {}
    tokens = np.array([numbers.setdefault(row.token, len(numbers)) for row in rows], dtype=np.int64)
    found: list[Repeat] = []
    todo = [(start, stop)]
    while todo:
        low, high = todo.pop()
        best = _longest(tokens[low:high])
        if best is not None:
            repeat = _turned(rows, low, *best)
            found.append(repeat)
            todo += [(low, repeat.first), (repeat.end, high)]
    return sorted(found, key=lambda repeat: repeat.first)


def _longest(tokens: NDArray[np.int64]) -> tuple[int, int, int] | None:
    """Start, period and length of the run that covers the most rows, with the shortest period of those."""
    best, found = SHORTEST - 1, None
    for period in range(2, len(tokens) // 2 + 1):
        at = np.arange(len(tokens) - period)
        differ = np.where(tokens[:-period] == tokens[period:], len(at), at)
        run = np.minimum.accumulate(differ[::-1])[::-1] - at
        covered = np.where(run >= period, (run // period + 1) * period, 0)
        place = int(covered.argmax())
        if covered[place] > best:
            best, found = int(covered[place]), (place, period, int(run[place]) + period)
    return found


def _turned(rows: Sequence[Row], low: int, start: int, period: int, length: int) -> Repeat:
    """A run may be cut into blocks at several places; the best one is where the path changes most."""
    count = length // period
    starts = range(low + start, low + start + length - period * count + 1)
    return Repeat(min(starts, key=lambda at: _common(rows[at - 1].path, rows[at].path) if at else 0), period, count)


def _common(one: str, other: str) -> int:
    """How many leading parts two paths share; many where there is none to compare."""
    if not one or not other:
        return 99
    pairs = zip(one.split("."), other.split("."), strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), 98)


def _more(rows: Sequence[Row], repeat: Repeat) -> Fold:
    """All copies but the first, which is the one that is shown."""
    first, last = repeat.first + repeat.period, repeat.end - 1
    size = sum(row.nodes for row in rows[first : last + 1]) // (repeat.count - 1)
    times = "once" if repeat.count == 2 else f"{repeat.count - 1} times"
    return Fold(first, last, f"the same {units.plural(size, 'node')} {times} more", _where(rows, first, last), _copies(rows, first, repeat))


def _copies(rows: Sequence[Row], start: int, repeat: Repeat) -> tuple[Fold, ...]:
    """One fold for each block from ``start`` on, none where there is only one."""
    firsts = range(start, repeat.end, repeat.period)
    if len(firsts) < 2 or repeat.period < SHORTEST:
        return ()
    return tuple(_fold(rows, first, first + repeat.period - 1, "") for first in firsts)


def _stretches(rows: Sequence[Row], start: int, stop: int) -> list[Fold]:
    """Runs of unchanged rows; some stay open beside what changed, and at the ends of the graph."""
    found: list[Fold] = []
    at = start
    for changed, run in groupby(rows[start:stop], key=lambda row: row.changed):
        length = len(list(run))
        if not changed:
            found += _worth(rows, at + CONTEXT, at + length - 1 - CONTEXT, "unchanged")
        at += length
    return found


def _worth(rows: Sequence[Row], first: int, last: int, word: str) -> tuple[Fold, ...]:
    inner = _inner(rows, first, last)
    if len(inner) == 1 and inner[0].inner:  # no bar that opens to just another bar
        inner = inner[0].inner
    return (_fold(rows, first, last, word, inner),) if last - first + 1 >= SHORTEST else ()


def _fold(rows: Sequence[Row], first: int, last: int, word: str, inner: tuple[Fold, ...] = ()) -> Fold:
    size = units.plural(sum(row.nodes for row in rows[first : last + 1]), "node")
    return Fold(first, last, f"{size} {word}".rstrip(), _where(rows, first, last), inner)


def _inner(rows: Sequence[Row], first: int, last: int) -> tuple[Fold, ...]:
    """What a long fold shows when it is opened: its repeated blocks, else its modules; () for its rows."""
    if last - first + 1 < _SPLIT:
        return ()
    found: list[Fold] = []
    at = first
    for repeat in repeats(rows, first, last + 1):
        found += _rest(rows, at, repeat.first - 1)
        size = sum(row.nodes for row in rows[repeat.first : repeat.end]) // repeat.count
        title = f"{repeat.count} x {units.plural(size, 'node')}"
        found.append(
            Fold(repeat.first, repeat.end - 1, title, _where(rows, repeat.first, repeat.end - 1), _copies(rows, repeat.first, repeat))
        )
        at = repeat.end
    if found:
        return (*found, *_rest(rows, at, last))
    return _by_path(rows, first, last)


def _rest(rows: Sequence[Row], first: int, last: int) -> tuple[Fold, ...]:
    """What stands between repeated blocks: its modules where it has several."""
    return _by_path(rows, first, last) or _worth(rows, first, last, "")


def _by_path(rows: Sequence[Row], first: int, last: int) -> tuple[Fold, ...]:
    """The rows by the leading parts of their paths, as few of them as tell several apart."""
    if last - first + 1 < _SPLIT:
        return ()
    paths, path = [], ""
    for row in rows[first : last + 1]:
        path = row.path or path  # a function stands with the module before it
        paths.append(path.split("."))
    for depth in range(1, max(map(len, paths))):
        found, at = [], first
        for _, run in groupby(paths, key=lambda parts: parts[:depth]):
            length = len(list(run))
            if length >= SHORTEST:
                found.append(_fold(rows, at, at + length - 1, ""))
            at += length
        if len(found) > 1:
            return tuple(found)
    return ()


def _where(rows: Sequence[Row], first: int, last: int) -> str:
    """ "layer1.0 ... layer2.1": the modules that the rows belong to; "" where no path is known."""
    paths = [row.path for row in rows[first : last + 1] if row.path]
    if not paths:
        return ""
    common = _shared(paths)
    if common:
        return common
    one, other = (path.rpartition(".")[0] or path for path in (paths[0], paths[-1]))
    return one if one == other else f"{one} ... {other}"


def _shared(paths: Sequence[str]) -> str:
    parts = [path.split(".") for path in paths]
    kept = []
    for column in zip(*parts, strict=False):
        if len(set(column)) > 1:
            break
        kept.append(column[0])
    return ".".join(kept)
