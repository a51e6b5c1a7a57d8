"""Ascending indices as short text: ``0-31,40,42-50:2`` is 0 to 31, 40, and every second one from 42 to 50."""

from __future__ import annotations

import functools
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]

_RUN = re.compile(r"([0-9]{1,10})(?:-([0-9]{1,10})(?::([0-9]{1,10}))?)?")


def encode(indices: NDArray[Any]) -> str:
    """The text of strictly ascending indices; "" for none. The same indices always give the same text."""
    if len(indices) > 1 and indices[-1] - indices[0] == len(indices) - 1:
        return f"{indices[0]}-{indices[-1]}"
    steps = np.diff(indices)
    ends = np.append(np.flatnonzero(np.diff(steps)), len(steps) - 1)  # the last step of each stretch of equal steps
    values, strides = indices.tolist(), steps.tolist()
    runs, place, stretch = [], 0, 0
    while place < len(values):
        while stretch < len(ends) and ends[stretch] < place:
            stretch += 1
        last = int(ends[stretch]) + 1 if place < len(strides) else place
        step = strides[place] if place < len(strides) else 1
        if last == place or (step != 1 and last - place < 2):
            runs.append(str(values[place]))
            place += 1
        else:
            runs.append(f"{values[place]}-{values[last]}" + ("" if step == 1 else f":{step}"))
            place = last + 1
    return ",".join(runs)


def decode(text: str) -> Indices:
    """The indices. Look at :func:`count` of a text from elsewhere first: it may name more than fit into memory."""
    runs = [np.arange(first, last + 1, step) for first, last, step in parse(text)]
    return np.concatenate(runs) if runs else np.empty(0, np.int64)


def mask(text: str, size: int) -> NDArray[np.bool_]:
    """One flag per index of an axis of ``size``."""
    flags = np.zeros(size, dtype=bool)
    for first, last, step in parse(text):
        flags[first : last + 1 : step] = True
    return flags


def count(text: str) -> int:
    """How many indices there are, without listing them."""
    return sum((last - first) // step + 1 for first, last, step in parse(text))


@functools.lru_cache(maxsize=4096)  # the slots of a group have the same text
def parse(text: str) -> tuple[tuple[int, int, int], ...]:
    """(first, last, step) of every run.

    Raises:
        ValueError: it is no such text, or the indices do not ascend.
    """
    runs, before = [], -1
    for part in text.split(",") if text else ():
        match = _RUN.fullmatch(part)
        if match is None:
            raise ValueError(f"'{part[:40]}' is no range of indices")
        first = int(match[1])
        last, step = int(match[2] or first), int(match[3] or 1)
        if first <= before or last < first or step < 1 or (last - first) % step:
            raise ValueError(f"the indices '{part}' do not ascend")
        runs.append((first, last, step))
        before = last
    return tuple(runs)
