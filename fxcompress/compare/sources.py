"""Lines of the user's code, written so that they are the same in every checkout."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path, PurePath

__all__ = ["portable"]

_PACKAGES = ("site-packages", "dist-packages")


def portable(source: str | None) -> str | None:
    """ "file:line" with forward slashes, relative to the folder of installed packages, else to the repository that the file is in, else to
    the working directory; as it is when it is in none of them."""
    if source is None:
        return None
    path, colon, line = source.rpartition(":")
    return f"{_relative(path)}:{line}" if colon else source


@lru_cache(maxsize=4096)
def _relative(path: str) -> str:
    parts = PurePath(path).parts
    home = max((place for place, part in enumerate(parts) if part in _PACKAGES), default=-1)
    if home >= 0:
        return "/".join(parts[home + 1 :])
    base = _repository(Path(path).parent) or Path.cwd()
    inside = PurePath(path).is_absolute() and Path(path).is_relative_to(base)
    return (Path(path).relative_to(base) if inside else PurePath(path)).as_posix()


@lru_cache(maxsize=4096)
def _repository(folder: Path) -> Path | None:
    return next((above for above in (folder, *folder.parents) if (above / ".git").exists()), None)
