"""Where 8-bit weights are too large for CPUs without VNNI, and what to do about it.

``vpmaddubsw`` multiplies unsigned activations with signed weights and adds two products in 16 bits, with saturation; VNNI adds four
in 32 bits. Which two meet was found by giving every pair of positions of a kernel the weight 127 and all activations 255, on the
kernels of oneDNN for SSE4.1, AVX2 and AVX-512 without VNNI (torch 2.15):

* convolutions of any number of dimensions, strides, dilations and groups, stems of 3 channels, odd channel counts: input channels
  2i and 2i + 1 of one group at the same tap, and nothing else;
* linears, for any number of rows and features: features 2i and 2i + 1;
* depthwise convolutions (one input and one output channel per group): none;
* one input channel and several output channels per group: none before AVX-512; there two taps, and which two depends on stride and size.

So a layer is exact if in each pair the positive weights sum up to at most 32767 // 255 = 128, and the negative ones to at least -128.
The tests repeat the search on this machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from fxcompress.targets.int8_kernels import int8_kernels

__all__ = ["ANYWHERE", "NOWHERE", "Saturation", "saturation", "violations"]


@dataclass(frozen=True)
class Saturation:
    """Which sums the kernels of a machine take in 16 bits.

    Attributes:
        pairs: those of neighbouring input channels.
        taps: those of taps, where a group has one input channel and several output channels.
    """

    pairs: bool
    taps: bool

    def limit(self, high: int = 255) -> int:
        """What the weights of one sign in a pair may sum up to, for activations up to ``high``."""
        return 32767 // high


NOWHERE = Saturation(False, False)
"""A machine with VNNI, or one that computes exactly for another reason."""

ANYWHERE = Saturation(True, True)
"""The worst machine: what is exact there is exact on any."""


@cache
def saturation() -> Saturation:
    """What this process's kernels do, by asking them: instruction set, environment and build of torch all have a say.

    Without kernels the definitions in plain torch run, which are exact.
    """
    if int8_kernels().missing():
        return NOWHERE
    shapes = [((16, 16, 1, 1), 1), ((16, 16, 3, 3), 1), ((16, 3, 3, 3), 1), ((16, 8, 3, 3), 2)]
    pairs = not all(_exact_conv(shape, groups) for shape, groups in shapes) or not all(_exact_linear(rows) for rows in (1, 16))
    return Saturation(pairs, not _exact_conv((16, 1, 3, 3), 1) or not _exact_conv((16, 1, 3, 3), 8))


def violations(integers: Tensor, groups: int, found: Saturation, high: int = 255) -> Tensor:
    """bool (O,): the output channels whose sums may saturate.

    Args:
        integers: int8 weights (O, C / groups, ...), of a convolution or a linear.
        groups: of the convolution; 1 for a linear.
        found: what the machine does.
        high: the largest activation as an integer.
    """
    outputs, inputs = integers.shape[:2]
    if inputs == 1:
        single = found.taps and not is_depthwise(integers, groups)
        return _taps(integers, found.limit(high)) if single else torch.zeros(outputs, dtype=torch.bool)
    if not found.pairs:
        return torch.zeros(outputs, dtype=torch.bool)
    even = inputs // 2 * 2
    # weights of different signs sum up to less than any limit there is
    over = (integers[:, :even:2].to(torch.int16) + integers[:, 1::2]).abs() > found.limit(high)
    return over.flatten(1).any(1)


def is_depthwise(integers: Tensor, groups: int) -> bool:
    """One input and one output channel per group."""
    return groups > 1 and integers.shape[1] == 1 and integers.shape[0] == groups


def _taps(integers: Tensor, limit: int) -> Tensor:
    """Whether any two weights of one sign are too large together."""
    ordered = integers.flatten(1).to(torch.int16).sort(1).values
    if ordered.shape[1] < 2:
        return torch.zeros(len(ordered), dtype=torch.bool)
    return (ordered[:, -2:].clamp_min(0).sum(1) > limit) | (ordered[:, :2].clamp_max(0).sum(1) < -limit)


def _exact_conv(shape: tuple[int, ...], groups: int) -> bool:
    """Whether the largest activations and weights give the right sums."""
    weight = torch.full(shape, 127, dtype=torch.int8)
    x = torch.full((1, shape[1] * groups, *(k + 1 for k in shape[2:])), 255, dtype=torch.uint8)
    where = ([1, 1], [0, 0], [1, 1], groups)
    packed = int8_kernels().pack_conv(weight, torch.ones(shape[0]), 1.0, 0, *where, None)
    return _is_full(int8_kernels().conv(x, 1.0, 0, packed, *_plain(shape[0]), *where, *_RAW), weight)


def _exact_linear(rows: int) -> bool:
    weight = torch.full((16, 16), 127, dtype=torch.int8)
    packed = int8_kernels().pack_linear(weight, None)
    x = torch.full((rows, 16), 255, dtype=torch.uint8)
    return _is_full(int8_kernels().linear(x, 1.0, 0, packed, *_plain(16), *_RAW), weight)


def _plain(outputs: int) -> tuple[Tensor, Tensor, None]:
    """Scales of one, zero points of zero, no bias."""
    return torch.ones(outputs), torch.zeros(outputs, dtype=torch.int32), None


_RAW: tuple[object, ...] = (1.0, 0, torch.float32, "none", [], "")


def _is_full(y: Tensor, weight: Tensor) -> bool:
    return bool((y == 127 * 255 * weight[0].numel()).all())
