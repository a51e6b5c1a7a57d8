"""Saving and loading whole graphs."""

from __future__ import annotations

import copy
import dataclasses
import math
import operator
import os
import pickle
import subprocess
import sys
from collections import OrderedDict, namedtuple
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor, fx, nn
from torch.fx import Graph, GraphModule
from torch.utils._pytree import tree_map

from fxcompress.capture.ladder import capture
from fxcompress.errors import ArchiveError
from fxcompress.storage import Record, load, read_extra, save
from fxcompress.storage.values import decode, encode

NAMES = ["resnet18", "mobilenet_v3_small", "densenet121", "swin_t", "tiny_vit", pytest.param("vit_b_16", marks=pytest.mark.slow)]


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def functional(graph: Graph, root: nn.Module | None = None) -> GraphModule:
    return GraphModule(root or nn.Module(), graph)


def small() -> GraphModule:
    torch.manual_seed(0)
    return fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval())


def same(first: Any, second: Any) -> None:
    torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", NAMES)
def test_network_comes_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    if name == "tiny_vit":
        model: nn.Module = torchvision.models.VisionTransformer(64, 16, 2, 2, 32, 64).eval()
    else:
        model = getattr(torchvision.models, name)(weights=None).eval()
    size = 224 if name == "vit_b_16" else 64
    x = torch.randn(1, 3, size, size)
    module = capture(model, x).module
    assert isinstance(module, GraphModule)
    path, again = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save(module, path)
    loaded = load(path)
    with torch.no_grad():
        same(loaded(x), module(x))
    assert list(loaded.state_dict()) == list(module.state_dict())
    assert [(n.op, n.name) for n in loaded.graph.nodes] == [(n.op, n.name) for n in module.graph.nodes]
    save(loaded, again)
    assert path.read_bytes() == again.read_bytes()


def test_other_tools_can_read_the_tensors(tmp_path: Path) -> None:
    module = small()
    save(module, tmp_path / "m.safetensors")
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        assert set(file.keys()) == set(module.state_dict())
        same(file.get_tensor("0.weight"), module.state_dict()["0.weight"])


SCRIPT = """
import sys, torch
from fxcompress.storage import load, save
save(load(sys.argv[1]), sys.argv[2], extra={"b": "1", "a": "2"})
assert "torchvision" not in sys.modules
"""


def test_bytes_do_not_depend_on_the_process(tmp_path: Path) -> None:
    save(small(), tmp_path / "m", extra={"b": "1", "a": "2"})
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-c", SCRIPT, tmp_path / "m", tmp_path / f"m{seed}"], check=True, env={**os.environ, "PYTHONHASHSEED": seed}
        )
        assert (tmp_path / f"m{seed}").read_bytes() == (tmp_path / "m").read_bytes()


def test_extra_travels_along(tmp_path: Path) -> None:
    save(small(), tmp_path / "m", extra={"report": '{"ms": 1.5, "text": "größer"}'})
    assert read_extra(tmp_path / "m") == {"report": '{"ms": 1.5, "text": "größer"}'}
    with pytest.raises(ArchiveError, match="not text"):
        save(small(), tmp_path / "m", extra={"report": 3})  # type: ignore[dict-item]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 5)
        self.head = nn.Linear(5, 7)
        self.head.weight = self.embed.weight
        self.act = self.same_act = nn.ReLU()
        self.frozen = nn.Parameter(torch.ones(5), requires_grad=False)
        self.register_buffer("mask", torch.tensor(3), persistent=False)
        self.register_buffer("image", torch.randn(1, 4, 3, 3).to(memory_format=torch.channels_last))
        self.register_buffer("wave", torch.tensor([1 + 2j, complex(math.inf, -0.0)], dtype=torch.complex128))
        self.register_buffer("row", torch.arange(3.0).expand(4, 3))
        self.register_buffer("part", torch.arange(10)[2:8:2])
        self.register_buffer("none", None)
        self.register_buffer("empty", torch.zeros(0, 3))
        self.constant = torch.tensor([-0.0, math.nan])

    def forward(self, x: Tensor) -> Any:
        y = self.same_act(self.act(self.embed(x)) * self.frozen)
        return self.head(y), self.mask + 1, self.image, self.wave.real, self.row, self.part, self.empty, self.constant


