"""Passes as text and back: ``fold-norm,prune-select{ratio=0.5,ignore=["head"]}``."""

from __future__ import annotations

import ast
import dataclasses
import re
import types
import typing
from collections.abc import Iterator, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any

from fxcompress.errors import PipelineError, UnknownPassError

if TYPE_CHECKING:
    from fxcompress.pipeline.base import Pass

_WORD = re.compile(r"[A-Za-z_][\w.-]*")
_OPEN, _CLOSE = "{[(", "}])"


def split(text: str) -> Iterator[str]:
    """The parts of ``text`` between commas that stand outside brackets and quotes.

    Raises:
        PipelineError: a bracket or quote is not closed.
    """
    depth, quote, part, escaped = 0, "", "", False
    for char in text:
        if escaped:
            escaped = False
        elif quote:
            escaped = char == "\\"
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char in _OPEN:
            depth += 1
        elif char in _CLOSE:
            depth -= 1
        if char == "," and depth == 0 and not quote:
            yield part.strip()
            part = ""
        else:
            part += char
    if depth or quote:
        raise PipelineError(f"a bracket or quote is not closed in '{text}'", hint="write options as name{option=value,other=value}")
    yield part.strip()


def parse_call(text: str) -> tuple[str, dict[str, str]]:
    """``name{a=1,b=x}`` -> ("name", {"a": "1", "b": "x"})."""
    name, brace, rest = text.partition("{")
    if not brace:
        return name.strip(), {}
    if not rest.endswith("}"):
        raise PipelineError(f"cannot read '{text}'", hint="write options as name{option=value,other=value}")
    options = {}
    for item in split(rest[:-1]):
        key, equals, value = item.partition("=")
        if item and not equals:
            raise PipelineError(f"option '{item}' of '{name}' has no value", hint=f"write {name}{{{item}=VALUE}}")
        if item:
            options[key.strip()] = value.strip()
    return name.strip(), options


def build(kind: type[Pass], options: dict[str, str]) -> Pass:
    """Make a pass from the text of its options, checked against the types of its fields."""
    values = field_values(kind, f"pass '{kind.name}'", options)
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise PipelineError(f"pass '{kind.name}' refuses its options: {error}") from error


def field_values(kind: type[Any], called: str, options: dict[str, str]) -> dict[str, Any]:
    """The values of a dataclass's fields from their texts. ``called``: how messages call the dataclass.

    Raises:
        UnknownPassError: it has no such field. PipelineError: a value has the wrong type.
    """
    fields = {f.name: f for f in dataclasses.fields(kind) if f.init}
    hints = typing.get_type_hints(kind)
    values = {}
    for key, text in options.items():
        if key not in fields:
            known = f"its options are {', '.join(fields)}" if fields else "it has no options"
            raise UnknownPassError(f"{called} has no option '{key}'", hint=known)
        values[key] = _convert(text, hints[key], f"{called.removeprefix('pass ').strip(chr(39))}{{{key}={text}}}")
    return values


def _convert(text: str, hint: Any, where: str) -> Any:
    converted = _fit(_read(text), hint)
    if converted is _MISFIT:
        choices = typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()
        kind = " | ".join(map(str, choices)) or getattr(hint, "__name__", hint)
        raise PipelineError(
            f"{where}: {text!r} is not of type {kind}", hint=f"write one of {', '.join(map(str, choices))}" if choices else None
        )
    return converted


def _read(text: str) -> Any:
    """A Python literal, a list of values in square brackets, or a bare word."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        if text.startswith("[") and text.endswith("]"):
            return [_read(item) for item in split(text[1:-1]) if item]
        return {"true": True, "false": False, "none": None}.get(text.lower(), text)


_MISFIT = object()


def _fit(value: Any, hint: Any) -> Any:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return next((fit for arg in typing.get_args(hint) if (fit := _fit(value, arg)) is not _MISFIT), _MISFIT)
    if origin is tuple:
        return _fit_tuple(value if isinstance(value, (tuple, list)) else (value,), typing.get_args(hint))
    if origin is typing.Literal:
        known = typing.get_args(hint)
        value = "none" if value is None and None not in known else value  # the word, not the value
        return value if value in known else _MISFIT
    if isinstance(hint, type) and issubclass(hint, Enum):
        return next((member for member in hint if value in (member.name, member.name.lower(), member.value)), _MISFIT)
    if hint is float and type(value) is int:
        return float(value)
    if hint is Any or (type(value) is hint) or (hint in (None, type(None)) and value is None):
        return value
    return str(value) if hint is str and value is not None and not isinstance(value, (tuple, list, dict)) else _MISFIT


def _fit_tuple(values: Sequence[Any], hints: tuple[Any, ...]) -> Any:
    """``tuple[x, ...]`` takes any number of values, ``tuple[x, y]`` one of each."""
    if hints[-1] is Ellipsis:
        hints = hints[:1] * len(values)
    items = [_fit(value, hint) for value, hint in zip(values, hints, strict=False)]
    return _MISFIT if len(values) != len(hints) or any(item is _MISFIT for item in items) else tuple(items)


def pass_text(step: Pass) -> str:
    """The text from which an equal pass can be parsed; options at their default are left out."""
    parts = []
    for f in dataclasses.fields(step):
        value = getattr(step, f.name)
        default = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
        if f.init and value != default:
            parts.append(f"{f.name}={_value_text(value)}")
    return step.name + (f"{{{','.join(parts)}}}" if parts else "")


def _value_text(value: Any) -> str:
    if isinstance(value, Enum):
        return value.name.lower()
    if isinstance(value, tuple):
        return "[" + ",".join(_value_text(item) for item in value) + "]"
    if isinstance(value, str):
        return value if _WORD.fullmatch(value) and value.lower() not in ("true", "false", "none") else repr(value)
    return repr(value)
