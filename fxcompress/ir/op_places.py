"""Rows of the table of operations: what moves data, pools, resizes and reduces."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from fxcompress.ir.op_spec import OpSpec, Trait, op


def _shapes() -> Iterator[OpSpec]:
    move, view = (Trait.MOVES,), (Trait.MOVES, Trait.VIEW)
    yield op("identity", "input", modules=(nn.Identity,), traits=(Trait.ELEMENTWISE, *view))
    yield op(
        "contiguous", "input memory_format", methods="contiguous", traits=(Trait.ELEMENTWISE, *view), memory_format=torch.contiguous_format
    )
    yield op(
        "clone",
        "input memory_format",
        functions=(torch.clone,),
        methods="clone",
        traits=(Trait.ELEMENTWISE, Trait.MOVES),
        memory_format=torch.preserve_format,
    )
    yield op("detach", "input", functions=(torch.detach,), methods="detach", traits=(Trait.ELEMENTWISE, *view))
    yield op(
        "cast", "input dtype", methods="type_as float double half bfloat16 to type", traits=(Trait.ELEMENTWISE, Trait.VIEW), dtype=None
    )
    yield op("view", "input *shape", methods="view", traits=view)
    yield op("reshape", "input *shape", functions=(torch.reshape,), methods="reshape", traits=view)
    yield op(
        "flatten",
        "input start_dim end_dim",
        modules=(nn.Flatten,),
        functions=(torch.flatten,),
        methods="flatten",
        traits=view,
        start_dim=0,
        end_dim=-1,
    )
    yield op("unflatten", "input dim sizes", functions=(torch.unflatten,), methods="unflatten", traits=view)
    yield op("unflatten", "input dim unflattened_size", modules=(nn.Unflatten,), traits=view)
    yield op("permute", "input *dims", functions=(torch.permute,), methods="permute", traits=view)
    yield op("transpose", "input dim0 dim1", functions=(torch.transpose, torch.swapaxes), methods="transpose swapaxes", traits=view)
    yield op("t", "input", functions=(torch.t,), methods="t", traits=view)
    yield op("squeeze", "input dim", functions=(torch.squeeze,), methods="squeeze", traits=view, dim=None)
    yield op("unsqueeze", "input dim", functions=(torch.unsqueeze,), methods="unsqueeze", traits=view)
    yield op("expand", "input *sizes", methods="expand", traits=view)
    yield op("expand_as", "input other", methods="expand_as", traits=view)
    yield op("view_as", "input other", methods="view_as reshape_as", traits=view)
    yield op("getitem", "input index", functions=(operator.getitem,), traits=view)
    yield op("select", "input dim index", functions=(torch.select,), methods="select", traits=view)
    yield op("movedim", "input source destination", functions=(torch.movedim, torch.moveaxis), methods="movedim moveaxis", traits=view)
    yield op("narrow", "input dim start length", functions=(torch.narrow,), methods="narrow", traits=view)
    yield op("chunk", "input chunks dim", functions=(torch.chunk,), methods="chunk", traits=view, dim=0)
    yield op("split", "input split_size_or_sections dim", functions=(torch.split,), traits=view, dim=0)
    yield op("split", "input split_size dim", methods="split", traits=view, dim=0)
    yield op("tensor_split", "input indices_or_sections dim", functions=(torch.tensor_split,), methods="tensor_split", traits=view, dim=0)
    yield op("unbind", "input dim", functions=(torch.unbind,), methods="unbind", traits=view, dim=0)
    yield op("cat", "tensors dim", functions=(torch.cat, torch.concat, torch.concatenate), traits=move, dim=0)
    yield op("stack", "tensors dim", functions=(torch.stack,), traits=move, dim=0)
    yield op("repeat", "input *repeats", methods="repeat", traits=move)
    yield op(
        "repeat_interleave", "input repeats dim", functions=(torch.repeat_interleave,), methods="repeat_interleave", traits=move, dim=None
    )
    yield op("roll", "input shifts dims", functions=(torch.roll,), methods="roll", traits=move, dims=())
    yield op("flip", "input dims", functions=(torch.flip,), methods="flip", traits=move)
    yield op("index_select", "input dim index", functions=(torch.index_select,), methods="index_select", traits=move)
    yield op("pad", "input pad mode value", functions=(F.pad,), traits=move, mode="constant", value=None)
    yield op("pixel_shuffle", "input upscale_factor", modules=(nn.PixelShuffle,), functions=(F.pixel_shuffle,), traits=move)
    yield op("pixel_unshuffle", "input downscale_factor", modules=(nn.PixelUnshuffle,), functions=(F.pixel_unshuffle,), traits=move)
    yield op(
        "channel_shuffle", "input groups", modules=(nn.ChannelShuffle,), functions=(F.channel_shuffle, torch.channel_shuffle), traits=move
    )
    yield op(
        "unfold",
        "input kernel_size dilation padding stride",
        modules=(nn.Unfold,),
        functions=(F.unfold,),
        traits=move,
        dilation=1,
        padding=0,
        stride=1,
    )


def _spatial() -> Iterator[OpSpec]:
    max_pool: dict[str, Any] = {"stride": None, "padding": 0, "dilation": 1, "ceil_mode": False, "return_indices": False}
    yield op(
        "max_pool",
        "input kernel_size stride padding dilation ceil_mode return_indices",
        modules=(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
        functions=(F.max_pool1d, F.max_pool2d, F.max_pool3d),
        **max_pool,
    )
    yield op(
        "max_pool",
        "input kernel_size stride padding dilation ceil_mode",
        functions=(torch.max_pool1d, torch.max_pool2d, torch.max_pool3d),
        stride=(),
        padding=0,
        dilation=1,
        ceil_mode=False,
    )
    avg: dict[str, Any] = {"stride": None, "padding": 0, "ceil_mode": False, "count_include_pad": True}
    yield op(
        "avg_pool",
        "input kernel_size stride padding ceil_mode count_include_pad",
        modules=(nn.AvgPool1d,),
        functions=(F.avg_pool1d,),
        **avg,
    )
    yield op(
        "avg_pool",
        "input kernel_size stride padding ceil_mode count_include_pad divisor_override",
        modules=(nn.AvgPool2d, nn.AvgPool3d),
        functions=(F.avg_pool2d, F.avg_pool3d),
        divisor_override=None,
        **avg,
    )
    yield op(
        "adaptive_avg_pool",
        "input output_size",
        modules=(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
        functions=(F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d),
    )
    yield op(
        "adaptive_max_pool",
        "input output_size return_indices",
        modules=(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
        functions=(F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d),
        return_indices=False,
    )
    yield op(
        "interpolate",
        "input size scale_factor mode align_corners recompute_scale_factor antialias",
        modules=(nn.Upsample,),
        functions=(F.interpolate,),
        size=None,
        scale_factor=None,
        mode="nearest",
        align_corners=None,
        recompute_scale_factor=None,
        antialias=False,
    )
    yield op(
        "pad_module",
        "input",
        modules=(nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.ConstantPad2d, nn.ZeroPad1d, nn.ConstantPad1d),
        traits=(Trait.MOVES,),
    )
    for name in ("mean", "sum", "amax", "amin"):
        yield op(name, "input dim keepdim", functions=(getattr(torch, name),), methods=name, dim=None, keepdim=False)
    for name in ("var", "std"):
        rest: dict[str, Any] = {"dim": None, "unbiased": True, "keepdim": False, "correction": None}
        yield op(name, "input dim unbiased keepdim correction", functions=(getattr(torch, name),), methods=name, **rest)
    yield op("norm", "input p dim keepdim dtype", functions=(torch.norm,), methods="norm", p="fro", dim=None, keepdim=False, dtype=None)
    yield op("norm", "input ord dim keepdim", functions=(torch.linalg.vector_norm,), ord=2, dim=None, keepdim=False)
    for name in ("cumsum", "argmax", "argmin", "topk", "max", "min", "any", "all"):
        yield op(name, "input dim keepdim *rest", functions=(getattr(torch, name),), methods=name)
    yield op("einsum", "equation *operands", functions=(torch.einsum,), traits=(Trait.VIEW,))  # of one operand: a permutation, a diagonal
    yield op("normalize", "input p dim eps out", functions=(F.normalize,), p=2.0, dim=1, eps=1e-12, out=None)


def rows() -> Iterator[OpSpec]:
    yield from _shapes()
    yield from _spatial()
