"""The one table of operations: every form of an operation, its kind and the names of its operands.

A row says how an operation may be written (nn module, function, method) and what its operands are called, in the
order of the functional form; a module's operands beyond its tensor inputs are attributes of the same name. A new
operation is taught here and nowhere else. An operation without a row is *unknown*: passes treat it as a barrier.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from fxcompress.ir import op_layers, op_places, op_values
from fxcompress.ir.op_spec import OpSpec, Trait

__all__ = ["OpSpec", "OpTable", "Trait", "table"]


def _rows() -> Iterator[OpSpec]:
    for part in (op_layers, op_values, op_places):
        yield from part.rows()


@dataclass(frozen=True)
class OpTable:
    """The rows, indexed by every form."""

    modules: dict[type, OpSpec]
    functions: dict[Any, OpSpec]
    methods: dict[str, OpSpec]
    names: dict[str, OpSpec]


@cache
def table() -> OpTable:
    indexed = OpTable({}, {}, {}, {})
    for row in _rows():
        indexed.modules.update(dict.fromkeys(row.modules, row))
        indexed.functions.update(dict.fromkeys(row.functions, row))
        indexed.methods.update(dict.fromkeys(row.methods, row))
        indexed.names.update(dict.fromkeys(row.names, row))
    return indexed
