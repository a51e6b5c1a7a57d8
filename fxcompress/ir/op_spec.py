"""What a row of the table of operations says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from torch import nn


class Trait(Enum):
    """What passes need to know of a kind of operation beyond its name."""

    ELEMENTWISE = "each output element depends on the elements at the same (broadcast) place only"
    VIEW = "the result may share memory with the input"
    MOVES = "only moves data"
    RANDOM = "draws random numbers when it is active"
    EFFECT = "does something besides giving a value"
    META = "gives sizes or types, not values"


@dataclass(frozen=True)
class OpSpec:
    kind: str
    operands: tuple[str, ...]
    defaults: tuple[tuple[str, Any], ...]
    modules: tuple[type[nn.Module], ...] = ()
    functions: tuple[Callable[..., Any], ...] = ()
    methods: tuple[str, ...] = ()
    names: tuple[str, ...] = ()  # functions of packages that are not imported here
    traits: frozenset[Trait] = frozenset()
    parameters: tuple[str, ...] = ()  # operands that a module owns as parameters or buffers


def op(
    kind: str,
    operands: str,
    *,
    modules: tuple[type[nn.Module], ...] = (),
    functions: tuple[Callable[..., Any], ...] = (),
    methods: str = "",
    names: str = "",
    traits: tuple[Trait, ...] = (),
    parameters: str = "",
    **defaults: Any,
) -> OpSpec:
    return OpSpec(
        kind,
        tuple(operands.split()),
        tuple(defaults.items()),
        modules,
        functions,
        tuple(methods.split()),
        tuple(names.split()),
        frozenset(traits),
        tuple(parameters.split()),
    )
