"""Plain values of a graph as JSON, and back.

``None``, ``bool``, ``int``, finite ``float`` and ``str`` stand for themselves; everything else is an object with
exactly one key, its tag: ``{"tuple": [1, 2]}``, ``{"dtype": "float32"}``, ``{"node": "conv1"}``, ...
"""

from __future__ import annotations

import keyword
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.fx import Node

from fxcompress.errors import ArchiveError, GraphError, InputError
from fxcompress.ir.activation import Activation
from fxcompress.quant.affine import QParams

MAX_DEPTH = 64
"""How deep values may be nested in an archive."""

_DEVICE = re.compile(r"[a-z]+(:[0-9]{1,4})?")
_ATOM = re.compile(r"[\w\-]+")
DTYPES = {str(v).removeprefix("torch."): v for v in vars(torch).values() if isinstance(v, torch.dtype)}
_MEMORY_FORMATS = {str(v).removeprefix("torch."): v for v in vars(torch).values() if isinstance(v, torch.memory_format)}
_LAYOUTS = {str(v).removeprefix("torch."): v for v in vars(torch).values() if isinstance(v, torch.layout)}
_TYPES: dict[str, type] = {t.__name__: t for t in (bool, int, float, complex, str)}


def damaged(what: str) -> ArchiveError:
    """The error for a file whose content no fxcompress would have written."""
    return ArchiveError(
        f"the file is not a valid archive: {what}", hint="it is damaged or was made by something else; save the model again"
    )


def is_identifier(text: object) -> bool:
    """Whether ``text`` may stand in generated code as a local variable (torch.fx names a call of ``__and__`` so)."""
    return isinstance(text, str) and text.isidentifier() and not keyword.iskeyword(text)


def is_name(text: object) -> bool:
    """Whether ``text`` may be the name of an argument or an attribute: an identifier that does not start with ``__``."""
    return is_identifier(text) and not str(text).startswith("__")


def is_path(text: object) -> bool:
    """Whether ``text`` is a dotted path of module names: letters, digits, ``_`` and ``-``; no dunder names."""
    return isinstance(text, str) and text.count(".") < MAX_DEPTH and all(is_atom(atom) for atom in text.split("."))


def is_atom(text: object) -> bool:
    return isinstance(text, str) and _ATOM.fullmatch(text) is not None and not text.startswith("__")


def encode(value: Any, depth: int = 0) -> Any:
    """The JSON form of a plain value or of nested tuples, lists and dicts of them.

    Raises:
        ArchiveError: a value is not plain data.
    """
    if depth > MAX_DEPTH:
        raise ArchiveError(f"values are nested deeper than {MAX_DEPTH}", hint="flatten them before saving")
    if value is None or type(value) in (bool, int, str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"float": str(float(value))}
    container = _encode_container(value, depth + 1)
    return _encode_leaf(value) if container is None else container


def _encode_container(value: Any, depth: int) -> dict[str, Any] | None:
    if isinstance(value, torch.Size):
        return {"size": [encode(v, depth) for v in value]}
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return {"tuple": [encode(v, depth) for v in value]}
    if isinstance(value, list):
        return {"list": [encode(v, depth) for v in value]}
    if isinstance(value, dict):
        return {"dict": [[encode(k, depth), encode(v, depth)] for k, v in value.items()]}
    if isinstance(value, slice):
        return {"slice": [encode(v, depth) for v in (value.start, value.stop, value.step)]}
    if isinstance(value, range):
        return {"range": [value.start, value.stop, value.step]}
    if isinstance(value, Activation):
        return {"activation": [value.name, [encode(v, depth) for v in value.args]]}
    if isinstance(value, QParams):
        return {"qparams": [value.scale, value.zero_point, value.bits]}
    return None


def _encode_leaf(value: Any) -> dict[str, Any]:
    if isinstance(value, Node):
        return {"node": value.name}
    if value is Ellipsis:
        return {"ellipsis": True}
    if type(value) is complex:
        return {"complex": [encode(value.real), encode(value.imag)]}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    for tag, kind in (("dtype", torch.dtype), ("memory_format", torch.memory_format), ("layout", torch.layout)):
        if isinstance(value, kind):
            return {tag: str(value).removeprefix("torch.")}
    if isinstance(value, type) and _TYPES.get(value.__name__) is value:
        return {"type": value.__name__}
    raise ArchiveError(
        f"a {type(value).__module__}.{type(value).__qualname__} cannot be saved",
        hint="only numbers, strings, None, dtypes, devices, slices and tuples, lists and dicts of them are stored",
    )


