"""Bounds of the numbers in the channels of a value, by interval arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from fxcompress.passes.weights import TRANSPOSED


@dataclass(frozen=True)
class Interval:
    """Every number of channel i lies in ``[low[i], high[i]]``; both (C,) in float64, infinite where nothing is known."""

    low: Tensor
    high: Tensor

    def __add__(self, other: Interval) -> Interval:
        return Interval(self.low + other.low, self.high + other.high)

    @property
    def known(self) -> bool:
        """Whether there is any bound."""
        return bool(torch.isfinite(self.low).any() or torch.isfinite(self.high).any())

    def at(self, places: Tensor) -> Interval:
        return Interval(self.low[places], self.high[places])

    def with_zero(self) -> Interval:
        """The interval of values beside which zeros may stand, or means with zeros."""
        return Interval(self.low.clamp_max(0), self.high.clamp_min(0))

    def clamped(self, low: float, high: float) -> Interval:
        return Interval(self.low.clamp(low, high), self.high.clamp(low, high))

    def leaky(self, slope: float) -> Interval:
        """After ``max(x, 0) + slope * min(x, 0)``."""
        if slope == 0:
            return Interval(self.low.clamp_min(0), self.high.clamp_min(0))
        widest = torch.maximum(self.low.abs(), self.high.abs()) * max(1.0, abs(slope))
        return Interval(-widest, widest)

    @classmethod
    def cat(cls, parts: Sequence[Interval]) -> Self:
        return cls(torch.cat([p.low for p in parts]), torch.cat([p.high for p in parts]))


def unbounded(count: int) -> Interval:
    """Nothing is known of ``count`` channels."""
    return Interval(torch.full((count,), -math.inf, dtype=torch.float64), torch.full((count,), math.inf, dtype=torch.float64))


def blocks(layer: Any) -> Tensor:
    """The weight of a convolution or linear as (groups, outputs per group, inputs per group, taps), float64 on the CPU."""
    weight: Tensor = layer.weight.detach().double().cpu()
    groups = 1 if isinstance(layer, nn.Linear) else layer.groups
    grouped = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    return grouped.transpose(1, 2) if isinstance(layer, TRANSPOSED) else grouped


def layer_interval(layer: Any, read: Interval | None) -> Interval:
    """Bounds of the outputs of a layer, before its activation, from those of its inputs; padding adds zeros to these."""
    count = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    if (
        read is None
        or layer.weight.is_meta
        or layer.weight.numel() == 0
        or not bool(torch.isfinite(torch.cat([read.low, read.high])).any())
    ):
        return unbounded(count)
    weight, read = blocks(layer), read.with_zero()
    groups = weight.shape[0]
    low, high = (t.reshape(groups, 1, -1) for t in (read.low, read.high))
    up, down = weight.clamp_min(0).sum(3), weight.clamp_max(0).sum(3)
    bias = torch.zeros(count, dtype=torch.float64) if layer.bias is None else layer.bias.detach().double().cpu()
    top, bottom = _times(up, high) + _times(down, low), _times(up, low) + _times(down, high)
    slack = 1e-6 * (_times(up, torch.maximum(high, -low)) - _times(down, torch.maximum(high, -low))).sum(2).flatten()  # rounding
    return Interval(bottom.sum(2).flatten() + bias - slack, top.sum(2).flatten() + bias + slack)


def _times(weight: Tensor, bound: Tensor) -> Tensor:
    """The product, in which zero times infinity is zero."""
    return torch.where(weight == 0, 0.0, weight * bound)
