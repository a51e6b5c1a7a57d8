"""What a node does besides giving a value, and what memory it shares."""

from __future__ import annotations

import operator

import torch
from torch import nn
from torch.fx import GraphModule, Node
from torch.fx.node import _side_effectful_functions

from fxcompress.ir.ops import Trait
from fxcompress.ir.view import module_of, spec_of, view

_VIEWS = ("T", "mT", "H", "mH", "real", "imag", "data", "grad")  # attributes of a tensor that are views of it
_WRITING_OPERATORS = (operator.setitem, operator.ipow, operator.imod, operator.ifloordiv, operator.iand, operator.ior, operator.ixor)
_NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)


def effect_of(node: Node) -> str | None:
    """Why a node must stay even when nobody reads it, or None."""
    if written_operand(node) is not None:
        return "it writes in place"
    spec = spec_of(node)
    if spec is not None and Trait.EFFECT in spec.traits:
        return "it checks something"
    if node.op == "call_module":
        module = module_of(node)
        if spec is None:
            return f"nobody has taught what {type(module).__name__} does"
        if isinstance(module, _NORMS) and module.training and module.track_running_stats:
            return "it updates running statistics"
        return "it draws random numbers" if is_random(node) else None
    if written_statistics(node):
        return "it updates running statistics"
    if is_random(node):
        return "it draws random numbers"
    if node.op == "call_function" and node.target in _side_effectful_functions:
        return "torch.fx knows a side effect of it"
    if spec is None and node.op in ("call_function", "call_method"):
        return None if _is_torch(node) else "nobody has taught what it does"
    return None


def is_random(node: Node) -> bool:
    """Whether a node draws random numbers: dropout in training mode, ``torch.rand`` and the like."""
    spec = spec_of(node)
    if spec is not None and spec.kind in ("attention", "multihead_attention", "recurrent"):
        return _has_dropout(node)
    if spec is None or Trait.RANDOM not in spec.traits:
        return spec is None and node.op == "call_function" and not _is_torch(node)
    op = view(node)
    if op is None or "training" not in op.operands:
        return True
    return bool(op["training"])


def _has_dropout(node: Node) -> bool:
    """Whether an attention or a recurrent layer drops elements now."""
    op = view(node)
    if op is None:
        return True
    return op.module.training and getattr(op.module, "dropout", 0.0) != 0 if op.module is not None else op["dropout_p"] != 0


def _is_torch(node: Node) -> bool:
    if node.op == "call_method":
        return True
    module = getattr(node.target, "__module__", "") or ""
    return isinstance(node.target, torch._ops.OpOverload) or module.split(".")[0] in ("torch", "_operator", "operator", "builtins", "math")


def written_operand(node: Node) -> Node | None:
    """The node whose memory ``node`` overwrites, or None."""
    out = node.kwargs.get("out")
    if isinstance(out, Node):
        return out
    first = node.args[0] if node.args and isinstance(node.args[0], Node) else None
    if node.op == "call_function" and node.target in _WRITING_OPERATORS:
        return first
    op = view(node)
    if op is not None:
        return op.input if op.in_place and isinstance(op.operands.get(op.spec.operands[0]), Node) else None
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    looks_in_place = node.op in ("call_function", "call_method") and name.endswith("_") and not name.endswith("__")
    return first if looks_in_place or node.kwargs.get("inplace") is True else None


def written_statistics(node: Node) -> list[Node]:
    """The running statistics that a functional norm updates: ``F.batch_norm(x, mean, var, training=True)``."""
    op = view(node, "batch_norm", "instance_norm") if node.op == "call_function" else None
    if op is None or op["training" if op.kind == "batch_norm" else "use_input_stats"] is False:
        return []
    return [op[name] for name in ("running_mean", "running_var") if isinstance(op[name], Node)]


def may_alias(node: Node) -> list[Node]:
    """The operands with which the value of ``node`` may share memory."""
    written = written_operand(node)
    spec = spec_of(node)
    if spec is None:
        return list(node.all_input_nodes) if node.op.startswith("call_") else []
    if Trait.VIEW in spec.traits:
        return list(node.all_input_nodes)[:1]
    if spec.kind == "getattr" and node.args[1] in _VIEWS:
        return list(node.all_input_nodes)
    return [] if written is None else [written]


def in_training(module: GraphModule) -> bool:
    """Whether a module that the graph calls is in training mode. Containers on the way do not matter."""
    return any(node.op == "call_module" and getattr(module_of(node), "training", False) for node in module.graph.nodes)
