"""Operations between quantized layers, on plain uint8 tensors, in plain torch: they define the right answer for every kernel.

An operation of two tensors would depend on the order of its float32 roundings, and so on whether a kernel fuses a multiplication
with an addition. The definitions here avoid that: every intermediate number is one that float32 holds exactly, up to at most one
multiplication. So kernels that vectorize, fuse or use integers all agree with them bit for bit.

Source of fixed-point multipliers: Jacob et al., "Quantization and training of neural networks for efficient
integer-arithmetic-only inference" (CVPR 2018), section 2.2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

from fxcompress.ir.activation import Activation
from fxcompress.quant.affine import QParams

__all__ = [
    "MULTIPLIER_BITS",
    "QuantActivation",
    "QuantAdd",
    "QuantMean",
    "QuantMul",
    "activation_table",
    "clamp_of",
    "divided",
    "float32",
    "mean_step",
    "means",
]

MULTIPLIER_BITS = 15
"""Of the larger fixed-point multiplier of an addition: 255 * (2**15 + 2**15) < 2**24 stays exact in float32. The rounding of the
multipliers moves a result by less than 1/128 of a step: of the result's, or of an operand's where that is coarser."""


class QuantAdd(nn.Module):
    """``act(a + b)`` of tensors that broadcast; a is uint8.

    With two uint8 operands, a uint8 result and no activation or one that clamps (relu, hardtanh):

        q = clamp(round((m_a (a - z_a) + m_b (b - z_b)) / 2**shift) + z, low, high)        m_a = round(2**shift s_a / s)

    with integers m_a, m_b of at most 15 bits, exact up to the rounding. Otherwise the sum is one of float32 numbers.

    Args:
        a: of the first operand.
        b: of the second; None where it is a float32 tensor.
        qparams: of the result; None for float32.
        activation: applied to the sum.
    """

    def __init__(self, a: QParams, b: QParams | None, qparams: QParams | None, activation: Activation | None = None) -> None:
        super().__init__()
        self.a, self.b, self.qparams, self.activation = a, b, qparams, activation

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        fixed = self.fixed_point()
        if fixed is None:
            return self.in_float(a, b)
        (m_a, m_b, shift), z = fixed, self.qparams
        assert z is not None
        assert self.b is not None
        total = (a.to(torch.int32) - self.a.zero_point) * m_a + (b.to(torch.int32) - self.b.zero_point) * m_b
        q = (total.double() * 2.0**-shift).round_().add_(z.zero_point)
        return q.clamp_(*(clamp_of(self.activation, z) or (0, z.high))).to(torch.uint8)

    def in_float(self, a: Tensor, b: Tensor) -> Tensor:
        """The sum of float32 numbers."""
        y = self.a.dequantize(a) + (b if self.b is None else self.b.dequantize(b))
        return _finish(y, self.activation, self.qparams)

    def fixed_point(self) -> tuple[int, int, int] | None:
        """``(m_a, m_b, shift)``; None where the sum is one of float32 numbers."""
        if self.b is None or self.qparams is None or clamp_of(self.activation, self.qparams) is None:
            return None
        ratios = self.a.scale / self.qparams.scale, self.b.scale / self.qparams.scale
        shift = MULTIPLIER_BITS - math.frexp(max(ratios))[1]
        if not -100 <= shift <= 100:  # beyond it float32 has no 2**shift; a result of zeros or of saturated values
            return None
        m_a, m_b = (round(math.ldexp(ratio, shift)) for ratio in ratios)
        return m_a, m_b, shift

    def extra_repr(self) -> str:
        return f"{self.a} + {self.b or 'float32'} -> {self.qparams or 'float32'}, activation={self.activation}"


class QuantMul(nn.Module):
    """``act(a * b)`` of tensors that broadcast; a is uint8. The gate of squeeze and excite may stay in float32.

    With a uint8 result and no activation or one that clamps, one float32 rounding each for the multiplier and the product:

        q = clamp(round((a - z_a) (b - z_b) * multiplier) + z, low, high)       b uint8,   multiplier = 1 / (s / (s_a s_b))
        q = clamp(round((a - z_a) (b * multiplier)) + z, low, high)             b float32, multiplier = s_a / s

    Otherwise the product is one of float32 numbers. Args as of :class:`QuantAdd`.
    """

    def __init__(self, a: QParams, b: QParams | None, qparams: QParams | None, activation: Activation | None = None) -> None:
        super().__init__()
        self.a, self.b, self.qparams, self.activation = a, b, qparams, activation

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        limits = None if self.qparams is None else clamp_of(self.activation, self.qparams)
        if limits is None or self.qparams is None or not self.is_finite():
            y = self.a.dequantize(a) * (b if self.b is None else self.b.dequantize(b))
            return _finish(y, self.activation, self.qparams)
        first = a.float() - self.a.zero_point
        if self.b is None:
            product = first * (b * self.multiplier())
        else:
            product = first * (b.float() - self.b.zero_point) * self.multiplier()
        q = product.nan_to_num(0.0).round_().add_(self.qparams.zero_point)
        return q.clamp_(*limits).to(torch.uint8)

    def multiplier(self) -> float:
        """A float32 number: ``s_a / s``, or ``1 / (s / (s_a s_b))`` as kernels compute it."""
        assert self.qparams is not None
        if self.b is None:
            return float32(self.a.scale / self.qparams.scale)
        return float32(1.0 / self.product_scale())

    def product_scale(self) -> float:
        """A float32 number: the step of the result in units of the product of two integers."""
        assert self.b is not None
        assert self.qparams is not None
        return float32(self.qparams.scale / self.a.scale / self.b.scale)

    def is_finite(self) -> bool:
        """Whether float32 holds the multiplier and its inverse as ordinary numbers."""
        assert self.qparams is not None
        ratio = self.qparams.scale / self.a.scale / (1.0 if self.b is None else self.b.scale)
        return 2.0**-100 < ratio < 2.0**100

    def extra_repr(self) -> str:
        return f"{self.a} * {self.b or 'float32'} -> {self.qparams or 'float32'}, activation={self.activation}"


class QuantActivation(nn.Module):
    """An activation from uint8 to uint8 by a table of 256 values, each computed in float64; buffer ``table``: uint8 (256,).

    The table is no state: it follows from the arguments.
    """

    table: Tensor

    def __init__(self, source: QParams, qparams: QParams, activation: Activation) -> None:
        super().__init__()
        self.source, self.qparams, self.activation = source, qparams, activation
        self.register_buffer("table", activation_table(source, qparams, activation), persistent=False)

    def forward(self, q: Tensor) -> Tensor:
        return self.table[q.int()]

    def extra_repr(self) -> str:
        return f"{self.activation}, {self.source} -> {self.qparams}"


class QuantMean(nn.Module):
    """The mean of a uint8 tensor over some dimensions; over the last two it is global average pooling.

        y = sum(q - z_x) * (s_x / n)              float32, or
        q = clamp(round(sum(q - z_x) * (1 / (n s / s_x))) + z, 0, high)

    with an exact sum that is rounded to float32 (below 65,000 elements it is a float32 number) and a float32 multiplier.

    Args:
        source: of the input.
        qparams: of the result; None for float32.
        dims: over which; negative ones count from the last.
    """

    def __init__(self, source: QParams, qparams: QParams | None, dims: Sequence[int], keepdim: bool = False) -> None:
        super().__init__()
        self.source, self.qparams, self.dims, self.keepdim = source, qparams, tuple(dims), keepdim

    def forward(self, q: Tensor) -> Tensor:
        count = self.count(q)
        total = q.sum(self.dims, keepdim=self.keepdim, dtype=torch.int64) - count * self.source.zero_point
        return means(total.float(), count, self.source, self.qparams)

    def count(self, q: Tensor) -> int:
        """How many elements each result is the mean of."""
        return math.prod(q.shape[dim] for dim in self.dims)

    def extra_repr(self) -> str:
        return f"{self.dims}, keepdim={self.keepdim}, {self.source} -> {self.qparams or 'float32'}"


def clamp_of(activation: Activation | None, qparams: QParams) -> tuple[int, int] | None:
    """The smallest and the largest integer of ``qparams`` that ``activation`` lets pass; None where it does more than clamp.

    Rounding is monotone, so clamping integers gives what clamping the real numbers before would give.
    """
    if activation is None:
        return 0, qparams.high
    if activation.name == "relu":
        return qparams.zero_point, qparams.high
    if activation.name == "hardtanh":
        low, high = qparams.quantize(torch.tensor([float(a) for a in activation.args], dtype=torch.float64)).tolist()
        return low, high
    return None


def means(total: Tensor, count: Tensor | int, source: QParams, qparams: QParams | None) -> Tensor:
    """From sums of centred integers to their means, quantized or float32.

    Args:
        total: float32; it is overwritten.
        count: how many each sum has; a tensor broadcasts.
        source: of the integers.
    """
    if qparams is None:
        return divided(total, count, source.scale)
    if isinstance(count, Tensor):
        y = divided(total, count, source.scale / qparams.scale)
    else:
        y = total.mul_(float32(1.0 / mean_step(count, source, qparams)))
    return y.round_().add_(qparams.zero_point).clamp_(0, qparams.high).to(torch.uint8)


def mean_step(count: int, source: QParams, qparams: QParams) -> float:
    """A float32 number: the sum of centred integers that one step of the mean stands for."""
    return float32(count * qparams.scale / source.scale)


def divided(total: Tensor, count: Tensor | int, scale: float) -> Tensor:
    """``total * (scale / count)`` in place, with the factor rounded to float32."""
    return total.mul_((scale / count.double()).float() if isinstance(count, Tensor) else float32(scale / count))


def activation_table(source: QParams, qparams: QParams, activation: Activation) -> Tensor:
    """uint8 (256,): the quantized activation of every quantized number, by float64 arithmetic."""
    every = torch.arange(256, dtype=torch.float64)
    return qparams.quantize(activation.apply((every - source.zero_point) * source.scale))


def _finish(y: Tensor, activation: Activation | None, qparams: QParams | None) -> Tensor:
    if activation is not None:
        y = activation.apply(y)
    return y if qparams is None else qparams.quantize(y)


@lru_cache(maxsize=4096)
def float32(number: float) -> float:
    """The nearest number that float32 holds."""
    return torch.tensor(number, dtype=torch.float32).item()
