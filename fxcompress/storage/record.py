"""What a loaded model returns where the saved one returned an object of a class of its own.

A dataclass or a Hugging Face ``ModelOutput`` comes back as a :class:`Record`, a named tuple as a named tuple of the same
fields. So a file can be read where the class is not installed; methods of the class and its ``__post_init__`` are gone.
"""

from __future__ import annotations

import dataclasses
from collections import namedtuple
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from torch.utils import _pytree as pytree

from fxcompress.errors import ArchiveError


class Record(dict[str, Any]):
    """Named values, read as ``record.logits``, ``record["logits"]`` or ``record[0]``; a dict in every other respect.

    ``kind`` is the name of the class it stands for. As in a ``ModelOutput``, fields that are None are no keys, but
    can be read as attributes.
    """

    __slots__ = ("fields", "kind", "skip_none")

    def __init__(self, kind: str, names: tuple[str, ...], values: tuple[Any, ...], skip_none: bool = False) -> None:
        super().__init__((n, v) for n, v in zip(names, values, strict=True) if not (skip_none and v is None))
        self.kind = kind
        self.fields = names
        self.skip_none = skip_none

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        if not name.startswith("_") and name in self.fields:
            return None
        raise AttributeError(f"{self.kind} has no field {name!r}; it has {', '.join(self.fields)}")

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else self.to_tuple()[key]

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(self.values())

    def __reduce__(self) -> tuple[Any, ...]:
        return Record, (self.kind, self.fields, tuple(self.get(name) for name in self.fields), self.skip_none)

    def __repr__(self) -> str:
        return f"{self.kind}({', '.join(f'{k}={v!r}' for k, v in self.items())})"


def _flatten(record: Record) -> tuple[list[Any], tuple[Any, ...]]:
    return list(record.values()), (record.kind, record.fields, record.skip_none, tuple(record))


def _unflatten(values: Iterable[Any], context: Any) -> Record:
    kind, fields, skip_none, keys = context
    given = dict(zip(keys, values, strict=True))
    return Record(kind, fields, tuple(given.get(name) for name in fields), skip_none)


# So that torch.utils._pytree sees the tensors in a record, as it does in a ModelOutput.
pytree.register_pytree_node(Record, _flatten, _unflatten, serialized_type_name="fxcompress.Record")

FORMS = ("dataclass", "mapping", "namedtuple")


def record(form: str, kind: str, names: tuple[str, ...], values: tuple[Any, ...]) -> Any:
    """Build the record of one call; ``form`` is one of :data:`FORMS`. Stands in loaded graphs for the user's class."""
    if form == "namedtuple":
        return _tuple_type(kind, tuple(names))(*values)
    return Record(kind, tuple(names), tuple(values), form == "mapping")


@lru_cache(maxsize=256)
def _tuple_type(kind: str, names: tuple[str, ...]) -> Any:
    return namedtuple(kind, names)


def form_of(cls: Any) -> str | None:
    """How objects of a class can be stored by their fields; None when they cannot."""
    if not isinstance(cls, type):
        return None
    if dataclasses.is_dataclass(cls):
        return "mapping" if issubclass(cls, dict) else "dataclass"
    return "namedtuple" if issubclass(cls, tuple) and hasattr(cls, "_fields") else None


def fields_of(cls: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Field -> value of the call ``cls(*args, **kwargs)`` with the class's defaults filled in.

    Raises:
        ArchiveError: the call does not fit the class, or a field has no plain default.
    """
    if dataclasses.is_dataclass(cls):
        names = [f.name for f in dataclasses.fields(cls) if f.init]
        defaults = {f.name: f.default for f in dataclasses.fields(cls) if f.default is not dataclasses.MISSING}
    else:
        names, defaults = list(cls._fields), dict(cls._field_defaults)
    values = {**defaults, **dict(zip(names, args, strict=False)), **kwargs}
    if len(args) > len(names) or set(values) != set(names):
        raise ArchiveError(
            f"a call of {cls.__qualname__} does not give all of its fields ({', '.join(names)})",
            hint="give every field in the model's forward, or return a tuple or a dict",
        )
    return {name: values[name] for name in names}
