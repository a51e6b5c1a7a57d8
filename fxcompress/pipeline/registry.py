"""Passes by name. All of them, the built-in ones too, come through the entry-point group ``fxcompress.passes``."""

from __future__ import annotations

import difflib
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from fxcompress.errors import PipelineError, UnknownPassError
from fxcompress.pipeline.base import Pass

GROUP = "fxcompress.passes"


@cache
def _entries() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def names() -> list[str]:
    """The names of all registered passes, sorted."""
    return sorted(_entries())


def lookup(name: str) -> type[Pass]:
    """The pass registered under ``name``.

    Raises:
        UnknownPassError: nobody registered it; the nearest known names are in the message.
        PipelineError: it is registered but cannot be imported, or is no pass.
    """
    entry = _entries().get(name)
    if entry is None:
        near = difflib.get_close_matches(name, names(), n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else "`fxcompress passes` lists the known ones"
        raise UnknownPassError(f"there is no pass '{name}'", hint=hint)
    try:
        found = entry.load()
    except Exception as error:  # a plugin may fail in any way; the message says whose fault it is
        raise PipelineError(
            f"pass '{name}' cannot be loaded from {entry.value}: {error}", hint="reinstall or remove that plugin"
        ) from error
    if not (isinstance(found, type) and issubclass(found, Pass)):
        raise PipelineError(f"entry point '{name}' ({entry.value}) is not a subclass of fxcompress.Pass")
    return found