def test_tensors_keep_all_they_are(tmp_path: Path) -> None:
    module = fx.symbolic_trace(Tied())
    module.frozen.requires_grad_(False)
    save(module, tmp_path / "m")
    loaded = load(tmp_path / "m")
    x = torch.tensor([[0, 6]])
    same(loaded(x), module(x))
    assert loaded.head.weight is loaded.embed.weight
    assert list(loaded.state_dict()) == list(module.state_dict())
    flags = {name: p.requires_grad for name, p in loaded.named_parameters()}
    assert flags == {name: p.requires_grad for name, p in module.named_parameters()}
    assert loaded.image.stride() == module.image.stride()
    assert "mask" not in loaded.state_dict()
    with safe_open(tmp_path / "m", "pt") as file:
        assert "head.weight" not in file.keys()  # noqa: SIM118


def test_shared_module_stays_one_module(tmp_path: Path) -> None:
    root = nn.Module()
    root.a = nn.Linear(2, 2)
    root.b = root.a
    graph = Graph()
    graph.output(graph.call_module("b", (graph.call_module("a", (graph.placeholder("x"),)),)))
    save(GraphModule(root, graph), tmp_path / "m")
    loaded = load(tmp_path / "m")
    assert loaded.a is loaded.b


def test_train_flags_and_meta(tmp_path: Path) -> None:
    module = fx.symbolic_trace(nn.Sequential(nn.Linear(2, 2), nn.Dropout()).train())
    module.get_submodule("0").eval()
    module.meta["inputs"] = [("x", torch.float32, torch.Size([2, 2]))]
    module.meta["thing"] = object()
    save(module, tmp_path / "m")
    loaded = load(tmp_path / "m")
    assert (loaded.training, loaded.get_submodule("0").training, loaded.get_submodule("1").training) == (True, False, True)
    assert loaded.meta == {"inputs": [("x", torch.float32, torch.Size([2, 2]))]}


def test_nested_graph_modules(tmp_path: Path) -> None:
    graph = Graph()
    graph.output(graph.call_module("inner", (graph.placeholder("x"),)))
    module = GraphModule({"inner": small()}, graph)
    save(module, tmp_path / "m")
    x = torch.randn(1, 3, 5, 5)
    same(load(tmp_path / "m")(x), module(x))


def test_signature_defaults_and_nested_values(tmp_path: Path) -> None:
    graph = Graph()
    x = graph.placeholder("x")
    scale = graph.placeholder("scale", default_value=math.inf)
    rest = graph.placeholder("*rest")
    named = graph.placeholder("**named")
    size = graph.call_function(getattr, (x, "shape"))
    item = graph.call_function(torch.ops.aten.add.Tensor, (x, 1))
    part = graph.call_function(operator.getitem, (item, (..., slice(None, -1, 2), None)))
    like = graph.call_method(
        "to", (part,), {"dtype": torch.float64, "memory_format": torch.contiguous_format, "device": torch.device("cpu")}
    )
    graph.output({"y": [like, (scale, rest)], "s": size, "n": named, "text": "';\n\"import os", "z": complex(1, 2)})
    module = functional(graph)
    save(module, tmp_path / "m")
    loaded = load(tmp_path / "m")
    x0 = torch.randn(2, 4)
    for args, kwargs in [((x0,), {}), ((x0, 2, 3), {"k": 1})]:
        got, want = loaded(*args, **kwargs), module(*args, **kwargs)
        same(got["y"][0], want["y"][0])
        assert repr({**got, "y": got["y"][1]}) == repr({**want, "y": want["y"][1]})


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.complex_numbers()
    | st.sampled_from([..., torch.float16, torch.device("cuda:1"), torch.channels_last, torch.strided, int, range(1, 9, 2)]),
    lambda inner: (
        st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text() | st.integers(), inner) | st.builds(slice, inner, inner)
    ),
    max_leaves=10,
)


@given(VALUES)
def test_values_come_back(value: Any) -> None:
    assert repr(decode(encode(value))) == repr(value)


@dataclasses.dataclass
class Output:
    logits: Tensor
    loss: Tensor | None = None


