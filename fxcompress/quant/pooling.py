"""Pooling of uint8 tensors, in plain torch: the definitions that kernels agree with bit for bit (see ``elementwise.py``).

Sums are exact. A mean is the sum times one float32 multiplier, and may leave as float32 or be quantized again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxcompress.errors import InputError
from fxcompress.quant.affine import QParams
from fxcompress.quant.elementwise import means

__all__ = ["QuantAdaptiveAvgPool", "QuantAvgPool", "QuantMaxPool"]

_MAX_POOLS: dict[int, Callable[..., Any]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


class QuantMaxPool(nn.Module):
    """Max pooling of uint8 (N, C, ...) with as many spatial dimensions as ``kernel_size`` has numbers, 1 to 3.

    The result is quantized like the input. What is padded never wins, as in torch.
    """

    def __init__(
        self, kernel_size: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], ceil_mode: bool = False
    ) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.padding, self.dilation = map(
            _same_length, [kernel_size] * 4, [kernel_size, stride, padding, dilation]
        )
        self.ceil_mode = ceil_mode

    def forward(self, q: Tensor) -> Tensor:
        pool = _MAX_POOLS[len(self.kernel_size)]
        return pool(q.float(), self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode).to(torch.uint8)

    def extra_repr(self) -> str:
        return f"{self.kernel_size}, stride={self.stride}, padding={self.padding}, dilation={self.dilation}, ceil_mode={self.ceil_mode}"


class QuantAvgPool(nn.Module):
    """Average pooling of uint8 (N, C, ...) with as many spatial dimensions as ``kernel_size`` has numbers, 1 to 3.

    Arguments as of ``nn.AvgPool2d``; ``divisor`` is its ``divisor_override``.

    Args:
        source: of the input.
        qparams: of the result; None for float32.
    """

    def __init__(
        self,
        source: QParams,
        qparams: QParams | None,
        kernel_size: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        *,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor: int | None = None,
    ) -> None:
        super().__init__()
        self.source, self.qparams = source, qparams
        self.kernel_size, self.stride, self.padding = map(_same_length, [kernel_size] * 3, [kernel_size, stride, padding])
        self.ceil_mode, self.count_include_pad, self.divisor = ceil_mode, count_include_pad, divisor

    def forward(self, q: Tensor) -> Tensor:
        """Padding adds nothing to the sums: it stands for zero."""
        total = self.sums(q.double() - self.source.zero_point).float()
        return means(total, self.divisors(q.shape[-len(self.kernel_size) :]), self.source, self.qparams)

    def sums(self, x: Tensor) -> Tensor:
        """The sum in every window of a float tensor (N, C, ...)."""
        return self._pool(x, 1)

    def divisors(self, size: Sequence[int]) -> Tensor | int:
        """What the sums of an input of this spatial size are divided by: int64 of the output's spatial shape, or one number."""
        if self.divisor is not None:
            return self.divisor
        if not any(self.padding) and not self.ceil_mode:
            return math.prod(self.kernel_size)
        found = _axes(size, self.kernel_size, self.stride, self.padding, self.ceil_mode, self.count_include_pad)
        divisors = found[0]
        for axis in found[1:]:
            divisors = divisors.unsqueeze(-1) * axis
        return int(divisors.flatten()[0]) if bool((divisors == divisors.flatten()[0]).all()) else divisors

    def _pool(self, x: Tensor, divisor: int) -> Tensor:
        missing = max(0, 2 - len(self.kernel_size))  # avg_pool1d knows no divisor
        pool: Callable[..., Tensor] = F.avg_pool3d if len(self.kernel_size) == 3 else F.avg_pool2d
        numbers = [(*[n] * missing, *given) for n, given in ((1, self.kernel_size), (1, self.stride), (0, self.padding))]
        if missing:
            return pool(x.unsqueeze(-2), *numbers, self.ceil_mode, True, divisor).squeeze(-2)
        return pool(x, *numbers, self.ceil_mode, True, divisor)

    def extra_repr(self) -> str:
        return (
            f"{self.kernel_size}, stride={self.stride}, padding={self.padding}, ceil_mode={self.ceil_mode}, "
            f"count_include_pad={self.count_include_pad}, divisor={self.divisor}, {self.source} -> {self.qparams or 'float32'}"
        )


class QuantAdaptiveAvgPool(nn.Module):
    """Average pooling of uint8 (N, C, ...) to a given spatial size: output i averages inputs ``floor(i n / m)`` to ``ceil((i + 1) n / m)``.

    Args:
        source: of the input.
        qparams: of the result; None for float32.
        output_size: one entry per spatial dimension; None keeps that dimension's size.
    """

    def __init__(self, source: QParams, qparams: QParams | None, output_size: Sequence[int | None]) -> None:
        super().__init__()
        self.source, self.qparams, self.output_size = source, qparams, tuple(output_size)

    def forward(self, q: Tensor) -> Tensor:
        total, count = self.sums(q.double() - self.source.zero_point)
        return means(total.float(), count, self.source, self.qparams)

    def sums(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The sum in every window of a float tensor, and how many elements each window has (int64, the output's spatial shape)."""
        counts = torch.ones((), dtype=torch.int64)
        for axis, wanted in enumerate(self.output_size):
            dim = axis - len(self.output_size)
            inside = windows(x.shape[dim], x.shape[dim] if wanted is None else wanted)
            counts = counts.unsqueeze(-1) * inside.sum(1)
            x = torch.movedim(torch.movedim(x, dim, -1) @ inside.to(x.dtype).T, -1, dim)
        return x, counts

    def extra_repr(self) -> str:
        return f"{self.output_size}, {self.source} -> {self.qparams or 'float32'}"


def windows(size: int, wanted: int) -> Tensor:
    """bool (wanted, size): which inputs belong to which output of adaptive pooling along one dimension."""
    place = torch.arange(size)
    first = torch.arange(wanted) * size // wanted
    last = -(-(torch.arange(wanted) + 1) * size // wanted)
    return (place >= first.unsqueeze(1)) & (place < last.unsqueeze(1))


def _axes(
    size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], ceil_mode: bool, include_pad: bool
) -> list[Tensor]:
    """Per spatial dimension, int64 (outputs,): the window's length as torch counts it."""
    found = []
    for n, k, s, p in zip(size, kernel, stride, padding, strict=True):
        steps = n + 2 * p - k
        outputs = (-(-steps // s) if ceil_mode else steps // s) + 1
        if ceil_mode and (outputs - 1) * s >= n + p:
            outputs -= 1  # a window must start inside the input or the padding before it
        first = torch.arange(outputs) * s - p
        last = (first + k).clamp_max(n + p)
        found.append(last - first if include_pad else last.clamp_max(n) - first.clamp_min(0))
    return found


def _same_length(kernel: Sequence[int], numbers: Sequence[int]) -> tuple[int, ...]:
    if len(numbers) != len(kernel) or not 1 <= len(kernel) <= 3:
        raise InputError(f"a kernel of {tuple(kernel)} with {tuple(numbers)}", hint="give one number per spatial dimension, 1 to 3 of them")
    return tuple(numbers)