def decode(data: Any, nodes: Mapping[str, Node] | None = None, depth: int = 0) -> Any:
    """Undo :func:`encode`; ``nodes`` are the graph nodes that a value may refer to.

    Raises:
        ArchiveError: ``data`` is nothing that :func:`encode` gives, or names an unknown node.
    """
    if depth > MAX_DEPTH:
        raise damaged("values are nested too deep")
    if data is None or type(data) in (bool, int, float, str):
        return data
    if not isinstance(data, dict) or len(data) != 1:
        raise damaged("a value has no tag")
    ((tag, content),) = data.items()
    if tag == "node":
        if not isinstance(content, str) or content not in (nodes or {}):
            raise damaged(f"a node is read before it is computed: {str(content)[:80]!r}")
        return (nodes or {})[content]
    if tag == "dict":
        return dict(_pair(item, nodes, depth + 1) for item in _list(content))
    if tag in _SEQUENCES:
        return _sequence(tag, [decode(item, nodes, depth + 1) for item in _list(content)])
    if tag == "activation":
        return _activation(content)
    if tag == "qparams":
        return _qparams(content)
    return _leaf(tag, content)


def _list(content: Any) -> list[Any]:
    if not isinstance(content, list):
        raise damaged("a sequence is not a list")
    return content


def _pair(item: Any, nodes: Mapping[str, Node] | None, depth: int) -> tuple[Any, Any]:
    if not isinstance(item, list) or len(item) != 2:
        raise damaged("an entry of a dict is not a pair")
    key = decode(item[0], None, depth)
    try:
        hash(key)
    except TypeError:
        raise damaged("a key of a dict is not hashable") from None
    return key, decode(item[1], nodes, depth)


_SEQUENCES: dict[str, Callable[..., Any]] = {
    "tuple": tuple,
    "list": list,
    "size": torch.Size,
    "slice": slice,
    "range": range,
    "complex": complex,
}
_LENGTHS = {"slice": 3, "range": 3, "complex": 2}


def _sequence(tag: str, items: list[Any]) -> Any:
    if tag in ("tuple", "list"):
        return _SEQUENCES[tag](items)
    numbers = float if tag == "complex" else int
    if tag == "size" and any(type(item) is int and abs(item) >= 2**63 for item in items):
        raise damaged("a size is too large")
    if (tag != "slice" and any(type(item) is not numbers for item in items)) or len(items) != _LENGTHS.get(tag, len(items)):
        raise damaged(f"a {tag} has the wrong items")
    try:
        return torch.Size(items) if tag == "size" else _SEQUENCES[tag](*items)
    except (ValueError, OverflowError, TypeError, RuntimeError) as error:
        raise damaged(f"a {tag} has the wrong items: {error}") from None


def _activation(content: Any) -> Activation:
    if not isinstance(content, list) or len(content) != 2 or not isinstance(content[0], str):
        raise damaged("an activation has the wrong form")
    args = tuple(decode(item, None, 1) for item in _list(content[1]))
    if any(type(arg) not in (int, float, str) for arg in args):
        raise damaged("an activation has the wrong arguments")
    try:
        return Activation(content[0], args)
    except GraphError as error:
        raise damaged(error.message[:200]) from None


def _qparams(content: Any) -> QParams:
    if not isinstance(content, list) or [type(item) for item in content] != [float, int, int]:
        raise damaged("a quantization has the wrong form")
    try:
        return QParams(*content)
    except (InputError, OverflowError) as error:
        raise damaged(str(error).splitlines()[0][:200]) from None


def _leaf(tag: str, content: Any) -> Any:
    tables: dict[str, Mapping[str, Any]] = {
        "dtype": DTYPES,
        "memory_format": _MEMORY_FORMATS,
        "layout": _LAYOUTS,
        "type": _TYPES,
        "float": {"inf": math.inf, "-inf": -math.inf, "nan": math.nan},
    }
    if tag == "ellipsis" and content is True:
        return ...
    if tag == "device" and isinstance(content, str) and _DEVICE.fullmatch(content):
        try:
            return torch.device(content)
        except RuntimeError:
            raise damaged(f"there is no device {content!r}") from None
    if isinstance(content, str) and content in tables.get(tag, {}):
        return tables[tag][content]
    raise damaged(f"unknown value {str(tag)[:40]}:{str(content)[:40]!r}")
