"""Plans: one integer layer with packed weights, ready for inputs of one shape.

A plan is called as ``plan(q, residual)`` and gives what the layer gives (``fxcompress.quant.modules``), bit for bit. The zero point
of the input is in the bias and around the input, so the kernels see zero point 0 and scale 1: they would otherwise sum up the
weights at every call (a 3x3 convolution of 256 channels on 14x14 pixels takes 0.83 ms instead of 0.50).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fxcompress.quant.affine import QParams
from fxcompress.quant.float_order import activate
from fxcompress.quant.modules import QuantConv, QuantLinear
from fxcompress.targets.cpu_kernels import PostOp
from fxcompress.targets.cpu_plans import ConvGeometry
from fxcompress.targets.int8_kernels import fused_post_op, int8_kernels

__all__ = ["Int8Plan", "conv_plan", "exceeds_int32", "is_pointwise", "linear_plan", "packed_linear", "pointwise_plan"]

Int8Plan = Callable[[Tensor, Tensor | None], Tensor]

_End = tuple[Any, ...]
"""The last arguments of a kernel: scale, zero point and dtype of the output, activation."""

_RAW = (1.0, 0, torch.float32)
"""Arguments of a float32 output."""


def exceeds_int32(weight: Tensor) -> bool:
    """Whether a sum of ``q * w`` over a row of int8 ``weight`` (O, ...) may be too large for the kernels' accumulators."""
    return 255 * int(weight.flatten(1).int().abs().sum(1).max()) >= 2**31


def conv_plan(layer: QuantConv, shape: Sequence[int], overwrite: bool) -> Int8Plan:
    """Plan for inputs of ``shape`` (N, C, ...); with ``overwrite`` a residual gives its memory to the output where it can."""
    line = layer.weight.dim() == 3  # (N, C, L) as (N, C, 1, L)
    weight = layer.weight.unsqueeze(2) if line else layer.weight
    shape = (*shape[:2], 1, *shape[2:]) if line else shape
    geometry = ConvGeometry(layer.padding, layer.stride, layer.dilation, layer.groups)
    geometry = geometry.as_2d() if line else geometry
    sizes_out = geometry.output_size(shape[2:], weight.shape[2:])
    out_shape = torch.Size((shape[0], weight.shape[0], *(sizes_out[1:] if line else sizes_out)))
    layout = torch.channels_last if weight.dim() == 4 else torch.channels_last_3d
    outside = layer.source.zero_point != 0 and any(geometry.padding)
    around, zero_point = [n for n in reversed(geometry.padding) for _ in range(2)], layer.source.zero_point
    padding = [0] * len(geometry.padding) if outside else list(geometry.padding)
    sizes = [n + 2 * p for n, p in zip(shape[2:], geometry.padding, strict=True)] if outside else list(shape[2:])
    where = (list(geometry.stride), padding, list(geometry.dilation), geometry.groups)
    scale, bias = layer.total_scale(), layer.total_bias()
    packed = int8_kernels().pack_conv(weight.contiguous(), scale, 1.0, 0, *where, [*shape[:2], *sizes])
    operands = (packed, scale, torch.zeros(len(scale), dtype=torch.int32))
    conv, conv_sum = int8_kernels().conv, int8_kernels().conv_sum
    alone, summed, limit = _alone(layer, linear=False), _summed(layer, "sum"), _limit(layer.qparams)
    raw: _End = (*_RAW, "none", [], "")
    if not _agrees(layer, alone, lambda x, end: conv(x, 1.0, 0, *operands, bias, *where, *end), [*shape[:2], *sizes]):
        alone = None

    def run(q: Tensor, residual: Tensor | None) -> Tensor:
        x = q.unsqueeze(2) if line else q
        if outside:
            x = F.pad(x, around, value=zero_point)
        if residual is None and alone is not None:
            y = conv(x, 1.0, 0, *operands, bias, *where, *alone)
        elif residual is not None and summed is not None and residual.shape == out_shape:
            onto = _accumulator(residual.unsqueeze(2) if line else residual, q, overwrite, layout)
            y = conv_sum(x, 1.0, 0, *operands, onto, bias, *where, *summed)
        else:
            y = conv(x, 1.0, 0, *operands, bias, *where, *raw)
            return layer.complete(y.squeeze(2) if line else y, residual)
        y = y if limit is None else y.clamp_max_(limit)
        return y.squeeze(2) if line else y

    return run


def pointwise_plan(layer: QuantConv, shape: Sequence[int], overwrite: bool) -> Int8Plan:
    """Plan of a 1x1 convolution of images, with stride 1 and a residual, as a linear over the pixels.

    The convolution with a residual copies its result once more (5 % of a layer of resnet50); the linear does not.
    """
    out_shape = torch.Size((shape[0], layer.weight.shape[0], *shape[2:]))
    scale, bias = layer.total_scale(), layer.total_bias()
    operands = (packed_linear(layer.weight.flatten(1)), scale, torch.zeros(len(scale), dtype=torch.int32))
    linear, linear_sum = int8_kernels().linear, int8_kernels().linear_sum
    alone, summed, limit = _alone(layer, linear=False), _summed(layer, "sum"), _limit(layer.qparams)
    raw: _End = (*_RAW, "none", [], "")
    if not _agrees(layer, alone, lambda x, end: linear(x, 1.0, 0, *operands, bias, *end), [shape[0], *shape[2:], shape[1]]):
        alone = None

    def run(q: Tensor, residual: Tensor | None) -> Tensor:
        pixels = q.permute(0, 2, 3, 1)
        if residual is None and alone is not None:
            y = linear(pixels, 1.0, 0, *operands, bias, *alone)
        elif residual is not None and summed is not None and residual.shape == out_shape:
            onto = _accumulator(residual, q, overwrite, torch.channels_last).permute(0, 2, 3, 1)
            y = linear_sum(pixels, 1.0, 0, *operands, onto, bias, *summed)
        else:
            return layer.complete(linear(pixels, 1.0, 0, *operands, bias, *raw).permute(0, 3, 1, 2), residual)
        return (y if limit is None else y.clamp_max_(limit)).permute(0, 3, 1, 2)

    return run


