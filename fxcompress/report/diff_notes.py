"""What a change means, in a few words that say more than the two values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fxcompress.report.difference import Change, Channels, Place

_SHOWN = 8  # channels that are named one by one
_KINDS = 4  # kinds that are named one by one on either side of a group


def note(change: Change) -> str:
    """What is to be said of ``change`` beside what it was and is; "" for nothing."""
    if change.what == "dtype":
        return _dtype(change.base, change.head)
    if change.what == "quantization":
        return _quantization(change.base, change.head)
    if change.what == "tensor":
        return _tensor(change)
    return ""


def _dtype(base: Any, head: Any) -> str:
    was, now = _bits(base), _bits(head)
    if was is None or now is None or was == now:
        return ""
    return "widened" if now > was else "narrowed"


def _bits(dtype: Any) -> int | None:
    """float32 -> 32; None for what is not said in bits."""
    found = re.search(r"\d+$", dtype) if isinstance(dtype, str) else None
    return 8 if dtype == "bool" else int(found.group()) if found else None


def _quantization(base: Any, head: Any) -> str:
    if head is None:
        return f"a value in {base['bits']} bits became float"
    if base is None:
        return f"a float value became one in {head['bits']} bits"
    if base["bits"] != head["bits"]:
        return "widened" if head["bits"] > base["bits"] else "narrowed"
    return ""


def _tensor(change: Change) -> str:
    if change.base is None or change.head is None:
        return ""
    parts = [_dtype(change.base["dtype"], change.head["dtype"])]
    told = {channels.dim for channels in change.channels}
    parts += [_channels(channels, change.name) for channels in change.channels]
    parts += [
        f"dimension {dim}: {old} -> {new}"
        for dim, (old, new) in enumerate(zip(change.base["shape"], change.head["shape"], strict=False))
        if old != new and dim not in told
    ]
    if change.estimated:
        parts.append("estimated")
    return ", ".join(part for part in parts if part)


def _channels(channels: Channels, name: str) -> str:
    what = "input channel" if channels.dim == 1 else "channel"
    parts = [(channels.removed, "removed"), (channels.added, "added")]
    return ", ".join(f"{_listed(what, places)} {done}" for places, done in parts if places)


def _listed(what: str, places: Sequence[int]) -> str:
    """(3, 7, 12) -> "channels 3, 7 and 12"; many by their number."""
    if len(places) == 1:
        return f"{what} {places[0]}"
    if len(places) > _SHOWN:
        shown = ", ".join(map(str, places[:_SHOWN]))
        return f"{len(places)} {what}s ({shown}, ...)"
    return f"{what}s {', '.join(map(str, places[:-1]))} and {places[-1]}"


def group_kind(base: Sequence[Place], head: Sequence[Place]) -> str:
    """What became what: "conv + bn + relu -> conv+relu"."""
    return f"{_kinds(base)} -> {_kinds(head)}"


def _kinds(places: Sequence[Place]) -> str:
    kinds = [place.kind for place in places]
    if len(kinds) <= 2 * _KINDS:
        return " + ".join(kinds) or "nothing"
    return f"{' + '.join(kinds[:_KINDS])} + ... ({len(kinds)} nodes)"
