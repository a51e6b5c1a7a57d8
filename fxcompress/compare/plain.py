"""Values of settings and operands as JSON, the same in every process."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from fxcompress.compare.schema import Json
from fxcompress.ir.activation import Activation
from fxcompress.storage.functions import function_name

__all__ = ["MAX_INT", "called", "plain"]

MAX_INT = 2**64
"""Larger integers become texts."""

_TEXTS = (torch.dtype, torch.device, torch.memory_format, torch.layout, Activation)


def plain(value: Any, place: Callable[[Node], str], digest: Callable[[Tensor], str]) -> Json:
    """``value`` as JSON.

    Tuples become lists, what JSON lacks becomes a text or a dict: ``inf``, dtypes, devices, activations, slices. Anything else is named by
    its class.

    Args:
        place: what stands for a node ("$2"); a text that begins with "$" gets one more.
        digest: what stands for a tensor.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Node):
        return place(value)
    if isinstance(value, str) and not isinstance(value, Enum):
        return f"${value}" if value.startswith("$") else str(value)
    if isinstance(value, int) and not isinstance(value, Enum):
        return int(value) if abs(value) < MAX_INT else str(int(value))
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, _TEXTS):
        return str(value).removeprefix("torch.")
    if isinstance(value, Tensor):
        return f"tensor {digest(value)}"
    return _container(value, lambda item: plain(item, place, digest))


def _container(value: Any, inner: Callable[[Any], Json]) -> Json:
    if isinstance(value, (tuple, list)):
        return [inner(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((inner(item) for item in value), key=repr)
    if isinstance(value, dict):
        if all(isinstance(key, str) for key in value):
            return {key: inner(item) for key, item in value.items()}
        return [[inner(key), inner(item)] for key, item in value.items()]
    if isinstance(value, slice):
        return _slice(value, inner)
    if isinstance(value, range):
        return {"range": [value.start, value.stop, value.step]}
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: inner(getattr(value, f.name)) for f in fields(value) if not f.name.startswith("_")}
    return _word(value)


def _slice(value: slice, inner: Callable[[Any], Json]) -> Json:
    parts = [inner(part) for part in (value.start, value.stop, value.step)]
    if any(isinstance(part, str) for part in parts):
        return {"slice": parts}
    shown = ":".join("" if part is None else str(part) for part in parts)
    return shown.removesuffix(":") if value.step is None else shown


def _word(value: Any) -> str:
    if value is Ellipsis:
        return "..."
    if isinstance(value, Enum):
        return f"{type(value).__name__}.{value.name}"
    if isinstance(value, complex):
        return str(value)
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    return called(value) if callable(value) else f"a {type(value).__qualname__}"


def called(function: Any) -> str:
    """The name of a function or class as text that is the same in every process."""
    known = function_name(function)
    if known is not None:
        return known
    name = getattr(function, "__qualname__", None) or getattr(function, "__name__", None)
    if name is None:
        return f"a {type(function).__qualname__}"
    home = getattr(function, "__module__", None) or "builtins"
    return f"{home}.{name}"
