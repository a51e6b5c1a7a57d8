"""The integer form of a graph: modules on plain uint8 tensors, in plain torch. They are the reference of every kernel.

A convolution or linear takes uint8 activations ``q`` with ``x = (q - zero_point) * scale`` and int8 weights ``w * weight_scale``:

    y = act(sum((q - zero_point) * w) * (scale * weight_scale) + bias + residual)

The sum is exact (integers in float64, far below 2**53); what follows is done in float32, in the order in which oneDNN does it,
and the result leaves as float32 or is quantized again. Padding adds the zero point, which stands for zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fxcompress.ir.activation import Activation
from fxcompress.quant.affine import QParams

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

    def accumulate(self, q: Tensor) -> Tensor:
        """The exact integer sums, as float64; q is uint8."""
        raise NotImplementedError

    def forward(self, q: Tensor, residual: Tensor | None = None) -> Tensor:
        return self.finish(self.accumulate(q), residual)

    def finish(self, sums: Tensor, residual: Tensor | None) -> Tensor:
        """From integer sums to the output; ``residual`` is uint8 if it has qparams, else float32."""
        channel = [-1, *[1] * (sums.dim() - 2)] if self.channel_axis == 1 else [-1]
        y = sums.float() * (self.weight_scale * self.source.scale).reshape(channel)
        if self.bias is not None:
            y = y + self.bias.reshape(channel)
        if residual is not None:
            y = y + (residual if self.residual is None else self.residual.dequantize(residual))
        if self.activation is not None:
            y = self.activation.apply(y)
        return y if self.qparams is None else self.qparams.quantize(y)

    @property
    def channel_axis(self) -> int:
        raise NotImplementedError

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

    @property
    def channel_axis(self) -> int:
        return 1

    def accumulate(self, q: Tensor) -> Tensor:
        conv: Any = _CONVS[self.weight.dim() - 2]
        centred = q.double() - self.source.zero_point
        return conv(centred, self.weight.double(), None, self.stride, self.padding, self.dilation, self.groups)


class QuantLinear(_QuantLayer):
    """Linear of uint8 (..., in_features)."""

    @property
    def channel_axis(self) -> int:
        return -1

    def accumulate(self, q: Tensor) -> Tensor:
        return F.linear(q.double() - self.source.zero_point, self.weight.double())