def is_pointwise(layer: QuantConv) -> bool:
    """Whether the layer is a 1x1 convolution of images with stride 1."""
    plain = all(n == 1 for n in (*layer.weight.shape[2:], *layer.stride, layer.groups)) and not any(layer.padding)
    return layer.weight.dim() == 4 and plain and int8_kernels().linear_sum is not None


def packed_linear(weight: Tensor) -> Tensor:
    """The packed form of int8 ``weight`` (out, in), for any number of rows."""
    return int8_kernels().pack_linear(weight.contiguous(), None)


def linear_plan(layer: QuantLinear, shape: Sequence[int], packed: Tensor) -> Int8Plan:
    """Plan for inputs of ``shape`` (..., in_features)."""
    out_shape = torch.Size((*shape[:-1], layer.weight.shape[0]))
    scale, bias = layer.total_scale(), layer.total_bias()
    operands = (packed, scale, torch.zeros(len(scale), dtype=torch.int32))
    linear, linear_sum = int8_kernels().linear, int8_kernels().linear_sum
    # a uint8 residual is known to the kernel only as what it writes over
    over = layer.residual is not None
    alone, summed, limit = _alone(layer, linear=True), _summed(layer, "sum" if over else "add"), _limit(layer.qparams)
    raw: _End = (*_RAW, "none", [], "")
    if not _agrees(layer, alone, lambda x, end: linear(x, 1.0, 0, *operands, bias, *end), shape):
        alone = None

    def run(q: Tensor, residual: Tensor | None) -> Tensor:
        if residual is None and alone is not None:
            y = linear(q, 1.0, 0, *operands, bias, *alone)
        elif residual is not None and summed is not None and residual.shape == out_shape:
            other = residual.clone(memory_format=torch.contiguous_format) if over else residual
            y = linear_sum(q, 1.0, 0, *operands, other, bias, *summed)
        else:
            return layer.complete(linear(q, 1.0, 0, *operands, bias, *raw), residual)
        return y if limit is None else y.clamp_max_(limit)

    return run


def _alone(layer: QuantConv | QuantLinear, *, linear: bool) -> _End | None:
    """The arguments after the geometry where the kernel does everything but a residual; None where it cannot."""
    post = fused_post_op(layer.activation, linear=linear) if layer.takes_inside(None) else None
    return None if post is None else (*_output(layer.qparams), *_arguments(post))


_EXACT = (None, "relu", "hardtanh", "leaky_relu")
"""Activations that leave nothing to the kernel's choice."""


def _agrees(layer: QuantConv | QuantLinear, alone: _End | None, call: Callable[[Tensor, _End], Tensor], shape: Sequence[int]) -> bool:
    """Whether the kernel that oneDNN chooses for this layer and shape computes the activation as the reference does.

    The ones for AVX2 and 3 channels per group compute SiLU by another formula, for example. Compared are some 4,000 elements.
    """
    activation = layer.activation
    if alone is None or activation is None or activation.name in _EXACT:
        return True
    q = torch.arange(math.prod(shape)).mul_(37).remainder_(251).to(torch.uint8).view(tuple(shape))
    y, found = call(q, (*_RAW, "none", [], "")).reshape(-1), call(q, (*_RAW, *alone[3:])).reshape(-1)
    every = max(1, y.numel() // 4096) | 1
    return torch.equal(found[::every], activate(activation, y[::every]))


def _summed(layer: QuantConv | QuantLinear, how: str) -> tuple[Any, ...] | None:
    """The same with a residual of the output's shape."""
    found = int8_kernels()
    if found.conv_sum is None or found.linear_sum is None or not layer.takes_inside(layer.weight):  # any tensor stands for a residual
        return None
    scale, zero_point = (1.0, 0) if layer.residual is None else (layer.residual.scale, layer.residual.zero_point)
    relu = "none" if layer.activation is None else "relu"
    return (*_output(layer.qparams), scale, zero_point, how, 1.0, relu, [], "")


def _output(qparams: QParams | None) -> tuple[float, int, torch.dtype]:
    return _RAW if qparams is None else (qparams.scale, qparams.zero_point, torch.uint8)


def _arguments(post: PostOp) -> tuple[str, list[float], str]:
    return post.attr, list(post.scalars), post.algorithm


def _limit(qparams: QParams | None) -> int | None:
    """Kernels clamp to 255."""
    return None if qparams is None or qparams.high == 255 else qparams.high


def _accumulator(residual: Tensor, q: Tensor, overwrite: bool, layout: torch.memory_format) -> Tensor:
    """Memory that holds the residual and may be written over."""
    if not residual.is_contiguous(memory_format=layout):
        return residual.contiguous(memory_format=layout)
    if overwrite and residual.untyped_storage().data_ptr() != q.untyped_storage().data_ptr():
        return residual
    return residual.clone()
