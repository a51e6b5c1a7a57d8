"""Reports as JSON and back. Infinities and NaN, which JSON does not have, are the texts "inf", "-inf" and "nan"."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from typing import Any, TypeVar

from fxcompress.errors import ArchiveError

SCHEMA_VERSION = 1
"""Version of the document's form; a reader refuses newer ones."""

T = TypeVar("T")
_SPECIAL = ("inf", "-inf", "nan")


def encode(value: Any) -> str:
    """A dataclass of plain data as JSON text."""
    return json.dumps({"schema_version": SCHEMA_VERSION, "report": _plain(value)}, indent=1, allow_nan=False, ensure_ascii=False)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {f.name.rstrip("_"): _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a report holds plain data, not {type(value).__name__}")


def decode(document: str, kind: type[T]) -> T:
    """Read text that :func:`encode` made of an object of class ``kind``.

    Raises:
        ArchiveError: it is damaged, something else, or of a newer version.
    """
    try:
        data = json.loads(document)
    except (ValueError, RecursionError) as error:
        raise _damaged(f"it is not JSON ({str(error)[:80]})") from None
    if not isinstance(data, dict) or not isinstance(data.get("schema_version"), int):
        raise _damaged("it has no schema_version")
    if data["schema_version"] > SCHEMA_VERSION:
        raise ArchiveError(
            f"the report has schema version {data['schema_version']}; this fxcompress reads up to {SCHEMA_VERSION}",
            hint="update fxcompress: pip install -U fxcompress",
        )
    built: T = _build(data.get("report"), kind, "report")
    return built


def _build(data: Any, kind: Any, where: str) -> Any:
    """``data`` as ``kind``: a dataclass, tuple[x, ...], x | None, int, float, bool or str."""
    origin = typing.get_origin(kind)
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(data, kind, where)
    if origin is tuple and isinstance(data, list):
        item = typing.get_args(kind)[0]
        return tuple(_build(part, item, f"{where}[{place}]") for place, part in enumerate(data))
    if origin in (types.UnionType, typing.Union):
        wanted = next(arg for arg in typing.get_args(kind) if arg is not type(None))
        return None if data is None else _build(data, wanted, where)
    if kind is float and (data in _SPECIAL or type(data) in (int, float)):
        return float(data)
    if type(data) is kind:
        return data
    raise _damaged(f"{where} is {json.dumps(data)[:40]}")


def _build_dataclass(data: Any, kind: Any, where: str) -> Any:
    fields = {f.name.rstrip("_"): f for f in dataclasses.fields(kind)}
    if not isinstance(data, dict) or not set(data) <= set(fields):
        raise _damaged(f"{where} is no {kind.__name__}")
    hints = typing.get_type_hints(kind)
    values = {fields[key].name: _build(part, hints[fields[key].name], f"{where}.{key}") for key, part in data.items()}
    try:
        return kind(**values)
    except TypeError:
        raise _damaged(f"{where} lacks parts of a {kind.__name__}") from None


def _damaged(why: str) -> ArchiveError:
    return ArchiveError(f"the text is no report: {why}", hint="give the text that Report.to_json() made")
