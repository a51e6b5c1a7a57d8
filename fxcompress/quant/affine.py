"""Affine quantization: real numbers as integers with a scale and a zero point.

    q = clamp(round(x / scale) + zero_point, low, high)        x' = (q - zero_point) * scale

``round`` takes halves to even numbers and the quotient is ``x * (1 / scale)`` in the dtype of ``x``, as in torch's own kernels
(``torch.quantize_per_tensor``). Activations have one scale per tensor and unsigned integers; weights have one scale per
output channel, signed integers and no zero point. Source: Jacob et al., "Quantization and training of neural networks for
efficient integer-arithmetic-only inference" (CVPR 2018), section 2.1; Krishnamoorthi, arXiv:1806.08342.

A layer that ends in integers adds the zero point before it rounds (:meth:`QParams.store`), because oneDNN does; the two differ where
the quotient is half way between two integers and the zero point is odd.
"""

from __future__ import annotations

from ctypes import c_float
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fxcompress.errors import InputError

__all__ = ["QParams", "quantize_weight", "weight_limit", "weight_scale"]

SMALLEST_SCALE = 2.0**-100
"""Scales below are raised to it, so that their reciprocal and its products are finite in float32."""


@dataclass(frozen=True)
class QParams:
    """How one tensor of activations is quantized: unsigned integers of ``bits`` bits, in uint8.

    ``scale`` is a number that float32 holds exactly; ``0 <= zero_point <= 2**bits - 1``, so zero is representable.

    Raises:
        InputError: no such quantization exists.
    """

    scale: float
    zero_point: int = 0
    bits: int = 8
    _inverse: float = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise InputError(f"{self.bits} bits per value", hint="activations have 2 to 8 bits")
        rounded = c_float(self.scale).value
        if not 0 < rounded < float("inf"):
            raise InputError(f"the scale of a quantized tensor is {self.scale}", hint="a scale is positive and finite")
        if not 0 <= self.zero_point <= self.high:
            raise InputError(f"the zero point is {self.zero_point}", hint=f"with {self.bits} bits it lies from 0 to {self.high}")
        object.__setattr__(self, "scale", max(rounded, SMALLEST_SCALE))
        # of a float32 number: rounding to float64 and then to float32 gives the same as rounding once
        object.__setattr__(self, "_inverse", c_float(1.0 / self.scale).value)

    @property
    def high(self) -> int:
        """The largest integer; the smallest is 0."""
        return int(2**self.bits - 1)

    @classmethod
    def of_range(cls, low: float, high: float, bits: int = 8) -> QParams:
        """The finest quantization that covers ``[low, high]`` and zero; scale 1 for a range of zero width at zero."""
        low, high = min(low, 0.0), max(high, 0.0)
        steps = 2**bits - 1
        if high - low == 0.0:
            return cls(1.0, 0, bits)
        scale = max((high - low) / steps, SMALLEST_SCALE)
        return cls(scale, int(min(max(round(-low / scale), 0), steps)), bits)

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest number that can be represented."""
        return -self.zero_point * self.scale, (self.high - self.zero_point) * self.scale

    def quantize(self, x: Tensor) -> Tensor:
        """uint8 of the shape and memory layout of ``x`` (float32 or float64); NaN becomes the zero point."""
        q = (x * self.inverse(x.dtype)).nan_to_num_(0.0).round_().add_(self.zero_point)
        return q.clamp_(0, self.high).to(torch.uint8)

    def store(self, y: Tensor) -> Tensor:
        """:meth:`quantize` with the zero point added before rounding, as the integer layers end."""
        q = (y * self.inverse(y.dtype)).add_(self.zero_point).nan_to_num_(self.zero_point).round_()
        return q.clamp_(0, self.high).to(torch.uint8)

    def inverse(self, dtype: torch.dtype = torch.float32) -> float:
        """``1 / scale``, rounded to ``dtype`` (float32 or float64)."""
        return 1.0 / self.scale if dtype is torch.float64 else self._inverse

    def dequantize(self, q: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """``(q - zero_point) * scale``."""
        return (q.to(dtype) - self.zero_point) * self.scale

    def fake(self, x: Tensor) -> Tensor:
        """``dequantize(quantize(x))`` in the dtype of ``x``."""
        return self.dequantize(self.quantize(x), x.dtype)


def weight_limit(bits: int) -> int:
    """The largest magnitude of a signed symmetric weight of ``bits`` bits: 127 for 8."""
    if not 2 <= bits <= 8:
        raise InputError(f"{bits} bits per weight", hint="weights have 2 to 8 bits")
    return int(2 ** (bits - 1) - 1)


def weight_scale(weight: Tensor, bits: int = 8) -> Tensor:
    """float32 scale per output channel (axis 0), shape (O,), by which the largest weight of each becomes the largest integer."""
    largest = weight.detach().double().flatten(1).abs().amax(1) if weight.numel() else weight.new_zeros(weight.shape[0]).double()
    scale = (largest / weight_limit(bits)).float()
    return torch.where(largest > 0, scale.clamp_min(SMALLEST_SCALE), torch.ones_like(scale))


def quantize_weight(weight: Tensor, scale: Tensor, bits: int = 8) -> Tensor:
    """int8 weights of the shape of ``weight``: ``round(weight / scale)`` with halves to even, within +-``weight_limit(bits)``."""
    limit = weight_limit(bits)
    per_channel = scale.double().reshape(-1, *[1] * (weight.dim() - 1))
    return (weight.detach().double() / per_channel).round_().clamp_(-limit, limit).to(torch.int8)
