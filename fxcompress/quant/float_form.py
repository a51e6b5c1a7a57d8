"""The float network behind a fake-quantized graph, and forms in between in which only some layers are quantized."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.fx import GraphModule, Node

from fxcompress.ir.copying import copied
from fxcompress.ir.fused import FusedConv1d, FusedConv2d, FusedConv3d, FusedLinear
from fxcompress.quant.fake import (
    FakeQuantConv1d,
    FakeQuantConv2d,
    FakeQuantConv3d,
    FakeQuantize,
    FakeQuantLinear,
)

__all__ = ["FakeLayer", "float_form", "float_layer", "is_fake_layer", "is_fake_quantize", "quantized_layers"]

FakeLayer = FakeQuantConv1d | FakeQuantConv2d | FakeQuantConv3d | FakeQuantLinear

_FLOAT: dict[type[nn.Module], Any] = {
    FakeQuantConv1d: FusedConv1d,
    FakeQuantConv2d: FusedConv2d,
    FakeQuantConv3d: FusedConv3d,
    FakeQuantLinear: FusedLinear,
}


def _called(node: Node) -> nn.Module | None:
    module = node.graph.owning_module
    return module.get_submodule(str(node.target)) if node.op == "call_module" and module is not None else None


def is_fake_layer(node: Node) -> bool:
    """Whether ``node`` calls a layer whose weights are on a grid."""
    return type(_called(node)) in _FLOAT


def is_fake_quantize(node: Node) -> bool:
    """Whether ``node`` rounds a value."""
    return isinstance(_called(node), FakeQuantize)


def quantized_layers(module: GraphModule) -> tuple[Node, ...]:
    """The calls of fake-quantized layers, in the order of the graph."""
    return tuple(node for node in module.graph.nodes if is_fake_layer(node))


def float_layer(layer: FakeLayer) -> nn.Module:
    """The fused layer with the parameters from before quantization; they are shared with ``layer``."""
    plain = _FLOAT[type(layer)].of(layer, layer.activation)
    plain.weight = nn.Parameter(layer.float_weight, requires_grad=layer.weight.requires_grad)
    if layer.float_bias is None:
        plain.register_parameter("bias", None)
    else:
        plain.bias = nn.Parameter(layer.float_bias, requires_grad=layer.weight.requires_grad)
    for name in ("float_weight", "float_bias", "weight_scale"):
        plain._buffers.pop(name, None)
    plain._non_persistent_buffers_set = plain._non_persistent_buffers_set - {"float_weight", "float_bias"}
    del plain.weight_bits
    return plain


def float_form(module: GraphModule, stays: Callable[[str], bool] = lambda path: False) -> GraphModule:
    """A copy of a fake-quantized graph, node for node, in which nothing is rounded.

    ``FakeQuantize`` becomes the identity and a fake-quantized layer the layer it was made from. Tensors are shared.

    Args:
        stays: by the path of a module, whether it is left as it is.
    """
    copy = copied(module)
    for path, child in list(copy.named_modules()):
        if stays(path):
            continue
        if isinstance(child, FakeQuantize):
            copy.set_submodule(path, nn.Identity())
        elif type(child) in _FLOAT:
            copy.set_submodule(path, float_layer(child))
    return copy
