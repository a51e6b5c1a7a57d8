"""Budgets of ``fxcompress check`` as people write them in a table: a limit, or several, or one with a message."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fxcompress.compare.limits import QUANTITIES, Form, Limit, nearest, parse
from fxcompress.errors import InputError
from fxcompress.report import units

_SAME = ("approved", "same")
WORDS = {
    "topology": _SAME,
    "attributes": _SAME,
    "weights": _SAME,
    "quantization": _SAME,
    "dtypes": ("no-widen", "same"),
    "contract": _SAME,
}
"""Gates whose limit is a word. "approved" and "same": as in the baseline; "no-widen": nothing may take more bits than there."""

NAMES = (*WORDS, *QUANTITIES)
"""All gates."""


@dataclass(frozen=True)
class Budget:
    """One limit, and what to tell the person who goes beyond it."""

    name: str
    limit: Limit | str
    message: str = ""

    @property
    def needs_baseline(self) -> bool:
        """Whether it says something without a baseline."""
        return not isinstance(self.limit, Limit) or self.limit.form is not Form.ABSOLUTE or self.name in ("sqnr", "top1")


def budgets(table: Mapping[str, object], where: str) -> tuple[Budget, ...]:
    """The limits of a table: a value, a list of values that all have to hold, or ``{limit = ..., message = "..."}`` in their place.

    Args:
        where: the table's name, for messages.

    Raises:
        InputError: a gate is not known, or its limit cannot be read.
    """
    found: list[Budget] = []
    for name, value in table.items():
        if name not in NAMES:
            raise InputError(f"there is no gate '{units.clip(name, 60)}' in {where}", hint=nearest(name, NAMES, "gates"))
        values = value if isinstance(value, list) else [value]
        if not values:
            raise InputError(f"the gate {name} in {where} has no limit", hint="write one, or take the line away")
        found += [_budget(name, one, where) for one in values]
    return tuple(found)


def _budget(name: str, value: object, where: str) -> Budget:
    message = ""
    if isinstance(value, dict):
        for key in value:
            if key not in ("limit", "message"):
                raise InputError(
                    f"there is no '{units.clip(str(key), 60)}' in {where}.{name}", hint=nearest(str(key), ("limit", "message"), "keys")
                )
        if "limit" not in value:
            raise InputError(f"{where}.{name} has no limit", hint='write {limit = "...", message = "..."}')
        message, value = value.get("message", ""), value["limit"]
        if not isinstance(message, str):
            raise InputError(f"the message of {where}.{name} is no text", hint='write message = "..."')
    try:
        return Budget(name, _word(name, value) if name in WORDS else parse(name, value), message)
    except InputError as error:
        raise InputError(f"{where}: {error.message}", hint=error.hint) from None


def _with_message(table: Mapping[str, object], where: str) -> tuple[object, str]:
    unknown = [key for key in table if key not in ("limit", "message")]
    if unknown:
        raise InputError(f"there is no '{units.clip(unknown[0], 60)}' in {where}", hint=nearest(unknown[0], ("limit", "message"), "keys"))
    message = table.get("message", "")
    if "limit" not in table or not isinstance(message, str):
        raise InputError(f"{where} has no limit, or its message is no text", hint='write {limit = "...", message = "..."}')
    return table["limit"], message


def _word(name: str, value: object) -> str:
    if value not in WORDS[name] or not isinstance(value, str):
        known = " or ".join(f'"{word}"' for word in WORDS[name])
        raise InputError(f"cannot read {name} = {units.clip(repr(value), 60)}", hint=f"write {known}")
    return value
