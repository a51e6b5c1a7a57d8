"""The fake-quantized form of a graph: float arithmetic on numbers that integers could hold.

Activations pass a :class:`FakeQuantize`; a quantized layer is a fused layer (``fxcompress.ir.fused``) whose weights lie on the
grid ``integer * weight_scale``. So the graph runs, and can be looked at and corrected, in plain float.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fxcompress.ir.activation import Activation
from fxcompress.ir.fused import FusedConv1d, FusedConv2d, FusedConv3d, FusedLinear
from fxcompress.quant.affine import QParams, quantize_weight, weight_scale

__all__ = ["FAKE_LAYERS", "FakeQuantConv1d", "FakeQuantConv2d", "FakeQuantConv3d", "FakeQuantLinear", "FakeQuantize", "fake_quantized"]


class FakeQuantize(nn.Module):
    """Rounds a float tensor to what ``qparams`` can represent; shape and dtype stay."""

    def __init__(self, qparams: QParams) -> None:
        super().__init__()
        self.qparams = qparams

    def forward(self, x: Tensor) -> Tensor:
        return self.qparams.fake(x)

    def extra_repr(self) -> str:
        return f"{self.qparams}"


class _FakeQuantLayer:
    """Mixin: a fused layer whose weight is ``integers() * weight_scale``, rounded once to the weight's dtype.

    ``float_weight`` and ``float_bias`` are what the layer had before: passes that correct or round again need them. They
    are in no state_dict, and lowering leaves them behind.
    """

    weight: Any
    weight_scale: Tensor
    weight_bits: int
    float_weight: Tensor
    float_bias: Tensor | None

    def integers(self) -> Tensor:
        """The int8 weights."""
        return quantize_weight(self.weight, self.weight_scale, self.weight_bits)

    def set_integers(self, integers: Tensor) -> None:
        """Give the layer a new weight parameter of these int8 weights."""
        per_channel = self.weight_scale.double().reshape(-1, *[1] * (integers.dim() - 1))
        grid = (integers.double() * per_channel).to(self.weight.dtype)
        self.weight = nn.Parameter(grid, requires_grad=self.weight.requires_grad)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, weight_bits={self.weight_bits}"  # type: ignore[misc]


class FakeQuantConv1d(_FakeQuantLayer, FusedConv1d):
    """1-d convolution with weights on a grid."""


class FakeQuantConv2d(_FakeQuantLayer, FusedConv2d):
    """2-d convolution with weights on a grid."""


class FakeQuantConv3d(_FakeQuantLayer, FusedConv3d):
    """3-d convolution with weights on a grid."""


class FakeQuantLinear(_FakeQuantLayer, FusedLinear):
    """Linear with weights on a grid."""


FAKE_LAYERS: dict[type[nn.Module], Any] = {
    nn.Conv1d: FakeQuantConv1d,
    nn.Conv2d: FakeQuantConv2d,
    nn.Conv3d: FakeQuantConv3d,
    nn.Linear: FakeQuantLinear,
    FusedConv1d: FakeQuantConv1d,
    FusedConv2d: FakeQuantConv2d,
    FusedConv3d: FakeQuantConv3d,
    FusedLinear: FakeQuantLinear,
}
"""Plain and fused layers, and the form with weights on a grid."""


def fake_quantized(layer: nn.Module, *, bits: int = 8, scale: Tensor | None = None) -> nn.Module:
    """The fake-quantized form of a plain or fused layer; its weight is new, its bias shared, its float weight kept beside.

    Args:
        bits: of the weights, 2 to 8.
        scale: float32 (O,); where none is given the largest weight of each output channel becomes the largest integer.
    """
    activation: Activation | None = getattr(layer, "activation", None)
    fake: Any = FAKE_LAYERS[type(layer)].of(layer, activation)
    found = weight_scale(fake.weight, bits) if scale is None else scale
    fake.register_buffer("weight_scale", found.detach().to(torch.float32))
    fake.weight_bits = bits
    fake._non_persistent_buffers_set = set(layer._non_persistent_buffers_set)  # of() shares it with the layer
    fake.register_buffer("float_weight", fake.weight.detach(), persistent=False)
    fake.register_buffer("float_bias", None if fake.bias is None else fake.bias.detach(), persistent=False)
    fake.set_integers(fake.integers())
    return fake
