"""Limits as people write them: ``"3.0 MB"``, ``"1.2 GMACs"``, ``"+0.5%"``, ``"35 dB"``."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction

from fxcompress.errors import InputError
from fxcompress.pruning.options import UNITS

_AMOUNT = re.compile(r"(?P<sign>[+-]?)(?P<number>[0-9]+(?:_[0-9]+)*(?:\.[0-9]+)?)\s*(?P<unit>[A-Za-zµ%]*)")
_LONGEST = 60  # characters of a limit; a longer one is no number that anybody means


class Form(Enum):
    """What a limit stands for: a value, a share of the baseline's value, or a distance to the baseline's value."""

    ABSOLUTE = "absolute"
    SHARE = "share"
    DISTANCE = "distance"


@dataclass(frozen=True)
class Quantity:
    """Something that can be limited.

    Attributes:
        units: size of each unit by its name in lower case.
        examples: what may be written, for messages.
        most: the limit is the largest value that is allowed; otherwise the smallest.
        relative: it may be compared with the baseline's.
        plain: a number without a unit has a meaning.
    """

    name: str
    units: dict[str, float]
    examples: str
    most: bool = True
    relative: bool = True
    plain: bool = True


_BYTES = '"3.0 MB", "3.0 MiB", "+0.5%" or "+100 kB"'
QUANTITIES = {
    quantity.name: quantity
    for quantity in (
        Quantity("params", UNITS["params"], '"11.7 M", 11_700_000 or "+0.5%"'),
        Quantity("macs", UNITS["macs"], '"1.2 GMACs" or "+0.5%"'),
        Quantity("weight_bytes", UNITS["bytes"], _BYTES),
        Quantity("peak_bytes", UNITS["bytes"], _BYTES),
        Quantity("latency", {name: size for name, size in UNITS["latency"].items() if name}, '"12 ms" or "+5%"', plain=False),
        Quantity("sqnr", {"": 1.0, "db": 1.0}, '"35 dB"', most=False, relative=False),
        Quantity("top1", {"%": 0.01}, '"99%"', most=False, relative=False, plain=False),
    )
}
"""Everything that has a limit with a number, by its name. Latency counts in seconds, top1 as a share."""


@dataclass(frozen=True)
class Limit:
    """``value``: in the units of its quantity, or a share (0.005 for "+0.5%"). ``text``: as written, with its ``unit`` of ``size``."""

    quantity: Quantity
    text: str
    value: Fraction
    form: Form = Form.ABSOLUTE
    unit: str = ""
    size: float = 1.0

    def bound(self, base: float = 0.0) -> Fraction:
        """The largest (or smallest) value that is allowed when the baseline has ``base``."""
        if self.form is Form.SHARE:
            return Fraction(base) * (1 + self.value)
        return self.value if self.form is Form.ABSOLUTE else Fraction(base) + self.value

    def holds(self, value: float, base: float = 0.0) -> bool:
        """Whether ``value`` is allowed; what is no number never is."""
        if not math.isfinite(value):
            return value == math.inf and not self.quantity.most
        return Fraction(value) <= self.bound(base) if self.quantity.most else Fraction(value) >= self.bound(base)

    def shown(self, value: float, base: float = 0.0) -> str:
        """``value`` as the limit is written, with as many digits as it takes to see on which side of the limit it lies."""
        if not math.isfinite(value):
            return f"{value} {self.unit}".rstrip()
        if self.form is Form.ABSOLUTE:
            return self._written(Fraction(value), self.value, self.size, self.unit)
        change = Fraction(value) - Fraction(base)
        if self.form is Form.DISTANCE:
            return self._written(change, self.value, self.size, self.unit, "+")
        if base == 0:
            return "+0%" if value == 0 else "from 0"
        return self._written(change / Fraction(base), self.value, 0.01, "%", "+")

    def __str__(self) -> str:
        return f"at {'most' if self.quantity.most else 'least'} {self.text}"

    @staticmethod
    def _written(value: Fraction, limit: Fraction, size: float, unit: str, sign: str = "") -> str:
        number = decimal(value / Fraction(size), limit / Fraction(size), sign)
        return f"{number}{'' if unit in ('', '%') else ' '}{unit}"


def decimal(value: Fraction, limit: Fraction, sign: str = "") -> str:
    """``value`` with three significant digits, or more where it would else seem to be at the limit or on the other side of it.

    >>> decimal(Fraction(30004, 10000), Fraction(3))
    '3.0004'
    """
    digits = 0 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
    for places in range(min(digits, 6), 13):
        text = f"{float(value):{sign}.{places}f}"
        if _side(Fraction(text), limit) == _side(value, limit):
            return text
    return f"{float(value):{sign}.12f}"


def _side(value: Fraction, limit: Fraction) -> int:
    return (value > limit) - (value < limit)


def parse(quantity: str, written: object) -> Limit:
    """The limit that ``written`` (a text, or a number where that has a meaning) sets to a quantity of ``QUANTITIES``.

    Raises:
        InputError: it cannot be read; the message says what to write.
    """
    kind = QUANTITIES[quantity]
    if isinstance(written, (int, float)) and not isinstance(written, bool) and kind.plain and 0 <= written < 1e300:
        unit = "dB" if "db" in kind.units else ""
        return Limit(kind, f"{written:,} {unit}".rstrip(), Fraction(written), unit=unit)
    found = _AMOUNT.fullmatch(written.strip()) if isinstance(written, str) and len(written) <= _LONGEST else None
    if found is None:
        raise InputError(f"cannot read the limit {quantity} = {_quoted(written)}", hint=f"write {kind.examples}")
    sign, unit = found["sign"], found["unit"]
    value = Fraction(found["number"]) * (-1 if sign == "-" else 1)
    if sign and not kind.relative:
        raise _wrong(quantity, written, "a sign means relative to the baseline, which has no meaning here", f"write {kind.examples}")
    if unit == "%" and kind.relative:
        return _share(kind, str(written), sign, value)
    size = kind.units.get(unit.lower())
    if size is None or not (unit or kind.plain):
        raise _wrong(quantity, written, f"there is no unit '{unit}'" if unit else "it needs a unit", _units(kind, unit))
    if "%" in kind.units and value > 100:
        raise _wrong(quantity, written, "a share is at most 100%", f"write {kind.examples}")
    form = Form.DISTANCE if sign else Form.ABSOLUTE
    return Limit(kind, str(written).strip(), value * Fraction(str(size)), form, unit, size)


def _share(kind: Quantity, text: str, sign: str, value: Fraction) -> Limit:
    if not sign:
        number = text.strip().rstrip("% ")
        hint = f'write "+{number}%" for at most {number}% more than the baseline, or "-{number}%" for at least {number}% less'
        raise _wrong(kind.name, text, "a share of the baseline has a sign", hint)
    if value < -100:
        raise _wrong(kind.name, text, "nothing can shrink by more than 100%", f"write {kind.examples}")
    return Limit(kind, text.strip(), value / 100, Form.SHARE, "%", 0.01)


def _wrong(name: str, written: object, why: str, hint: str) -> InputError:
    return InputError(f"the limit {name} = {_quoted(written)}: {why}", hint=hint)


def _quoted(written: object) -> str:
    text = f'"{written}"' if isinstance(written, str) else str(written)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _units(kind: Quantity, unit: str) -> str:
    near = difflib.get_close_matches(unit.lower(), [name for name in kind.units if name], n=1)
    meant = f"did you mean '{near[0]}'? " if near else ""
    return f"{meant}write {kind.examples}"


def nearest(name: str, known: Iterable[str], what: str) -> str:
    """A hint for an unknown ``name``: what was probably meant, and all that there is. ``what``: how to call them ("gates")."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return (f"did you mean '{near[0]}'? " if near else "") + f"the {what} are {', '.join(names)}"
