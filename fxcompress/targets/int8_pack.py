"""Which fast form every integer module of a graph gets: :func:`pack_integers`."""

from __future__ import annotations

from torch import nn
from torch.fx import GraphModule, Node

from fxcompress.ir.edit import Editor
from fxcompress.ir.effects import may_alias
from fxcompress.ir.view import module_of, spec_of
from fxcompress.quant.dynamic import QuantizeRows, ScaleRows
from fxcompress.quant.elementwise import QuantActivation, QuantAdd, QuantMean, QuantMul
from fxcompress.quant.modules import Dequantize, QuantConv, Quantize, QuantLinear, Requantize
from fxcompress.quant.pooling import QuantAdaptiveAvgPool, QuantAvgPool, QuantMaxPool
from fxcompress.targets.int8_elementwise import fast_form
from fxcompress.targets.int8_modules import PackedQuantConv, PackedQuantLinear, int8_lowerable
from fxcompress.targets.int8_values import FastDequantize, FastQuantize, FastQuantizeRows, FastRequantize

__all__ = ["pack_integers"]

_ALLOCATING = (
    QuantConv,
    QuantLinear,
    Quantize,
    Dequantize,
    Requantize,
    QuantAdd,
    QuantMul,
    QuantMean,
    QuantActivation,
    QuantMaxPool,
    QuantAvgPool,
    QuantAdaptiveAvgPool,
    QuantizeRows,
    ScaleRows,
)
"""Modules whose result shares no memory with an operand that anybody still reads."""


def pack_integers(module: GraphModule, editor: Editor) -> None:
    """Replace every integer module by its fast form; a module with several callers stays one module."""
    order = {node: i for i, node in enumerate(module.graph.nodes)}
    for path, layer in list(module.named_modules()):
        callers = [node for node in editor.callers(path) if node.op == "call_module"]
        fast = _fast_form(layer, callers, order) if callers else None
        if fast is not None:
            module.set_submodule(path, fast)


def _fast_form(layer: nn.Module, callers: list[Node], order: dict[Node, int]) -> nn.Module | None:
    if type(layer) in (QuantConv, QuantLinear):
        if int8_lowerable(layer) is not None:
            return None
        if isinstance(layer, QuantConv):
            return PackedQuantConv.of(layer, overwrites_residual=all(_residual_is_free(node, order) for node in callers))
        return PackedQuantLinear.of(layer) if isinstance(layer, QuantLinear) else None
    if type(layer) is Quantize:
        return FastQuantize.of(layer, channels_last=all(map(_is_image_of_convolutions, callers)))
    if type(layer) is QuantizeRows:
        return FastQuantizeRows()
    if type(layer) is Dequantize:
        return FastDequantize.of(layer)
    return FastRequantize.of(layer) if type(layer) is Requantize else fast_form(layer)


def _is_image_of_convolutions(node: Node) -> bool:
    readers = [module_of(user) for user in node.users if user.op == "call_module"]
    return len(readers) == len(node.users) and all(isinstance(reader, QuantConv) and reader.weight.dim() == 4 for reader in readers)


def _residual_is_free(node: Node, order: dict[Node, int]) -> bool:
    """Whether the layer may write over its residual: it is the last that reads it, and no other value lies in its memory."""
    residual = node.args[1] if len(node.args) > 1 else node.kwargs.get("residual")
    if not isinstance(residual, Node) or residual is node.args[0] or not _allocates(residual):
        return False
    return all(user is node or (order[user] < order[node] and _allocates(user)) for user in residual.users)


def _allocates(node: Node) -> bool:
    """Whether the value of a node lies in memory of its own."""
    if node.op == "call_module" and isinstance(module_of(node), _ALLOCATING):
        return True
    return node.op.startswith("call_") and spec_of(node) is not None and not may_alias(node)
