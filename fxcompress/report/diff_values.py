"""Values of a difference as people read them: what it was and is, by how much, and which words come from the model."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

from fxcompress.report import units

_LONGEST = 48


class Name(str):
    """A text that comes from the model or its file: a name, a kind, a value. Every form shows it as such, never as markup."""

    __slots__ = ()


Phrase = tuple[str, ...]
"""Pieces of one sentence; those of class Name come from the model, the others are ours."""


def plain(phrase: Phrase) -> str:
    """The sentence as one printable line."""
    return units.printable("".join(phrase))


def between(base: Any, head: Any) -> Phrase:
    """What it was and is: ("2", " -> ", "3"), with as many digits as tell the two apart."""
    was, now = value_text(base), value_text(head)
    if was == now:
        was, now = _apart(json.dumps(base, sort_keys=True, default=str), json.dumps(head, sort_keys=True, default=str))
    return (Name(was), " -> ", Name(now))


def _apart(was: str, now: str) -> tuple[str, str]:
    """Two long texts, cut to the part where they differ."""
    common = next((at for at, (a, b) in enumerate(zip(was, now, strict=False)) if a != b), min(len(was), len(now)))
    start = max(0, common - 8) if max(len(was), len(now)) > _LONGEST else 0
    mark = "..." if start else ""
    return units.clip(mark + was[start:], _LONGEST), units.clip(mark + now[start:], _LONGEST)


def value_text(value: Any, nested: bool = False) -> str:
    """A plain JSON value in a few words: (1, 1), 0.1, unset, "scale 0.02, zero point 3"."""
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)):
        return f"{value:.4g}" if isinstance(value, float) else str(value)
    if isinstance(value, str):
        return units.clip(_operand(value), _LONGEST)
    if isinstance(value, dict):
        inner = ", ".join(f"{str(key).replace('_', ' ')} {value_text(item, True)}" for key, item in value.items())
    else:
        inner = ", ".join(value_text(item, True) for item in value)
    short = units.clip(inner, _LONGEST - 2)
    return f"({short})" if nested or not isinstance(value, dict) else short


def _operand(text: str) -> str:
    """ "$2" stands for the third node that is read; a text that begins with "$" has one more."""
    if text.startswith("$$"):
        return text[1:]
    return f"operand {text[1:]}" if text.startswith("$") else text


def percent(amount: float) -> str:
    """A relative amount: 0.031 -> "3.1 %"."""
    if not math.isfinite(amount):
        return "without bound" if amount == math.inf else str(amount)
    return f"{100 * amount:.2g} %" if amount < 1 else f"{100 * amount:.0f} %" if amount < 1e4 else f"x{amount:.1e}"


def share(value: float) -> str:
    """A part of a whole: 1 -> "100 %", 0.9987 -> "99.87 %"; never 100 % for less than all."""
    text = f"{100 * value:.4g} %"
    return text if value >= 1 or text != "100 %" else "99.99 %"


def cosine(value: float) -> str:
    """Enough digits to see how far it is from 1."""
    return "1" if value >= 1 else "0.999999+" if value > 0.999999 else f"{value:.6f}".rstrip("0").rstrip(".")


def joined(phrases: Iterable[Phrase], by: str = ", ") -> Phrase:
    """One sentence of several."""
    pieces: list[str] = []
    for phrase in phrases:
        pieces += [*([by] if pieces else []), *phrase]
    return tuple(pieces)


def shorten(text: str, width: int) -> str:
    """The end of a long name, which says most, in printable characters."""
    flat = units.printable(text)
    return flat if len(flat) <= width else "..." + flat[3 - width :]


def dims(shape: Sequence[int]) -> str:
    """(1, 64, 56, 56) -> "1x64x56x56"."""
    return units.shape(shape)
