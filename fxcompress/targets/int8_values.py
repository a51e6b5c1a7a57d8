"""Fast forms of what changes the representation of a tensor: :class:`FastQuantize`, :class:`FastDequantize`, :class:`FastRequantize`,
:class:`FastQuantizeRows`.

They give the integers of ``fxcompress.quant.modules`` for every input below 2**30 steps of the scale (beyond it, and for NaN, torch's
kernel overflows), by torch's kernels for quantized tensors, ten times faster than arithmetic and a cast; where those are not there,
or not in ordinary mode, the definition itself runs.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from fxcompress.quant.affine import SMALLEST_SCALE, QParams
from fxcompress.quant.dynamic import ROWS, QuantizeRows
from fxcompress.quant.modules import Dequantize, Quantize, Requantize
from fxcompress.targets.cpu_kernels import refuse_gradients, runs_native
from fxcompress.targets.inference import InferenceOnly
from fxcompress.targets.int8_bridge import as_plain, as_quantized, bridge
from fxcompress.targets.int8_kernels import runs_int8

__all__ = ["FastDequantize", "FastQuantize", "FastQuantizeRows", "FastRequantize", "dequantized", "quantized"]


def quantized(x: Tensor, qparams: QParams) -> Tensor:
    """``qparams.quantize(x)``; float32, below 2**30 steps of the scale."""
    if not runs_native(x) or bridge() is None:
        return qparams.quantize(x)
    q = as_plain(torch.quantize_per_tensor(x, qparams.scale, qparams.zero_point, torch.quint8))
    return q if qparams.high == 255 else q.clamp_max_(qparams.high)


def dequantized(q: Tensor, qparams: QParams) -> Tensor:
    """``qparams.dequantize(q)``; uint8."""
    if not runs_int8(q) or bridge() is None:
        return qparams.dequantize(q)
    return as_quantized(q, qparams.scale, qparams.zero_point).dequantize()


class FastQuantize(InferenceOnly, Quantize):
    """:class:`Quantize` by torch's own kernel.

    With ``channels_last`` an image (N, C, H, W) is brought into that layout on the way, which costs half of what it costs on uint8.
    """

    def __init__(self, qparams: QParams, channels_last: bool = False) -> None:
        super().__init__(qparams)
        self.training = False
        self.channels_last = channels_last

    @classmethod
    def of(cls, module: Quantize, *, channels_last: bool = False) -> Self:
        return cls(module.qparams, channels_last)

    def forward(self, x: Tensor) -> Tensor:
        """Raises ModeError when the input requires a gradient and grad mode is on."""
        refuse_gradients(x)
        if self.channels_last and x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        return quantized(x, self.qparams)


class FastDequantize(InferenceOnly, Dequantize):
    """:class:`Dequantize` by torch's own kernel."""

    def __init__(self, qparams: QParams) -> None:
        super().__init__(qparams)
        self.training = False

    @classmethod
    def of(cls, module: Dequantize) -> Self:
        return cls(module.qparams)

    def forward(self, q: Tensor) -> Tensor:
        return dequantized(q, self.qparams)


class FastRequantize(InferenceOnly, Requantize):
    """:class:`Requantize` through float32, by torch's own kernels."""

    def __init__(self, source: QParams, qparams: QParams) -> None:
        super().__init__(source, qparams)
        self.training = False

    @classmethod
    def of(cls, module: Requantize) -> Self:
        return cls(module.source, module.qparams)

    def forward(self, q: Tensor) -> Tensor:
        return quantized(dequantized(q, self.source), self.qparams)


class FastQuantizeRows(InferenceOnly, QuantizeRows):
    """:class:`QuantizeRows` by torch's own kernel."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Raises ModeError when the input requires a gradient and grad mode is on."""
        refuse_gradients(x)
        scale = (x.abs().amax(-1, keepdim=True) / 127).clamp_min(SMALLEST_SCALE)
        return quantized(x / scale, ROWS), scale
