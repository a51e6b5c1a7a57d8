"""Sizes that remember where they come from.

While a model is traced, ``x.shape[0]`` is a :class:`TracedInt`: an ordinary ``int`` with the value that the example
inputs give, so that every comparison and every index works, and at the same time a recipe for graph nodes, so that
``x.view(x.shape[0], -1)`` stays right for another batch. Nodes are made only when a recorded operation uses the number.
"""

from __future__ import annotations

import builtins
import math
import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeGuard

if TYPE_CHECKING:
    from torch.fx import Node

    from fxcompress.capture.recorder import Recorder


class Traced:
    """What the traced int and the traced float have in common: a value, a recorder and a recipe for a node."""

    recorder: Recorder
    make: Callable[[], Node]
    made: Node | None

    def node(self) -> Node:
        """The node that computes this number (made at the first use)."""
        if self.made is None:
            self.made = self.make()
        return self.made

    def __bool__(self) -> bool:
        self.recorder.decided()
        return bool(plain(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(plain(self)), (plain(self),)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self

    def __hash__(self) -> int:
        return hash(plain(self))

    def __repr__(self) -> str:
        return repr(plain(self))

    def __str__(self) -> str:
        return str(plain(self))

    def __format__(self, spec: str) -> str:
        return format(plain(self), spec)


class TracedInt(Traced, int):
    """An integer read from the shape of a traced tensor."""


class TracedFloat(Traced, float):
    """A float computed from traced sizes."""


def is_traced(value: Any) -> TypeGuard[Traced]:
    return isinstance(value, Traced)


def plain(value: Any) -> Any:
    """The bare number of a traced one; anything else unchanged."""
    if isinstance(value, int) and isinstance(value, Traced):
        return int.__int__(value)
    if isinstance(value, float) and isinstance(value, Traced):
        return float.__float__(value)
    return value


def traced(value: Any, recorder: Recorder, make: Callable[[], Node]) -> Any:
    """``value`` as a traced number if it is an int or float; a bool or anything else stays plain."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    number: Any = TracedInt(value) if isinstance(value, int) else TracedFloat(value)
    number.recorder, number.make, number.made = recorder, make, None
    return number


def apply(fn: Callable[..., Any], *args: Any) -> Any:
    """``fn(*args)`` on the bare values, remembered as a call_function node."""
    value = fn(*map(plain, args))
    recorder = next(a.recorder for a in args if is_traced(a))
    return traced(value, recorder, lambda: recorder.compute(fn, args))


def _number(value: Any) -> bool:
    return isinstance(value, (int, float))


def _arithmetic(name: str) -> None:
    fn = getattr(operator, name)

    def forward(self: Any, other: Any) -> Any:
        return apply(fn, self, other) if _number(other) else NotImplemented

    def reflected(self: Any, other: Any) -> Any:
        return apply(fn, other, self) if _number(other) else NotImplemented

    bare = name.strip("_")
    setattr(TracedInt, f"__{bare}__", forward)
    setattr(TracedFloat, f"__{bare}__", forward)
    setattr(TracedInt, f"__r{bare}__", reflected)
    setattr(TracedFloat, f"__r{bare}__", reflected)


def _comparison(name: str) -> None:
    fn = getattr(operator, name)

    def compare(self: Any, other: Any) -> Any:
        if not _number(other):
            return NotImplemented
        self.recorder.decided()
        return fn(plain(self), plain(other))

    for cls in (TracedInt, TracedFloat):
        setattr(cls, f"__{name}__", compare)


def _unary(name: str, fn: Callable[..., Any]) -> None:
    def call(self: Any, *args: Any) -> Any:
        return apply(fn, self, *args)

    for cls in (TracedInt, TracedFloat):
        setattr(cls, f"__{name}__", call)


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow"):
    _arithmetic(_name)
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    _comparison(_name)
for _name, _fn in (
    ("neg", operator.neg), ("abs", abs), ("floor", math.floor), ("ceil", math.ceil), ("trunc", math.trunc), ("round", round),
):  # fmt: skip
    _unary(_name, _fn)


class _TracingNumber(type):
    """``int`` and ``float`` as traced code sees them: they keep a traced number traced, and are the builtins otherwise."""

    base: type

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and is_traced(args[0]) and not kwargs:
            if isinstance(args[0], cls.base):
                return args[0]
            return apply(cls.base, args[0])
        return cls.base(*args, **kwargs)

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, cls.base)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, cls.base)

    def __eq__(cls, other: object) -> bool:
        return other is cls or other is cls.base

    def __hash__(cls) -> int:
        return hash(cls.base)


class _Int(metaclass=_TracingNumber):
    base = builtins.int


class _Float(metaclass=_TracingNumber):
    base = builtins.float


NUMBER_SHIMS: dict[str, Any] = {"int": _Int, "float": _Float}


def traced_function(fn: Callable[..., Any]) -> Callable[..., Any]:
    """A function of numbers (``math.sqrt``) that remembers its call when an argument is traced."""

    def call(*args: Any) -> Any:
        return apply(fn, *args) if any(map(is_traced, args)) else fn(*args)

    call.__name__ = fn.__name__
    return call
