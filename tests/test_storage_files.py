"""Files that are damaged or of another kind: always an ArchiveError, never anything else."""

from __future__ import annotations

import json
import random
import struct
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.fx import Graph, GraphModule

from fxcompress.errors import ArchiveError
from fxcompress.ir.activation import Activation
from fxcompress.ir.fused import fuse
from fxcompress.storage import load, read_extra, save
from fxcompress.storage.container import ENTRY, digest
from fxcompress.targets.cpu_modules import PackedConv


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = PackedConv.of(fuse(nn.Conv2d(2, 2, 1), Activation("relu")))
        self.lstm = nn.LSTM(2, 2)
        self.wave = nn.Buffer(torch.ones(2, 2, dtype=torch.complex128).t())


def make() -> GraphModule:
    torch.manual_seed(0)
    graph = Graph()
    x, k = graph.placeholder("x"), graph.placeholder("k", default_value=2.5)
    conv = graph.call_module("conv", (x,))
    shape = graph.call_function(getattr, (conv, "shape"))
    view = graph.call_method("view", (conv, shape), {})
    pad = graph.call_function(torch.nn.functional.pad, (view, [1, 1]), {"value": 0.5})
    wave = graph.get_attr("wave")
    graph.output({"y": (pad, wave, k, slice(1, None), torch.float32)})
    root = Net().eval()
    module = GraphModule(root, graph)
    module.add_module("lstm", root.lstm)
    module.meta["note"] = (1, 2)
    return module


@cache
def valid() -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "m"
        save(make(), path, extra={"report": "text"})
        return path.read_bytes()


def contents(data: bytes, folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    (folder / "valid").write_bytes(data)
    with safe_open(folder / "valid", "pt") as file:
        return json.loads(file.metadata()[ENTRY])["document"], {k: file.get_tensor(k).clone() for k in file.keys()}  # noqa: SIM118


def forge(document: Any, tensors: dict[str, Tensor], path: Path, *, schema: Any = 1, body: str | None = None) -> Path:
    """A file with a right checksum around any document."""
    text = json.dumps(document, separators=(",", ":")) if body is None else body
    entry = f'{{"schema":{schema},"sha256":"{digest(text, tensors)}","document":{text}}}'
    save_file(tensors, path, metadata={ENTRY: entry})
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


def refused(path: Path, match: str | None = None) -> None:
    with pytest.raises(ArchiveError, match=match) as caught:
        load(path)
    assert len(caught.value.message) < 500
    assert "\n" not in caught.value.message
    assert caught.value.hint


def test_the_valid_file_is_valid(folder: Path) -> None:
    forge(*contents(valid(), folder), folder / "m")
    assert (folder / "m").read_bytes() == valid()
    assert set(load(folder / "m")(torch.ones(1, 2, 2, 2))) == {"y"}


def test_others_may_read_what_the_umask_allows(tmp_path: Path) -> None:
    plain, saved = tmp_path / "plain", tmp_path / "model.fxc"
    plain.touch()
    save(make(), saved)
    assert saved.stat().st_mode == plain.stat().st_mode


def test_not_a_file(folder: Path) -> None:
    refused(folder, "not a file")
    refused(folder / "missing", "there is no file")
    refused(Path("nul\0"), "there is no file")


@pytest.mark.parametrize("data", [b"", b"\0", b"\0" * 8, b"\xff" * 64, b"PK\x03\x04" * 30, b'{"a":1}', struct.pack("<Q", 2**40) + b"{}"])
def test_another_kind_of_file(data: bytes, folder: Path) -> None:
    (folder / "m").write_bytes(data)
    refused(folder / "m", "not a complete archive")


def test_other_safetensors_and_pickles(folder: Path) -> None:
    save_file({"a": torch.ones(2)}, folder / "m")
    refused(folder / "m", "not one of fxcompress")
    torch.save(make().state_dict(), folder / "m")
    refused(folder / "m", "not a complete archive")


def test_every_truncation(folder: Path) -> None:
    data = valid()
    for length in [*range(0, len(data) - 1, 61), len(data) - 1]:
        (folder / "m").write_bytes(data[:length])
        refused(folder / "m")
    (folder / "m").write_bytes(data + b"\0")
    refused(folder / "m")


def test_bit_flips(folder: Path) -> None:
    """Every byte of length, frame, header end and tensors; a sample of the long document."""
    data, rng = valid(), random.Random(0)
    header = 8 + struct.unpack("<Q", data[:8])[0]
    places = {*range(160), *range(header - 500, len(data)), *(rng.randrange(len(data)) for _ in range(400))}
    for place in sorted(places):
        flipped = bytearray(data)
        flipped[place] ^= 1 << rng.randrange(8)
        (folder / "m").write_bytes(flipped)
        refused(folder / "m")
        with pytest.raises(ArchiveError):
            read_extra(folder / "m")


def test_newer_and_older_versions(folder: Path) -> None:
    forge(*contents(valid(), folder), folder / "m", schema=2)
    refused(folder / "m", "has schema 2; this fxcompress reads up to 1")
    forge(*contents(valid(), folder), folder / "m", schema=0)
    refused(folder / "m", "checksum")
    forge(*contents(valid(), folder), folder / "m", schema='"x"')
    refused(folder / "m", "wrong form")


@pytest.mark.parametrize(
    "body",
    ["", "null", "[" * 100_000, '{"a":' * 5000, '{"a":NaN}', '{"a":1,"a":1}', "[1]", "{}", '{"a":' + "9" * 9999 + "}", '{"a":1e999}'],
)
def test_documents_that_are_none(body: str, folder: Path) -> None:
    forge(None, {}, folder / "m", body=body)
    refused(folder / "m")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 2**32), st.binary(max_size=4)), min_size=1, max_size=4))
def test_fuzzed_bytes(folder: Path, changes: list[tuple[int, bytes]]) -> None:
    data = bytearray(valid())
    for seed, junk in changes:
        start = random.Random(seed).randrange(len(data) + 1)
        data[start : start + len(junk)] = junk
    if bytes(data) != valid():
        (folder / "bytes").write_bytes(data)
        refused(folder / "bytes")
