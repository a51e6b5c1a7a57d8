"""An observer that leaves the rarest numbers at both ends out."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import ClassVar

import torch
from torch import Tensor

from fxcompress.errors import InputError
from fxcompress.quant.observers_base import Observer, pieces

__all__ = ["Percentile"]

_HALF = 2**15


class Percentile(Observer):
    """Covers the middle ``percentile`` percent of the numbers; half of the rest is cut off at each end.

    The numbers are counted by the upper 16 bits of their float32 form (sign, exponent, 7 bits of mantissa), so each end is
    found to within 1/128 of itself, whatever the spread, and lies on the outer side: no more than the given share is cut.
    The range of a value that is cut at 99.99 percent and the choice of other observers are compared in Wu et al.,
    "Integer quantization for deep learning inference", arXiv:2004.09602, section 5.

    Args:
        percentile: above 0, at most 100.
    """

    name: ClassVar[str] = "percentile"
    size: ClassVar[int] = 2 * _HALF

    def __init__(self, bits: int = 8, percentile: float = 99.99) -> None:
        super().__init__(bits)
        if not 0 < percentile <= 100:
            raise InputError(f"percentile={percentile}", hint="it lies above 0 and up to 100, for example 99.99")
        self.percentile = percentile

    def kind(self) -> str:
        return f"{super().kind()} {self.percentile:g}"

    def _count(self, x: Tensor, least: float, largest: float) -> None:
        total = self.tallies
        for piece in pieces(x):
            upper = piece.view(torch.int32).bitwise_right_shift(16).add_(_HALF)
            total = total + torch.bincount(upper, minlength=self.size).cpu()
        self._sums = total

    def range(self) -> tuple[float, float]:
        counts = self.tallies
        # Negative numbers come first, the least one at the front: their magnitudes grow with the pattern.
        ascending = torch.cat([counts[:_HALF].flip(0), counts[_HALF:]])
        share = (1 - Fraction(str(self.percentile)) / 100) / 2
        cut = math.floor(share * self.seen)
        low, high = _bin_of(ascending, cut), _bin_of(ascending, self.seen - 1 - cut)
        return max(_edges(low)[0], self.low), min(_edges(high)[1], self.high)


def _bin_of(counts: Tensor, rank: int) -> int:
    """The bin of the number with ``rank`` smaller ones before it."""
    return int(torch.searchsorted(counts.cumsum(0), rank, right=True))


def _edges(index: int) -> tuple[float, float]:
    """The least and the largest number of a bin in ascending order; the latter belongs to the next one."""
    if index >= _HALF:
        return _of_pattern(index - _HALF), _of_pattern(index - _HALF + 1)
    return -_of_pattern(_HALF - index), -_of_pattern(_HALF - 1 - index)


def _of_pattern(upper: int) -> float:
    return torch.tensor(upper << 16, dtype=torch.int32).view(torch.float32).item()
