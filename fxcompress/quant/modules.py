"""The integer form of a graph: modules on plain uint8 tensors, in plain torch. They are the reference of every kernel.

A convolution or linear takes uint8 activations ``q`` with ``x = (q - zero_point) * scale`` and int8 weights ``w * weight_scale``:

    y = act(sum(q * w) * total_scale + total_bias + residual)
    total_scale = scale * weight_scale                                     float32, per output channel
    total_bias = bias - zero_point * sum(w) * total_scale                  float32, rounded once

The zero point is part of the bias, so padding adds the zero point itself. The sum is exact (integers in float64, far below
2**53); what follows is done in float32 in the order of ``fxcompress.quant.float_order``, and the result leaves as float32 or is
quantized again. An activation or a residual that oneDNN does not take inside is applied to the float32 result by torch, and
that is quantized as by :class:`Quantize`. Source: Jacob et al. (CVPR 2018), section 2.3, equation 7.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fxcompress.ir.activation import Activation
from fxcompress.quant.affine import QParams
from fxcompress.quant.float_order import CONV_ACTIVATIONS, LINEAR_ACTIVATIONS, activate, fused_multiply_add

__all__ = ["Dequantize", "QuantConv", "QuantLinear", "Quantize", "Requantize"]

_CONVS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class Quantize(nn.Module):
    """float tensor of any shape -> uint8."""

    def __init__(self, qparams: QParams) -> None:
        super().__init__()
        self.qparams = qparams

    def forward(self, x: Tensor) -> Tensor:
        return self.qparams.quantize(x)

    def extra_repr(self) -> str:
        return f"{self.qparams}"


class Dequantize(nn.Module):
    """uint8 tensor of any shape -> float32."""

    def __init__(self, qparams: QParams) -> None:
        super().__init__()
        self.qparams = qparams

    def forward(self, q: Tensor) -> Tensor:
        return self.qparams.dequantize(q)

    def extra_repr(self) -> str:
        return f"{self.qparams}"


class Requantize(nn.Module):
    """uint8 with one scale and zero point -> uint8 with others."""

    def __init__(self, source: QParams, qparams: QParams) -> None:
        super().__init__()
        self.source, self.qparams = source, qparams

    def forward(self, q: Tensor) -> Tensor:
        return self.qparams.quantize(self.source.dequantize(q))

    def extra_repr(self) -> str:
        return f"{self.source} -> {self.qparams}"


class _QuantLayer(nn.Module):
    """What both layers share: int8 ``weight``, float32 ``weight_scale`` (O,) and ``bias`` (O,) or None as buffers.

    ``source`` belongs to the input; ``qparams`` to the output, None for a float32 output; ``residual`` to the residual, None
    where there is none or where it is a float32 tensor.
    """

    weight: Tensor
    weight_scale: Tensor
    bias: Tensor | None

    def __init__(
        self,
        weight: Tensor,
        weight_scale: Tensor,
        bias: Tensor | None,
        *,
        source: QParams,
        qparams: QParams | None = None,
        residual: QParams | None = None,
        activation: Activation | None = None,
    ) -> None:
        super().__init__()
        self.training = False
        self.register_buffer("weight", weight.detach())
        self.register_buffer("weight_scale", weight_scale.detach())
        self.register_buffer("bias", None if bias is None else bias.detach())
        self.source, self.qparams, self.residual, self.activation = source, qparams, residual, activation

    def forward(self, q: Tensor, residual: Tensor | None = None) -> Tensor:
        return self.finish(self.accumulate(q), residual)

    def accumulate(self, q: Tensor) -> Tensor:
        """The exact sums of ``q * w``, as float64; q is uint8 and padding adds the zero point."""
        raise NotImplementedError

    def takes_inside(self, residual: Tensor | None) -> bool:
        """Whether activation and residual belong to the operation itself; otherwise they follow its float32 result."""
        raise NotImplementedError

    def finish(self, sums: Tensor, residual: Tensor | None) -> Tensor:
        """From integer sums to the output; ``residual`` is uint8 if it has qparams, else float32."""
        y, bias = sums.float() * self._by_channel(self.total_scale()), self.total_bias()
        return self.complete(y if bias is None else y + self._by_channel(bias), residual)

    def complete(self, y: Tensor, residual: Tensor | None) -> Tensor:
        """From the float32 result of the operation to the output."""
        if not self.takes_inside(residual):
            return self.follow(y, residual)
        if residual is not None:
            y = y + residual if self.residual is None else self._fused_sum(y, residual, self.residual)
        y = activate(self.activation, y)
        return y if self.qparams is None else self.qparams.store(y)

    def follow(self, y: Tensor, residual: Tensor | None) -> Tensor:
        """Residual, activation and quantization, one after the other by torch."""
        if residual is not None:
            y = y + (residual if self.residual is None else self.residual.dequantize(residual))
        y = self._activated(y)
        return y if self.qparams is None else self.qparams.quantize(y)

    def total_scale(self) -> Tensor:
        """float32 (O,): what one unit of the integer sum is worth."""
        return self.weight_scale * self.source.scale

    def total_bias(self) -> Tensor | None:
        """float32 (O,): the bias without what the zero point has added to the sum; None for nothing."""
        if self.source.zero_point == 0:
            return self.bias
        surplus = self.weight.double().flatten(1).sum(1) * self.source.zero_point * self.total_scale().double()
        return (-surplus if self.bias is None else self.bias.double() - surplus).float()

    def _activated(self, y: Tensor) -> Tensor:
        """The activation with channels last in memory: torch's kernels use other formulas for other layouts, and for what is left
        over after whole vectors, so the last bits depend on the order of the elements."""
        if self.activation is None:
            return y
        axis = 1 - self.weight.dim()
        return self.activation.apply(y.movedim(axis, -1).contiguous()).movedim(-1, axis)

    @staticmethod
    def _fused_sum(y: Tensor, residual: Tensor, qparams: QParams) -> Tensor:
        return fused_multiply_add(residual.float() - qparams.zero_point, qparams.scale, y)

    def _by_channel(self, values: Tensor) -> Tensor:
        return values.reshape(-1, *[1] * (self.weight.dim() - 2))

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, {self.source} -> {self.qparams or 'float32'}, activation={self.activation}"


class QuantConv(_QuantLayer):
    """1-, 2- or 3-d convolution of uint8 (N, C, ...) with zero padding, the same on both sides of a dimension."""

    def __init__(
        self,
        weight: Tensor,
        weight_scale: Tensor,
        bias: Tensor | None = None,
        *,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int = 1,
        source: QParams,
        qparams: QParams | None = None,
        residual: QParams | None = None,
        activation: Activation | None = None,
    ) -> None:
        super().__init__(weight, weight_scale, bias, source=source, qparams=qparams, residual=residual, activation=activation)
        self.stride, self.padding, self.dilation, self.groups = tuple(stride), tuple(padding), tuple(dilation), groups

    def accumulate(self, q: Tensor) -> Tensor:
        conv: Any = _CONVS[self.weight.dim() - 2]
        return conv(self.padded(q).double(), self.weight.double(), None, self.stride, 0, self.dilation, self.groups)

    def padded(self, q: Tensor) -> Tensor:
        """``q`` with the zero point around it."""
        widths = [n for n in reversed(self.padding) for _ in range(2)]
        return F.pad(q, widths, value=self.source.zero_point) if any(widths) else q

    def takes_inside(self, residual: Tensor | None) -> bool:
        name = None if self.activation is None else self.activation.name
        if self.weight.dim() == 5:
            return name is None and residual is None
        if residual is None:
            return name is None or name in CONV_ACTIVATIONS
        # the sum is written over the residual, so both have the same type
        return name in (None, "relu") and (self.residual is None) == (self.qparams is None)


class QuantLinear(_QuantLayer):
    """Linear of uint8 (..., in_features)."""

    def accumulate(self, q: Tensor) -> Tensor:
        return F.linear(q.double(), self.weight.double())

    def takes_inside(self, residual: Tensor | None) -> bool:
        name = None if self.activation is None else self.activation.name
        if residual is None:
            return name is None or name in LINEAR_ACTIVATIONS
        return name in (None, "relu") and (self.residual is None or self.qparams is not None)
