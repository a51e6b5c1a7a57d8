"""A graph as the report draws it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from fxcompress.analysis import Shapes
from fxcompress.ir.activation import Activation
from fxcompress.ir.edit import PROVENANCE, provenance
from fxcompress.ir.verify import source_line
from fxcompress.ir.view import kind_of, module_of
from fxcompress.report import units
from fxcompress.report.model import GraphView, NodeView

_DETAIL = 300
_CARRIERS = {"conv": "conv", "linear": "linear", "PackedConv": "conv", "PackedLinear": "linear"}  # may carry a residual


def graph_view(module: GraphModule, shapes: Shapes | None = None) -> GraphView:
    """The nodes of ``module`` as plain data; shapes of values where ``shapes`` knows them."""
    return GraphView(tuple(_node_view(node, shapes) for node in module.graph.nodes))


def _node_view(node: Node, shapes: Shapes | None) -> NodeView:
    from_ = provenance(node) if PROVENANCE in node.meta else ()
    value = shapes.value(node) if shapes is not None else None
    inputs = tuple(source.name for source in node.all_input_nodes)
    return NodeView(node.name, _title(node), node_kind(node), _detail(node), _shape(value), inputs, from_, source_line(node))


def _title(node: Node) -> str:
    return str(node.target) if node.op in ("call_module", "get_attr", "placeholder") else node.name


def node_kind(node: Node) -> str:
    """The operation as reports name it: "conv", "relu", "conv+add+relu" for a conv that carries a residual and an activation."""
    if node.op in ("placeholder", "output", "get_attr"):
        return {"placeholder": "input", "output": "output", "get_attr": "constant"}[node.op]
    layer = module_of(node)
    kind = kind_of(node) or (type(layer).__name__ if layer is not None else _function(node.target))
    carried = ["add"] if layer is not None and kind in _CARRIERS and _operands(node) > 1 else []
    activation = getattr(layer, "activation", None)
    if isinstance(activation, Activation):
        carried.append(activation.name)
    return "+".join([_CARRIERS.get(kind, kind), *carried])


def _operands(node: Node) -> int:
    return sum(isinstance(value, Node) for value in (*node.args, *node.kwargs.values()))


def _function(target: Any) -> str:
    return target if isinstance(target, str) else str(getattr(target, "__name__", target))


def _detail(node: Node) -> str:
    layer = module_of(node)
    if layer is not None:
        return units.clip(_describe(layer), _DETAIL)
    if node.op in ("call_function", "call_method"):
        return units.clip(_call(node), _DETAIL)
    return ""


def _describe(layer: nn.Module) -> str:
    try:
        return f"{type(layer).__name__}({layer.extra_repr()})"
    except Exception as error:  # extra_repr of a stranger's module may fail in any way; a drawing must not
        return f"{type(layer).__name__} (its extra_repr raised {type(error).__name__})"


def _call(node: Node) -> str:
    args = [_argument(arg) for arg in node.args]
    return f"{_function(node.target)}({', '.join([*args, *(f'{key}={_argument(value)}' for key, value in node.kwargs.items())])})"


def _argument(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(_argument(item) for item in value)}]"
    return str(value) if isinstance(value, (Node, torch.dtype)) else repr(value)


def _shape(value: Any) -> str:
    tensors = [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
    shown = ", ".join(units.shape(t.shape) for t in tensors[:4])
    return shown + (f", +{len(tensors) - 4}" if len(tensors) > 4 else "")
