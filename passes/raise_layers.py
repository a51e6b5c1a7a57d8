"""Turns functional layers with constant parameters into modules: ``F.conv2d(x, w, b)`` -> ``nn.Conv2d``.

All later passes then meet one form of a layer. The module takes the place of the one that owned the parameters when
nobody else reads from it, so that the keys of the state_dict survive.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.fx import Node

from fxcompress.analysis.shapes import attribute
from fxcompress.ir.effects import in_training
from fxcompress.ir.view import Op, view
from fxcompress.pipeline import Property, RulePass, Semantics
from fxcompress.rewrite import Rule, Scope

PARAMETERS = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True)
class FunctionalLayer:
    """A functional layer; ``reads`` are the get_attr nodes of its parameters by role."""

    op: Op
    reads: dict[str, Node]

    @property
    def nodes(self) -> tuple[Node, ...]:
        return (self.op.node, *self.reads.values())


def find(node: Node, scope: Scope) -> FunctionalLayer | None:
    op = view(node, "conv", "conv_transpose", "linear", "batch_norm", "layer_norm", "group_norm")
    if op is None or op.module is not None:
        return None
    reads = {role: op[role] for role in PARAMETERS if isinstance(op.operands.get(role), Node)}
    if any(read.op != "get_attr" for read in reads.values()) or not ("weight" in reads or "running_mean" in reads):
        return None
    return FunctionalLayer(op, reads)


def check(match: FunctionalLayer, scope: Scope) -> str | None:
    op = match.op
    if op.kind == "batch_norm" and (op["training"] or "running_mean" not in match.reads or "running_var" not in match.reads):
        return "it normalises by the statistics of the batch"
    if any(isinstance(value, Node) for role, value in op.operands.items() if role not in (*match.reads, "input")):
        return "one of its settings is computed in the graph"
    if op.kind in ("conv", "conv_transpose") and isinstance(op["padding"], str) and op["padding"] not in ("same", "valid"):
        return f"padding '{op['padding']}' is unknown"
    shape = scope.shapes.shape(op.input)
    return "the rank of its input is unknown" if shape is None else None


def rewrite(match: FunctionalLayer, scope: Scope) -> str:
    op, editor = match.op, scope.editor
    tensors = {role: attribute(editor.module, str(read.target)) for role, read in match.reads.items()}
    module = BUILDERS[op.kind](op, tensors, scope)
    for role, tensor in tensors.items():
        table = module._parameters if isinstance(tensor, nn.Parameter) else module._buffers
        module._parameters.pop(role, None)
        module._buffers.pop(role, None)
        table[role] = tensor
    module.train(in_training(editor.module))
    home = _home(match, scope)
    if home is not None:
        editor.remove_module(home)
    new = editor.call_module(home or op.node.name, module, (op.input,), before=op.node, of=[op.node])
    editor.replace(op.node, new)
    for read in match.reads.values():
        if not read.users:
            editor.erase(read)
    return f"{op.kind} is {type(module).__name__} '{new.target}'"


def _home(match: FunctionalLayer, scope: Scope) -> str | None:
    """The path of a module that owns exactly these parameters for this node alone, or None."""
    holders = {str(read.target).rpartition(".")[0] for read in match.reads.values()}
    names_fit = all(str(read.target).rpartition(".")[2] == role for role, read in match.reads.items())
    holder = holders.pop()
    if holders or not holder or not names_fit or any(list(read.users) != [match.op.node] for read in match.reads.values()):
        return None
    owner = scope.editor.module.get_submodule(holder)
    mine = {role for role in (*owner._parameters, *owner._buffers) if role in match.reads}
    others = [name for name, value in (*owner._parameters.items(), *owner._buffers.items()) if value is not None and name not in mine]
    alone = all(scope.editor.callers(f"{holder}.{role}") == {read} for role, read in match.reads.items())
    return holder if not others and not any(owner.children()) and alone and not scope.editor.callers(holder) else None


def _conv(op: Op, tensors: dict[str, Tensor], scope: Scope) -> nn.Module:
    weight = tensors["weight"]
    dims = weight.dim() - 2
    wide = {name: _tuple(op[name], dims) for name in ("stride", "dilation")}
    padding = op["padding"] if isinstance(op["padding"], str) else _tuple(op["padding"], dims)
    common: dict[str, Any] = {
        "kernel_size": tuple(weight.shape[2:]),
        "groups": op["groups"],
        "bias": "bias" in tensors,
        "padding": padding,
        "device": "meta",
    }
    if op.kind == "conv":
        kinds: list[type[nn.Module]] = [nn.Conv1d, nn.Conv2d, nn.Conv3d]
        return kinds[dims - 1](weight.shape[1] * op["groups"], weight.shape[0], **wide, **common)
    kinds = [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d]
    extra = _tuple(op["output_padding"], dims)
    return kinds[dims - 1](weight.shape[0], weight.shape[1] * op["groups"], output_padding=extra, **wide, **common)


def _linear(op: Op, tensors: dict[str, Tensor], scope: Scope) -> nn.Module:
    weight = tensors["weight"]
    return nn.Linear(weight.shape[1], weight.shape[0], bias="bias" in tensors, device="meta")


def _batch_norm(op: Op, tensors: dict[str, Tensor], scope: Scope) -> nn.Module:
    rank = len(scope.shapes.shape(op.input) or ())
    kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[rank]
    norm = kind(len(tensors["running_mean"]), eps=op["eps"], affine=False, device="meta")
    norm.affine, norm.num_batches_tracked = "weight" in tensors, None
    return norm


def _layer_norm(op: Op, tensors: dict[str, Tensor], scope: Scope) -> nn.Module:
    return nn.LayerNorm(list(op["normalized_shape"]), eps=op["eps"], bias="bias" in tensors, device="meta")


def _group_norm(op: Op, tensors: dict[str, Tensor], scope: Scope) -> nn.Module:
    return nn.GroupNorm(op["num_groups"], len(tensors["weight"]), eps=op["eps"], device="meta")


def _tuple(value: Any, dims: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return values * dims if len(values) == 1 else values


BUILDERS: dict[str, Callable[[Op, dict[str, Tensor], Scope], nn.Module]] = {
    "conv": _conv,
    "conv_transpose": _conv,
    "linear": _linear,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "group_norm": _group_norm,
}


@dataclass(frozen=True)
class RaiseLayers(RulePass):
    """Turns functional layers with constant parameters into modules."""

    name: ClassVar[str] = "raise-layers"
    semantics: ClassVar[Semantics] = Semantics.EXACT
    requires: ClassVar[frozenset[Property]] = frozenset({Property.FUNCTIONAL})

    def rules(self) -> Rule[FunctionalLayer]:
        return Rule("raise-layers", find, rewrite, check)
