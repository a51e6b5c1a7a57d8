"""From the JSON of a snapshot to its records: every field is checked by type and range."""

from __future__ import annotations

import math
import re
from base64 import b85decode
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from fxcompress.compare.ports import UNKNOWN
from fxcompress.compare.schema import (
    Contract,
    Cost,
    Grid,
    Json,
    NodeRecord,
    Numbers,
    OutputPrint,
    Port,
    Sketch,
    Snapshot,
    TensorRecord,
    Value,
)
from fxcompress.errors import ArchiveError
from fxcompress.storage.values import DTYPES

__all__ = ["damaged", "elements", "snapshot"]

MAX_NODES = 1_000_000
MAX_TEXT = 10_000
MAX_DEPTH = 32
MAX_RANK = 64
MAX_BUCKETS = 1024
_SIZE = 2**63 - 1
_COUNT = 2**100
"""Of multiply-adds and bytes of all activations: products of sizes."""

_FORM = re.compile(r"([a-z0-9_]{1,40})\[((?:\d{1,19},)*\d{1,19})?\]", re.ASCII)

_SURROGATE = re.compile("[\ud800-\udfff]")
"""Half a character: no file or terminal can show it."""

T = TypeVar("T")
D = TypeVar("D")


def damaged(why: str) -> ArchiveError:
    return ArchiveError(f"the file is no snapshot: {why}", hint="it is damaged or something else; make it again with fxcompress snapshot")


class Fields:
    """The fields of one JSON object. Whoever has read all it knows calls :meth:`end`, so that nothing unknown slips by."""

    def __init__(self, data: Any, where: str) -> None:
        if not isinstance(data, dict):
            raise damaged(f"{where} is no object")
        self._data, self._where, self._read = data, where, set[str]()

    def get(self, name: str, read: Callable[[Any, str], T]) -> T:
        """The field ``name``, which must be there, as ``read`` makes it."""
        self._read.add(name)
        if name not in self._data:
            raise damaged(f"{self._where} has no {name}")
        return read(self._data[name], f"{self._where}.{name}")

    def find(self, name: str, read: Callable[[Any, str], T], default: D) -> T | D:
        """The field ``name``, or ``default`` where it is left out."""
        return self.get(name, read) if name in self._data else default

    def end(self) -> None:
        unknown = set(self._data) - self._read
        if unknown:
            raise damaged(f"{self._where} has the unknown field {min(unknown)[:40]!r}")


def snapshot(document: Any) -> Snapshot:
    fields = Fields(document, "it")
    tensors = fields.find("tensors", many(_tensor), ())
    names = {tensor.name for tensor in tensors}
    if len(names) != len(tensors):
        raise damaged("two tensors have one name")
    nodes = _with_files(fields.find("nodes", many(_node), ()))
    _check_nodes(nodes, len(tensors))
    found = Snapshot(
        fields.get("model", text),
        nodes,
        tensors,
        fields.get("contract", _contract),
        fields.get("cost", _cost),
        fields.find("numbers", _numbers, None),
        fields.find("capture", text, ""),
        fields.find("training", flag, False),
        fields.get("schema_version", whole(1, _SIZE)),
    )
    fields.end()
    return found


def _with_files(nodes: tuple[NodeRecord, ...]) -> tuple[NodeRecord, ...]:
    """ ":146" is a line of the file that was named last."""
    found, file = [], ""
    for node in nodes:
        last, colon, line = (node.source or "").rpartition(":")
        file = last or file
        found.append(replace(node, source=f"{file}:{line}") if colon and not last else node)
    return tuple(found)


def _check_nodes(nodes: tuple[NodeRecord, ...], tensors: int) -> None:
    """Names are unique, a node reads earlier ones only, and every tensor is there."""
    if len({node.name for node in nodes}) != len(nodes):
        raise damaged("two nodes have one name")
    for place, node in enumerate(nodes):
        if any(source >= place for source in node.inputs):
            raise damaged(f"node {place} reads one that does not come before it")
        if any(tensor >= tensors for tensor in node.tensors.values()):
            raise damaged(f"node {place} has a tensor that is not there")


