"""Replaces in-place operations by ordinary ones, so that later passes may move and merge nodes.

``relu_(x)`` becomes ``y = relu(x)``, and whoever read ``x`` afterwards reads ``y``. This holds only if nobody reads the
overwritten memory through another name (a view of ``x``, what ``x`` is a view of, a buffer); such nodes stay as they
are and every pass leaves their operands alone.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch.fx import GraphModule, Node

from fxcompress.analysis import Shapes
from fxcompress.ir.edit import Editor, own
from fxcompress.ir.effects import may_alias, written_operand
from fxcompress.ir.ops import table
from fxcompress.ir.view import Op, view
from fxcompress.pipeline import Pass, PassContext, PassResult, Property, Remark, Semantics

_OPERATORS = {operator.iadd: operator.add, operator.isub: operator.sub, operator.imul: operator.mul, operator.itruediv: operator.truediv}


@dataclass(frozen=True)
class Functionalize(Pass):
    """Replaces in-place operations by ordinary ones where nobody can tell."""

    name: ClassVar[str] = "functionalize"
    semantics: ClassVar[Semantics] = Semantics.EXACT
    establishes: ClassVar[frozenset[Property]] = frozenset({Property.FUNCTIONAL})

    def run(self, module: GraphModule, ctx: PassContext) -> PassResult:
        editor = Editor(module)
        place = {node: i for i, node in enumerate(module.graph.nodes)}
        remarks: list[Remark] = []
        for node in list(module.graph.nodes):
            target = written_operand(node)
            if target is None:
                continue
            reason = _obstacle(node, target, place, ctx.analyses.get(Shapes))
            remarks.append(Remark.on(node, f"in place: {reason or 'written to a new tensor'}", applied=reason is None))
            if reason is None:
                _rewrite(node, target, editor, place)
        changed = any(remark.applied for remark in remarks)
        if changed:
            editor.finish()
        return PassResult(module, changed, frozenset({Shapes}), tuple(remarks))


def _obstacle(node: Node, target: Node, place: dict[Node, int], shapes: Shapes) -> str | None:
    """Why the in-place ``node`` must stay, or None."""
    if node.op != "call_module" and _plain_form(node) is None:
        return "this operation has no form that is not in place"
    if _promotes(node, shapes):
        return "it keeps its dtype, which the form that is not in place may not"
    group = _memory(target, node)
    if any(member.op == "get_attr" for member in group):
        return "it writes to a buffer of the model"
    for member in group - {target}:
        later = [user for user in member.users if place[user] > place[node] and user is not node]
        if later:
            return f"'{member.name}' shares its memory and is read later by '{later[0].name}'"
    return None


def _promotes(node: Node, shapes: Shapes) -> bool:
    """Whether an operand has another dtype than the one that is written: ``x.add_(y)`` has the dtype of ``x``, ``x + y`` the wider one."""
    dtypes = {shapes.dtype(used) for used in node.all_input_nodes if shapes.shape(used) is not None}
    return len(dtypes) > 1


def _memory(node: Node, writer: Node) -> set[Node]:
    """All nodes that may share memory with ``node``, not counting what ``writer`` gives."""
    group, pending = {node}, [node]
    while pending:
        current = pending.pop()
        neighbours = [*may_alias(current), *(user for user in current.users if user is not writer and current in may_alias(user))]
        fresh = [n for n in neighbours if n not in group]
        group.update(fresh)
        pending.extend(fresh)
    return group


def _plain_form(node: Node) -> Callable[..., Any] | str | None:
    """The function or method that computes the same without writing in place."""
    if view(node) is None:
        return None
    if node.op == "call_method":
        name = str(node.target).rstrip("_")
        return name if name in table().methods else None
    if node.target in _OPERATORS:
        return _OPERATORS[node.target]
    name = getattr(node.target, "__name__", "")
    if not name.endswith("_"):
        return node.target if callable(node.target) else None
    found = getattr(F, name.rstrip("_"), None) or getattr(torch, name.rstrip("_"), None)
    return found if found in table().functions else None


def _rewrite(node: Node, target: Node, editor: Editor, place: dict[Node, int]) -> None:
    later = [user for user in target.users if place[user] > place[node]]
    if node.op == "call_module":  # the module stays what it is: AlphaDropout has no other name, and train() must reach it
        own(node, editor).inplace = False  # type: ignore[assignment]
    else:
        plain, op = _plain_form(node), view(node)
        assert plain is not None
        assert op is not None
        node.target = plain
        node.kwargs = {key: value for key, value in node.kwargs.items() if key != "inplace"}
        _drop_inplace_argument(node, op)
    for user in later:
        user.replace_input_with(target, node)


def _drop_inplace_argument(node: Node, op: Op) -> None:
    """``F.relu(x, True)`` -> ``F.relu(x)``."""
    if "inplace" in op.spec.operands and len(node.args) > op.spec.operands.index("inplace"):
        at = op.spec.operands.index("inplace")
        names = op.spec.operands[at + 1 :]
        node.kwargs = {**dict(zip(names, node.args[at + 1 :], strict=False)), **node.kwargs}
        node.args = node.args[:at]
