"""Dynamic quantization of linears: the range of the input is found in every call, one range per row.

    s_r = max |x_r| / 127,    q_r = round(x_r / s_r) + 128,    y_r = act((sum(q_r - 128) w) * weight_scale * s_r + bias + residual)

Rows do not see each other, so the result does not depend on what else is in the batch. Three nodes of a graph: a
:class:`QuantizeRows`, a :class:`~fxcompress.quant.modules.QuantLinear` with float32 output, and a :class:`ScaleRows`. Source: Yao et
al., "ZeroQuant" (arXiv:2206.01861), token-wise quantization.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fxcompress.ir.activation import Activation
from fxcompress.quant.affine import SMALLEST_SCALE, QParams

__all__ = ["ROWS", "QuantizeRows", "ScaleRows"]

ROWS = QParams(1.0, 128)
"""What the rows are to the linear: its sums are scaled afterwards."""


class QuantizeRows(nn.Module):
    """float (..., features) -> uint8 of the same shape with zero point 128, and the scale of every row (..., 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.training = False

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scale = (x.abs().amax(-1, keepdim=True) / 127).clamp_min(SMALLEST_SCALE)
        q = (x / scale).nan_to_num_(0.0).round_().add_(ROWS.zero_point).clamp_(0, ROWS.high)
        return q.to(torch.uint8), scale


class ScaleRows(nn.Module):
    """``act(y * scale + bias + residual)`` for y (..., out_features), scale (..., 1), bias (out_features,) or None."""

    bias: Tensor | None

    def __init__(self, bias: Tensor | None = None, *, activation: Activation | None = None) -> None:
        super().__init__()
        self.training = False
        self.register_buffer("bias", None if bias is None else bias.detach())
        self.activation = activation

    def forward(self, y: Tensor, scale: Tensor, residual: Tensor | None = None) -> Tensor:
        y = y * scale
        if self.bias is not None:
            y = y + self.bias
        if residual is not None:
            y = y + residual
        return y if self.activation is None else self.activation.apply(y)

    def extra_repr(self) -> str:
        return f"bias={self.bias is not None}, activation={self.activation}"
