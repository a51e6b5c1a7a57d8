"""From functions to their names in an archive and back, by a fixed table.

Nothing is imported or looked up by a name from a file other than through this table.
"""

from __future__ import annotations

import builtins
import math
import operator
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch._ops import OpOverload, OpOverloadPacket
from torch.nn import functional

from fxcompress.errors import ArchiveError
from fxcompress.ir.guards import expect_constant
from fxcompress.storage import names
from fxcompress.storage.record import record

RECORD = "fxcompress.record"


def _table() -> Iterator[tuple[str, Any]]:
    plain: list[tuple[str, ModuleType, Iterable[str]]] = [
        ("torch", torch, (*names.TENSOR, *(f"{name}_" for name in names.TENSOR), *names.TORCH)),
        ("torch.nn.functional", functional, names.FUNCTIONAL),
        ("operator", operator, names.OPERATOR),
        ("math", math, names.MATH),
        ("builtins", builtins, names.BUILTINS),
        ("torch.special", torch.special, names.NAMESPACES["torch.special"]),
        ("torch.linalg", torch.linalg, names.NAMESPACES["torch.linalg"]),
        ("torch.fft", torch.fft, names.NAMESPACES["torch.fft"]),
    ]
    for prefix, module, members in plain:
        yield from ((f"{prefix}.{name}", getattr(module, name)) for name in members if hasattr(module, name))
    yield from (("torch.Size", torch.Size), ("torch.device", torch.device), ("torch.finfo", torch.finfo), ("torch.iinfo", torch.iinfo))
    yield from (("fxcompress.expect_constant", expect_constant), (RECORD, record))


@cache
def _functions() -> dict[str, Callable[..., Any]]:
    return dict(_table())


@cache
def _names() -> dict[Any, str]:
    # The first of several names of one function is its name: torch.relu before torch.nn.functional.relu.
    known: dict[Any, str] = {}
    for name, function in _functions().items():
        known.setdefault(function, name)
    return known


@cache
def _overload_bases() -> dict[str, frozenset[str]]:
    in_place = (f"{name}_" for name in names.TENSOR)
    aten = frozenset((*names.TENSOR, *in_place, *names.TORCH, *names.FUNCTIONAL, *names.ATEN, *names.METHODS))
    return {"aten": aten, "mkldnn": frozenset(names.MKLDNN)}


@cache
def _methods() -> frozenset[str]:
    return frozenset((*names.TENSOR, *(f"{name}_" for name in names.TENSOR), *names.METHODS))


def is_method(name: object) -> bool:
    """Whether a graph may call a method of this name."""
    return isinstance(name, str) and name in _methods()


def is_attribute(name: object) -> bool:
    """Whether a graph may read an attribute of this name with getattr."""
    return isinstance(name, str) and name in names.ATTRIBUTES


def function_name(function: Any) -> str | None:
    """The archive's name of a function; None when it has none."""
    if isinstance(function, OpOverload):
        namespace, base = function.namespace, function._opname
        return f"torch.ops.{namespace}.{base}.{function._overloadname}" if base in _overload_bases().get(namespace, ()) else None
    if isinstance(function, OpOverloadPacket):
        namespace, _, base = function._qualified_op_name.partition("::")
        return f"torch.ops.{namespace}.{base}" if base in _overload_bases().get(namespace, ()) else None
    try:
        return _names().get(function)
    except TypeError:  # unhashable callables are in no table
        return None


def function_of(name: str) -> Any:
    """The function of an archive's name.

    Raises:
        ArchiveError: the name is not in the table, or this torch does not have it.
    """
    if name in _functions():
        return _functions()[name]
    if name.startswith("torch.ops."):
        return _operator(name)
    raise ArchiveError(
        f"the file calls '{name[:80]}', which archives may not call",
        hint="if it is a function of yours, pass it: load(path, allow=(the_function,)); else do not trust the file",
    )


def _operator(name: str) -> Any:
    namespace, _, rest = name.removeprefix("torch.ops.").partition(".")
    base, _, overload = rest.partition(".")
    if base not in _overload_bases().get(namespace, ()):
        raise ArchiveError(f"the file calls '{name[:80]}', which archives may not call", hint="do not trust the file")
    try:
        packet = getattr(getattr(torch.ops, namespace), base)
    except AttributeError:
        packet = None
    if packet is None or (overload and overload not in packet.overloads()):
        raise ArchiveError(
            f"torch {torch.__version__} has no operator '{name[:80]}'", hint="load with the torch that the file names, or a newer one"
        )
    return getattr(packet, overload) if overload else packet
