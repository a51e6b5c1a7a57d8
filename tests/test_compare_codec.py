"""Snapshots as text: what is written is read back, the text is fit for git, and no file does more than give an ArchiveError."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fxcompress
from fxcompress.compare import codec
from fxcompress.compare.schema import (
    SCHEMA_VERSION,
    Contract,
    Cost,
    Grid,
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

# -- made snapshots ------------------------------------------------------------------------------------------------------

_TEXT = st.text(max_size=12)
_FLOAT32 = st.floats(width=32, allow_nan=False)
_SHAPE = st.lists(st.integers(0, 9), max_size=4).map(tuple)
_DTYPE = st.sampled_from(["float32", "uint8", "complex64", "bool", "bfloat16", "int64"])
_DIGEST = st.text("0123456789abcdef", min_size=16, max_size=16)
_SKETCH = st.builds(
    Sketch,
    st.floats(0, width=32),
    st.floats(0, width=32),
    st.integers(0, 2**60),
    st.lists(_FLOAT32, max_size=9).map(tuple),
)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**64), 2**64) | st.floats(allow_nan=False, allow_infinity=False) | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=6,
)
_GRID = st.builds(Grid, st.floats(1e-30, 1e30), st.integers(-128, 255), st.integers(2, 8))
_VALUE = st.builds(Value, _DTYPE, _SHAPE, st.none() | _GRID)
_PORT = st.builds(Port, _TEXT, _TEXT, _DTYPE | st.just("unknown"), _SHAPE)
_SOURCE = st.none() | st.builds("{}:{}".format, st.sampled_from(["a.py", "b/c.py", "x y:z.py"]), st.integers(1, 99)) | st.just("text")


@st.composite
def _snapshots(draw: st.DrawFn) -> Snapshot:
    tensors = [
        TensorRecord(name, draw(_DTYPE), draw(_SHAPE), draw(_DIGEST), draw(_SKETCH), draw(st.booleans()))
        for name in draw(st.lists(_TEXT, unique=True, max_size=3))
    ]
    nodes = [
        NodeRecord(
            name,
            draw(_TEXT),
            draw(_TEXT),
            draw(_TEXT),
            tuple(draw(st.lists(st.integers(0, place - 1), max_size=3))) if place else (),
            draw(st.dictionaries(_TEXT, _JSON, max_size=2)),
            draw(st.dictionaries(_TEXT, st.integers(0, len(tensors) - 1), max_size=2)) if tensors else {},
            tuple(draw(st.lists(_VALUE, max_size=2))),
            draw(st.integers(0, 2**70)),
            draw(_SOURCE),
            draw(st.just((name,)) | st.lists(_TEXT, max_size=2).map(tuple)),
            draw(st.none() | _SKETCH),
        )
        for place, name in enumerate(draw(st.lists(_TEXT, unique=True, max_size=5)))
    ]
    outputs = st.builds(
        OutputPrint,
        _SKETCH,
        st.integers(1, 99),
        st.lists(_FLOAT32, max_size=4).map(tuple),
        st.lists(st.integers(0, 999), max_size=3).map(tuple),
    )
    numbers = st.builds(Numbers, _TEXT, st.integers(0, 9), _DIGEST, st.integers(1, 9), st.lists(outputs, max_size=2).map(tuple))
    ports = st.lists(_PORT, max_size=2).map(tuple)
    return Snapshot(
        draw(_TEXT),
        tuple(nodes),
        tuple(tensors),
        Contract(draw(ports), draw(ports), draw(_TEXT), draw(_TEXT)),
        Cost(*(draw(st.integers(0, 2**70)) for _ in range(4))),
        draw(st.none() | numbers),
        draw(_TEXT),
        draw(st.booleans()),
    )


@settings(max_examples=200)
@given(_snapshots())
def test_what_is_written_is_read_back(snapshot: Snapshot) -> None:
    text = codec.encode(snapshot)
    assert codec.decode(text) == snapshot
    assert codec.encode(codec.decode(text)) == text
    assert text.isascii()
    assert json.loads(text)["schema_version"] == SCHEMA_VERSION


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.norm(self.conv(x)).relu()
        return {"scores": self.head(y.mean((2, 3))), "map": y[:, ::2]}


@pytest.fixture(scope="module")
def taken() -> Snapshot:
    torch.manual_seed(0)
    return fxcompress.snapshot(Net().eval(), torch.randn(1, 3, 6, 6))


@pytest.fixture(scope="module")
def text(taken: Snapshot) -> str:
    return codec.encode(taken)


def test_a_taken_snapshot(taken: Snapshot, text: str, tmp_path: Path) -> None:
    assert codec.decode(text) == taken
    assert codec.decode(text).live is None
    codec.write(taken, tmp_path / "net.fxs")
    assert (tmp_path / "net.fxs").read_bytes() == text.encode()
    assert codec.read(tmp_path / "net.fxs") == taken
    assert [path.name for path in tmp_path.iterdir()] == ["net.fxs"]


def test_one_line_for_each_node_and_tensor(taken: Snapshot, text: str) -> None:
    other = replace(taken, nodes=(*taken.nodes[:2], replace(taken.nodes[2], attributes={"eps": 0.5}), *taken.nodes[3:]))
    changed = [pair for pair in zip(text.splitlines(), codec.encode(other).splitlines(), strict=True) if pair[0] != pair[1]]
    assert len(changed) == 1
    assert '"name":"norm"' in changed[0][0]
    for name in ("conv.weight", "norm.running_mean"):
        assert sum(f'"name":"{name}"' in line for line in text.splitlines()) == 1
    assert all(
        not line.startswith('{"') or list(json.loads(line.rstrip(","))) == sorted(json.loads(line.rstrip(",")))
        for line in text.splitlines()
    )


def test_numbers_that_are_not_finite_survive(taken: Snapshot) -> None:
    odd = (math.nan, math.inf, -math.inf, -0.0, 1e-45)
    nodes = tuple(replace(n, print=Sketch(math.inf, math.nan, 3, odd)) for n in taken.nodes)
    found = codec.decode(codec.encode(replace(taken, nodes=nodes))).nodes[0].print
    assert found is not None
    assert repr(found) == repr(Sketch(math.inf, math.nan, 3, tuple(float(np.float32(v)) for v in odd)))


def test_an_attribute_that_json_does_not_have(taken: Snapshot) -> None:
    for value in (math.nan, object(), {1, 2}):
        bad = replace(taken, nodes=(replace(taken.nodes[0], attributes={"a": value}),))
        with pytest.raises(ArchiveError, match="cannot be written"):
            codec.encode(bad)


# -- files that nobody should have to trust ------------------------------------------------------------------------------


def _edited(text: str, edit: Callable[[Any], Any]) -> str:
    document = json.loads(text)
    edit(document)
    return json.dumps(document)


def _set(*path: Any, to: Any) -> Callable[[Any], None]:
    def edit(document: Any) -> None:
        for step in path[:-1]:
            document = document[step]
        document[path[-1]] = to

    return edit


_DEEP: Any = 0
for _ in range(40):
    _DEEP = [_DEEP]

_HOSTILE: dict[str, Callable[[Any], None]] = {
    "huge place": _set("nodes", 1, "inputs", to=[10**30]),
    "negative place": _set("nodes", 1, "inputs", to=[-1]),
    "itself": _set("nodes", 1, "inputs", to=[1]),
    "later node": _set("nodes", 1, "inputs", to=[2]),
    "place is a float": _set("nodes", 1, "inputs", to=[0.0]),
    "place is a bool": _set("nodes", 1, "inputs", to=[False]),
    "no such tensor": _set("nodes", 1, "tensors", to={"weight": 99}),
    "two names": _set("nodes", 2, "name", to="x"),
    "two tensor names": _set("tensors", 1, "name", to="conv.bias"),
    "name is a number": _set("nodes", 1, "name", to=7),
    "name is long": _set("nodes", 1, "name", to="x" * 100_000),
    "half a character": _set("nodes", 1, "name", to="a\ud800"),
    "unknown field": _set("nodes", 1, "code", to="__import__('os').system('true')"),
    "unknown field of the whole": _set("extra", to=1),
    "nested attribute": _set("nodes", 1, "attributes", to={"a": _DEEP}),
    "huge attribute": _set("nodes", 1, "attributes", to={"a": 10**40}),
    "attributes are a list": _set("nodes", 1, "attributes", to=[]),
    "dtype": _set("tensors", 0, "type", to="os[1]"),
    "negative size": _set("tensors", 0, "type", to="float32[-1]"),
    "huge size": _set("tensors", 0, "type", to=f"float32[{10**18 * 10}]"),
    "many dimensions": _set("tensors", 0, "type", to=f"float32[{','.join('1' * 70)}]"),
    "other digits": _set("tensors", 0, "type", to="float32[\u0663]"),
    "digest": _set("tensors", 0, "digest", to="XYZ"),
    "sketch is no base85": _set("tensors", 0, "sketch", to="\u00fc" * 10),
    "sketch of half a number": _set("tensors", 0, "sketch", to="0000"),
    "sketch of nothing": _set("tensors", 0, "sketch", to=""),
    "count of a sketch": _set("tensors", 0, "sketch", to="-5:0000000000"),
    "huge count of a sketch": _set("tensors", 0, "sketch", to="9" * 50 + ":0000000000"),
    "negative norm": _set("tensors", 0, "sketch", to=codec.floats((-1.0, 1.0))),
    "NaN norm": _set("tensors", 0, "sketch", to=codec.floats((math.nan, 1.0))),
    "scale of zero": _set("nodes", 1, "outputs", to=[{"type": "uint8[1]", "grid": {"scale": 0, "zero_point": 0, "bits": 8}}]),
    "bits": _set("nodes", 1, "outputs", to=[{"type": "uint8[1]", "grid": {"scale": 1, "zero_point": 0, "bits": 10**9}}]),
    "grid is null": _set("nodes", 1, "outputs", to=[{"type": "uint8[1]", "grid": None}]),
    "cost is negative": _set("cost", "macs", to=-1),
    "cost is a text": _set("cost", "macs", to="1"),
    "cost is missing": lambda document: document["cost"].pop("params"),
    "no contract": lambda document: document.pop("contract"),
    "no nodes of the right kind": _set("nodes", to={"0": {}}),
    "nodes are null": _set("nodes", to=None),
    "node is null": _set("nodes", 0, to=None),
    "version is missing": lambda document: document.pop("schema_version"),
    "version is a text": _set("schema_version", to="1"),
    "version is true": _set("schema_version", to=True),
    "version is zero": _set("schema_version", to=0),
    "other format": _set("format", to="report"),
    "step of zero": _set("numbers", "outputs", 0, "step", to=0),
    "classes": _set("numbers", "outputs", 0, "classes", to=[-1]),
    "training": _set("training", to=1),
}


@pytest.mark.parametrize("name", _HOSTILE)
def test_hostile_files(name: str, text: str) -> None:
    bad = _edited(text, _HOSTILE[name])
    assert bad != json.dumps(json.loads(text))
    with pytest.raises(ArchiveError) as caught:
        codec.decode(bad)
    assert caught.value.hint
    assert len(caught.value.message) < 300


_NOT_JSON = {
    "nothing": "",
    "a list": "[]",
    "a text": '"x"',
    "deep lists": "[" * 100_000,
    "deep objects": '{"a":' * 100_000,
    "deep attribute": '{"nodes":[{"attributes":' + '{"a":' * 5000 + "1" + "}" * 5000 + "}]}",
    "a huge number": '{"schema_version": ' + "9" * 5000 + "}",
    "an infinite number": '{"format": "fxcompress snapshot", "schema_version": 1e999}',
    "NaN": '{"format": "fxcompress snapshot", "schema_version": NaN}',
    "a lone surrogate": '{"format": "\\ud800"}',
    "a key twice": '{"format": "fxcompress snapshot", "schema_version": 1, "schema_version": 1}',
    "zeros": "\0" * 100,
    "a report": '{"schema_version": 1, "report": {}}',
}


@pytest.mark.parametrize("name", _NOT_JSON)
def test_what_is_no_snapshot(name: str) -> None:
    with pytest.raises(ArchiveError):
        codec.decode(_NOT_JSON[name])


def test_newer_files_say_so(text: str) -> None:
    for version in (SCHEMA_VERSION + 1, 10**50):
        with pytest.raises(ArchiveError, match="schema version") as caught:
            codec.decode(_edited(text, _set("schema_version", to=version)))
        assert "pip install -U" in str(caught.value)


def test_every_truncation(text: str) -> None:
    rng = random.Random(0)
    for end in sorted({*range(60), *(rng.randrange(len(text)) for _ in range(200)), len(text) - 2, len(text) - 3}):
        with pytest.raises(ArchiveError):
            codec.decode(text[:end])


def _decodes(text: str) -> bool:
    """Anything but an ArchiveError is a failure."""
    try:
        found = codec.decode(text)
    except ArchiveError:
        return False
    codec.encode(found)
    return True


def test_random_characters(text: str) -> None:
    rng = random.Random(1)
    alphabet = '{}[]",:0123456789eE.-+ \\untfalsr\x00\u2028\ud800\U0001f600'
    for _ in range(1500):
        chars = list(text)
        for _ in range(rng.choice([1, 1, 2, 5])):
            place = rng.randrange(len(chars))
            chars[place : place + rng.choice([0, 1, 1, 3])] = rng.choice(alphabet)
        _decodes("".join(chars))


_VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    1,
    2**63,
    10**400,
    1e308,
    -0.5,
    "",
    "x",
    "$1",
    "0000000000",
    [],
    [[]],
    [None],
    {},
    {"": 0},
    "a" * 20_000,
]


def test_random_values(text: str) -> None:
    """Every field in turn, and random ones, hold something else."""
    whole = json.loads(text)
    places: list[tuple[Any, ...]] = []

    def collect(value: Any, path: tuple[Any, ...]) -> None:
        places.append(path)
        for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
            collect(item, (*path, key))

    collect(whole, ())
    rng = random.Random(2)
    accepted = sum(_decodes(_edited(text, _set(*path, to=rng.choice(_VALUES)))) for path in places[1:])
    assert 0 < accepted < 0.6 * len(places)  # texts may say anything


def test_files_that_are_not_there_or_no_text(tmp_path: Path, text: str) -> None:
    with pytest.raises(ArchiveError, match="cannot read"):
        codec.read(tmp_path / "missing.fxs")
    with pytest.raises(ArchiveError, match="cannot read"):
        codec.read(tmp_path)
    (tmp_path / "binary.fxs").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ArchiveError, match="not text"):
        codec.read(tmp_path / "binary.fxs")
    (tmp_path / "half.fxs").write_text(text[: len(text) // 2])
    with pytest.raises(ArchiveError, match=r"half\.fxs") as caught:
        codec.read(tmp_path / "half.fxs")
    assert caught.value.hint


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large.fxs"
    with path.open("wb") as file:
        file.truncate(codec.MAX_BYTES + 1)
    with pytest.raises(ArchiveError, match="bytes"):
        codec.read(path)


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path, taken: Snapshot) -> None:
    (tmp_path / "folder.fxs").mkdir()
    for where in (tmp_path / "folder.fxs", tmp_path / "missing" / "net.fxs"):
        with pytest.raises(ArchiveError, match="cannot write"):
            codec.write(taken, where)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.fxs"]


def test_carriage_returns_of_git_do_not_matter(tmp_path: Path, taken: Snapshot, text: str) -> None:
    (tmp_path / "net.fxs").write_bytes(text.replace("\n", "\r\n").encode())
    assert codec.read(tmp_path / "net.fxs") == taken


def test_size_for_a_thousand_nodes() -> None:
    """About 200 kB for a network of 1,000 nodes, a weight for every fifth of them."""

    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(100))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                y = layer(x).relu().transpose(0, 1).reshape(-1, 8)
                x = x + torch.cat([y, y], 0)[:4] * 0.5 - y.mean()
            return x

    found = fxcompress.snapshot(Deep().eval(), torch.randn(4, 8))
    assert len(found.nodes) > 900
    assert len(codec.encode(found)) < 270 * len(found.nodes)
