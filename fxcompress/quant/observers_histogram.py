"""Observers that keep a histogram, and the one that looks in it for the range of least squared error."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from fxcompress.quant.observers_base import Observer, pieces
from fxcompress.quant.observers_search import Density, least_error_range

__all__ = ["BINS", "Counting", "Histogram"]

BINS = 2**13
"""Bins of a histogram; between a half and all of them lie in the range seen, so 16 to 32 are one step of 8 bits."""

_FINEST = -120
"""Bins are at least 2**-120 wide, so that numbers divided by the width are finite in float32."""


class Counting(Observer):
    """Keeps a histogram whose bins are a power of two wide: number ``x`` is in bin ``trunc(x / width)``, a whole number.

    The width is the least with which the bins from the least number seen to the largest, and zero, are at most ``BINS``. When
    the range grows, bins are joined by ``trunc(trunc(x / width) / 2) = trunc(x / (2 width))``. So the histogram is a function
    of the multiset of numbers: it is the same in whatever order and pieces they come. Bin 0 reaches to both sides of zero.
    """

    size: ClassVar[int] = BINS

    def reset(self) -> None:
        super().reset()
        self._exponent, self._first = _grid(0.0, 0.0)

    def widen(self, low: float, high: float) -> None:
        super().widen(low, high)
        grid = _grid(min(self.low, 0.0), max(self.high, 0.0))
        if self._sums is not None and grid != (self._exponent, self._first):
            self._sums = _moved(self._sums, self._exponent, self._first, *grid)
        self._exponent, self._first = grid

    def sums_within(self, low: float, high: float) -> Tensor:
        grid = _grid(min(self.low, low, 0.0), max(self.high, high, 0.0))
        tallies = _moved(self.tallies, self._exponent, self._first, *grid)
        return torch.cat([super().sums_within(low, high)[:2], tallies])

    def _count(self, x: Tensor, least: float, largest: float) -> None:
        total = self.tallies
        inverse = math.ldexp(1.0, -self._exponent)  # exact in float32, and so is the product unless it is far below 1
        for piece in pieces(x):
            bins = (piece * inverse).to(torch.int32).sub_(self._first)
            total = total + torch.bincount(bins, minlength=BINS).cpu()
        self._sums = total

    def density(self) -> Density:
        """The histogram of what was seen, from the least number or zero to the largest or zero, in units of ``width``."""
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        used = _bin(high, self._exponent) - self._first + 1
        return Density(self.tallies[:used], self._first, low / self.width, high / self.width)

    @property
    def width(self) -> float:
        """Of one bin; bin 0 reaches so far to each side."""
        return math.ldexp(1.0, self._exponent)


class Histogram(Counting):
    """Covers the range with which the mean squared error of the rounded numbers is least, as far as its bins tell.

    Sung et al., "Resiliency of deep neural networks under quantization", arXiv:1511.06488, section 3 (L2 error); Banner et
    al., arXiv:1810.05723, section 3, for why a clipped range beats the whole one.
    """

    name: ClassVar[str] = "histogram"

    def range(self) -> tuple[float, float]:
        low, high = least_error_range(self.density(), self.bits)
        return low * self.width, high * self.width


def _grid(low: float, high: float) -> tuple[int, int]:
    """Exponent of the width, and the number of the first bin, for ``low <= 0 <= high``."""
    span = max(high - low, math.ldexp(1.0, _FINEST))
    exponent = max(_FINEST, math.frexp(span)[1] - BINS.bit_length())
    while _bin(high, exponent) - _bin(low, exponent) + 1 > BINS:
        exponent += 1
    return exponent, _bin(low, exponent)


def _bin(value: float, exponent: int) -> int:
    return math.trunc(math.ldexp(value, -exponent))


def _moved(tallies: Tensor, exponent: int, first: int, new_exponent: int, new_first: int) -> Tensor:
    """The counts on a grid that covers more; bins outside the new window are empty in the old one."""
    filled = tallies.nonzero()[:, 0]
    halvings = min(new_exponent - exponent, 62)
    position = (filled + first).div(2**halvings, rounding_mode="trunc") - new_first
    return torch.zeros_like(tallies).index_add_(0, position, tallies[filled])
