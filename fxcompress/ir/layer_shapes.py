"""The results that common layers give, by the formulas of their shapes: torch's own shape functions take up to a hundred times as long."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fxcompress.ir.fused import FusedConv1d, FusedConv2d, FusedConv3d, FusedLinear

_LINEARS = {nn.Linear, FusedLinear}
_CONVS = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3, FusedConv1d: 1, FusedConv2d: 2, FusedConv3d: 3}


def quick_result(layer: Any, x: Tensor) -> Tensor | None:
    """A new tensor of the shape, dtype, device and memory layout of ``layer(x)``, without its values.

    None where no formula holds: another layer, or arguments that torch itself should judge.
    """
    kind: Any = type(layer)
    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
        return torch.empty_like(x) if _norm_fits(layer, x) else None
    shape = None
    if kind in _LINEARS and x.dim() > 0 and x.size(-1) == layer.in_features and x.dtype == layer.weight.dtype:
        shape = (*x.shape[:-1], layer.out_features)
    elif kind in _CONVS:
        shape = _conv_shape(layer, x, _CONVS[kind])
    return None if shape is None else x.new_empty(shape)


def quick_concat(tensors: Sequence[Tensor], dim: int) -> Tensor | None:
    """The same for ``torch.cat`` of contiguous tensors of one dtype, of which all dimensions but ``dim`` agree."""
    first = tensors[0]
    dim = dim % first.dim() if first.dim() else 0
    others = [size for axis, size in enumerate(first.shape) if axis != dim]
    for tensor in tensors:
        agree = tensor.dim() == first.dim() > 0 and [size for axis, size in enumerate(tensor.shape) if axis != dim] == others
        if not agree or tensor.dtype != first.dtype or not _is_plain(tensor):
            return None
    shape = list(first.shape)
    shape[dim] = sum(tensor.size(dim) for tensor in tensors)
    return first.new_empty(shape)


def _norm_fits(layer: nn.modules.batchnorm._BatchNorm, x: Tensor) -> bool:
    if layer.training or x.dim() < 2:
        return False
    tensors = (*layer.parameters(recurse=False), *layer.buffers(recurse=False))
    return all(t.numel() == x.shape[1] and t.dtype == x.dtype for t in tensors if t.dim() == 1)


def _conv_shape(conv: Any, x: Tensor, spatial: int) -> tuple[int, ...] | None:
    """None for layouts other than the plain one: torch's rules for the layout of the result are its own."""
    if isinstance(conv.padding, str) or x.dim() != spatial + 2 or x.dtype != conv.weight.dtype or x.size(1) != conv.in_channels:
        return None
    if not (_is_plain(x) and _is_plain(conv.weight)):
        return None
    numbers = zip(x.shape[2:], conv.kernel_size, conv.padding, conv.stride, conv.dilation, strict=True)
    sizes = tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, p, s, d in numbers)
    return (x.size(0), conv.out_channels, *sizes) if min(sizes) > 0 and x.numel() > 0 else None


def _is_plain(tensor: Tensor) -> bool:
    """Whether the strides are those of a new tensor; ``is_contiguous`` is also true of channels_last with one pixel."""
    expected = 1
    for size, stride in zip(reversed(tensor.shape), reversed(tensor.stride()), strict=True):
        if stride != expected:
            return False
        expected *= size
    return True
