"""The one table of operations: every form of an operation, its kind and the names of its operands.

A row says how an operation may be written (nn module, function, method) and what its operands are called, in the
order of the functional form; a module's operands beyond its tensor inputs are attributes of the same name. A new
operation is taught here and nowhere else. An operation without a row is *unknown*: passes treat it as a barrier.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from fxcompress.ir.fused import FUSED
from fxcompress.ir.guards import expect_constant


class Trait(Enum):
    """What passes need to know of a kind of operation beyond its name."""

    ELEMENTWISE = "each output element depends on the elements at the same (broadcast) place only"
    VIEW = "the result may share memory with the input"
    MOVES = "only moves data"
    RANDOM = "draws random numbers when it is active"
    EFFECT = "does something besides giving a value"
    META = "gives sizes or types, not values"


@dataclass(frozen=True)
class OpSpec:
    kind: str
    operands: tuple[str, ...]
    defaults: tuple[tuple[str, Any], ...]
    modules: tuple[type[nn.Module], ...] = ()
    functions: tuple[Callable[..., Any], ...] = ()
    methods: tuple[str, ...] = ()
    names: tuple[str, ...] = ()  # functions of packages that are not imported here
    traits: frozenset[Trait] = frozenset()
    parameters: tuple[str, ...] = ()  # operands that a module owns as parameters or buffers


REQUIRED = object()
_E, _V, _M, _R, _X, _S = Trait.ELEMENTWISE, Trait.VIEW, Trait.MOVES, Trait.RANDOM, Trait.EFFECT, Trait.META


def _op(
    kind: str,
    operands: str,
    *,
    modules: tuple[type[nn.Module], ...] = (),
    functions: tuple[Callable[..., Any], ...] = (),
    methods: str = "",
    names: str = "",
    traits: tuple[Trait, ...] = (),
    parameters: str = "",
    **defaults: Any,
) -> OpSpec:
    return OpSpec(
        kind,
        tuple(operands.split()),
        tuple(defaults.items()),
        modules,
        functions,
        tuple(methods.split()),
        tuple(names.split()),
        frozenset(traits),
        tuple(parameters.split()),
    )


def _rows() -> Iterator[OpSpec]:
    yield from _layers()
    yield from _activations()
    yield from _arithmetic()
    yield from _shapes()
    yield from _spatial()
    yield from _rest()


def _layers() -> Iterator[OpSpec]:
    conv, wb = "input weight bias stride padding dilation groups", "weight bias"
    yield _op(
        "conv",
        conv,
        modules=(nn.Conv1d, nn.Conv2d, nn.Conv3d, *list(FUSED.values())[:3]),
        functions=(F.conv1d, F.conv2d, F.conv3d, torch.conv1d, torch.conv2d, torch.conv3d),
        parameters=wb,
        bias=None,
        stride=1,
        padding=0,
        dilation=1,
        groups=1,
    )
    yield _op(
        "conv_transpose",
        "input weight bias stride padding output_padding groups dilation",
        modules=(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
        functions=(F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
        parameters=wb,
        bias=None,
        stride=1,
        padding=0,
        output_padding=0,
        groups=1,
        dilation=1,
    )
    yield _op("linear", "input weight bias", modules=(nn.Linear, FUSED[nn.Linear]), functions=(F.linear,), parameters=wb, bias=None)
    yield _op(
        "batch_norm",
        "input running_mean running_var weight bias training momentum eps",
        modules=(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
        functions=(F.batch_norm,),
        parameters="running_mean running_var weight bias",
        weight=None,
        bias=None,
        training=False,
        momentum=0.1,
        eps=1e-5,
    )
    yield _op(
        "layer_norm",
        "input normalized_shape weight bias eps",
        modules=(nn.LayerNorm,),
        functions=(F.layer_norm, torch.layer_norm),
        parameters=wb,
        weight=None,
        bias=None,
        eps=1e-5,
    )
    yield _op(
        "rms_norm",
        "input normalized_shape weight eps",
        modules=(nn.RMSNorm,),
        functions=(F.rms_norm,),
        parameters="weight",
        weight=None,
        eps=None,
    )
    yield _op(
        "group_norm",
        "input num_groups weight bias eps",
        modules=(nn.GroupNorm,),
        functions=(F.group_norm,),
        parameters=wb,
        weight=None,
        bias=None,
        eps=1e-5,
    )
    yield _op(
        "instance_norm",
        "input running_mean running_var weight bias use_input_stats momentum eps",
        modules=(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
        functions=(F.instance_norm,),
        parameters="running_mean running_var weight bias",
        running_mean=None,
        running_var=None,
        weight=None,
        bias=None,
        use_input_stats=True,
        momentum=0.1,
        eps=1e-5,
    )
    yield _op(
        "local_response_norm",
        "input size alpha beta k",
        modules=(nn.LocalResponseNorm,),
        functions=(F.local_response_norm,),
        alpha=1e-4,
        beta=0.75,
        k=1.0,
    )
    yield _op(
        "embedding",
        "input weight padding_idx max_norm norm_type scale_grad_by_freq sparse",
        modules=(nn.Embedding,),
        functions=(F.embedding,),
        parameters="weight",
        padding_idx=None,
        max_norm=None,
        norm_type=2.0,
        scale_grad_by_freq=False,
        sparse=False,
    )
    yield _op(
        "multihead_attention",
        "query key value key_padding_mask need_weights attn_mask average_attn_weights is_causal",
        modules=(nn.MultiheadAttention,),
        key_padding_mask=None,
        need_weights=True,
        attn_mask=None,
        average_attn_weights=True,
        is_causal=False,
    )
    yield _op("recurrent", "input hx", modules=(nn.LSTM, nn.GRU, nn.RNN), hx=None)
    yield _op(
        "attention",
        "query key value attn_mask dropout_p is_causal scale enable_gqa",
        functions=(F.scaled_dot_product_attention,),
        attn_mask=None,
        dropout_p=0.0,
        is_causal=False,
        scale=None,
        enable_gqa=False,
    )


def _activations() -> Iterator[OpSpec]:
    def act(
        kind: str,
        operands: str = "input inplace",
        *,
        modules: tuple[type[nn.Module], ...] = (),
        functions: tuple[Callable[..., Any], ...] = (),
        methods: str = "",
        **defaults: Any,
    ) -> OpSpec:
        if "inplace" in operands:
            defaults["inplace"] = False
        return _op(kind, operands, modules=modules, functions=functions, methods=methods, traits=(_E,), **defaults)

    yield act("relu", modules=(nn.ReLU,), functions=(F.relu, torch.relu, torch.relu_), methods="relu relu_")
    yield act("relu6", modules=(nn.ReLU6,), functions=(F.relu6,))
    yield act(
        "hardtanh", "input min_val max_val inplace", modules=(nn.Hardtanh,), functions=(F.hardtanh, F.hardtanh_), min_val=-1.0, max_val=1.0
    )
    yield act("hardswish", modules=(nn.Hardswish,), functions=(F.hardswish,))
    yield act("hardsigmoid", modules=(nn.Hardsigmoid,), functions=(F.hardsigmoid,))
    yield act("silu", modules=(nn.SiLU,), functions=(F.silu,))
    yield act("mish", modules=(nn.Mish,), functions=(F.mish,))
    yield act("elu", "input alpha inplace", modules=(nn.ELU,), functions=(F.elu, F.elu_), alpha=1.0)
    yield act("celu", "input alpha inplace", modules=(nn.CELU,), functions=(F.celu,), alpha=1.0)
    yield act("selu", modules=(nn.SELU,), functions=(F.selu,))
    yield act(
        "leaky_relu", "input negative_slope inplace", modules=(nn.LeakyReLU,), functions=(F.leaky_relu, F.leaky_relu_), negative_slope=0.01
    )
    yield act("gelu", "input approximate", modules=(nn.GELU,), functions=(F.gelu,), approximate="none")
    yield act("sigmoid", "input", modules=(nn.Sigmoid,), functions=(torch.sigmoid, F.sigmoid), methods="sigmoid sigmoid_")
    yield act("tanh", "input", modules=(nn.Tanh,), functions=(torch.tanh, F.tanh), methods="tanh tanh_")
    yield act("softplus", "input beta threshold", modules=(nn.Softplus,), functions=(F.softplus,), beta=1.0, threshold=20.0)
    yield act("log_sigmoid", "input", modules=(nn.LogSigmoid,), functions=(F.logsigmoid,))
    yield _op("prelu", "input weight", modules=(nn.PReLU,), functions=(F.prelu, torch.prelu), parameters="weight")
    for name, module in (("softmax", nn.Softmax), ("log_softmax", nn.LogSoftmax)):
        yield _op(name, "input dim dtype", modules=(module,), functions=(getattr(torch, name),), methods=name, dim=None, dtype=None)
        yield _op(name, "input dim _stacklevel dtype", functions=(getattr(F, name),), dim=None, _stacklevel=3, dtype=None)
    yield _op("glu", "input dim", modules=(nn.GLU,), functions=(F.glu,), dim=-1)
    drop: dict[str, Any] = {"p": 0.5, "training": True, "inplace": False}
    yield _op(
        "dropout",
        "input p training inplace",
        modules=(nn.Dropout, nn.AlphaDropout, nn.FeatureAlphaDropout),
        functions=(F.dropout, F.alpha_dropout),
        traits=(_E, _R, _V),
        **drop,
    )
    yield _op(
        "stochastic_depth",
        "input p mode training",
        names="torchvision.ops.stochastic_depth.stochastic_depth",
        traits=(_R, _V),
        training=True,
    )
    yield _op(
        "dropout",
        "input p training inplace",
        modules=(nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
        functions=(F.dropout1d, F.dropout2d, F.dropout3d),
        traits=(_R, _V),
        **drop,
    )


def _arithmetic() -> Iterator[OpSpec]:
    yield _op("add", "input other alpha", functions=(operator.add, operator.iadd, torch.add), methods="add add_", traits=(_E,), alpha=1)
    yield _op("sub", "input other alpha", functions=(operator.sub, operator.isub, torch.sub), methods="sub sub_", traits=(_E,), alpha=1)
    yield _op("mul", "input other", functions=(operator.mul, operator.imul, torch.mul), methods="mul mul_", traits=(_E,))
    yield _op(
        "div",
        "input other rounding_mode",
        functions=(operator.truediv, operator.itruediv, torch.div, torch.true_divide),
        methods="div div_ true_divide",
        traits=(_E,),
        rounding_mode=None,
    )
    yield _op("floor_divide", "input other", functions=(operator.floordiv, torch.floor_divide), methods="floor_divide", traits=(_E,))
    yield _op("remainder", "input other", functions=(operator.mod, torch.remainder), methods="remainder", traits=(_E,))
    yield _op("pow", "input exponent", functions=(operator.pow, torch.pow), methods="pow pow_", traits=(_E,))
    yield _op("neg", "input", functions=(operator.neg, torch.neg), methods="neg", traits=(_E,))
    for name in (
        "exp",
        "log",
        "sqrt",
        "rsqrt",
        "abs",
        "square",
        "reciprocal",
        "sin",
        "cos",
        "floor",
        "ceil",
        "round",
        "sign",
        "erf",
        "log1p",
        "expm1",
    ):
        yield _op(name, "input", functions=(getattr(torch, name),), methods=name, traits=(_E,))
    yield _op("clamp", "input min max", functions=(torch.clamp, torch.clip), methods="clamp clamp_ clip", traits=(_E,), min=None, max=None)
    yield _op("maximum", "input other", functions=(torch.maximum,), methods="maximum", traits=(_E,))
    yield _op("minimum", "input other", functions=(torch.minimum,), methods="minimum", traits=(_E,))
    yield _op("where", "condition input other", functions=(torch.where,), traits=(_E,))
    yield _op("masked_fill", "input mask value", functions=(torch.masked_fill,), methods="masked_fill masked_fill_", traits=(_E,))
    for name, fn in (
        ("eq", operator.eq),
        ("ne", operator.ne),
        ("lt", operator.lt),
        ("le", operator.le),
        ("gt", operator.gt),
        ("ge", operator.ge),
    ):
        yield _op(name, "input other", functions=(fn, getattr(torch, name)), methods=name, traits=(_E,))
    yield _op("matmul", "input other", functions=(torch.matmul, operator.matmul), methods="matmul")
    yield _op("bmm", "input mat2", functions=(torch.bmm,), methods="bmm")
    yield _op("mm", "input mat2", functions=(torch.mm,), methods="mm")
    yield _op("addmm", "input mat1 mat2 beta alpha", functions=(torch.addmm,), methods="addmm", beta=1, alpha=1)
    yield _op("baddbmm", "input batch1 batch2 beta alpha", functions=(torch.baddbmm,), methods="baddbmm", beta=1, alpha=1)


def _shapes() -> Iterator[OpSpec]:
    move, view = (_M,), (_M, _V)
    yield _op("identity", "input", modules=(nn.Identity,), traits=(_E, *view))
    yield _op("contiguous", "input memory_format", methods="contiguous", traits=(_E, *view), memory_format=torch.contiguous_format)
    yield _op(
        "clone", "input memory_format", functions=(torch.clone,), methods="clone", traits=(_E, _M), memory_format=torch.preserve_format
    )
    yield _op("detach", "input", functions=(torch.detach,), methods="detach", traits=(_E, *view))
    yield _op("cast", "input dtype", methods="type_as float double half bfloat16 to type", traits=(_E, _V), dtype=None)
    yield _op("view", "input *shape", methods="view", traits=view)
    yield _op("reshape", "input *shape", functions=(torch.reshape,), methods="reshape", traits=view)
    yield _op(
        "flatten",
        "input start_dim end_dim",
        modules=(nn.Flatten,),
        functions=(torch.flatten,),
        methods="flatten",
        traits=view,
        start_dim=0,
        end_dim=-1,
    )
    yield _op("unflatten", "input dim sizes", functions=(torch.unflatten,), methods="unflatten", traits=view)
    yield _op("unflatten", "input dim unflattened_size", modules=(nn.Unflatten,), traits=view)
    yield _op("permute", "input *dims", functions=(torch.permute,), methods="permute", traits=view)
    yield _op("transpose", "input dim0 dim1", functions=(torch.transpose, torch.swapaxes), methods="transpose swapaxes", traits=view)
    yield _op("t", "input", functions=(torch.t,), methods="t", traits=view)
    yield _op("squeeze", "input dim", functions=(torch.squeeze,), methods="squeeze", traits=view, dim=None)
    yield _op("unsqueeze", "input dim", functions=(torch.unsqueeze,), methods="unsqueeze", traits=view)
    yield _op("expand", "input *sizes", methods="expand", traits=view)
    yield _op("expand_as", "input other", methods="expand_as", traits=view)
    yield _op("getitem", "input index", functions=(operator.getitem,), traits=view)
    yield _op("narrow", "input dim start length", functions=(torch.narrow,), methods="narrow", traits=view)
    yield _op("chunk", "input chunks dim", functions=(torch.chunk,), methods="chunk", traits=view, dim=0)
    yield _op("split", "input split_size_or_sections dim", functions=(torch.split,), traits=view, dim=0)
    yield _op("split", "input split_size dim", methods="split", traits=view, dim=0)
    yield _op("tensor_split", "input indices_or_sections dim", functions=(torch.tensor_split,), methods="tensor_split", traits=view, dim=0)
    yield _op("unbind", "input dim", functions=(torch.unbind,), methods="unbind", traits=view, dim=0)
    yield _op("cat", "tensors dim", functions=(torch.cat, torch.concat, torch.concatenate), traits=move, dim=0)
    yield _op("stack", "tensors dim", functions=(torch.stack,), traits=move, dim=0)
    yield _op("repeat", "input *repeats", methods="repeat", traits=move)
    yield _op(
        "repeat_interleave", "input repeats dim", functions=(torch.repeat_interleave,), methods="repeat_interleave", traits=move, dim=None
    )
    yield _op("roll", "input shifts dims", functions=(torch.roll,), methods="roll", traits=move, dims=())
    yield _op("flip", "input dims", functions=(torch.flip,), methods="flip", traits=move)
    yield _op("index_select", "input dim index", functions=(torch.index_select,), methods="index_select", traits=move)
    yield _op("pad", "input pad mode value", functions=(F.pad,), traits=move, mode="constant", value=None)
    yield _op("pixel_shuffle", "input upscale_factor", modules=(nn.PixelShuffle,), functions=(F.pixel_shuffle,), traits=move)
    yield _op("pixel_unshuffle", "input downscale_factor", modules=(nn.PixelUnshuffle,), functions=(F.pixel_unshuffle,), traits=move)
    yield _op(
        "channel_shuffle", "input groups", modules=(nn.ChannelShuffle,), functions=(F.channel_shuffle, torch.channel_shuffle), traits=move
    )
    yield _op(
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
    yield _op(
        "max_pool",
        "input kernel_size stride padding dilation ceil_mode return_indices",
        modules=(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
        functions=(F.max_pool1d, F.max_pool2d, F.max_pool3d),
        **max_pool,
    )
    yield _op(
        "max_pool",
        "input kernel_size stride padding dilation ceil_mode",
        functions=(torch.max_pool1d, torch.max_pool2d, torch.max_pool3d),
        stride=(),
        padding=0,
        dilation=1,
        ceil_mode=False,
    )
    avg: dict[str, Any] = {"stride": None, "padding": 0, "ceil_mode": False, "count_include_pad": True}
    yield _op(
        "avg_pool",
        "input kernel_size stride padding ceil_mode count_include_pad",
        modules=(nn.AvgPool1d,),
        functions=(F.avg_pool1d,),
        **avg,
    )
    yield _op(
        "avg_pool",
        "input kernel_size stride padding ceil_mode count_include_pad divisor_override",
        modules=(nn.AvgPool2d, nn.AvgPool3d),
        functions=(F.avg_pool2d, F.avg_pool3d),
        divisor_override=None,
        **avg,
    )
    yield _op(
        "adaptive_avg_pool",
        "input output_size",
        modules=(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
        functions=(F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d),
    )
    yield _op(
        "adaptive_max_pool",
        "input output_size return_indices",
        modules=(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
        functions=(F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d),
        return_indices=False,
    )
    yield _op(
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
    yield _op(
        "pad_module",
        "input",
        modules=(nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.ConstantPad2d, nn.ZeroPad1d, nn.ConstantPad1d),
        traits=(_M,),
    )
    for name in ("mean", "sum", "amax", "amin"):
        yield _op(name, "input dim keepdim", functions=(getattr(torch, name),), methods=name, dim=None, keepdim=False)
    for name in ("var", "std", "cumsum", "argmax", "argmin", "norm", "topk", "max", "min", "any", "all"):
        yield _op(name, "input dim keepdim *rest", functions=(getattr(torch, name),), methods=name)
    yield _op("einsum", "equation *operands", functions=(torch.einsum,))
    yield _op("normalize", "input p dim eps", functions=(F.normalize,), p=2.0, dim=1, eps=1e-12)


def _rest() -> Iterator[OpSpec]:
    yield _op("getattr", "input name", functions=(getattr,), traits=(_S,))
    yield _op("size", "input dim", methods="size", traits=(_S,), dim=None)
    for name in ("dim", "numel", "ndimension", "is_floating_point"):
        yield _op(name, "input", methods=name, traits=(_S,))
    for name in ("zeros", "ones", "full", "arange", "linspace", "eye", "zeros_like", "ones_like", "full_like", "tril", "triu", "meshgrid"):
        yield _op(name, "input *rest", functions=(getattr(torch, name),))
    yield _op("assert", "condition message", functions=(torch._assert,), traits=(_X,), message="")
    yield _op("expect_constant", "value expected name", functions=(expect_constant,), traits=(_X,))
    for name in ("bernoulli", "rand", "randn", "randint", "rand_like", "randn_like", "normal", "multinomial"):
        yield _op(name, "input *rest", functions=(getattr(torch, name),), traits=(_R,))


@dataclass(frozen=True)
class OpTable:
    """The rows, indexed by every form."""

    modules: dict[type, OpSpec]
    functions: dict[Any, OpSpec]
    methods: dict[str, OpSpec]
    names: dict[str, OpSpec]


@cache
def table() -> OpTable:
    indexed = OpTable({}, {}, {}, {})
    for row in _rows():
        indexed.modules.update(dict.fromkeys(row.modules, row))
        indexed.functions.update(dict.fromkeys(row.functions, row))
        indexed.methods.update(dict.fromkeys(row.methods, row))
        indexed.names.update(dict.fromkeys(row.names, row))
    return indexed
