"""Targets by name, from the entry-point group ``fxcompress.targets``."""

from __future__ import annotations

import difflib
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from fxcompress.errors import TargetError
from fxcompress.targets.base import Target

GROUP = "fxcompress.targets"


@cache
def _entries() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def names() -> list[str]:
    """The names of all registered targets, the native one first."""
    return sorted(_entries(), key=lambda name: (name != "cpu", name))


def lookup(name: str) -> Target:
    """The target registered under ``name``.

    Raises:
        TargetError: there is none; the nearest known names are in the message.
    """
    entry = _entries().get(name)
    if entry is None:
        near = difflib.get_close_matches(name, names(), n=1) or names()
        raise TargetError(f"there is no target '{name}'", hint=f"did you mean {' or '.join(near)}? 'auto' races all that are installed")
    target: Target = entry.load()()
    return target


def usable(name: str) -> Target:
    """The target ``name``, ready to lower.

    Raises:
        TargetError: it is unknown or not installed; the message says what to install.
    """
    target = lookup(name)
    missing = target.missing()
    if missing is not None:
        raise TargetError(f"target '{name}' cannot be used: {missing}")
    return target
