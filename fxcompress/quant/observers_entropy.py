"""An observer that keeps the shape of the distribution."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from fxcompress.quant.observers_histogram import Counting

__all__ = ["Entropy"]

_CANDIDATES = 128
_ALMOST_NONE = 1e-4


class Entropy(Counting):
    """Covers the range whose quantized distribution is nearest to the real one, in the sense of Kullback and Leibler.

    Migacz, "8-bit inference with TensorRT" (GTC 2017), for an unsigned grid with a zero point: for each threshold T the range
    is what was seen cut at -T and T. P is the histogram with what is cut off put into its outermost bins; Q gives every
    filled bin the mean of the filled bins that round to the same integer, without what is cut off. The T with the least
    sum of P log(P / Q) wins. Where only what is cut off fills an outermost bin, Q has a ten-thousandth of a number there, as
    in ONNX Runtime's calibrator. Zero is represented exactly at any T, so its bin is filled like its neighbours, as in
    NVIDIA's; otherwise the many zeros after a ReLU would decide alone.
    """

    name: ClassVar[str] = "entropy"

    def range(self) -> tuple[float, float]:
        density = self.density()
        low, high = density.low, density.high
        counts = _without_zeros(self.tallies.double()[: len(density.start)], -self._first)
        if counts.sum():
            edges = torch.cat([density.start, torch.tensor([high], dtype=torch.float64)])
            best = _threshold(_Shape((edges[:-1] + edges[1:]) / 2, counts), low, high, self.bits)
            low, high = max(low, -best), min(high, best)
        return low * self.width, high * self.width


def _without_zeros(counts: Tensor, zero: int) -> Tensor:
    filled = counts.clone()
    filled[zero] = counts[max(zero - 1, 0) : zero + 2].sum() - counts[zero]
    return filled


def _threshold(shape: _Shape, low: float, high: float, bits: int) -> float:
    farthest = max(-low, high)
    nearest = min(farthest, 2.0**bits)  # as many bins as integers
    best, best_loss = farthest, math.inf
    for threshold in torch.linspace(farthest, nearest, _CANDIDATES, dtype=torch.float64).tolist():
        loss = shape.divergence(max(low, -threshold), min(high, threshold), bits)
        if loss < best_loss:
            best, best_loss = threshold, loss
    return best


class _Shape:
    """A histogram, not empty, as sums over its first bins. ``centre``: of the bins, ascending, (bins,) like ``counts``."""

    def __init__(self, centre: Tensor, counts: Tensor) -> None:
        self.centre, self.counts = centre, counts
        columns = torch.stack([counts, (counts > 0).double(), torch.xlogy(counts, counts)])
        self.sums = torch.cat([columns.new_zeros(3, 1), columns.cumsum(1)], 1)

    def divergence(self, low: float, high: float, bits: int) -> float:
        """KL(P || Q) for numbers cut at ``low`` and ``high``.

        With the totals P and Q of p and q, which need not be 1, it is  (sum p log p - sum p log q) / P + log(Q / P). Within a
        level q is constant, so the second sum needs but the total of each level, and what is cut off.
        """
        cuts = torch.tensor([low, high], dtype=torch.float64)
        begin, end = int(torch.searchsorted(self.centre, cuts[0])), int(torch.searchsorted(self.centre, cuts[1], right=True))
        if begin == end or self.sums[0, end] == self.sums[0, begin]:
            return math.inf
        step = (high - low) / (2**bits - 1)
        levels = torch.round(cuts / step).tolist()
        bounds = (torch.arange(levels[0], levels[1], dtype=torch.float64) + 0.5) * step
        ends = torch.searchsorted(self.centre, bounds).clamp(begin, end)
        ends = torch.cat([ends.new_tensor([begin]), ends, ends.new_tensor([end])])
        total, number, p_log_p = self.sums[:, ends].diff(dim=1)
        mean = total / number.clamp_min(1)
        p_log_q, q_total, p_total = torch.xlogy(total, mean).sum(), total.sum(), self.sums[0, -1]
        result = p_log_p.sum() - p_log_q
        filled = number > 0
        for extra, bin_, level in self._cut_off(begin, end, mean[filled]):
            kept = float(self.counts[bin_])
            result += _xlogx(kept + extra) - _xlogx(kept) - extra * math.log(level if kept else _ALMOST_NONE)
            q_total = q_total + (0.0 if kept else _ALMOST_NONE)
        return float(result / p_total + (q_total / p_total).log())

    def _cut_off(self, begin: int, end: int, means: Tensor) -> list[tuple[float, int, float]]:
        """How many numbers are cut off at each end, the bin that P puts them into, and the mean of its level."""
        below, above = float(self.sums[0, begin]), float(self.sums[0, -1] - self.sums[0, end])
        sides = [(below, begin, float(means[0])), (above, end - 1, float(means[-1]))]
        return [side for side in sides if side[0]]


def _xlogx(x: float) -> float:
    return x * math.log(x) if x else 0.0