# -- records -------------------------------------------------------------------------------------------------------------


def _node(data: Any, where: str) -> NodeRecord:
    fields = Fields(data, where)
    name, outputs = fields.get("name", text), fields.find("outputs", many(_value), ())
    found = NodeRecord(
        name,
        fields.get("kind", text),
        fields.find("target", text, ""),
        fields.find("path", text, ""),
        fields.find("inputs", many(whole(0, MAX_NODES)), ()),
        fields.find("attributes", _attributes, {}),
        fields.find("tensors", _places, {}),
        outputs,
        fields.find("macs", whole(0, _COUNT), 0),
        fields.find("source", _optional_text, None),
        fields.find("origins", many(text), (name,)),
        fields.find("print", _sketch_of(sum(map(elements, outputs))), None),
    )
    fields.end()
    return found


def _value(data: Any, where: str) -> Value:
    if isinstance(data, str):
        return Value(*_form(data, where))
    fields = Fields(data, where)
    dtype, shape = fields.get("type", _form)
    found = Value(dtype, shape, fields.get("grid", _grid))
    fields.end()
    return found


def _grid(data: Any, where: str) -> Grid:
    fields = Fields(data, where)
    found = Grid(fields.get("scale", _positive), fields.get("zero_point", whole(-(2**63), _SIZE)), fields.get("bits", whole(1, 64)))
    fields.end()
    return found


def _tensor(data: Any, where: str) -> TensorRecord:
    fields = Fields(data, where)
    dtype, shape = fields.get("type", _form)
    sketch = fields.get("sketch", _sketch_of(math.prod(shape)))
    found = TensorRecord(
        fields.get("name", text), dtype, shape, fields.get("digest", _digest), sketch, fields.find("is_parameter", flag, True)
    )
    fields.end()
    return found


def _contract(data: Any, where: str) -> Contract:
    fields = Fields(data, where)
    found = Contract(
        fields.get("inputs", many(_port)),
        fields.get("outputs", many(_port)),
        fields.find("signature", text, ""),
        fields.find("structure", text, ""),
    )
    fields.end()
    return found


def _port(data: Any, where: str) -> Port:
    fields = Fields(data, where)
    found = Port(fields.get("name", text), fields.get("place", text), fields.get("dtype", _dtype), fields.get("shape", _shape))
    fields.end()
    return found


def _cost(data: Any, where: str) -> Cost:
    fields, count = Fields(data, where), whole(0, _COUNT)
    found = Cost(*(fields.get(name, count) for name in ("params", "macs", "weight_bytes", "peak_bytes")))
    fields.end()
    return found


def _numbers(data: Any, where: str) -> Numbers:
    fields = Fields(data, where)
    found = Numbers(
        fields.get("generator", text),
        fields.get("seed", whole(0, _SIZE)),
        fields.get("digest", _digest),
        fields.get("count", whole(1, MAX_NODES)),
        fields.get("outputs", many(_output)),
    )
    fields.end()
    return found


def _output(data: Any, where: str) -> OutputPrint:
    fields = Fields(data, where)
    found = OutputPrint(
        fields.get("sketch", _sketch_of(None)),
        fields.get("step", whole(1, _SIZE)),
        fields.get("sample", _floats),
        fields.find("classes", many(whole(0, _SIZE)), ()),
    )
    fields.end()
    return found


# -- values --------------------------------------------------------------------------------------------------------------


def text(data: Any, where: str) -> str:
    if not isinstance(data, str) or len(data) > MAX_TEXT or (not data.isascii() and _SURROGATE.search(data)):
        raise damaged(f"{where} is no text")
    return data


def _optional_text(data: Any, where: str) -> str | None:
    return None if data is None else text(data, where)


def flag(data: Any, where: str) -> bool:
    if not isinstance(data, bool):
        raise damaged(f"{where} is neither true nor false")
    return data


def whole(low: int, high: int) -> Callable[[Any, str], int]:
    """A reader of integers from ``low`` to ``high``."""

    def read(data: Any, where: str) -> int:
        if type(data) is not int or not low <= data <= high:
            raise damaged(f"{where} is no integer in range")
        return data

    return read


