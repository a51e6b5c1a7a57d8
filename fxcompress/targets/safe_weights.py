"""Weights that no kernel can saturate with: :func:`safe_weights` changes as little as possible."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fxcompress.targets.saturation import Saturation, violations

__all__ = ["SafeWeights", "safe_weights"]

_COARSER = (1.0, 1.06, 1.13, 1.23, 1.38, 1.6)
"""By how much the step of an output channel may grow; 127 / 64 is tried last, where no pair is too large any more."""


@dataclass(frozen=True)
class SafeWeights:
    """int8 ``integers`` and float32 ``scale`` (O,) that are exact on the machine.

    Attributes:
        channels: output channels that had to change, ...
        coarser: ... those among them that got a coarser step, ...
        nudged: ... and the single weights that were moved off their nearest integer.
        bits: the effective number of bits of the coarsest output channel, for example 7.4.
    """

    integers: Tensor
    scale: Tensor
    channels: int = 0
    coarser: int = 0
    nudged: int = 0
    bits: float = 8.0

    @property
    def reason(self) -> str | None:
        """What was done and why, for the report; None where nothing was."""
        if not self.channels:
            return None
        what = [f"{self.nudged} weights moved"] if self.nudged else []
        what += [f"{self.coarser} channels on a coarser step (down to {self.bits:.1f} bits)"] if self.coarser else []
        return f"without VNNI the sums of {self.channels} of {len(self.scale)} output channels could saturate: {', '.join(what)}"


def safe_weights(
    integers: Tensor, scale: Tensor, *, found: Saturation, groups: int = 1, high: int = 255, weight: Tensor | None = None
) -> SafeWeights:
    """The weights, changed where sums of two products may saturate.

    In a pair that is too large both weights move to the nearest point that is not. Where many are, or by much, a coarser step for
    that output channel does less harm; of several steps the one with the least squared error is taken.

    Args:
        integers: int8 weights (O, C / groups, ...) of a convolution, or (O, C) of a linear.
        scale: float32 (O,).
        found: what the machine does, see :func:`fxcompress.targets.saturation.saturation`.
        groups: of the convolution.
        high: the largest activation as an integer.
        weight: the float weights; without them, those that the integers stand for.
    """
    touched = violations(integers, groups, found, high).nonzero().flatten()
    if not len(touched):
        return SafeWeights(integers, scale)
    limit = found.limit(high)
    rows, steps = integers[touched], scale[touched].double()
    shape = [-1] + [1] * (integers.dim() - 1)
    real = rows.double() if weight is None else weight.detach()[touched].double() / steps.view(shape)
    if integers.shape[1] == 1:
        factor = torch.full((len(touched),), 127 * 2 / limit, dtype=torch.float64).clamp_min(1.0)
        best, moved = (real / factor.view(shape)).round().clamp(-(limit // 2), limit // 2), 0
    else:
        best, factor, moved = _least_error(rows, real, limit)
    changed, coarse = integers.clone(), scale.clone()
    changed[touched] = best.to(torch.int8)
    coarse[touched] = (steps * factor).float()
    bits = 8 - math.log2(float(factor.max()))
    return SafeWeights(changed, coarse, len(touched), int((factor > 1).sum()), moved, bits)


def _least_error(rows: Tensor, real: Tensor, limit: int) -> tuple[Tensor, Tensor, int]:
    """The best integers (float32), the factor of each row's step, and how many weights are off their nearest integer."""
    least = torch.full((len(rows),), math.inf)
    best, factors, off = rows.float(), torch.ones(len(rows), dtype=torch.float64), torch.zeros(len(rows), dtype=torch.int64)
    for factor in (*_COARSER, max(1.0, 127 * 2 / limit)):
        wanted = real.float() if factor == 1.0 else (real / factor).float()
        within = rows.float() if factor == 1.0 else wanted.round().clamp_(-127, 127)
        moved = _move_within(within, wanted, limit)
        error = (within - wanted).square_().flatten(1).sum(1) * factor**2
        better = error < least
        least, factors = torch.where(better, error, least), torch.where(better, factor, factors)
        best[better], off[better] = within[better], moved[better]
    return best, factors, int(off.sum())


def _move_within(nearest: Tensor, wanted: Tensor, limit: int) -> Tensor:
    """Move pairs of ``nearest`` (R, C, ...) that are too large to the nearest pair with the largest allowed sum, in place.

    Weights of different signs are never too large together: no sum of theirs exceeds 127. Gives how many weights moved, (R,).
    """
    first, second = nearest[:, 0 : nearest.shape[1] // 2 * 2 : 2], nearest[:, 1::2]
    total = first + second
    where = (total.abs() > limit).nonzero(as_tuple=True)
    sign = total[where].sign()
    # (a, b) projected onto a + b = limit, where both have this sign
    apart = sign * (wanted[:, 0 : nearest.shape[1] // 2 * 2 : 2][where] - wanted[:, 1::2][where])
    larger = ((apart + limit) / 2).round_().clamp_(max(1, limit - 127), min(127, limit - 1))
    changed = (first[where] != sign * larger).long() + (second[where] != sign * (limit - larger)).long()
    first[where], second[where] = sign * larger, sign * (limit - larger)
    return torch.zeros(len(nearest), dtype=torch.int64).index_add_(0, where[0], changed)
