"""Fake-quantized graphs as standard ONNX QDQ: which pairs of QuantizeLinear and DequantizeLinear stand where.

A value on a grid is written as ``DequantizeLinear(QuantizeLinear(x))``, a weight as DequantizeLinear of its int8 integers with
one scale per output channel; engines recognise a convolution or matrix product between such pairs and compute it in integers.
What they recognise differs:

* OpenVINO carries residuals and any activation inside of an integer convolution, and takes float biases.
* ONNX Runtime carries nothing but the saturation of the output and an int32 bias of scale ``scale(x) * scale(w)``. So a
  ReLU or clamp that the output's quantization performs anyway is not written, and a residual or other activation
  stands behind a grid of its own (``onnx_ranges``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.node import Node
from torch.utils import _pytree as pytree

from fxcompress.ir.activation import Activation
from fxcompress.quant.affine import QParams, quantize_weight
from fxcompress.quant.fake import FakeQuantConv1d, FakeQuantConv2d, FakeQuantConv3d, FakeQuantize, FakeQuantLinear
from fxcompress.targets.onnx_ranges import clamps, inner_grid
from fxcompress.targets.onnx_trace import Writer
from fxcompress.targets.onnx_values import Value
from fxcompress.targets.safe_weights import safe_weights
from fxcompress.targets.saturation import ANYWHERE, is_depthwise, violations

LAYERS = (FakeQuantConv1d, FakeQuantConv2d, FakeQuantConv3d, FakeQuantLinear)
BIAS_LIMIT = 2**30  # int32 biases stay below half of what int32 holds, so that no sum overflows


def is_quantized(module: nn.Module) -> bool:
    """Whether :func:`write_quantized` writes this module."""
    return type(module) in (*LAYERS, FakeQuantize)


def write_quantized(w: Writer, gm: fx.GraphModule, node: Node, args: Any, kwargs: Any) -> Any:
    """Write the call of a fake-quantized module; the results are Values."""
    module: Any = gm.get_submodule(str(node.target))
    if isinstance(module, FakeQuantize):
        return on_grid(w, args[0], module.qparams)
    return _layer(w, module, grid_after(gm, node), _wants_inner(w, module, node), *args, **kwargs)


def grid_after(gm: fx.GraphModule, node: Node) -> QParams | None:
    """The one grid on which every reader of ``node`` wants it, if there is one."""
    found = set()
    for user in node.users:
        module = gm.get_submodule(str(user.target)) if user.op == "call_module" else None
        found.add(module.qparams if isinstance(module, FakeQuantize) else None)
    return found.pop() if len(found) == 1 else None


def _wants_inner(w: Writer, layer: nn.Module, node: Node) -> bool:
    """Whether the engine computes a layer with a residual (or activation) in integers only if a grid stands before these.

    ONNX Runtime rounds there, but its linears can give floats. OpenVINO does not round there, and adds the residual inside of
    the convolution; it does so by itself where nobody else reads the residual.
    """
    if w.dialect != "openvino":
        return not isinstance(layer, FakeQuantLinear)
    return any(len(source.users) > 1 for source in node.all_input_nodes[1:])


def on_grid(w: Writer, x: Any, qparams: QParams) -> Value:
    """``x`` rounded to the grid of ``qparams``."""
    if isinstance(x, Tensor):
        x = Value(w, w.constant(x), [x.to("meta")] * w.points)
    if w.grids.get(x.name) == qparams:
        return x
    name = x.name
    if qparams.bits < 8:  # QuantizeLinear saturates at 8 bits only
        name = w.node("Clip", [name, *(w.constant(bound, torch.float32) for bound in qparams.range)])
    operands = [w.constant(qparams.scale, torch.float32), w.constant(qparams.zero_point, torch.uint8)]
    integers = w.node("QuantizeLinear", [name, *operands])
    result = Value(w, w.node("DequantizeLinear", [integers, *operands]), x.metas)
    w.grids[result.name] = qparams
    return result


def after_moving(w: Writer, result: Any) -> Any:
    """The results of a node; those that were moved from a grid are rounded to it again, which changes nothing.

    So ONNX Runtime sees the grid on both sides of the node and moves integers. OpenVINO carries it along by itself.
    """
    if w.dialect == "openvino":
        return result
    return pytree.tree_map(lambda leaf: again_on_grid(w, leaf) if isinstance(leaf, Value) else leaf, result)


def again_on_grid(w: Writer, x: Value) -> Value:
    """``x``, directly behind a DequantizeLinear if it lies on a grid."""
    grid = None if x.name in w.grids else w.moved.get(x.name)
    return x if grid is None else on_grid(w, x, grid)


# ---- layers


@dataclass(frozen=True)
class _Integers:
    """The parameters of one layer as the engine gets them."""

    weight: Tensor  # int8, (O, ...)
    scale: Tensor  # float32, (O,)
    bias: Tensor | None  # float32, (O,)
    source: QParams | None  # grid of the input


def _layer(w: Writer, layer: Any, after: QParams | None, inner: bool, x: Any, residual: Any = None) -> Any:
    x = again_on_grid(w, x)
    y: Any = _linear(w, layer, x) if isinstance(layer, FakeQuantLinear) else _conv(w, layer, x)
    activation = layer.activation
    if w.dialect != "openvino" and activation is not None and after is not None and clamps(activation, after):
        activation = None
    if inner and after is not None and (residual is not None or activation is not None):
        y = _on_inner_grid(w, y, layer.activation, after, residual)
    if residual is not None:
        y = y + again_on_grid(w, residual)
    if activation is None:
        return y
    return in_integers(w, activation, y) if w.dialect == "onnxruntime" and y.name in w.grids else activation.apply(y)


def in_integers(w: Writer, activation: Activation, y: Any) -> Any:
    """An activation of a value on a grid. Sigmoids and products are what ONNX Runtime computes in integers."""
    if activation.name == "silu":
        return y * on_grid(w, y.sigmoid(), QParams(1 / 255))
    return activation.apply(y)


def _on_inner_grid(w: Writer, y: Value, activation: Activation | None, after: QParams, residual: Value | None) -> Value:
    """``y`` on a grid of its own; as it is where the residual is any float, of which nothing is known."""
    if residual is None:
        return on_grid(w, y, inner_grid(activation, after, None))
    grid = w.grids.get(residual.name, w.moved.get(residual.name))
    return y if grid is None else on_grid(w, y, inner_grid(activation, after, grid))


def _integers(w: Writer, layer: Any, source: QParams | None) -> _Integers:
    """The integers of a layer, safe on the machine.

    A channel whose bias would not fit int32 beside its small weights gets a coarser scale.
    """
    scale, bias = layer.weight_scale.detach(), None if layer.bias is None else layer.bias.detach()
    integers, groups = layer.integers(), getattr(layer, "groups", 1)
    if bias is not None and source is not None:
        least = (bias.double().abs() / (source.scale * BIAS_LIMIT)).float()
        if bool((least > scale).any()):
            scale = torch.maximum(scale, least)
            integers = quantize_weight(layer.weight, scale, layer.weight_bits)
    integers, scale = _safe(w, integers, scale, groups)
    return _Integers(integers, scale, bias, source)


def _safe(w: Writer, integers: Tensor, scale: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Integers and scales whose products do not saturate on the machine.

    OpenVINO pairs channels as oneDNN does. ONNX Runtime lays the weights of an output channel out as one row, tap by tap and
    in each tap channel by channel, and pairs neighbours: with an odd number of channels pairs run across taps. Both were
    found by trying all pairs on a CPU without VNNI.
    """
    in_rows = w.dialect != "openvino" and integers.dim() > 2 and not is_depthwise(integers, groups)
    rows = integers.flatten(2).transpose(1, 2).flatten(1) if in_rows else integers
    inner = 1 if in_rows else groups
    safe = safe_weights(rows, scale, found=w.machine, groups=inner)
    w.wants_vnni |= bool(violations(safe.integers, inner, ANYWHERE).any())
    if not in_rows:
        return safe.integers, safe.scale
    taps = integers.flatten(2).shape[2]
    return safe.integers.unflatten(1, (taps, -1)).transpose(1, 2).reshape(integers.shape), safe.scale


