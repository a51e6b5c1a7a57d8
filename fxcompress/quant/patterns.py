"""Which layers a user's patterns name."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

__all__ = ["fits"]


def fits(name: str, patterns: Iterable[str]) -> bool:
    """Whether one of ``patterns`` (``fnmatch``) fits the dotted ``name`` or the name of a module around it."""
    parts = name.split(".")
    names = [".".join(parts[: n + 1]) for n in range(len(parts))]
    return any(fnmatchcase(candidate, pattern) for pattern in patterns for candidate in names)
