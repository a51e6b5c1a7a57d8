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
    samples: dict[str, list[float]] = {name: [] for name in forms}
    with torch.inference_mode():
        first = {name: _timed(form, synchronize) for name, form in forms.items()}  # packs weights, compiles, allocates
        for block in range(blocks):
            for name, form in forms.items():
                is_long = min([first[name], *samples[name]]) > LONG
                if is_long and block >= max(2, blocks // 2):
                    continue  # long calls are steadier, and half of the blocks are enough
                time.sleep(PAUSE)
                samples[name] += _block(form, seconds / blocks, synchronize, wake=not is_long)
    return {name: Timing.of(taken) for name, taken in samples.items()}


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
