"""The native float targets: prepacked oneDNN and MKL kernels on plain tensors, without any compiler.

``cpu`` calls them one after the other, from a recording where that can be had; ``onednn-graph`` lets oneDNN Graph join them where it can.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from fxcompress.analysis import Analyses, Shapes
from fxcompress.errors import TargetError
from fxcompress.ir.copying import copied
from fxcompress.ir.edit import Editor
from fxcompress.ir.effects import may_alias
from fxcompress.ir.inputs import Inputs
from fxcompress.ir.view import kind_of, spec_of, view
from fxcompress.targets.accelerated import FLAG, AcceleratedGraph
from fxcompress.targets.cpu_attention import PackedSelfAttention, lowerable_attention
from fxcompress.targets.cpu_graph import onednn_graph_missing
from fxcompress.targets.cpu_kernels import kernels
from fxcompress.targets.cpu_modules import PackedConv, PackedLinear, lowerable
from fxcompress.targets.inference import constant
from fxcompress.targets.int8_pack import pack_integers

MOST_NODES = 2500
"""Nodes of a graph that oneDNN Graph is asked to compile: 0.5 s for resnet50, 2 s for 1,000 nodes in a row, 70 s for 10,000."""


@dataclass(frozen=True)
class CpuTarget:
    """Binds convolutions, linears and the modules of integer graphs to kernels with packed weights; everything else stays as it is."""

    name: str = "cpu"

    def missing(self) -> str | None:
        return kernels().missing()

    def lower(self, gm: GraphModule, inputs: Inputs) -> GraphModule:
        """See :class:`fxcompress.targets.base.Target`."""
        module = _running_as("replay", _packed(gm, inputs))
        try:
            module.prepare(inputs)
        except TargetError:  # the packed modules run one by one
            del module.meta[FLAG]
        return module


@dataclass(frozen=True)
class OneDnnGraphTarget:
    """The packed graph of :class:`CpuTarget`, joined by oneDNN Graph into partitions that are compiled per input shape."""

    name: str = "onednn-graph"

    def missing(self) -> str | None:
        return CpuTarget().missing() or onednn_graph_missing()

    def lower(self, gm: GraphModule, inputs: Inputs) -> GraphModule:
        """See :class:`fxcompress.targets.base.Target`."""
        count = len(gm.graph.nodes)
        if count > MOST_NODES:
            raise TargetError(
                f"the graph has {count} nodes, and oneDNN Graph takes time that grows with the square of that",
                hint=f'write target="cpu"; at most {MOST_NODES} nodes are tried',
            )
        module = _running_as("onednn-graph", _packed(gm, inputs))
        module.prepare(inputs)
        return module


def _packed(gm: GraphModule, inputs: Inputs) -> GraphModule:
    module = copied(gm, constant)  # else a call outside of no_grad would ask its layers for gradients
    shapes = Analyses(module, inputs).get(Shapes)
    outputs = _contiguous_outputs(module, shapes)
    editor = Editor(module)
    pack_integers(module, editor)
    _pack_layers(module, editor)
    _pack_attention(module, editor)
    _free_layout(module, editor)
    for node in outputs:
        _keep_contiguous(node, editor)
    editor.finish()
    return module


def _running_as(form: str, packed: GraphModule) -> AcceleratedGraph:
    module = AcceleratedGraph(packed, packed.graph)
    module.training = packed.training
    module.meta.update(packed.meta)
    module.meta[FLAG] = form
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


def _pack_attention(module: GraphModule, editor: Editor) -> None:
    """Replace self-attention whose weights nobody reads; a layer whose callers do not all agree stays."""
    for path, layer in list(module.named_modules()):
        callers = [node for node in editor.callers(path) if node.op == "call_module"]
        if not callers or lowerable_attention(layer) is not None or not all(map(_is_plain_self_attention, callers)):
            continue
        module.set_submodule(path, PackedSelfAttention.of(layer))
        for node in callers:
            node.args, node.kwargs = (node.all_input_nodes[0],), {}
            for item in list(node.users):
                editor.replace(item, node)


def _is_plain_self_attention(node: Node) -> bool:
    op = view(node, "multihead_attention")
    if op is None or not op["query"] is op["key"] is op["value"]:
        return False
    masked = op["key_padding_mask"] is not None or op["attn_mask"] is not None or op["is_causal"]
    return not masked and all(kind_of(user) == "getitem" and user.args[1] == 0 for user in node.users)


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
