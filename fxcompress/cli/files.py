"""Output files of the command line: checked before the work starts, complete or not there at all afterwards."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from fxcompress.errors import ArchiveError, InputError


def check_writable(path: Path | None) -> None:
    """Raise ArchiveError where a file ``path`` could not be written; None is no file."""
    if path is None:
        return
    folder = path.parent
    if path.is_dir():
        _refuse(path, "it is a folder", "give the name of a file")
    if not folder.is_dir():
        _refuse(path, f"there is no folder '{folder}'", f"mkdir -p '{folder}'")
    if not os.access(path if path.exists() else folder, os.W_OK):
        _refuse(path, "it is read-only", "choose a place that you may write to")


def check_folder(path: Path) -> None:
    """Raise ArchiveError where a folder ``path`` could not be made or written into."""
    if path.exists() and not path.is_dir():
        _refuse(path, "it is a file", "give the name of a folder")
    if not path.exists() and not path.absolute().parent.is_dir():
        _refuse(path, f"there is no folder '{path.parent}'", f"mkdir -p '{path.parent}'")
    if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        _refuse(path, "it is read-only", "choose a place that you may write to")


def check_suffix(path: Path | None, known: Iterable[str]) -> None:
    """Raise InputError where the end of a file's name does not say in which form to write it."""
    if path is not None and path.suffix.lower().lstrip(".") not in known:
        raise InputError(f"cannot tell the form of '{path}' from its name", hint=f"let it end in {', '.join('.' + k for k in known)}")


def write_text(path: Path, text: str) -> None:
    """Write a text file; it appears complete or not at all.

    Raises:
        ArchiveError: it cannot be written.
    """
    temporary = path.parent / f".{path.name[:100]}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        _refuse(path, error.strerror or str(error), "choose a place that you may write to")
    finally:
        with contextlib.suppress(OSError):  # nothing to remove after a success
            temporary.unlink()


def _refuse(path: Path, why: str, hint: str) -> NoReturn:
    raise ArchiveError(f"cannot write '{path}': {why}", hint=hint)