def _conv(w: Writer, layer: Any, x: Any) -> Any:
    params = _integers(w, layer, w.grids.get(x.name))
    weight = _dequantized(w, params.weight, params.scale, axis=0)
    if w.dialect != "openvino" or params.bias is None:
        return layer._conv_forward(x, weight, _bias(w, params))
    # as an addition of the right shape; the bias of a convolution would be reshaped in every call
    return layer._conv_forward(x, weight, None) + params.bias.reshape(1, -1, *[1] * (weight.ndim - 2))


def _linear(w: Writer, layer: Any, x: Any) -> Any:
    params = _integers(w, layer, w.grids.get(x.name))
    if x.ndim == 2:
        weight: Any = _dequantized(w, params.weight, params.scale, axis=0)
        return F.linear(x, weight, _bias(w, params))
    product = x @ _dequantized(w, params.weight.t().contiguous(), params.scale, axis=1)
    return product if params.bias is None else product + params.bias


def _dequantized(w: Writer, integers: Tensor, scale: Tensor, axis: int) -> Value:
    # ONNX Runtime keeps a matrix product in float where the zero points, all zero, are left out
    zeros = torch.zeros(scale.shape, dtype=integers.dtype)
    name = w.node("DequantizeLinear", [w.constant(integers), w.constant(scale), w.constant(zeros)], axis=axis)
    return Value(w, name, [torch.empty(integers.shape, device="meta")] * w.points)


def _bias(w: Writer, params: _Integers) -> Any:
    if params.bias is None or params.source is None or w.dialect == "openvino":
        return params.bias
    scale = params.scale * params.source.scale
    integers = (params.bias.double() / scale.double()).round_().to(torch.int32)
    return _dequantized(w, integers, scale, axis=0)
