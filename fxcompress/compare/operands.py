"""What a node reads and how it is set, independent of how the call is written.

Operands have the names of the table of operations (or of the signature of the function), so positional and keyword arguments, ``view(2,
3)`` and ``view((2, 3))``, given and left-out defaults are the same. Their order stays: a swapped input is another function.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.fx import Node

from fxcompress.compare.plain import plain
from fxcompress.compare.schema import Json
from fxcompress.ir.guards import expect_constant
from fxcompress.ir.view import module_of, spec_of, view

__all__ = ["Operands", "operands_of"]


@dataclass(frozen=True)
class Operands:
    """``reads``: the nodes in the order of the operands. ``attributes``: the other operands by name; "$2" is ``reads[2]``."""

    reads: tuple[Node, ...]
    attributes: dict[str, Json]


def operands_of(node: Node, digest: Callable[[Tensor], str]) -> Operands:
    """Read ``node``. ``digest`` names a tensor that stands in the call itself."""
    named, in_line = _named(node)
    reads: list[Node] = []
    attributes: dict[str, Json] = {}

    def place(found: Node) -> str:
        reads.append(found)
        return f"${len(reads) - 1}"

    for name, value in named.items():
        if name == "_stacklevel" or (name == "name" and node.target is expect_constant):  # only words of a warning or an error
            continue
        if in_line and isinstance(value, Node):  # its place says which operand it is
            reads.append(value)
            continue
        if in_line and name in _LISTS and isinstance(value, (tuple, list)) and value and all(isinstance(v, Node) for v in value):
            reads.extend(value)
        else:
            attributes[name] = plain(value, place, digest)
        in_line = False
    return Operands(tuple(reads), attributes)


_LISTS = ("tensors",)


def _named(node: Node) -> tuple[Mapping[str, Any], bool]:
    """The operands by name in the order of the operation, and whether a node among the first is known by its place."""
    if node.op == "output":
        return {"result": node.args[0]}, not isinstance(node.args[0], (tuple, list, dict))
    if node.op == "placeholder":
        return dict(zip(("default",), node.args, strict=False)), False
    if node.op == "get_attr":
        return {}, False
    if node.op == "call_module":
        return _of_module(node), True
    return _of_call(node), True


def _of_module(node: Node) -> Mapping[str, Any]:
    """Only what is passed in the call; settings of the module are no operands."""
    layer, spec = module_of(node), spec_of(node)
    assert layer is not None
    if spec is not None:
        names = [name for name in spec.operands if name not in spec.parameters]
        passed = {name: node.kwargs[name] for name in (*names, "x", "residual") if name in node.kwargs}
        if len(node.args) <= len(names) and len(passed) == len(node.kwargs):
            return {**dict(zip(names, node.args, strict=False)), **passed}
    return _bound(layer.forward, node)


def _of_call(node: Node) -> Mapping[str, Any]:
    op = view(node)
    if op is not None:
        return _in_order(op.operands, [name.lstrip("*") for name in op.spec.operands])
    return _bound(node.target, node) if callable(node.target) else _numbered(node)


def _in_order(operands: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    first = {name: operands[name] for name in names if name in operands}
    return {**first, **{name: operands[name] for name in sorted(set(operands) - set(first))}}


def _bound(function: Any, node: Node) -> Mapping[str, Any]:
    """By the signature of ``function`` where it has one; defaults are filled in, but for None."""
    try:
        bound = inspect.signature(function).bind(*node.args, **node.kwargs)
    except (TypeError, ValueError):  # built in, or it takes the arguments in a way of its own
        return _numbered(node)
    bound.apply_defaults()
    found: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            found.update(sorted(value.items()))
        elif kind is not inspect.Parameter.VAR_POSITIONAL:
            if value is not None or bound.signature.parameters[name].default is not None:
                found[name] = value
        elif value:
            found.update({f"{name}[{place}]": item for place, item in enumerate(value)})
    return found


def _numbered(node: Node) -> Mapping[str, Any]:
    return {**{str(place): value for place, value in enumerate(node.args)}, **dict(sorted(node.kwargs.items()))}