@dataclasses.dataclass
class ModelOutputLike(OrderedDict):  # type: ignore[type-arg]
    logits: Tensor
    loss: Tensor | None = None


class Pair(NamedTuple):
    first: Tensor
    second: int = 3


def returning(cls: Any) -> GraphModule:
    graph = Graph()
    graph.output(graph.call_function(cls, (graph.placeholder("x"),)))
    return functional(graph)


def test_outputs_of_the_users_classes(tmp_path: Path) -> None:
    x, out = torch.randn(2), {}
    for cls in (Output, ModelOutputLike, Pair):
        save(returning(cls), tmp_path / "m")
        out[cls] = load(tmp_path / "m")(x)
        save(load(tmp_path / "m"), tmp_path / "again")
        assert (tmp_path / "m").read_bytes() == (tmp_path / "again").read_bytes()
    plain, mapping, pair = out.values()
    assert isinstance(plain, Record)
    assert plain.logits is x
    assert plain["logits"] is x
    assert list(plain) == ["logits", "loss"]
    assert list(mapping) == ["logits"]
    assert mapping.loss is None
    assert tree_map(torch.neg, mapping).logits.equal(-x)
    assert pickle.loads(pickle.dumps(mapping)).fields == ("logits", "loss")
    assert copy.copy(mapping) == mapping
    assert mapping[0] is x
    assert repr(mapping) == f"ModelOutputLike(logits={x!r})"
    with pytest.raises(AttributeError, match="no field 'lost'"):
        _ = plain.lost
    assert pair._fields == ("first", "second")
    assert tuple(pair) == (x, 3)
    save(returning(Output), tmp_path / "m", allow=(Output,))
    assert load(tmp_path / "m", allow=(Output,))(x) == Output(x)


def test_output_class_without_fields_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="does not give all of its fields"):
        save(returning(namedtuple("Two", "a b")), tmp_path / "m")


def test_what_cannot_be_saved_says_which_node(tmp_path: Path) -> None:
    graph = Graph()
    x = graph.placeholder("x")
    graph.output(graph.call_function(torchvision.ops.stochastic_depth, (x, 0.5, "row"), name="drop"))
    with pytest.raises(ArchiveError, match=r"node 'drop': it calls torchvision.*stochastic_depth") as caught:
        save(functional(graph), tmp_path / "m")
    assert "allow" in str(caught.value)
    graph = Graph()
    graph.output(graph.create_node("call_method", "apply_", (graph.placeholder("x"),), name="bad"))
    with pytest.raises(ArchiveError, match="node 'bad': it calls the method 'apply_'"):
        save(functional(graph), tmp_path / "m")
    graph = Graph()
    graph.output(graph.call_function(getattr, (graph.placeholder("x"), "__class__"), name="bad"))
    with pytest.raises(ArchiveError, match="__class__"):
        save(functional(graph), tmp_path / "m")
    graph = Graph()
    graph.placeholder("x").name = "a b"
    with pytest.raises(ArchiveError, match="a node is called 'a b'"):
        save(functional(graph), tmp_path / "m")
    with pytest.raises(ArchiveError, match="no graph"):
        save(nn.Linear(2, 2), tmp_path / "m")  # type: ignore[arg-type]
    with pytest.raises(ArchiveError, match="meta device"):
        save(fx.symbolic_trace(nn.Sequential(nn.Linear(2, 2, device="meta"))), tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"old")
    for path in (tmp_path, tmp_path / "missing" / "m", file / "m", tmp_path / ("x" * 300), Path("/proc/m"), tmp_path / "nul\0"):
        with pytest.raises(ArchiveError, match="cannot write"):
            save(small(), path)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(ArchiveError, match="read-only"):
        save(small(), file)
    assert file.read_bytes() == b"old"


def test_interrupted_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m").write_bytes(b"old")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(small(), tmp_path / "m")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("m", b"old")]


def test_many_nodes_load_quickly(tmp_path: Path) -> None:
    graph = Graph()
    node = graph.placeholder("x")
    for _ in range(3000):
        node = graph.call_function(torch.relu, (node,))
    graph.output(node)
    save(functional(graph), tmp_path / "m")
    assert len(load(tmp_path / "m").graph.nodes) == 3002
