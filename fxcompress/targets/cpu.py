"""The native float target: prepacked oneDNN and MKL kernels on plain tensors, without any compiler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from fxcompress.analysis import Analyses, Shapes
from fxcompress.ir.edit import Editor, share
from fxcompress.ir.effects import may_alias
from fxcompress.ir.inputs import Inputs
from fxcompress.ir.view import kind_of, spec_of
from fxcompress.targets.cpu_kernels import kernels
from fxcompress.targets.cpu_modules import PackedConv, PackedLinear, lowerable


@dataclass(frozen=True)
class CpuTarget:
    """Binds convolutions and linears to kernels with packed weights; everything else stays as it is."""

    name: str = "cpu"

    def missing(self) -> str | None:
        return kernels().missing()

    def lower(self, gm: GraphModule, inputs: Inputs) -> GraphModule:
        module = share(gm)
        shapes = Analyses(module, inputs).get(Shapes)
        outputs = _contiguous_outputs(module, shapes)
        editor = Editor(module)
        _pack_layers(module, editor)
        _free_layout(module, editor)
        for node in outputs:
            _keep_contiguous(node, editor)
        editor.finish()
        return module


def _pack_layers(module: GraphModule, editor: Editor) -> None:
    """Replace every layer that has a packed form; a module with several callers stays one module."""
    for path, layer in list(module.named_modules()):
        callers = [node for node in editor.callers(path) if node.op == "call_module"]
        if not callers or lowerable(layer) is not None:
            continue
        if isinstance(layer, nn.Linear):
            packed: nn.Module = PackedLinear.of(layer)
        else:
            packed = PackedConv.of(layer, overwrites_residual=all(_owns_residual(node) for node in callers))
        module.set_submodule(path, packed)


def _owns_residual(node: Node) -> bool:
    """Whether the layer may write its sum into the residual's memory: nobody else can see that."""
    residual = node.args[1] if len(node.args) > 1 else node.kwargs.get("residual")
    if not isinstance(residual, Node):
        return False
    fresh = residual.op.startswith("call_") and spec_of(residual) is not None and not may_alias(residual)
    return fresh and list(residual.users) == [node]


def _free_layout(module: GraphModule, editor: Editor) -> None:
    """Convolutions give channels_last tensors: what insisted on another layout must take any.

    ``view`` becomes ``reshape``, which copies where the strides demand it, and ``contiguous()`` is left out.
    """
    for node in list(module.graph.nodes):
        kind = kind_of(node)
        if kind == "view" and not any(isinstance(arg, torch.dtype) for arg in (*node.args, *node.kwargs.values())):
            node.target = "reshape"
        elif kind == "contiguous" and not _layout_is_read(node):
            editor.replace(node, node.all_input_nodes[0])


def _layout_is_read(node: Node) -> bool:
    """Whether a reader of ``node`` depends on strides, or gives the value to the user."""
    strided = {"as_strided", "stride", "is_contiguous", "data_ptr", "storage_offset"}
    return any(user.op == "output" or str(user.target) in strided for user in node.users)


def _contiguous_outputs(module: GraphModule, shapes: Shapes) -> list[Node]:
    """Output nodes whose tensors lie contiguous in the graph as it was captured."""
    output = next(node for node in module.graph.nodes if node.op == "output")
    values: list[tuple[Node, Any]] = [(node, shapes.value(node)) for node in output.all_input_nodes]
    return [node for node, value in values if isinstance(value, Tensor) and value.dim() in (4, 5) and value.is_contiguous()]


def _keep_contiguous(node: Node, editor: Editor) -> None:
    output = next(user for user in node.users if user.op == "output")
    with editor.before(output):
        kept = editor.graph.call_method("contiguous", (node,))
    kept.meta = dict(node.meta)
    output.replace_input_with(node, kept)
