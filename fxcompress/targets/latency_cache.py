"""Layer times that were measured before, in a small JSON file of the user."""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

_VERSION = 1


def cache_path(name: str = "latency.json") -> Path:
    """The file of this name in the directory that the platform has for caches (XDG base directories on Linux)."""
    home = Path.home()
    if sys.platform == "darwin":
        base = home / "Library" / "Caches"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    return base / "fxcompress" / name


def load(path: Path, machine: str) -> tuple[dict[str, float], str | None]:
    """(seconds by layer, None) as measured on ``machine``; where the file cannot be used, nothing and why."""
    try:
        return dict(_read(path).get(machine, {})), None
    except FileNotFoundError:
        return {}, None
    except (OSError, ValueError, RecursionError) as error:
        return {}, f"{path} is not used: {error}"


def save(path: Path, machine: str, seconds: dict[str, float]) -> str | None:
    """Add times to the file; None, or why that was not possible."""
    try:
        machines = _read(path)
    except (OSError, ValueError, RecursionError):  # missing, or damaged: written anew
        machines = {}
    machines[machine] = {**machines.get(machine, {}), **seconds}
    text = json.dumps({"version": _VERSION, "seconds": machines}, indent=1, sort_keys=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, suffix=".tmp", delete=False) as file:
            file.write(text)
        Path(file.name).replace(path)  # readers see the old file or the new one, never half of it
    except OSError as error:
        return f"the layer times could not be stored: {error}"
    return None


def _read(path: Path) -> dict[str, dict[str, float]]:
    """Raises OSError or ValueError (which the errors of JSON and of text encodings are)."""
    found: Any = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict) or found.get("version") != _VERSION or not isinstance(found.get("seconds"), dict):
        raise ValueError(f"it is no table of layer times of version {_VERSION}")
    for name, times in found["seconds"].items():
        if not isinstance(times, dict) or not all(isinstance(t, float) and 0 < t < math.inf for t in times.values()):
            raise ValueError(f"the times of '{name}' are damaged")
    machines: dict[str, dict[str, float]] = found["seconds"]
    return machines
