"""The contract of a graph: what goes into and comes out of forward."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from fxcompress.compare.schema import Contract, Port

__all__ = ["UNKNOWN", "Missing", "contract_of", "dtype_name", "leaves", "structure", "varying"]

UNKNOWN = "unknown"
"""The dtype of a tensor that depends on data; its shape is ()."""

_TENSOR = "Tensor"


def contract_of(arguments: Mapping[str, Any], output: Any, signature: str, unknown: frozenset[str] = frozenset()) -> Contract:
    """What callers of a forward rely on.

    Args:
        arguments: by name. output: what it gives on them; :class:`Missing` stands for tensors of unknown shape.
        unknown: places in the output where the shape depends on data, too.
    """
    inputs = [_port(name.lstrip("*"), place, leaf) for name, value in arguments.items() for place, leaf in leaves(value) if _is_port(leaf)]
    given = [(place, Missing() if place in unknown else leaf) for place, leaf in leaves(output) if _is_port(leaf)]
    outputs = [_port(_name_of(place), place, leaf) for place, leaf in given]
    return Contract(tuple(inputs), tuple(outputs), signature, structure(output))


class Missing:
    """Stands for a value that cannot be known without data."""


def _is_port(leaf: Any) -> bool:
    return isinstance(leaf, (Tensor, Missing))


def _port(name: str, place: str, leaf: Any) -> Port:
    if isinstance(leaf, Missing):
        return Port(name, place, UNKNOWN, ())
    return Port(name, place, dtype_name(leaf), tuple(leaf.shape))


def varying(value: Any, other: Any) -> frozenset[str]:
    """The places of the tensors of ``value`` that have another shape or dtype in ``other``, or are not in it."""
    forms = {place: (leaf.shape, leaf.dtype) for place, leaf in leaves(other) if isinstance(leaf, Tensor)}
    tensors = ((place, leaf) for place, leaf in leaves(value) if isinstance(leaf, Tensor))
    return frozenset(place for place, leaf in tensors if forms.get(place) != (leaf.shape, leaf.dtype))


def dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _name_of(place: str) -> str:
    """The last name on the way to an output: "['aux']" is aux, "[0].scores" is scores, "" is output, "[1]" is output[1]."""
    if place.endswith("']"):
        return place[:-2].rpartition("['")[2]
    tail = place.rpartition("]")[2]
    return tail.rpartition(".")[2] if tail.startswith(".") else f"output{place}"


def leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of nested tuples, lists, dicts, named tuples and dataclasses, and its place: "[0]", "['boxes']", "[1].scores"."""
    items = _items(value)
    if items is None:
        yield place, value
        return
    for step, item in items:
        yield from leaves(item, place + step)


def _items(value: Any) -> list[tuple[str, Any]] | None:
    if isinstance(value, Mapping):
        return [(f"[{key!r}]", item) for key, item in value.items()]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return [(f".{name}", item) for name, item in zip(value._fields, value, strict=True)]
    if isinstance(value, (tuple, list)):
        return [(f"[{place}]", item) for place, item in enumerate(value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(f".{f.name}", getattr(value, f.name)) for f in dataclasses.fields(value)]
    return None


def structure(value: Any) -> str:
    """The structure of an output as a text: "{'out': Tensor, 'aux': (Tensor, None)}"."""
    items = _items(value)
    if items is None:
        return _TENSOR if _is_port(value) else _constant(value)
    if isinstance(value, Mapping) and not dataclasses.is_dataclass(value):
        return "{" + ", ".join(f"{key!r}: {structure(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(structure(item) for _, item in items)}]"
    if type(value) is tuple:
        return f"({', '.join(structure(item) for _, item in items)}{',' if len(items) == 1 else ''})"
    shown = ", ".join(f"{step.strip('.[]')}={structure(item)}" for step, item in items)
    return f"{type(value).__name__}({shown})"


def _constant(value: Any) -> str:
    return repr(value) if value is None or isinstance(value, (bool, int, float, str)) else type(value).__name__
