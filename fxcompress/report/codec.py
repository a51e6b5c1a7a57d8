"""Reports as JSON and back. Infinities and NaN, which JSON does not have, are the texts "inf", "-inf" and "nan"."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from fxcompress.errors import ArchiveError
from fxcompress.ir.plain import from_plain, to_plain

SCHEMA_VERSION = 1
"""Version of the document's form; a reader refuses newer ones."""

T = TypeVar("T")


def encode(value: Any) -> str:
    """A dataclass of plain data as JSON text."""
    return json.dumps({"schema_version": SCHEMA_VERSION, "report": to_plain(value)}, indent=1, allow_nan=False, ensure_ascii=False)


def decode(document: str, kind: type[T]) -> T:
    """Read text that :func:`encode` made of an object of class ``kind``.

    Raises:
        ArchiveError: it is damaged, something else, or of a newer version.
    """
    try:
        data = json.loads(document)
    except (ValueError, RecursionError) as error:
        raise _damaged(f"it is not JSON ({str(error)[:80]})") from None
    if not isinstance(data, dict) or not isinstance(data.get("schema_version"), int):
        raise _damaged("it has no schema_version")
    if data["schema_version"] > SCHEMA_VERSION:
        raise ArchiveError(
            f"the report has schema version {data['schema_version']}; this fxcompress reads up to {SCHEMA_VERSION}",
            hint="update fxcompress: pip install -U fxcompress",
        )
    built: T = from_plain(data.get("report"), kind, "report", _damaged)
    return built


def _damaged(why: str) -> ArchiveError:
    return ArchiveError(f"the text is no report: {why}", hint="give the text that Report.to_json() made")
