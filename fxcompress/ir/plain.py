"""Dataclasses of plain data as JSON values and back, without running anything that a file says."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Callable
from typing import Any

from fxcompress.errors import ArchiveError

_SPECIAL = ("inf", "-inf", "nan")

Fail = Callable[[str], ArchiveError]


def to_plain(value: Any, *, sparse: bool = False) -> Any:
    """A dataclass of plain data as what ``json`` writes. Infinities and NaN, which JSON lacks, become texts.

    Args:
        sparse: leave out the fields that have their default.

    Raises:
        TypeError: it holds something else than dataclasses, tuples, lists, dicts, numbers, texts and None.
    """
    if dataclasses.is_dataclass(value):
        fields = [f for f in dataclasses.fields(value) if not (sparse and getattr(value, f.name) == f.default)]
        return {f.name.rstrip("_"): to_plain(getattr(value, f.name), sparse=sparse) for f in fields}
    if isinstance(value, (tuple, list)):
        return [to_plain(item, sparse=sparse) for item in value]
    if isinstance(value, dict):
        return {str(key): to_plain(item, sparse=sparse) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"it holds plain data, not {type(value).__name__}")


def from_plain(data: Any, kind: Any, where: str, fail: Fail) -> Any:
    """``data`` as ``kind``: a dataclass, tuple[x, ...], tuple[x, y], a union of such, int, float, bool, str, or Any for it as it is.

    Args:
        where: what the data is called in a message.
        fail: makes the error from what is wrong.

    Raises:
        ArchiveError: (made by ``fail``) the data has another form.
    """
    if type(data) is kind or kind is Any:
        return data
    origin = typing.get_origin(kind)
    if dataclasses.is_dataclass(kind):
        return _dataclass(data, kind, where, fail)
    if origin is tuple and isinstance(data, list):
        return _tuple(data, typing.get_args(kind), where, fail)
    if origin in (types.UnionType, typing.Union):
        return _union(data, typing.get_args(kind), where, fail)
    if origin is typing.Literal and type(data) is str and data in typing.get_args(kind):
        return data
    if kind is float and (type(data) in (int, float) or (type(data) is str and data in _SPECIAL)):
        return float(data)
    raise fail(f"{where} is {json.dumps(data)[:40]}")


def _tuple(data: list[Any], items: tuple[Any, ...], where: str, fail: Fail) -> tuple[Any, ...]:
    if items[-1] is Ellipsis:
        return tuple(from_plain(part, items[0], f"{where}[{place}]", fail) for place, part in enumerate(data))
    if len(data) != len(items):
        raise fail(f"{where} has {len(data)} entries instead of {len(items)}")
    return tuple(from_plain(part, item, f"{where}[{place}]", fail) for place, (part, item) in enumerate(zip(data, items, strict=True)))


def _union(data: Any, kinds: tuple[Any, ...], where: str, fail: Fail) -> Any:
    if data is None and type(None) in kinds:
        return None
    wanted = [kind for kind in kinds if kind is not type(None)]
    exact = [kind for kind in wanted if type(data) is kind or (isinstance(data, list) and typing.get_origin(kind) is tuple)]
    return from_plain(data, (exact or wanted)[0], where, fail)


def _dataclass(data: Any, kind: Any, where: str, fail: Fail) -> Any:
    fields, hints = _fields(kind)
    if not isinstance(data, dict) or not set(data) <= set(fields):
        raise fail(f"{where} is no {kind.__name__}")
    values = {fields[key]: from_plain(part, hints[fields[key]], f"{where}.{key}", fail) for key, part in data.items()}
    try:
        return kind(**values)
    except TypeError:
        raise fail(f"{where} lacks parts of a {kind.__name__}") from None


@functools.cache
def _fields(kind: Any) -> tuple[dict[str, str], dict[str, Any]]:
    """The names of the fields in JSON with those in Python, and the types."""
    return {f.name.rstrip("_"): f.name for f in dataclasses.fields(kind)}, typing.get_type_hints(kind)
