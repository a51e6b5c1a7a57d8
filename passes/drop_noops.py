"""Removes operations that do nothing at inference: dropout, stochastic depth, identity, views and casts to what is already there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.fx import Node

from fxcompress.ir.effects import is_random
from fxcompress.ir.view import Op, view
from fxcompress.pipeline import Property, RulePass, Semantics
from fxcompress.rewrite import Rule, Scope


@dataclass(frozen=True)
class NoOp:
    """``node`` gives the same values, shape and dtype as its operand ``source``."""

    node: Node
    source: Node
    why: str

    @property
    def nodes(self) -> tuple[Node, ...]:
        return (self.node, self.source)


def find(node: Node, scope: Scope) -> NoOp | None:
    op = view(node)
    if op is None or not op.spec.operands or not isinstance(op.operands.get(op.spec.operands[0]), Node):
        return None
    why = _why(op, scope)
    return None if why is None else NoOp(node, op.input, why)


def _why(op: Op, scope: Scope) -> str | None:
    if op.kind in ("dropout", "stochastic_depth"):
        return None if is_random(op.node) else f"{op.kind} does nothing in eval mode"
    if op.kind == "identity":
        return "identity gives its input"
    if op.kind == "clone":
        return _clone(op)
    if op.kind == "cast":
        return _cast(op, scope)
    if op.kind in ("permute", "transpose", "expand", "flatten", "squeeze", "getitem", "view", "reshape"):
        return _view(op, scope)
    if op.kind in ("add", "sub", "mul", "div") and not op.in_place:
        return _neutral(op, scope)
    return None


def _clone(op: Op) -> str | None:
    """A copy is needed where the user would otherwise get the input or a parameter itself."""
    given_away = op.input.op in ("placeholder", "get_attr") and any(user.op == "output" for user in op.node.users)
    return None if given_away or op["memory_format"] is not torch.preserve_format else "a copy that nobody writes to"


def _cast(op: Op, scope: Scope) -> str | None:
    """A cast that asks for the dtype that is there; a device or a copy asked for stays."""
    method, rest = str(op.node.target), (*op.node.args[1:], *op.node.kwargs.values())
    named = {"float": torch.float32, "double": torch.float64, "half": torch.float16, "bfloat16": torch.bfloat16}
    wanted = named.get(method) or next((a for a in rest if isinstance(a, torch.dtype)), None)
    if wanted is None or len(rest) > 1 or wanted != scope.shapes.dtype(op.input):
        return None
    return f"it is {wanted} already"


def _view(op: Op, scope: Scope) -> str | None:
    """Views that are the identity whatever the sizes: they name no size that the example could have by chance."""
    shape = scope.shapes.shape(op.input)
    if shape is None:
        return None
    rank = len(shape)
    if op.kind == "permute" and [d % rank for d in op["dims"] if isinstance(d, int)] == list(range(rank)):
        return "the order of the axes is unchanged"
    if op.kind == "transpose" and isinstance(op["dim0"], int) and isinstance(op["dim1"], int) and op["dim0"] % rank == op["dim1"] % rank:
        return "an axis is swapped with itself"
    if op.kind == "expand" and len(op["sizes"]) == rank and all(size == -1 for size in op["sizes"]):
        return "no axis is expanded"
    if op.kind == "flatten" and rank and op["start_dim"] % rank == op["end_dim"] % rank:
        return "one axis is flattened"
    if op.kind in ("view", "reshape") and rank == 2 and len(op["shape"]) == 2 and op["shape"][0] == -1 and op["shape"][1] == shape[1]:
        return "the shape is unchanged"
    return None


def _neutral(op: Op, scope: Scope) -> str | None:
    """x * 1, x / 1, x - 0 on floating-point tensors. x + 0 is left: it turns -0 into 0."""
    other, dtype = op["other"], scope.shapes.dtype(op.input)
    if isinstance(other, (bool, Node)) or not isinstance(other, (int, float)) or dtype is None or not dtype.is_floating_point:
        return None
    if op.operands.get("rounding_mode") is not None:
        return None
    neutral = (op.kind in ("mul", "div") and other == 1) or (op.kind == "sub" and other == 0)
    return f"{op.kind} with {other} changes nothing" if neutral else None


def drop(match: NoOp, scope: Scope) -> str:
    scope.editor.replace(match.node, match.source)
    return match.why


@dataclass(frozen=True)
class DropNoOps(RulePass):
    """Removes what does nothing at inference."""

    name: ClassVar[str] = "drop-noops"
    semantics: ClassVar[Semantics] = Semantics.EXACT
    requires: ClassVar[frozenset[Property]] = frozenset({Property.FUNCTIONAL})

    def rules(self) -> Rule[NoOp]:
        return Rule("no-op", find, drop)
