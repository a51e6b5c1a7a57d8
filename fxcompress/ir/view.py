"""Reads a node as an operation, whatever form it is written in."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.fx import GraphModule, Node

from fxcompress.ir.activation import Activation
from fxcompress.ir.ops import OpSpec, Trait, table

_IN_PLACE_OPERATORS = {operator.iadd, operator.isub, operator.imul, operator.itruediv}


@dataclass(frozen=True)
class Op:
    """A node read as an operation.

    ``operands`` maps the operand names of the table to nodes or constants; ``module`` is the module of a
    call_module node; parameters that it owns are not among the operands.
    """

    node: Node
    spec: OpSpec
    operands: dict[str, Any]
    module: nn.Module | None

    @property
    def kind(self) -> str:
        return self.spec.kind

    def __getitem__(self, name: str) -> Any:
        return self.operands[name]

    def has(self, trait: Trait) -> bool:
        return trait in self.spec.traits

    @property
    def input(self) -> Node:
        """The first operand; a node for every operation on tensors."""
        value = self.operands[self.spec.operands[0]]
        assert isinstance(value, Node), f"{self.node} has no tensor operand"
        return value

    @property
    def in_place(self) -> bool:
        """Whether the node overwrites its first operand."""
        target = self.node.target
        name = target if isinstance(target, str) else getattr(target, "__name__", "")
        if self.node.op == "call_function" and target in _IN_PLACE_OPERATORS:
            return True
        if self.node.op != "call_module" and name.endswith("_") and not name.endswith("__"):
            return True
        if isinstance(self.module, (nn.AlphaDropout, nn.FeatureAlphaDropout)):
            return False  # torch's forward of these two ignores their inplace
        return bool(self.operands.get("inplace", False))


def owner(node: Node) -> GraphModule:
    module = node.graph.owning_module
    assert isinstance(module, GraphModule), "the node's graph belongs to no module"
    return module


def module_of(node: Node) -> nn.Module | None:
    """The module that a call_module node calls."""
    return owner(node).get_submodule(str(node.target)) if node.op == "call_module" else None


def spec_of(node: Node) -> OpSpec | None:
    """The table's row for a node; None for placeholders, attributes, outputs and unknown operations."""
    if node.op == "call_module":
        return table().modules.get(type(module_of(node)))
    if node.op == "call_method":
        return table().methods.get(str(node.target))
    if node.op == "call_function":
        try:
            known = table().functions.get(node.target)
        except TypeError:  # an unhashable callable
            return None
        return known or table().names.get(f"{getattr(node.target, '__module__', '')}.{getattr(node.target, '__qualname__', '')}")
    return None


def kind_of(node: Node) -> str | None:
    spec = spec_of(node)
    return None if spec is None else spec.kind


def view(node: Node, *kinds: str) -> Op | None:
    """Read ``node``; None when the operation is unknown, is not of one of ``kinds``, or has operands nobody has taught."""
    spec = spec_of(node)
    if spec is None or (kinds and spec.kind not in kinds):
        return None
    module = module_of(node)
    operands = _operands_of_module(node, spec, module) if module is not None else _operands_of_call(node, spec)
    return None if operands is None else Op(node, spec, operands, module)


def _operands_of_call(node: Node, spec: OpSpec) -> dict[str, Any] | None:
    operands = dict(spec.defaults)
    names = spec.operands
    if names[-1].startswith("*"):  # view(2, 3) and view((2, 3)) are the same
        rest = node.args[len(names) - 1 :]
        if len(rest) == 1 and isinstance(rest[0], (tuple, list)):
            rest = tuple(rest[0])
        operands.update(zip(names, node.args[: len(names) - 1], strict=False))
        operands[names[-1][1:]] = rest
    else:
        if len(node.args) > len(names):
            return None
        operands.update(zip(names, node.args, strict=False))
    known = {name.lstrip("*") for name in names}
    if not set(node.kwargs) <= known:
        return None
    operands.update(node.kwargs)
    return operands


def _operands_of_module(node: Node, spec: OpSpec, module: nn.Module) -> dict[str, Any] | None:
    """Tensor inputs come from the call, the rest from the module's attributes of the same name."""
    operands = dict(spec.defaults)
    free = [name for name in spec.operands if name not in spec.parameters]
    for name in free:
        if name == "training":
            operands[name] = module.training
        elif hasattr(module, name) and name not in ("input",):
            operands[name] = getattr(module, name)
    if len(node.args) > len(free) or not set(node.kwargs) <= set(free) | {"x", "residual"}:
        return None
    operands.update(zip(free, node.args, strict=False))
    operands.update(node.kwargs)
    return operands


def activation_of(node: Node) -> tuple[Activation, Node] | None:
    """The activation that a node computes and the node it is applied to, or None."""
    op = view(
        node,
        "relu",
        "relu6",
        "hardtanh",
        "hardswish",
        "hardsigmoid",
        "silu",
        "gelu",
        "sigmoid",
        "tanh",
        "leaky_relu",
        "elu",
        "mish",
        "clamp",
    )
    if op is None or not isinstance(op.operands.get("input"), Node):
        return None
    names = {
        "hardtanh": ("min_val", "max_val"),
        "gelu": ("approximate",),
        "leaky_relu": ("negative_slope",),
        "elu": ("alpha",),
        "clamp": ("min", "max"),
    }
    args = tuple(op[name] for name in names.get(op.kind, ()))
    if not all(isinstance(arg, (int, float, str)) and not isinstance(arg, bool) for arg in args):
        return None  # a bound that is computed, or missing
    if op.kind == "relu6":
        return Activation("hardtanh", (0.0, 6.0)), op.input
    if op.kind == "clamp":
        return (Activation("hardtanh", (float(args[0]), float(args[1]))), op.input) if args[0] <= args[1] else None
    return Activation(op.kind, tuple(arg if isinstance(arg, str) else float(arg) for arg in args)), op.input
