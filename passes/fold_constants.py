"""Computes, once, what depends on constants only: parameters, buffers and numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from fxcompress.analysis import Aliases, Shapes
from fxcompress.analysis.shapes import attribute
from fxcompress.ir.edit import Editor
from fxcompress.ir.effects import effect_of, in_training
from fxcompress.ir.view import module_of, spec_of
from fxcompress.pipeline import Pass, PassContext, PassResult, Property, Remark, Semantics
from fxcompress.rewrite import remove_dead


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Replaces subgraphs that read no input by their value.

    ``max_growth``: bytes by which a value may be larger than the constants it is made from.
    """

    name: ClassVar[str] = "fold-constants"
    semantics: ClassVar[Semantics] = Semantics.EXACT
    requires: ClassVar[frozenset[Property]] = frozenset({Property.FUNCTIONAL})
    max_growth: int = 1 << 24

    def run(self, module: GraphModule, ctx: PassContext) -> PassResult:
        if in_training(module):
            return PassResult(module, False, frozenset({Shapes}))  # parameters are not constant while they are trained
        editor, values = Editor(module), self._constants(module, ctx.analyses.get(Aliases))
        remarks = []
        for node in [n for n in module.graph.nodes if n in values and n.op != "get_attr"]:
            reader = next((user for user in node.users if user not in values), None)
            if reader is None or not isinstance(values[node], Tensor):
                continue  # a part of a larger constant, or not a tensor that the graph could read
            remarks.append(Remark.on(node, "computed once", applied=True))
            new = editor.get_attr(f"_constant_{node.name}", values[node], before=node, of=[node])
            for user in [user for user in node.users if user not in values]:
                user.replace_input_with(node, new)
        if remarks:
            remove_dead(editor)
            editor.finish()
        return PassResult(module, bool(remarks), frozenset({Shapes}), tuple(remarks))

    def _constants(self, module: GraphModule, aliases: Aliases) -> dict[Node, Any]:
        values: dict[Node, Any] = {}
        for node in module.graph.nodes:
            if aliases.is_written(node):
                continue
            if node.op == "get_attr":
                values[node] = attribute(module, str(node.target))
            elif _is_pure(node) and all(used in values for used in node.all_input_nodes):
                value = _evaluate(module, node, values)
                if _bytes(value) <= sum(_bytes(values[used]) for used in node.all_input_nodes) + self.max_growth:
                    values[node] = value
        return values


def _is_pure(node: Node) -> bool:
    return node.op.startswith("call_") and spec_of(node) is not None and effect_of(node) is None


def _evaluate(module: GraphModule, node: Node, values: dict[Node, Any]) -> Any:
    args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
    called = module_of(node)
    with torch.no_grad():
        if called is not None:
            value = called(*args, **kwargs)
        elif node.op == "call_method":
            value = getattr(args[0], str(node.target))(*args[1:], **kwargs)
        else:
            assert callable(node.target)
            value = node.target(*args, **kwargs)
    return value.detach().clone() if isinstance(value, Tensor) else value


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    return sum(map(_bytes, value)) if isinstance(value, (tuple, list)) else 0
