"""Fair timing of several forms of one model in one run.

Each form runs in blocks with a pause before each block, because the threads of different runtimes disturb each other;
the blocks of all forms alternate, because machines drift. What counts is the median over all blocks.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

LONG = 0.03  # seconds; in a call this long the waking of threads does not show
PAUSE = 0.02  # seconds; OpenMP threads stop spinning well within


@dataclass(frozen=True)
class Timing:
    """Median and interquartile range of one call, in milliseconds."""

    median: float
    spread: float

    @classmethod
    def of(cls, seconds: list[float]) -> Timing:
        low, middle, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else [seconds[0]] * 3
        return cls(1e3 * middle, 1e3 * (high - low))


def interleaved(
    forms: Mapping[str, Callable[[], object]], *, seconds: float = 0.4, blocks: int = 4, synchronize: Callable[[], None] = lambda: None
) -> dict[str, Timing]:
    """Time every form for about ``seconds`` in total each, in ``blocks`` alternating blocks of at least two calls."""
    samples = _samples(forms, seconds / blocks, synchronize, lambda block, taken: list(forms) if block < blocks else [])
    return {name: Timing.of(taken) for name, taken in samples.items()}


def race(
    forms: Mapping[str, Callable[[], object]], *, blocks: int = 8, seconds: float = 0.1, synchronize: Callable[[], None] = lambda: None
) -> dict[str, Timing]:
    """Time forms until it is clear which one is the fastest: every form in two blocks of about ``seconds``, then in up to
    ``blocks`` those whose fast half overlaps with that of the best. Long calls are steadier and get half of the blocks."""

    def running(block: int, taken: Mapping[str, list[float]]) -> list[str]:
        if block < 2:
            return list(forms)
        best = min(statistics.median(times) for times in taken.values())
        close = [name for name, times in taken.items() if statistics.quantiles(times, n=4)[0] <= best]
        return close if len(close) > 1 and block < (blocks // 2 if best > LONG else blocks) else []

    return {name: Timing.of(taken) for name, taken in _samples(forms, seconds, synchronize, running).items()}


def _samples(
    forms: Mapping[str, Callable[[], object]],
    seconds: float,
    synchronize: Callable[[], None],
    running: Callable[[int, Mapping[str, list[float]]], list[str]],
) -> dict[str, list[float]]:
    """Seconds of every call. ``running(block, samples)`` names the forms that take part in a block; none ends it."""
    samples: dict[str, list[float]] = {name: [] for name in forms}
    with torch.inference_mode():
        first = {name: _timed(form, synchronize) for name, form in forms.items()}  # packs weights, compiles, allocates
        block = 0
        while names := running(block, samples):
            for name in names:
                time.sleep(PAUSE)
                wake = min([first[name], *samples[name]]) <= LONG
                samples[name] += _block(forms[name], seconds, synchronize, wake=wake)
            block += 1
    return samples


def _block(form: Callable[[], object], seconds: float, synchronize: Callable[[], None], *, wake: bool) -> list[float]:
    if wake:
        form()  # wakes the threads up; not counted
    taken: list[float] = []
    while len(taken) < 2 or sum(taken) < seconds:
        taken.append(_timed(form, synchronize))
    return taken


def _timed(form: Callable[[], object], synchronize: Callable[[], None]) -> float:
    synchronize()
    began = time.perf_counter()
    form()
    synchronize()
    return time.perf_counter() - began
