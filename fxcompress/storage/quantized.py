"""The modules of quantized graphs in an archive: their constructors take plain settings and tensors, which are checked here.

Kernels trust the shapes and the types of what they are given, so a file must not be able to say anything else.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from fxcompress.ir.activation import Activation
from fxcompress.quant.affine import QParams
from fxcompress.quant.dynamic import QuantizeRows, ScaleRows
from fxcompress.quant.elementwise import QuantActivation, QuantAdd, QuantMean, QuantMul
from fxcompress.quant.fake import FakeQuantize
from fxcompress.quant.modules import Dequantize, QuantConv, Quantize, QuantLinear, Requantize
from fxcompress.quant.pooling import QuantAdaptiveAvgPool, QuantAvgPool, QuantMaxPool
from fxcompress.quant.stored import STORED
from fxcompress.targets.int8_elementwise import FastActivation, FastAdd, FastMean, FastMul
from fxcompress.targets.int8_modules import PackedQuantConv, PackedQuantLinear
from fxcompress.targets.int8_pooling import FastAdaptiveAvgPool, FastAvgPool, FastMaxPool
from fxcompress.targets.int8_values import FastDequantize, FastQuantize, FastQuantizeRows, FastRequantize

__all__ = ["CLASSES", "TENSORS", "make"]

TENSORS = ("weight", "weight_scale", "bias", "tensors")
"""Arguments of constructors that are tensors; ``tensors`` is a dict of them by name."""

LOWERED: tuple[type[nn.Module], ...] = (
    *(PackedQuantConv, PackedQuantLinear, FastQuantize, FastDequantize, FastRequantize, FastAdd, FastMul, FastMean, FastActivation),
    *(FastMaxPool, FastAvgPool, FastAdaptiveAvgPool, FastQuantizeRows),
)
CLASSES: tuple[type[nn.Module], ...] = (
    *LOWERED,
    QuantConv,
    QuantLinear,
    Quantize,
    Dequantize,
    Requantize,
    FakeQuantize,
    QuantAdd,
    QuantMul,
    QuantActivation,
    QuantMean,
    QuantMaxPool,
    QuantAvgPool,
    QuantAdaptiveAvgPool,
    QuantizeRows,
    ScaleRows,
    *STORED,
)


def make(cls: Any, settings: dict[str, Any], tensors: dict[str, Tensor | None]) -> nn.Module:
    """Call the constructor of ``cls``.

    Raises:
        ValueError: the tensors do not fit together, or a setting is of the wrong kind.
    """
    for name, value in settings.items():
        _check_setting(name, value)
    if "tensors" in inspect.signature(cls).parameters:
        layers = settings.get("num_layers", 1)
        if type(layers) is not int or not 0 < layers <= len(tensors):  # else the next line may take forever
            raise ValueError("num_layers does not fit the weights")
        made: nn.Module = cls(tensors=tensors, **settings)
        return made
    _check_tensors(cls, tensors)
    if issubclass(cls, QuantConv) and not _fits(tensors["weight"], settings):
        raise ValueError("the geometry and the weight do not fit")
    built: nn.Module = cls(**tensors, **settings)
    return built


def _check_setting(name: str, value: Any) -> None:
    kinds: dict[str, tuple[type, ...]] = {
        "qparams": (QParams, type(None)),
        "source": (QParams,),
        "residual": (QParams, type(None)),
        "activation": (Activation, type(None)),
    }
    if name in kinds and not isinstance(value, kinds[name]):
        raise ValueError(f"{name} is a {type(value).__name__}")


def _check_tensors(cls: Any, tensors: dict[str, Tensor | None]) -> None:
    integer = issubclass(cls, (QuantConv, QuantLinear))
    weight, scale, bias = (tensors.get(name) for name in ("weight", "weight_scale", "bias"))
    if weight is None:
        if "weight" in tensors or scale is not None:
            raise ValueError("there is no weight")
        return
    if weight.dim() < 2 or (integer and weight.dtype is not torch.int8):
        raise ValueError("the weight has the wrong type")
    for tensor in (scale, bias):
        if tensor is not None and (tensor.shape != weight.shape[:1] or not tensor.is_floating_point()):
            raise ValueError("bias, scale and weight do not fit")
    if scale is not None and not bool(torch.isfinite(scale).all()):
        raise ValueError("a scale is not finite")
    if scale is None and integer:
        raise ValueError("there is no scale")


def _fits(weight: Tensor | None, settings: dict[str, Any]) -> bool:
    """Whether the geometry of a convolution is one that its weight has."""
    assert weight is not None
    spatial, groups = weight.dim() - 2, settings.get("groups", 1)
    lists = [settings.get(name) for name in ("stride", "padding", "dilation")]
    least = (1, 0, 1)
    sound = all(
        isinstance(given, tuple) and len(given) == spatial and all(type(n) is int and low <= n < 2**31 for n in given)
        for given, low in zip(lists, least, strict=True)
    )
    return sound and type(groups) is int and groups > 0 and weight.shape[0] % groups == 0 and 1 <= spatial <= 3
