"""Computes equal subexpressions once (Aho et al., Compilers, section 6.1: value numbering)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.fx import GraphModule, Node

from fxcompress.analysis import Aliases, Shapes
from fxcompress.ir.edit import Editor
from fxcompress.ir.effects import effect_of
from fxcompress.ir.snapshot import describe_module
from fxcompress.ir.view import module_of, spec_of
from fxcompress.pipeline import Pass, PassContext, PassResult, Property, Remark, Semantics


@dataclass(frozen=True)
class CommonSubexpressions(Pass):
    """Lets nodes that compute the same from the same be one node. Only operations of the table, never random or in-place ones."""

    name: ClassVar[str] = "cse"
    semantics: ClassVar[Semantics] = Semantics.EXACT
    requires: ClassVar[frozenset[Property]] = frozenset({Property.FUNCTIONAL})

    def run(self, module: GraphModule, ctx: PassContext) -> PassResult:
        editor, aliases = Editor(module), ctx.analyses.get(Aliases)
        known: dict[Any, Node] = {}
        remarks: list[Remark] = []
        for node in list(module.graph.nodes):
            key = None if aliases.is_written(node) else _key(node)
            if key is None:
                continue
            first = known.setdefault(key, node)
            if first is not node:
                if node.op != "get_attr":
                    remarks.append(Remark.on(node, f"the same as '{first.name}'", applied=True))
                else:
                    remarks.append(Remark.on(node, f"'{node.target}' is read already", applied=True))
                editor.replace(node, first)
        if remarks:
            editor.finish()
        return PassResult(module, bool(remarks), frozenset({Shapes}), tuple(remarks))


def _key(node: Node) -> Any:
    """Nodes with equal keys give equal values; None for nodes that must stay apart."""
    if node.op == "get_attr":
        return ("get_attr", node.target)
    if not node.op.startswith("call_") or spec_of(node) is None or effect_of(node) is not None:
        return None
    module = module_of(node)
    target: Any = node.target
    if module is not None:
        has_state = next(module.parameters(), None) is not None or next(module.buffers(), None) is not None
        target = id(module) if has_state else describe_module(module)
    arguments = _freeze((node.args, dict(node.kwargs)))
    return None if arguments is None else (node.op, target, arguments)


def _freeze(value: Any) -> Any:
    """A hashable form that tells 1, 1.0 and True apart; None for what has none."""
    if isinstance(value, (tuple, list)):
        items = [_freeze(item) for item in value]
        return None if None in items else (type(value).__name__, *items)
    if isinstance(value, dict):
        return _freeze(tuple(sorted(value.items())))
    if isinstance(value, slice):
        return _freeze(("slice", value.start, value.stop, value.step))
    if isinstance(value, Node):
        return value
    if value is None or value is Ellipsis or isinstance(value, (bool, int, float, str, torch.dtype, torch.device, torch.memory_format)):
        return (type(value).__name__, repr(value))
    return None
