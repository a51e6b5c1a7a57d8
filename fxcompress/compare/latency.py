"""Whether one of two graphs is faster: interleaved timing, and a test that says whether the difference is one."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np
import torch

from fxcompress.compare.schema import Snapshot
from fxcompress.errors import InputError
from fxcompress.report.difference import LatencyChange
from fxcompress.targets.timing import interleaved

ROUNDS = 12
_SECONDS = 0.05  # of each form in each round
_SIGNIFICANT = 0.01
_RELEVANT = 0.01


def latency(base: Snapshot, head: Snapshot, *, rounds: int = ROUNDS) -> LatencyChange:
    """Time both graphs on their example inputs in turns.

    Calls that follow each other are alike (caches, clocks), so what is tested are the medians of the rounds. A difference counts when
    it is significant (p < 0.01) and at least 1 %.

    Raises:
        InputError: a graph is not at hand.
    """
    missing = [snapshot.model for snapshot in (base, head) if snapshot.live is None]
    if missing or base.live is None or head.live is None:
        raise InputError(
            f"there is no graph of {' and '.join(missing)} to time: a snapshot file holds no weights",
            hint="give models or specs instead of snapshot files, or leave the latency out",
        )
    forms = {"base": lambda: base.live.inputs.call(base.live.module), "head": lambda: head.live.inputs.call(head.live.module)}
    taken: dict[str, list[float]] = {"base": [], "head": []}
    cuda = any(t.is_cuda for live in (base.live, head.live) for t in live.inputs.tensors())
    synchronize = torch.cuda.synchronize if cuda else _nothing
    for turn in range(rounds):
        order = ["base", "head"] if turn % 2 == 0 else ["head", "base"]
        found = interleaved({name: forms[name] for name in order}, seconds=_SECONDS, blocks=1, synchronize=synchronize)
        for name, timing in found.items():
            taken[name].append(timing.median)
    return compare_times(taken["base"], taken["head"])


def _nothing() -> None:
    """On the CPU nothing is left to wait for."""


def compare_times(base: Sequence[float], head: Sequence[float]) -> LatencyChange:
    """Milliseconds of several rounds of both."""
    was, now = statistics.median(base), statistics.median(head)
    p_value = mann_whitney(base, head)
    significant = p_value < _SIGNIFICANT and abs(was - now) > _RELEVANT * max(was, now)
    return LatencyChange(was, now, p_value, ("faster" if now < was else "slower") if significant else "~")


def mann_whitney(first: Sequence[float], second: Sequence[float]) -> float:
    """The two-sided p-value of the Mann-Whitney U test: how likely ranks are at least so far apart when both come from one distribution.

    By the normal approximation with corrections for ties and continuity (good from 8 values on each side). Source: Mann and Whitney
    (1947), "On a test of whether one of two random variables is stochastically larger than the other".
    """
    n, m = len(first), len(second)
    values = np.array([*first, *second], dtype=np.float64)
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    u = float(ranks[:n].sum()) - n * (n + 1) / 2
    total = n + m
    ties = float((counts**3 - counts).sum()) / (total * (total - 1)) if total > 1 else 0.0
    spread = math.sqrt(n * m / 12 * max(0.0, total + 1 - ties))
    if spread == 0:
        return 1.0
    z = max(0.0, abs(u - n * m / 2) - 0.5) / spread
    return math.erfc(z / math.sqrt(2))
