"""The file: safetensors, with one metadata entry that holds the version, a digest and the JSON document.

``{"schema":1,"sha256":"<64 hex digits>","document":{...}}``; the digest covers the document's text and the
tensors. One entry only, because the order of several is not the same in every run.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fxcompress.errors import ArchiveError
from fxcompress.storage.values import damaged

SCHEMA = 1
"""Version of the document's form; a reader refuses newer ones."""

MAX_DOCUMENT = 64 * 2**20
"""Size limit of the document, in bytes."""

ENTRY = "fxcompress"
_FRAME = re.compile(r'\{"schema":([0-9]{1,9}),"sha256":"([0-9a-f]{64})","document":')


def write_file(path: Path, document: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write an archive; the file appears complete or not at all.

    Raises:
        ArchiveError: the file cannot be written there, or the document is too large.
    """
    body = json.dumps(document, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
    if len(body) > MAX_DOCUMENT:
        raise ArchiveError(
            f"the graph takes {len(body) >> 20} MiB as text; the limit is {MAX_DOCUMENT >> 20}", hint="save parts of the model separately"
        )
    alone = _unshared(tensors)
    entry = f'{{"schema":{SCHEMA},"sha256":"{digest(body, alone)}","document":{body}}}'
    with _temporary(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # what the user's umask allows; safetensors would let only the owner read
        save_file(alone, str(temporary), metadata={ENTRY: entry})
        temporary.chmod(mode)
        os.replace(temporary, path)


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    if os.path.isdir(path):
        _cannot_write(path, "it is a directory")
    if os.path.exists(path) and not os.access(path, os.W_OK):
        _cannot_write(path, "it is read-only")
    temporary = path.parent / f".{path.name[:100]}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
    try:
        yield temporary
    except (OSError, ValueError, SafetensorError) as error:
        _cannot_write(path, str(error))
    finally:
        with contextlib.suppress(OSError, ValueError):  # nothing to remove after a success
            temporary.unlink()


def _cannot_write(path: Path, why: str) -> NoReturn:
    raise ArchiveError(f"cannot write '{path}': {why}", hint="save to a file in an existing directory that you may write to") from None


def _unshared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, copied where two lie in one block of memory (safetensors refuses those)."""
    owners: set[int] = set()
    alone = {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        shared = storage.nbytes() != tensor.nbytes or storage.data_ptr() in owners
        owners.add(storage.data_ptr())
        alone[name] = tensor.clone() if shared else tensor
    return alone


def digest(body: str, tensors: dict[str, Tensor]) -> str:
    """sha256 over the document's text and the tensors (name, type, shape, bytes), in the order of their names."""
    state = hashlib.sha256(f"{SCHEMA}\n{body}\n".encode())
    for name in sorted(tensors):
        state.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}\n".encode())
        state.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


def read_file(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The document and the tensors of an archive, after its version and digest have been checked.

    Raises:
        ArchiveError: there is no such file, or it is not an undamaged archive of a known version.
    """
    if not os.path.exists(path):  # unlike Path.exists, False for names that no file can have
        raise ArchiveError(f"there is no file '{path}'", hint="check the path")
    if not os.path.isfile(path):
        raise ArchiveError(f"'{path}' is not a file", hint="give the path of a file written by save")
    try:
        entry, tensors = _read(path)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ArchiveError(
            f"'{path.name}' is not a complete archive ({first[:200]})",
            hint="it is truncated, damaged or another kind of file; save the model again",
        ) from None
    return _document(entry, tensors), tensors


def _read(path: Path) -> tuple[str, dict[str, Tensor]]:
    with safe_open(str(path), framework="pt") as file:
        metadata = file.metadata() or {}
        if set(metadata) != {ENTRY}:
            raise ValueError("a safetensors file, but not one of fxcompress")
        # Cloned: what safe_open gives lies in the mapped file and would change with it.
        return metadata[ENTRY], {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118


def _document(entry: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    frame = _FRAME.match(entry)
    if frame is None or not entry.endswith("}") or len(entry) > MAX_DOCUMENT + frame.end() + 1:
        raise damaged("the header has the wrong form")
    schema, expected = int(frame[1]), frame[2]
    if schema > SCHEMA:
        raise ArchiveError(
            f"the file has schema {schema}; this fxcompress reads up to {SCHEMA}", hint="update fxcompress: pip install -U fxcompress"
        )
    body = entry[frame.end() : -1]
    if schema != SCHEMA or digest(body, tensors) != expected:
        raise ArchiveError(
            "the file does not match its checksum", hint="it was damaged or changed after it was written; save the model again"
        )
    return parse(body)


def parse(body: str) -> dict[str, Any]:
    """JSON text of a document; no duplicate keys, no NaN, bounded depth.

    Raises:
        ArchiveError: it is not that.
    """
    try:
        document = json.loads(body, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise damaged(f"the document is not JSON ({str(error)[:100]})") from None
    if not isinstance(document, dict):
        raise damaged("the document is not an object")
    return document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key appears twice")
    return result


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")
