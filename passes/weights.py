"""What the passes that change weights share: which layers they know, and how new parameters are put into them.

All new parameters are computed in float64 and rounded once.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from fxcompress.ir.edit import set_parameter

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS = (*CONVS, *TRANSPOSED, nn.Linear)


def channel_axis(layer: Any, rank: int) -> int | None:
    """The axis of the channels in an input or output of ``layer`` with ``rank`` axes; None when it takes no such tensor."""
    if isinstance(layer, nn.Linear):
        return rank - 1 if rank else None
    return {layer.weight.dim(): 1, layer.weight.dim() - 1: 0}.get(rank)  # the second is an input without a batch


def channels(layer: Any) -> tuple[int, int]:
    """Input and output channels."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return layer.in_channels, layer.out_channels


def padding_of(conv: Any) -> tuple[tuple[int, int], ...]:
    """What a convolution pads (before, after) on each axis, however its padding is written."""
    if conv.padding == "valid":
        return ((0, 0),) * len(conv.kernel_size)
    if conv.padding == "same":
        totals = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        return tuple((total // 2, total - total // 2) for total in totals)
    return tuple((p, p) for p in conv.padding)


def shift_obstacle(layer: Any) -> str | None:
    """Why ``layer(x + t)``, with a constant ``t`` per channel, is not ``layer(x)`` plus a constant per channel, or None.

    Padding with zeros happens after the shift, so outputs at the border see less of it. The other padding modes repeat
    values of the shifted input. The outputs of a transposed convolution see different taps of the kernel.
    """
    if isinstance(layer, nn.Linear):
        return None
    plain = all(max(pair) == 0 for pair in padding_of(layer))
    if isinstance(layer, TRANSPOSED):
        single = math.prod(layer.kernel_size) == math.prod(layer.stride) == 1 and not any(layer.output_padding)
        return None if single and plain else "the outputs of a transposed convolution see different parts of the shift"
    if layer.padding_mode == "zeros" and not plain:
        return "the shift does not reach the zeros that the convolution pads with"
    return None


def is_zero(tensor: Tensor) -> bool:
    """Whether all elements are known to be zero."""
    return not tensor.is_meta and not bool(tensor.any())


def unfit(layer: Any, scale: Tensor, shift: Tensor, *, inputs: bool = False) -> str | None:
    """Why the parameters of ``layer``, with output (or ``inputs``) channels scaled, cannot be had in their dtype, or None."""
    weight = layer.weight.detach()
    if not weight.is_floating_point():
        return f"its weights are {weight.dtype}"
    if weight.numel() == 0:
        return "it has no weights"
    if weight.is_meta or scale.is_meta:
        return None
    largest = _largest(layer, inputs).double() * scale.abs()
    limits = torch.finfo(weight.dtype)
    whole = largest.max() + shift.abs().max() + (layer.bias.detach().abs().max() if layer.bias is not None else 0)
    if not bool(torch.isfinite(scale).all() and torch.isfinite(shift).all() and whole < limits.max):
        return f"the folded parameters would not be finite in {weight.dtype}"
    # In float32 such a channel is dead; in float16 it may carry what a small layer scale (1e-6) leaves.
    if weight.dtype == torch.float16 and bool(((largest > 0) & (largest < limits.tiny)).any()):
        return "the folded weights would vanish in float16"
    return None


def _largest(layer: Any, inputs: bool) -> Tensor:
    """The largest absolute weight of each output (or input) channel."""
    weight: Tensor = layer.weight.detach().abs()
    weight = weight if weight.dim() == 2 else weight.flatten(2).amax(2)
    if inputs is isinstance(layer, TRANSPOSED):  # these channels are axis 0 of the weight
        return weight.amax(1)
    return weight.reshape(_groups(layer), -1, weight.shape[1]).amax(1).flatten()


def _groups(layer: Any) -> int:
    return 1 if isinstance(layer, nn.Linear) else int(layer.groups)


def scale_outputs(layer: Any, scale: Tensor, shift: Tensor) -> None:
    """Give a private layer the parameters of ``scale * layer(x) + shift``; both (C_out,), float64."""
    weight = layer.weight.detach().double()
    if isinstance(layer, TRANSPOSED):  # weight (C_in, C_out / groups, ...)
        grouped = weight.reshape(layer.groups, -1, *weight.shape[1:])
        new = (grouped * scale.reshape(layer.groups, 1, -1, *[1] * (weight.dim() - 2))).reshape(weight.shape)
    else:
        new = weight * scale.reshape(-1, *[1] * (weight.dim() - 1))
    bias = None if layer.bias is None else layer.bias.detach().double() * scale
    install(layer, new, _plus(bias, shift))


def scale_inputs(layer: Any, scale: Tensor, shift: Tensor) -> None:
    """Give a private layer the parameters of ``layer(scale * x + shift)``; both (C_in,), float64.

    ``shift`` must be zero where :func:`shift_obstacle` gives a reason.
    """
    weight, groups = layer.weight.detach().double(), _groups(layer)
    ones = [1] * (weight.dim() - 2)
    grouped = weight.reshape(groups, -1, *weight.shape[1:])  # (g, C_out/g, C_in/g, ...) or, transposed, (g, C_in/g, C_out/g, ...)
    axes = (groups, -1, 1) if isinstance(layer, TRANSPOSED) else (groups, 1, -1)
    moved = grouped * shift.reshape(*axes, *ones)
    summed = moved.flatten(3).sum(3) if ones else moved
    added = summed.sum(1 if isinstance(layer, TRANSPOSED) else 2).flatten()
    bias = None if layer.bias is None else layer.bias.detach().double()
    install(layer, (grouped * scale.reshape(*axes, *ones)).reshape(weight.shape), _plus(bias, added))


def _plus(bias: Tensor | None, shift: Tensor) -> Tensor | None:
    if bias is None:
        return None if is_zero(shift) else shift
    return bias + shift


def install(layer: Any, weight: Tensor, bias: Tensor | None, *others: nn.Module) -> None:
    """Round new float64 parameters to the dtype of a private layer and put them in.

    Memory format is kept; they require gradients if those of the layer, or of ``others`` that went into it, did.
    """
    old = layer.weight
    trainable = any(p.requires_grad for module in (layer, *others) for p in module.parameters())
    set_parameter(layer, "weight", weight.to(old.dtype).contiguous(memory_format=memory_format(old)))
    set_parameter(layer, "bias", None if bias is None else bias.to(old.dtype))
    if others:
        layer.requires_grad_(trainable)


def memory_format(weight: Tensor) -> torch.memory_format:
    """The memory format that a weight has been given."""
    for rank, last in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if weight.dim() == rank and weight.is_contiguous(memory_format=last) and not weight.is_contiguous():
            return last
    return torch.contiguous_format