def many(read: Callable[[Any, str], T]) -> Callable[[Any, str], tuple[T, ...]]:
    """A reader of lists of what ``read`` reads."""

    def read_all(data: Any, where: str) -> tuple[T, ...]:
        if not isinstance(data, list) or len(data) > MAX_NODES:
            raise damaged(f"{where} is no list")
        return tuple(read(item, f"{where}[{place}]") for place, item in enumerate(data))

    return read_all


def _shape(data: Any, where: str) -> tuple[int, ...]:
    found = many(whole(0, _SIZE))(data, where)
    if len(found) > MAX_RANK:
        raise damaged(f"{where} has {len(found)} dimensions")
    return found


def _form(data: Any, where: str) -> tuple[str, tuple[int, ...]]:
    """dtype and shape: "float32[64,3,7,7]"."""
    found = _FORM.fullmatch(text(data, where))
    if found is None:
        raise damaged(f"{where} is no dtype with a shape")
    sizes = [int(size) for size in found[2].split(",")] if found[2] else []
    return _dtype(found[1], where), _shape(sizes, where)


def elements(tensor: Value | TensorRecord) -> int:
    return math.prod(tensor.shape)


def _dtype(data: Any, where: str) -> str:
    if not isinstance(data, str) or (data not in DTYPES and data != UNKNOWN):
        raise damaged(f"{where} is no dtype")
    return data


def _digest(data: Any, where: str) -> str:
    if not isinstance(data, str) or len(data) != 16 or set(data) - set("0123456789abcdef"):
        raise damaged(f"{where} is no digest")
    return data


def _positive(data: Any, where: str) -> float:
    if type(data) not in (int, float) or not 0 < data < math.inf:
        raise damaged(f"{where} is no positive number")
    return float(data)


def _floats(data: Any, where: str) -> tuple[float, ...]:
    try:
        raw = b85decode(text(data, where))
    except ValueError:
        raise damaged(f"{where} is not base85") from None
    if len(raw) % 4:
        raise damaged(f"{where} has the wrong length")
    return tuple(np.frombuffer(raw, dtype="<f4").tolist())


def _sketch_of(expected: int | None) -> Callable[[Any, str], Sketch]:
    """A reader of sketches that need not say their count where it is ``expected``."""

    def read(data: Any, where: str) -> Sketch:
        count, colon, rest = text(data, where).rpartition(":")
        if not colon and expected is None:
            raise damaged(f"{where} has no count")
        if colon and not (count.isascii() and count.isdigit() and len(count) <= 19):
            raise damaged(f"{where} has no count")
        values = _floats(rest, where)
        if not 2 <= len(values) <= MAX_BUCKETS + 2 or not values[0] >= 0.0 or values[1] < 0.0:
            raise damaged(f"{where} is no sketch")
        return Sketch(values[0], values[1], int(count) if colon else expected or 0, values[2:])

    return read


def _places(data: Any, where: str) -> dict[str, int]:
    place = whole(0, MAX_NODES)
    if not isinstance(data, dict):
        raise damaged(f"{where} is no object")
    return {text(name, where): place(item, f"{where}.{name[:40]}") for name, item in data.items()}


def _attributes(data: Any, where: str) -> dict[str, Json]:
    if not isinstance(data, dict):
        raise damaged(f"{where} is no object")
    _check_json(data, where, 0)
    return data


def _check_json(data: Json, where: str, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise damaged(f"{where} is nested too deep")
    if isinstance(data, dict):
        for name, item in data.items():
            text(name, where)
            _check_json(item, where, depth + 1)
    elif isinstance(data, list):
        for item in data:
            _check_json(item, where, depth + 1)
    elif isinstance(data, str):
        text(data, where)
    elif isinstance(data, float):
        if not math.isfinite(data):
            raise damaged(f"{where} holds a number that is too large")
    elif type(data) is int and abs(data) > 2**64:
        raise damaged(f"{where} holds a number that is too large")
