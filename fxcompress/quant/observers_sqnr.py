"""An observer for which every input counts the same, however large its numbers are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fxcompress.quant.observers_base import Observer, pieces

__all__ = ["Sqnr"]

_SHIFT = 19
"""Magnitudes are counted by the upper bits of their float32 form: exponent and 4 bits of mantissa, 16 bins per octave."""
_BINS = 255 << 4
_APART = 2
"""Bins between thresholds, so 8 of these per octave."""
_ENOUGH = 1e-3
"""Noise over signal below which less noise hardly counts."""
_UNIT = 2**20
"""Logarithms are summed in whole numbers of this part."""


class Sqnr(Observer):
    r"""Covers the range in which the inputs have the highest mean signal-to-quantization-noise ratio, in dB.

    With the squared error e_i(T) of input i's numbers, rounded in a range that is cut at -T and T, and p_i the sum of their
    squares, the T with the least

        sum over i of  log (e_i(T) + p_i / 1000)

    wins: an input for which the noise is 30 dB below the signal has little to gain, and must not take all from another one.
    The least sum of e_i itself (:class:`Histogram`) is decided by the few inputs with the largest numbers: the trunk of
    MobileNetV2 has some ten times as large as usual, and what a range for these does to all others is what the output shows.
    The same is behind the mean of the inputs' ranges, which NNCF and Jacob et al. (arXiv:1712.05877, section 3.1) take; but
    that knows nothing of how many numbers it cuts.

    e_i(T) is that of a histogram: (x - T)^2 beyond T, x^2 for what becomes zero, s^2 / 12 for the rest, with steps s of T or
    2T over the number of levels. Ranges between these, from the numbers of both signs, have logarithms between theirs.
    """

    name: ClassVar[str] = "sqnr"
    size: ClassVar[int] = 2 * (_BINS // _APART)

    def observe(self, x: Tensor) -> None:
        together = x.dim() < 2 or x.shape[0] % self.inputs
        for one in (x,) if together else x.chunk(self.inputs):
            super().observe(one)

    def _count(self, x: Tensor, least: float, largest: float) -> None:
        counts = torch.zeros(_BINS, dtype=torch.int64)
        for piece in pieces(x):
            upper = piece.view(torch.int32).bitwise_and(0x7FFFFFFF).bitwise_right_shift_(_SHIFT)
            counts = counts + torch.bincount(upper, minlength=_BINS).cpu()
        if int(counts[0]) < x.numel():
            errors = _Thresholds.of(self.bits).log_errors(counts)
            self._sums = self.tallies + (errors.flatten() * _UNIT).round().long()

    def range(self) -> tuple[float, float]:
        if self.low == self.high:
            return self.low, self.high
        one_sided, two_sided = self.tallies.double().chunk(2)
        low, high = max(0.0, -self.low), max(0.0, self.high)
        threshold = _Thresholds.of(self.bits).value
        width = threshold.clamp(max=low) + threshold.clamp(max=high)
        between = (width / threshold.clamp_min(_EDGES[1])).log2().clamp(0, 1)
        best = float(threshold[int(torch.lerp(one_sided, two_sided, between)[1:].argmin()) + 1])
        return max(self.low, -best), min(self.high, best)


@dataclass(frozen=True)
class _Thresholds:
    """Places in sums over the largest numbers: of those from each threshold on, and of those that do not become zero.

    ``step`` and ``kept`` are (2, thresholds): for steps of T and of 2T over the number of levels.
    """

    value: Tensor
    cut: Tensor
    step: Tensor
    kept: Tensor

    @classmethod
    @cache
    def of(cls, bits: int) -> _Thresholds:
        value = _EDGES[:-1:_APART]
        step = torch.stack([value, 2 * value]) / (2**bits - 1)
        return cls(value, _BINS - torch.arange(0, _BINS, _APART), step, _BINS - torch.searchsorted(_EDGES, step / 2))

    def log_errors(self, counts: Tensor) -> Tensor:
        """log2 of the squared error for each threshold, (2, thresholds); ``counts`` of the bins, not all in the first."""
        numbers, sums, squares = F.pad((_POWERS * counts.flip(0).double()).cumsum(1), (1, 0))
        clipped = squares[self.cut] - 2 * self.value * sums[self.cut] + self.value**2 * numbers[self.cut]
        inside = (numbers[self.kept] - numbers[self.cut]).clamp_min(0)
        error = clipped.clamp_min(0) + squares[-1] - squares[self.kept] + inside * self.step**2 / 12
        return (error + _ENOUGH * squares[-1]).log2()


_EDGES = (torch.arange(_BINS + 1, dtype=torch.int32) << _SHIFT).view(torch.float32).double().clamp(max=torch.finfo(torch.float32).max)
"""(bins + 1,): of the bins, ascending from zero."""
_MIDDLE = F.pad((_EDGES[1:-1] + _EDGES[2:]) / 2, (1, 0))
"""(bins,): the number that stands for a bin; the first is mostly zeros."""
_POWERS = torch.stack([torch.ones_like(_MIDDLE), _MIDDLE, _MIDDLE**2]).flip(1)
"""(3, bins), descending: what a number of each bin adds to the number, the sum and the sum of squares."""
