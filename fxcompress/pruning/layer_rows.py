"""Layers as linear systems y = W x at single positions: im2col for every kind of convolution."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHUNK = 1 << 22  # numbers in a piece of rows; in float64 32 MB
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
_CONVOLUTIONS = LAYERS[1:]
_TRANSPOSED = LAYERS[4:]


def regressors(layer: Layer) -> int:
    """How many numbers one output of a layer is computed from."""
    outputs = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    return layer.weight.numel() // outputs


def layer_rows(layer: Layer, x: Tensor, y: Tensor, count: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Pieces of the linear system y = W x of a layer, at up to ``count`` positions of its output chosen at random.

    A transposed convolution is the convolution, with stride 1 and a flipped kernel, of its input with stride - 1 zeros
    between the positions (Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", 2016, section 4).

    Args:
        layer: any stride, dilation, groups, padding and padding mode.
        x: what it reads, (batch, channels, *size), (channels, *size) or (..., features).
        y: values at the places of its output, of the shape of the output.
        seed: the positions are the same for the same seed and number of positions.

    Yields:
        (x rows (groups, positions, regressors), y rows (groups, positions, outputs per group)) in float64. W is as
        :func:`weight_matrix` gives it.
    """
    size: tuple[int, ...] = ()
    if isinstance(layer, nn.Linear):
        source, flat, groups = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1]), 1
    else:
        if x.ndim == layer.weight.ndim - 1:
            x, y = x[None], y[None]
        size, groups = tuple(y.shape[2:]), layer.groups
        source, flat = _padded(layer, x, size).movedim(1, -1).contiguous(), y.movedim(1, -1).reshape(-1, y.shape[1])
    chosen = sampled(flat.shape[0], count, seed).to(x.device)
    for piece in chosen.split(max(1, CHUNK // (regressors(layer) * groups))):
        rows = source[piece] if isinstance(layer, nn.Linear) else _patches(layer, source, piece, size)
        yield _grouped(rows, groups), _grouped(flat[piece], groups)


def weight_matrix(layer: Layer) -> Tensor:
    """The weight as (groups, outputs per group, regressors)."""
    weight, groups = layer.weight, 1 if isinstance(layer, nn.Linear) else layer.groups
    if isinstance(layer, _TRANSPOSED):
        weight = weight.unflatten(0, (groups, -1)).transpose(1, 2).flip(tuple(range(3, weight.ndim + 1)))
        return weight.flatten(3).flatten(2)
    return weight.flatten(1).unflatten(0, (groups, -1))


def as_weight(layer: Layer, matrix: Tensor) -> Tensor:
    """The inverse of :func:`weight_matrix`."""
    if isinstance(layer, _TRANSPOSED):
        kernel = layer.weight.shape[2:]
        split = matrix.reshape(*matrix.shape[:2], -1, *kernel).flip(tuple(range(3, 3 + len(kernel))))
        return split.transpose(1, 2).flatten(0, 1)
    return matrix.reshape(layer.weight.shape)


def constant_stays_constant(layer: Layer) -> bool:
    """Whether a channel that is constant contributes a constant: not where zeros stand beside or between its positions."""
    if isinstance(layer, _TRANSPOSED):
        return False
    if isinstance(layer, _CONVOLUTIONS):
        return layer.padding_mode != "zeros" or not any(layer._reversed_padding_repeated_twice)
    return True


def sampled(total: int, count: int, seed: int) -> Tensor:
    """All of ``total`` positions, or ``count`` of them drawn without repetition, in order."""
    if total <= count:
        return torch.arange(total)
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(total, generator=generator)[:count].sort().values


def _padded(layer: Layer, x: Tensor, size: Sequence[int]) -> Tensor:
    assert isinstance(layer, _CONVOLUTIONS)
    if isinstance(layer, _TRANSPOSED):
        return _stuffed(layer, x, size)
    amounts = list(layer._reversed_padding_repeated_twice)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return F.pad(x, amounts, mode=mode) if any(amounts) else x


def _stuffed(layer: Layer, x: Tensor, size: Sequence[int]) -> Tensor:
    """The input of a transposed convolution with zeros between and beside its positions, as the convolution reads it."""
    assert isinstance(layer, _TRANSPOSED)
    amounts: list[int] = []
    for axis, wanted in enumerate(size):
        stride, reach = layer.stride[axis], layer.dilation[axis] * (layer.kernel_size[axis] - 1)
        place, padding = axis + 2, layer.padding[axis]
        assert isinstance(padding, int)
        shape = list(x.shape)
        shape[place] = (shape[place] - 1) * stride + 1
        spread = x.new_zeros(shape)
        spread[(slice(None),) * place + (slice(None, None, stride),)] = x
        x, before = spread, reach - padding
        amounts = [before, wanted + reach - before - x.shape[place], *amounts]
    return F.pad(x, amounts)


def _patches(layer: Layer, source: Tensor, positions: Tensor, size: tuple[int, ...]) -> Tensor:
    """im2col at some positions: (positions, channels * taps) from a padded input (batch, *size, channels)."""
    assert isinstance(layer, _CONVOLUTIONS)
    batch, *places = torch.unravel_index(positions, (source.shape[0], *size))
    rank = len(size)
    index = [batch.reshape(-1, *[1] * rank)]
    for axis, place in enumerate(places):
        stride = 1 if isinstance(layer, _TRANSPOSED) else layer.stride[axis]
        taps = torch.arange(layer.kernel_size[axis], device=place.device) * layer.dilation[axis]
        shape = [1] * (rank + 1)
        shape[0], shape[axis + 1] = -1, len(taps)
        index.append((place[:, None] * stride + taps).reshape(shape))
    return source[tuple(index)].movedim(-1, 1).flatten(1)


def _grouped(rows: Tensor, groups: int) -> Tensor:
    return rows.to(torch.float64).reshape(rows.shape[0], groups, -1).transpose(0, 1)
