"""Rows of the table of operations: layers, norms, attention, activations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from fxcompress.ir.fused import FUSED
from fxcompress.ir.op_spec import OpSpec, Trait, op


def _layers() -> Iterator[OpSpec]:
    conv, wb = "input weight bias stride padding dilation groups", "weight bias"
    yield op(
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
    yield op(
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
    yield op("linear", "input weight bias", modules=(nn.Linear, FUSED[nn.Linear]), functions=(F.linear,), parameters=wb, bias=None)
    yield op(
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
    yield op(
        "layer_norm",
        "input normalized_shape weight bias eps",
        modules=(nn.LayerNorm,),
        functions=(F.layer_norm, torch.layer_norm),
        parameters=wb,
        weight=None,
        bias=None,
        eps=1e-5,
    )
    yield op(
        "rms_norm",
        "input normalized_shape weight eps",
        modules=(nn.RMSNorm,),
        functions=(F.rms_norm,),
        parameters="weight",
        weight=None,
        eps=None,
    )
    yield op(
        "group_norm",
        "input num_groups weight bias eps",
        modules=(nn.GroupNorm,),
        functions=(F.group_norm,),
        parameters=wb,
        weight=None,
        bias=None,
        eps=1e-5,
    )
    yield op(
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
    yield op(
        "local_response_norm",
        "input size alpha beta k",
        modules=(nn.LocalResponseNorm,),
        functions=(F.local_response_norm,),
        alpha=1e-4,
        beta=0.75,
        k=1.0,
    )
    yield op(
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
    yield op(
        "multihead_attention",
        "query key value key_padding_mask need_weights attn_mask average_attn_weights is_causal",
        modules=(nn.MultiheadAttention,),
        key_padding_mask=None,
        need_weights=True,
        attn_mask=None,
        average_attn_weights=True,
        is_causal=False,
    )
    yield op("recurrent", "input hx", modules=(nn.LSTM, nn.GRU, nn.RNN), hx=None)
    yield op(
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
        return op(kind, operands, modules=modules, functions=functions, methods=methods, traits=(Trait.ELEMENTWISE,), **defaults)

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
    yield op("prelu", "input weight", modules=(nn.PReLU,), functions=(F.prelu, torch.prelu), parameters="weight")
    for name, module in (("softmax", nn.Softmax), ("log_softmax", nn.LogSoftmax)):
        yield op(name, "input dim dtype", modules=(module,), functions=(getattr(torch, name),), methods=name, dim=None, dtype=None)
        yield op(name, "input dim _stacklevel dtype", functions=(getattr(F, name),), dim=None, _stacklevel=3, dtype=None)
    yield op("glu", "input dim", modules=(nn.GLU,), functions=(F.glu,), dim=-1)
    drop: dict[str, Any] = {"p": 0.5, "training": True, "inplace": False}
    yield op(
        "dropout",
        "input p training inplace",
        modules=(nn.Dropout, nn.AlphaDropout, nn.FeatureAlphaDropout),
        functions=(F.dropout, F.alpha_dropout),
        traits=(Trait.ELEMENTWISE, Trait.RANDOM, Trait.VIEW),
        **drop,
    )
    yield op(
        "stochastic_depth",
        "input p mode training",
        names="torchvision.ops.stochastic_depth.stochastic_depth",
        traits=(Trait.RANDOM, Trait.VIEW),
        training=True,
    )
    yield op(
        "dropout",
        "input p training inplace",
        modules=(nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
        functions=(F.dropout1d, F.dropout2d, F.dropout3d),
        traits=(Trait.RANDOM, Trait.VIEW),
        **drop,
    )


def rows() -> Iterator[OpSpec]:
    yield from _layers()
    yield from _activations()
