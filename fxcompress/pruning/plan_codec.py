"""Plans as JSON and back. The same plan gives the same bytes in every process; reading runs and imports nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fxcompress.errors import ArchiveError
from fxcompress.ir.plain import from_plain, to_plain
from fxcompress.pruning import ranges
from fxcompress.pruning.plan_data import PlanGroup, PlanPart

if TYPE_CHECKING:
    from fxcompress.pruning.plan import PruningPlan

SCHEMA_VERSION = 1
"""Version of the document's form; a reader refuses newer ones."""

MAX_BYTES = 256 * 2**20
"""Longer documents are not read."""

T = TypeVar("T")


def encode(plan: PruningPlan) -> str:
    """The plan as text, one line per group, pinned axis and so on, so that two plans can be compared line by line."""
    document = {"schema_version": SCHEMA_VERSION, "fingerprint": plan.fingerprint, "plan": to_plain(plan, sparse=True)}
    return _layout(document, 0) + "\n"


def _layout(value: Any, depth: int) -> str:
    """JSON in which objects and lists that hold objects are spread over lines, down to one line per group."""
    inner, outer = " " * (depth + 1), " " * depth
    if depth >= _SPREAD or not _holds_objects(value):
        return json.dumps(value, allow_nan=False)
    if isinstance(value, dict):
        lines = [f"{inner}{json.dumps(key)}: {_layout(item, depth + 1)}" for key, item in value.items()]
        return "{\n" + ",\n".join(lines) + f"\n{outer}}}"
    lines = [inner + _layout(item, depth + 1) for item in value]
    return "[\n" + ",\n".join(lines) + f"\n{outer}]"


_SPREAD = 5  # document, plan, list of parts, part, list of groups


def _holds_objects(value: Any) -> bool:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(isinstance(item, dict) or (isinstance(value, dict) and _holds_objects(item)) for item in items)


def decode(text: str, kind: type[T]) -> T:
    """Read text that :func:`encode` made of an object of class ``kind``.

    Raises:
        ArchiveError: it is damaged, too long, something else, or of a newer version; where one group is at fault the
            message names it.
    """
    if len(text) > MAX_BYTES:
        raise _damaged(f"it has {len(text)} characters; at most {MAX_BYTES} are read")
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _damaged(f"it is not JSON ({str(error)[:80]})") from None
    version = data.get("schema_version") if isinstance(data, dict) else None
    if type(version) is not int:
        raise _damaged("it has no schema_version")
    if version > SCHEMA_VERSION:
        raise ArchiveError(
            f"the plan has schema version {version}; this fxcompress reads up to {SCHEMA_VERSION}",
            hint="update fxcompress: pip install -U fxcompress",
        )
    if set(data) != {"schema_version", "fingerprint", "plan"}:
        raise _damaged(f"it has the entries {sorted(map(str, data))}")
    try:
        plan = from_plain(data["plan"], kind, "plan", _damaged)
    except RecursionError:
        raise _damaged("it is nested too deeply") from None
    if plan.fingerprint != data["fingerprint"]:
        raise _damaged("its nodes and tensors are not those of its fingerprint")
    return plan


def write(text: str, path: str | os.PathLike[str]) -> None:
    """Write a document, all of it or nothing.

    Raises:
        ArchiveError: the file cannot be written.
    """
    place = Path(path)
    part = place.with_name(f".{place.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8", newline="\n")
        part.replace(place)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise ArchiveError(f"the plan cannot be written to {place}: {error.strerror}") from error


def read(path: str | os.PathLike[str]) -> str:
    """The text of a file.

    Raises:
        ArchiveError: there is no such file, it is too large or no text.
    """
    place = Path(path)
    try:
        if place.stat().st_size > MAX_BYTES:
            raise _damaged(f"{place} has {place.stat().st_size} bytes; at most {MAX_BYTES} are read")
        return place.read_text(encoding="utf-8")
    except OSError as error:
        raise ArchiveError(
            f"the plan {place} cannot be read: {error.strerror}", hint="write one with fxcompress plan SPEC -o FILE, or plan.save(path)"
        ) from error
    except UnicodeDecodeError:
        raise _damaged(f"{place} is no text") from None


# -- what can be checked without a graph ---------------------------------------------------------------------------------


def check(parts: Iterable[PlanPart]) -> None:
    """Look for contradictions inside a plan.

    Raises:
        ArchiveError: there is one; the message names the group.
    """
    parts = tuple(parts)
    if not parts or len({part.path for part in parts}) != len(parts):
        raise _damaged("it has no parts, or two of the same path")
    for part in parts:
        names = [group.name for group in part.groups]
        twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
        if twice is not None:
            raise _damaged(f"two groups are called '{twice}'")
        for group in part.groups:
            try:
                _check_group(group)
            except ValueError as error:
                raise _damaged(f"group '{group.name}': {error}") from None


def _check_group(group: PlanGroup) -> None:
    kept = _count(group.kept, group.channels)
    if len(group.importance) not in (0, group.channels):
        raise ValueError(f"{len(group.importance)} importances for {group.channels} channels")
    if not group.slots:
        raise ValueError("it has no slots")
    for slot in group.slots:
        own = _count(slot.channels, slot.size)
        left = _count(slot.kept, own)
        if own % max(group.channels, 1) or left * group.channels != own * kept:
            place = f"axis {slot.axis} of '{slot.parameter}'"
            raise ValueError(f"{kept} of {group.channels} channels are kept, but {left} of {own} indices of {place}")
        if slot.axis < 0:
            raise ValueError(f"'{slot.parameter}' has no axis {slot.axis}")


def _count(text: str, size: int) -> int:
    """How many indices a text names; all must lie in an axis of ``size``."""
    runs = ranges.parse(text)
    if runs and runs[-1][1] >= size:
        raise ValueError(f"index {runs[-1][1]} of {size}")
    return ranges.count(text)


def _damaged(why: str) -> ArchiveError:
    return ArchiveError(f"this is no valid pruning plan: {why}", hint="give the text that PruningPlan.to_json() or save() made")
