"""Snapshots as text and back.

The text is JSON with sorted keys, one node and one tensor on a line, so that the diff of two files can be read. Left out are fields that
have their default, the origins of a node that has its own name for one, and a source file that is the one before (":146"). dtype and
shape are one text, "float32[64,3,7,7]". A sketch is base85 of its numbers as little-endian float32: norm, max_abs, buckets; "count:"
stands before it where the count is not the number of elements of the tensors. Reading builds plain data only, and every field of it is
checked: nothing that a file says is run, imported or looked up.
"""

from __future__ import annotations

import json
import os
from base64 import b85encode
from collections.abc import Iterable
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from fxcompress.compare import codec_fields as fields_of
from fxcompress.compare.codec_fields import damaged, elements
from fxcompress.compare.schema import SCHEMA_VERSION, NodeRecord, OutputPrint, Sketch, Snapshot, TensorRecord, Value
from fxcompress.errors import ArchiveError

__all__ = ["SUFFIX", "decode", "encode", "read", "write"]

SUFFIX = ".fxs"
"""Of snapshot files."""

MAX_BYTES = 2**28
"""Larger files are refused unread."""

FORMAT = "fxcompress snapshot"


def encode(snapshot: Snapshot) -> str:
    """The text of a snapshot; ``live`` is not in it. The same snapshot gives the same text.

    Raises:
        ArchiveError: an attribute holds something that JSON does not have.
    """
    try:
        parts = [f"{_line(key)}: {_block(value)}" for key, value in sorted(_document(snapshot).items())]
    except (TypeError, ValueError) as error:
        raise ArchiveError(
            f"the snapshot cannot be written: {error}", hint="attributes are None, numbers, texts, lists and dicts"
        ) from None
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _block(value: Any) -> str:
    if isinstance(value, list):
        return "[\n" + ",\n".join(_line(item) for item in value) + "\n]" if value else "[]"
    return _line(value)


def _line(value: Any) -> str:
    return json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":"))


def _document(snapshot: Snapshot) -> dict[str, Any]:
    tensors = [{**_form(t), **_sparse(t, "sketch", "dtype", "shape"), "sketch": packed(t.sketch, elements(t))} for t in snapshot.tensors]
    numbers = snapshot.numbers
    return {
        **_sparse(snapshot, "live", "nodes", "tensors", "numbers"),
        "format": FORMAT,
        "nodes": _nodes(snapshot.nodes),
        "tensors": tensors,
        "schema_version": snapshot.schema_version,
        **({} if numbers is None else {"numbers": {**_sparse(numbers), "outputs": [_output(one) for one in numbers.outputs]}}),
    }


def _nodes(nodes: tuple[NodeRecord, ...]) -> list[dict[str, Any]]:
    """The source file is written where it is another one than that of the last node which has one."""
    found, file = [], ""
    for node in nodes:
        record = _node(node)
        last, colon, line = (node.source or "").rpartition(":")
        if colon and last == file:
            record["source"] = f":{line}"
        file = last if colon else file
        found.append(record)
    return found


def _node(node: NodeRecord) -> dict[str, Any]:
    found = _sparse(node, "print", "outputs", "origins", *(() if node.target else ("target",)))
    if node.outputs:
        found["outputs"] = [_value(value) for value in node.outputs]
    if node.print is not None:
        found["print"] = packed(node.print, sum(map(elements, node.outputs)))
    return found if node.origins == (node.name,) else {**found, "origins": list(node.origins)}


def _value(value: Value) -> str | dict[str, Any]:
    """A text where there is no grid."""
    form: dict[str, str] = _form(value)
    return form["type"] if value.grid is None else {**form, "grid": _sparse(value.grid)}


def _form(tensor: Value | TensorRecord) -> dict[str, str]:
    return {"type": f"{tensor.dtype}[{','.join(map(str, tensor.shape))}]"}


def _output(output: OutputPrint) -> dict[str, Any]:
    return {**_sparse(output), "sketch": packed(output.sketch), "sample": floats(output.sample)}


def _sparse(value: Any, *left_out: str) -> Any:
    """Dataclasses as dicts without the fields that have their default."""
    if is_dataclass(value) and not isinstance(value, type):
        items = ((f, getattr(value, f.name)) for f in fields(value) if f.name not in left_out)
        return {f.name: _sparse(item) for f, item in items if item != _default(f)}
    return [_sparse(item) for item in value] if isinstance(value, tuple) else value


def _default(field: Any) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default


def packed(sketch: Sketch, expected: int | None = None) -> str:
    text = floats((sketch.norm, sketch.max_abs, *sketch.buckets))
    return text if sketch.count == expected else f"{sketch.count}:{text}"


def floats(values: Iterable[float]) -> str:
    """Numbers as base85 of little-endian float32."""
    with np.errstate(over="ignore"):
        return b85encode(np.array(tuple(values), dtype="<f4").tobytes()).decode()


def decode(text: str) -> Snapshot:
    """Read what :func:`encode` has made.

    Raises:
        ArchiveError: it is damaged, no snapshot, or of a newer version.
    """
    if len(text) > MAX_BYTES:
        raise damaged(f"it has {len(text)} characters")
    try:
        document = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise damaged(f"it is not JSON ({str(error)[:80]})") from None
    if not isinstance(document, dict) or document.pop("format", None) != FORMAT:
        raise damaged("it does not say that it is one")
    version = document.get("schema_version")
    if type(version) is not int or version < 1:
        raise damaged("it has no schema_version")
    if version > SCHEMA_VERSION:
        raise ArchiveError(
            f"the snapshot has schema version {str(version)[:20]}; this fxcompress reads up to {SCHEMA_VERSION}",
            hint="update fxcompress: pip install -U fxcompress",
        )
    return fields_of.snapshot(document)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key appears twice")
    return result


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


def read(path: str | os.PathLike[str]) -> Snapshot:
    """The snapshot in a file.

    Raises:
        ArchiveError: the file cannot be read, or is no sound snapshot.
    """
    where = Path(path)
    try:
        size = where.stat().st_size
        if size > MAX_BYTES:
            raise damaged(f"'{where}' has {size} bytes")
        text = where.read_bytes().decode("utf-8")
    except OSError as error:
        raise ArchiveError(
            f"cannot read '{where}': {error.strerror}", hint="fxcompress snapshot SPEC --input ... -o FILE makes one"
        ) from None
    except UnicodeDecodeError:
        raise damaged(f"'{where}' is not text") from None
    try:
        return decode(text)
    except ArchiveError as error:
        raise ArchiveError(f"'{where}': {error.message}", hint=error.hint) from None


def write(snapshot: Snapshot, path: str | os.PathLike[str]) -> None:
    """Write ``snapshot`` to a file, as a whole or not at all; an existing one is replaced.

    Raises:
        ArchiveError: it cannot be written.
    """
    where = Path(path)
    text = encode(snapshot)
    partial = where.with_name(f".{where.name}.{os.getpid()}.tmp")
    try:
        partial.write_bytes(text.encode("utf-8"))
        partial.replace(where)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ArchiveError(f"cannot write '{where}': {error.strerror}", hint="check the folder and its permissions") from None
