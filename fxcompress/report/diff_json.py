"""A difference as JSON and back. ``difference.schema.json`` beside this file describes the form."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from fxcompress.errors import ArchiveError
from fxcompress.ir.plain import from_plain, to_plain

if TYPE_CHECKING:
    from fxcompress.report.difference import Difference

_NOT_WRITTEN = "sides"


def encode(difference: Difference) -> str:
    """All of it except the drawings of both graphs; what is empty is an empty list or object."""
    data = {f.name: to_plain(getattr(difference, f.name)) for f in fields(difference) if f.name != _NOT_WRITTEN}
    if difference.numbers == type(difference.numbers)():
        data["numbers"] = {}
    return json.dumps(data, indent=1, allow_nan=False, ensure_ascii=False)


def decode(document: str, kind: type[Difference]) -> Difference:
    """Read what :func:`encode` wrote. ``kind``: the class of the result.

    Raises:
        ArchiveError: it is damaged, something else, or of a newer version.
    """
    try:
        data: Any = json.loads(document)
    except (ValueError, RecursionError) as error:
        raise _damaged(f"it is not JSON ({str(error)[:80]})") from None
    if not isinstance(data, dict) or type(data.get("schema_version")) is not int or _NOT_WRITTEN in data:
        raise _damaged("it has no schema_version")
    if data["schema_version"] > kind.schema_version:
        raise ArchiveError(
            f"the difference has schema version {data['schema_version']}; this fxcompress reads up to {kind.schema_version}",
            hint="update fxcompress: pip install -U fxcompress",
        )
    found: Difference = from_plain(data, kind, "difference", _damaged)
    return found


def _damaged(why: str) -> ArchiveError:
    return ArchiveError(f"the text is no difference: {why}", hint="give what `fxcompress diff --format json` wrote")
