"""Observers that keep ranges only: of everything, or on the mean over calls."""

from __future__ import annotations

from fractions import Fraction
from typing import ClassVar

import torch
from torch import Tensor

from fxcompress.quant.observers_base import Observer

__all__ = ["MinMax", "MovingAverage"]


class MinMax(Observer):
    """Covers every number that was seen."""

    name: ClassVar[str] = "min-max"

    def range(self) -> tuple[float, float]:
        return self.low, self.high


_POINT = 149
"""Every finite float32 is a whole number of 2**-149."""
_DIGITS = 9
"""Such a whole number is below 2**277, so it has nine digits of 32 bits."""


class MovingAverage(Observer):
    """Covers the mean of the calls' ranges: the cumulative moving average, in which call n moves the range by 1/n.

    An average with a constant rate (Jacob et al., arXiv:1712.05877, section 3.1) depends on the order of the batches and
    cannot be joined over processes; this is the average over all of them. The two sums are kept as exact integers in
    digits of 32 bits, which carry nothing to their neighbours and so add up in any order.
    """

    name: ClassVar[str] = "moving-average"
    size: ClassVar[int] = 1 + 2 * _DIGITS

    def _count(self, x: Tensor, least: float, largest: float) -> None:
        self._sums = self.tallies + torch.tensor([1, *_digits(least), *_digits(largest)], dtype=torch.int64)

    def range(self) -> tuple[float, float]:
        calls, *digits = self.tallies.tolist()
        low, high = _number(digits[:_DIGITS]), _number(digits[_DIGITS:])
        return float(low / calls), float(high / calls)


def _digits(value: float) -> list[int]:
    numerator, denominator = value.as_integer_ratio()
    whole = abs(numerator) * (2**_POINT // denominator)
    sign = -1 if value < 0 else 1
    return [sign * (whole >> 32 * place & 0xFFFFFFFF) for place in range(_DIGITS)]


def _number(digits: list[int]) -> Fraction:
    return Fraction(sum(digit << 32 * place for place, digit in enumerate(digits)), 2**_POINT)
