"""Dynamic quantization of linears by name; see :mod:`fxcompress.quant.dynamic`."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn
from torch.fx import GraphModule, Node

from fxcompress.analysis import Shapes
from fxcompress.ir.edit import Editor
from fxcompress.ir.fused import FusedLinear
from fxcompress.pipeline import Pass, PassContext, PassResult, Property, Remark, Semantics
from fxcompress.quant.affine import quantize_weight, weight_scale
from fxcompress.quant.dynamic import ROWS, QuantizeRows, ScaleRows
from fxcompress.quant.modules import QuantLinear
from fxcompress.quant.patterns import fits
from fxcompress.quant.stored import stored


@dataclass(frozen=True)
class Dynamic(Pass):
    """Linears that ``patterns`` name compute in integers and find the range of each row of their input in every call.

    Recurrent layers among them keep int8 weights and compute in float.
    """

    name: ClassVar[str] = "dynamic"
    semantics: ClassVar[Semantics] = Semantics.LOSSY
    requires: ClassVar[frozenset[Property]] = frozenset({Property.FUNCTIONAL})
    patterns: tuple[str, ...] = ()

    def run(self, module: GraphModule, ctx: PassContext) -> PassResult:
        editor, shapes = Editor(module), ctx.analyses.get(Shapes)
        remarks: list[Remark] = []
        for node in list(module.graph.nodes):
            if node.op != "call_module" or not fits(str(node.target), self.patterns):
                continue
            layer: Any = module.get_submodule(str(node.target))
            if type(layer) in (nn.LSTM, nn.GRU, nn.RNN):
                editor.set_module(node, stored(layer, "int8"))
                remarks.append(Remark.on(node, "int8 weights: dynamic names it; recurrent layers compute in float", applied=True))
            elif type(layer) in (nn.Linear, FusedLinear):
                why = _obstacle(node, shapes)
                if why is None:
                    remarks.append(Remark.on(node, "int8: dynamic names it; the range of every row is found in the call", applied=True))
                    _expand(node, layer, editor)
                else:
                    remarks.append(Remark.on(node, f"float: {why}", applied=False))
        editor.finish()
        return PassResult(module, any(remark.applied for remark in remarks), remarks=tuple(remarks))


def _obstacle(node: Node, shapes: Shapes) -> str | None:
    dtype = getattr(shapes.value(node), "dtype", None)
    return None if str(dtype) in ("torch.float32", "torch.float64") else f"it computes in {dtype}"


def _expand(node: Node, layer: Any, editor: Editor) -> None:
    """Put the three nodes in the place of the linear; the last one takes its residual, bias and activation."""
    path, args = str(node.target), tuple(node.args)
    residual = args[1:] or tuple(node.kwargs[name] for name in ("residual",) if name in node.kwargs)
    x = args[0] if args else node.kwargs.get("x", node.kwargs.get("input"))
    scale = weight_scale(layer.weight)
    core = QuantLinear(quantize_weight(layer.weight, scale), scale, None, source=ROWS)
    pair = editor.call_module(f"{path}_rows", QuantizeRows(), (x,), before=node, of=(node,))
    q = editor.call_function(operator.getitem, (pair, 0), before=node, of=(node,))
    row_scale = editor.call_function(operator.getitem, (pair, 1), before=node, of=(node,))
    y = editor.call_module(f"{path}_int8", core, (q,), before=node, of=(node,))
    last = ScaleRows(layer.bias, activation=getattr(layer, "activation", None))
    editor.set_module(node, last)
    node.args, node.kwargs = (y, row_scale, *residual), {}
