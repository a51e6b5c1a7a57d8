"""The range with which rounding to integers costs the least squared error, for a density that is constant in each bin."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Density", "least_error_range"]

_RATIO = 2 ** (-1 / 3)
"""Between neighbouring candidates of the first search."""
_FIRST, _NEXT = 24, 9
"""Candidates for each end, in the first search and in each of those around the best so far."""
_ZOOMS = 2
_AT_ONCE = 2**14
"""Bounds of cells that are looked up at a time, so that the temporaries stay in the cache."""


class Density:
    """A histogram read as a density that is constant within each bin. Numbers are in units of the width of a bin.

    Args:
        counts: (bins,), not all zero.
        first: number of the first bin, at most 0; bin i holds ``[i, i + 1)``, below zero ``(i - 1, i]``, and bin 0 both.
        low, high: all numbers lie in ``[low, high]``; low <= 0 <= high.
    """

    def __init__(self, counts: Tensor, first: int, low: float, high: float) -> None:
        self.first, self.low, self.high = first, low, high
        index = torch.arange(first, first + len(counts) + 1, dtype=torch.float64)
        edges = torch.where(index <= 0, index - 1, index).clamp(low, high)
        self.start, width = edges[:-1], edges.diff()
        mass = counts.double() / counts.sum()
        self.height = torch.where(width > 0, mass / width, 0.0)  # a bin without width holds one number
        self.share = torch.cat([mass.new_zeros(1), mass.cumsum(0)[:-1]])
        rise = self.share * width + mass * width / 2
        self.area = torch.cat([mass.new_zeros(1), rise.cumsum(0)[:-1]])
        middle = (edges[:-1] + edges[1:]) / 2
        self.mean = float((mass * middle).sum())
        self.square = float((mass * (middle**2 + width**2 / 12)).sum())

    def excess(self, x: Tensor) -> Tensor:
        """G(x), the mean of ``max(x - t, 0)`` over all numbers t; for x up to ``high``."""
        x = x.clamp(self.low, self.high)
        index = x.long().sub_(self.first)
        into = x - self.start[index]
        return self.area[index] + into * (self.share[index] + into * self.height[index] / 2)

    def error(self, low: Tensor, high: Tensor, bits: int) -> Tensor:
        """Mean squared error of the numbers, quantized to cover ``[low, high]``; both (candidates,), low <= 0 <= high.

        With the levels v_k, k = 0 .. L, a step s apart, and the bounds b_k = (v_k + v_k+1) / 2 between their cells, summing
        E[(t - v_k)^2] over the cells by parts leaves

            E[(t - v_L)^2] - 2 s sum over k of G(b_k)
        """
        steps = 2**bits - 1
        scale = (high - low) / steps
        zero_point = torch.round(-low / scale)
        bounds = (torch.arange(steps, dtype=torch.float64) + 0.5 - zero_point[:, None]) * scale[:, None]
        excess = torch.cat([self.excess(part).sum(1) for part in bounds.split(max(1, _AT_ONCE // steps))])
        top = (steps - zero_point) * scale
        return self.square - 2 * top * self.mean + top * top - 2 * scale * excess


def least_error_range(density: Density, bits: int) -> tuple[float, float]:
    """Lowest and highest number to cover, as ``QParams.of_range`` takes them, in units of the width of a bin.

    Both ends are searched together, first over shares of the whole range in geometric steps, then twice around the best.
    """
    if density.low == density.high:
        return density.low, density.high
    finer = 1 if bits > 4 else 2  # fewer cells are cheaper, and the error jumps about more
    ratio = _RATIO ** (1 / finer)
    shares = ratio ** torch.arange(_FIRST * finer, dtype=torch.float64)
    low, high = _best(density, shares, shares, bits)
    for _ in range(_ZOOMS):
        around = ratio ** torch.linspace(-1, 1, _NEXT, dtype=torch.float64)
        low, high = _best(density, (low * around).clamp(max=1), (high * around).clamp(max=1), bits)
        ratio = ratio ** (2 / (_NEXT - 1))
    return low * density.low, high * density.high


def _best(density: Density, lows: Tensor, highs: Tensor, bits: int) -> tuple[float, float]:
    """The shares of the two ends with the least error; where an end is zero there is nothing to choose."""
    one = torch.ones(1, dtype=torch.float64)
    grid = torch.meshgrid(lows if density.low < 0 else one, highs if density.high > 0 else one, indexing="ij")
    low, high = (side.reshape(-1) for side in grid)
    chosen = int(density.error(low * density.low, high * density.high, bits).argmin())
    return float(low[chosen]), float(high[chosen])
