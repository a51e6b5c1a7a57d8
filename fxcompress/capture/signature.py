"""Placeholders for the user's arguments, and the values of the traced program that stand for them."""

from __future__ import annotations

import dataclasses
import inspect
import operator
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, fx
from torch.fx.node import base_types

from fxcompress.capture.step import StepFailed
from fxcompress.ir.guards import expect_constant
from fxcompress.ir.inputs import Inputs

_PREFIX: dict[Any, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
_CONSTANTS = (*base_types, type(None))


Leaf = Callable[[Tensor, fx.Node], Any]


def shadows(graph: fx.Graph, forward: Callable[..., Any], inputs: Inputs, leaf: Leaf) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Make the placeholders of ``forward`` and return the arguments that stand for them.

    Every tensor of the example inputs becomes a placeholder, or a getitem of one when it is nested; ``leaf(tensor,
    node)`` is what stands for it. Every other value is taken as a constant and guarded with
    :func:`fxcompress.ir.guards.expect_constant`.
    """
    signature = inspect.signature(forward)
    bound = signature.bind(*inputs.args, **inputs.kwargs)
    nodes = {p.name: _placeholder(graph, p) for p in _writable(signature)}
    for parameter in signature.parameters.values():
        name, node = parameter.name, nodes[parameter.name]
        if name in bound.arguments:
            bound.arguments[name] = _shadow(bound.arguments[name], node, name, leaf)
        elif parameter.kind in _PREFIX:
            _guard(node, () if parameter.kind is parameter.VAR_POSITIONAL else {}, name)
        else:
            _guard(node, parameter.default, name)
    return bound.args, bound.kwargs


def _writable(signature: inspect.Signature) -> list[inspect.Parameter]:
    """The parameters as torch.fx can write them: it has no keyword-only ones, so one that must be given after others that
    need not gets the default None."""
    found: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        late = parameter.kind is parameter.KEYWORD_ONLY and any(p.default is not p.empty for p in found)
        found.append(parameter.replace(default=None) if late and parameter.default is parameter.empty else parameter)
    return found


def _placeholder(graph: fx.Graph, parameter: inspect.Parameter) -> fx.Node:
    default: tuple[Any, ...] = ()
    if parameter.default is not parameter.empty and _storable(parameter.default):
        default = (parameter.default,)
    prefix = _PREFIX.get(parameter.kind, "")
    return graph.create_node("placeholder", prefix + parameter.name, default, {}, parameter.name)


def _storable(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_storable, value))
    if isinstance(value, dict):
        return all(isinstance(k, str) for k in value) and all(map(_storable, value.values()))
    return isinstance(value, _CONSTANTS) and not isinstance(value, Tensor)


def _guard(node: fx.Node, value: Any, name: str) -> None:
    if _storable(value):
        node.graph.create_node("call_function", expect_constant, (node, value, name))


def _shadow(value: Any, node: fx.Node, name: str, leaf: Leaf) -> Any:
    """The stand-in of one argument: leaves for tensors in the same containers, constants as they are."""
    if isinstance(value, Tensor):
        return leaf(value.detach(), node)
    if isinstance(value, (tuple, list, Mapping)) or (dataclasses.is_dataclass(value) and not isinstance(value, type)):
        return _shadow_container(value, node, name, leaf)
    _guard(node, value, name)
    return value


def _shadow_container(value: Any, node: fx.Node, name: str, leaf: Leaf) -> Any:
    def read(key: Any, item: Any) -> Any:
        fn = getattr if dataclasses.is_dataclass(value) and not isinstance(value, Mapping) else operator.getitem
        part = node.graph.create_node("call_function", fn, (node, key))
        return _shadow(item, part, f"{name}[{key!r}]", leaf)

    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(read(i, v) for i, v in enumerate(value)))
    if isinstance(value, (tuple, list)):
        return type(value)([read(i, v) for i, v in enumerate(value)])
    if isinstance(value, Mapping):
        items = {k: read(k, v) for k, v in value.items()}
        return items if type(value) is dict else type(value)(items)  # type: ignore[call-arg]
    return dataclasses.replace(value, **{f.name: read(f.name, getattr(value, f.name)) for f in dataclasses.fields(value) if f.init})


def output_argument(graph: fx.Graph, value: Any, leaf: Callable[[Any], Any]) -> Any:
    """What the model returned, as the argument of the output node; ``leaf`` gives the argument of a tensor or constant.

    Tuples, lists and dicts are nested as they are; a named tuple or a dataclass (also a transformers ``ModelOutput``)
    is a call of its class with keywords.

    Raises:
        StepFailed: the output holds something that cannot stand in a graph.
    """
    if isinstance(value, fx.Node):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
        fields = {k: output_argument(graph, v, leaf) for k, v in fields.items() if v is not None}
        return graph.create_node("call_function", type(value), (), fields)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        named = {k: output_argument(graph, v, leaf) for k, v in zip(value._fields, value, strict=True)}
        return graph.create_node("call_function", type(value), (), named)
    if type(value) in (tuple, list):
        return type(value)(output_argument(graph, v, leaf) for v in value)
    if isinstance(value, (tuple, list)):
        raise StepFailed(f"the output holds a {type(value).__name__}, which cannot stand in a graph")
    if isinstance(value, Mapping):
        if not all(isinstance(k, (str, int)) for k in value):
            raise StepFailed("the output is a dict whose keys are neither strings nor integers")
        return {k: output_argument(graph, v, leaf) for k, v in value.items()}
    return leaf(value)
