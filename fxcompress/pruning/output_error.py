"""How far the outputs of a pruned network are from the original's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class OutputError:
    """The error of the outputs y' over some batches, against y.

    ``relative``: |y' - y| / |y| in the Euclidean norm over all batches. ``sqnr``: 20 log10 of its inverse, in dB, inf
    when equal. Both are of the worst output. ``noise``: the mean over the outputs of |y' - y|^2 / |y|^2.
    """

    relative: float
    sqnr: float
    noise: float

    def __str__(self) -> str:
        return f"{self.relative:.2e} (SQNR {self.sqnr:.1f} dB)"


def output_error(reference: Sequence[Sequence[Any]], outputs: Sequence[Sequence[Any]]) -> OutputError:
    """The error of outputs given as leaves, batch by batch. What is not made of floating-point numbers is not compared."""
    signal: dict[int, float] = {}
    noise: dict[int, float] = {}
    for wanted, given in zip(reference, outputs, strict=True):
        for place, (a, b) in enumerate(zip(wanted, given, strict=True)):
            if isinstance(a, Tensor) and (a.is_floating_point() or a.is_complex()):
                one, other = _powers(a, b)
                signal[place], noise[place] = signal.get(place, 0.0) + one, noise.get(place, 0.0) + other
    ratios = [_ratio(noise[place], signal[place]) for place in signal] or [0.0]
    worst = max(ratios)
    return OutputError(math.sqrt(worst), -10 * math.log10(worst) if worst > 0 else math.inf, sum(ratios) / len(ratios))


def _ratio(noise: float, signal: float) -> float:
    if noise == 0:
        return 0.0
    return noise / signal if signal > 0 and math.isfinite(noise) else math.inf


def _powers(a: Tensor, b: Any) -> tuple[float, float]:
    if not isinstance(b, Tensor) or a.shape != b.shape:
        return 0.0, math.inf
    wide = torch.complex128 if a.is_complex() else torch.float64
    a, b = a.to(wide), b.to(wide)
    finite = torch.isfinite(a)
    error = float((a - b)[finite].abs().square().sum())
    return float(a[finite].abs().square().sum()), error if math.isfinite(error) else math.inf
