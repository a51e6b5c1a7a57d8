"""Snapshots of graphs: what is in them, that it does not depend on how the graph is written or where it is taken, and that models stay."""

from __future__ import annotations

import copy
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.fx import GraphModule

import fxcompress
from fxcompress.compare import codec
from fxcompress.compare.schema import NodeRecord, Snapshot
from fxcompress.compare.seeded import seeded
from fxcompress.compare.sketch import sketch
from fxcompress.compare.sources import portable
from fxcompress.compare.take import take
from fxcompress.errors import FxCompressError, GraphError, InputError
from fxcompress.ir.inputs import Inputs
from fxcompress.quant.affine import QParams
from fxcompress.quant.fake import FakeQuantize
from fxcompress.quant.modules import Dequantize, Quantize, QuantLinear

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.conv(x)))
        return self.head(self.drop(y).mean((2, 3)))


def small() -> Small:
    torch.manual_seed(3)
    return Small().eval()


def traced(function: Callable[..., Any]) -> GraphModule:
    return fx.symbolic_trace(function)


def of(function: Callable[..., Any], *args: Any, **options: Any) -> Snapshot:
    return take(traced(function), Inputs(args), model="m", **options)


def test_nodes_of_a_small_network() -> None:
    found = fxcompress.snapshot(small(), X, name="small")
    assert [n.kind for n in found.nodes] == ["input", "conv", "batch_norm", "relu", "dropout", "mean", "linear", "output"]
    conv = found.nodes[1]
    assert (conv.name, conv.target, conv.path, conv.inputs) == ("conv", "torch.nn.Conv2d", "conv", (0,))
    assert conv.attributes == {"kernel_size": [3, 3], "stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "groups": 1}
    assert [found.tensors[place].name for place in conv.tensors.values()] == ["conv.bias", "conv.weight"]
    assert [(v.dtype, v.shape) for v in conv.outputs] == [("float32", (2, 4, 8, 8))]
    assert conv.macs == 2 * 4 * 64 * 27
    assert conv.source is not None
    assert conv.source.startswith("tests/test_compare_take.py:")
    assert found.nodes[5].attributes == {"dim": [2, 3], "keepdim": False}
    assert found.nodes[7].inputs == (6,)
    assert found.nodes[7].outputs == ()
    assert (found.model, found.capture, found.training) == ("small", "fx", False)


def test_tensors_of_a_small_network() -> None:
    model = small()
    found = fxcompress.snapshot(model, X)
    assert [t.name for t in found.tensors] == sorted({**dict(model.named_parameters()), **dict(model.named_buffers())})
    for record in found.tensors:
        tensor = model.state_dict()[record.name]
        assert record.shape == tuple(tensor.shape)
        assert f"torch.{record.dtype}" == str(tensor.dtype)
        assert record.sketch == sketch(tensor)
        assert record.is_parameter == (record.name in dict(model.named_parameters()))


def test_contract_and_cost() -> None:
    found = fxcompress.snapshot(small(), X)
    assert [(p.name, p.place, p.dtype, p.shape) for p in found.contract.inputs] == [("x", "", "float32", (2, 3, 8, 8))]
    assert [(p.name, p.place, p.dtype, p.shape) for p in found.contract.outputs] == [("output", "", "float32", (2, 5))]
    assert (found.contract.signature, found.contract.structure) == ("(x)", "Tensor")
    assert found.cost.params == sum(p.numel() for p in small().parameters())
    assert found.cost.macs == sum(n.macs for n in found.nodes) == 2 * 4 * 64 * 27 + 2 * 20
    state = small().state_dict().values()
    assert found.cost.weight_bytes == sum(t.numel() * t.element_size() for t in state)


# -- numbers -------------------------------------------------------------------------------------------------------------


def test_numbers_are_those_of_the_model_on_seeded_inputs() -> None:
    model = small()
    found = fxcompress.snapshot(model, X)
    assert found.numbers is not None
    inputs = seeded(Inputs((X,)), found.numbers.seed, found.numbers.count)
    with torch.no_grad():
        outputs = [one.call(model) for one in inputs]
        first = model.conv(inputs[0].args[0])
    (told,) = found.numbers.outputs
    together = torch.cat([y.reshape(-1) for y in outputs])
    assert told.sketch == sketch(together, buckets=32)
    assert told.sample == tuple(together[:: told.step].tolist())
    assert told.classes == tuple(c for y in outputs for c in y.argmax(1).tolist())
    printed = found.nodes[1].print
    assert printed is not None
    assert printed.norm == pytest.approx(float(first.norm()), rel=1e-5)
    assert printed.buckets == pytest.approx(sketch(first).buckets, rel=1e-4, abs=1e-4)
    assert found.live is not None
    assert torch.equal(found.live.inputs.args[0], inputs[0].args[0])


def test_values_are_printed_before_they_are_overwritten() -> None:
    def overwrite(x: Tensor) -> Tensor:
        y = x * 2
        return y.add_(1.0)

    found = of(overwrite, X)
    prints = [n.print for n in found.nodes if n.kind in ("mul", "add")]
    assert prints[0] != prints[1]


def test_given_data_takes_the_place_of_seeded_inputs() -> None:
    model, data = small(), [torch.full((2, 3, 8, 8), float(k)) for k in range(6)]
    found = fxcompress.snapshot(model, X, data=data)
    assert found.numbers is not None
    assert (found.numbers.generator, found.numbers.count) == ("data", 4)
    assert found.numbers == fxcompress.snapshot(model, X, data=[(x, torch.zeros(2)) for x in data]).numbers
    assert found.numbers.digest != fxcompress.snapshot(model, X, data=data[1:]).numbers.digest  # type: ignore[union-attr]
    with pytest.raises(InputError, match="no data"):
        fxcompress.snapshot(model, X, data=[])


def test_without_numbers_only_they_are_missing() -> None:
    full, bare = (fxcompress.snapshot(small(), X, numbers=numbers) for numbers in (True, False))
    assert bare.numbers is None
    stripped = replace(full, numbers=None, nodes=tuple(replace(n, print=None) for n in full.nodes))
    assert bare == stripped


def test_numbers_that_are_not_finite() -> None:
    found = of(lambda x: torch.log(x - 1e6), X)
    assert math.isnan(called_last(found).print.max_abs)  # type: ignore[union-attr]
    assert codec.encode(codec.decode(codec.encode(found))) == codec.encode(found)


def called_last(snapshot: Snapshot) -> NodeRecord:
    return snapshot.nodes[-2]


@given(st.integers(-5, 5), st.integers(0, 9), st.sampled_from([torch.int64, torch.int32, torch.uint8, torch.int8]))
def test_seeded_integers_stay_in_the_range_of_the_example(low: int, width: int, dtype: torch.dtype) -> None:
    low = max(low, 0) if dtype is torch.uint8 else low
    example = torch.tensor([low, low + width]).to(dtype)
    values = torch.cat([one.args[0] for one in seeded(Inputs((example,)), 1, 60)])
    assert values.dtype == dtype
    assert (int(values.min()), int(values.max())) == (low, low + width)


def test_seeded_inputs_have_the_structure_of_the_example() -> None:
    example = Inputs(({"a": [X, None]},), {"flag": torch.tensor([True, False]), "scale": 2.0, "z": torch.zeros(2, dtype=torch.complex64)})
    one, other = seeded(example, 0, 2)
    assert one.args[0]["a"][1] is None
    assert one.kwargs["scale"] == 2.0
    assert one.kwargs["flag"].dtype is torch.bool
    assert one.kwargs["z"].dtype is torch.complex64
    assert not torch.equal(one.args[0]["a"][0], other.args[0]["a"][0])
    assert torch.equal(one.args[0]["a"][0], seeded(example, 0, 1)[0].args[0]["a"][0])


def test_a_model_that_refuses_seeded_inputs_is_told_so() -> None:
    class Picky(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            torch._assert((x >= 0).all(), "negative")
            return x.sqrt()

    with pytest.raises(InputError, match="does not run on seeded inputs") as caught:
        take(traced(Picky()), Inputs((X.abs(),)), model="m")
    assert "data=" in str(caught.value.hint)
    assert take(traced(Picky()), Inputs((X.abs(),)), model="m", data=[Inputs((X.abs(),))]).numbers is not None
    assert take(traced(Picky()), Inputs((X.abs(),)), model="m", numbers=False).numbers is None


# -- the model stays, and random nodes do not show -----------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
def test_the_model_its_inputs_and_the_random_state_stay(training: bool) -> None:
    model, x = small().train(training), X.clone()
    graph = fxcompress.trace(model, x)
    for subject in (model, graph):
        before = copy.deepcopy(subject.state_dict())
        threads, state = torch.get_num_threads(), torch.get_rng_state()
        first = fxcompress.snapshot(subject, x)
        assert torch.equal(state, torch.get_rng_state())
        assert torch.get_num_threads() == threads
        assert all(torch.equal(before[key], value) for key, value in subject.state_dict().items())
        assert [m.training for m in subject.modules()] == [training] * len(list(subject.modules()))
        torch.randn(7)
        assert codec.encode(fxcompress.snapshot(subject, x)) == codec.encode(first)
        assert first.training is training
    assert torch.equal(x, X)


def test_mode_shows_where_it_matters() -> None:
    found = fxcompress.snapshot(small().train(), X)
    assert {n.kind: n.attributes.get("training") for n in found.nodes if n.attributes} == {
        "conv": None,
        "batch_norm": True,
        "dropout": True,
        "mean": None,
        "relu": None,
    }


_SCRIPT = """
import torch, sys
sys.path.insert(0, "tests")
import fxcompress
from fxcompress.compare import codec
from test_compare_take import X, small
print(codec.encode(fxcompress.snapshot(small().train(), X)), end="")
"""


def test_byte_identical_in_other_processes() -> None:
    here = codec.encode(fxcompress.snapshot(small().train(), X))
    environments = [{**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": threads} for seed, threads in (("1", "1"), ("4711", "2"))]
    command = [sys.executable, "-c", _SCRIPT]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for environment in environments]
    assert [run.communicate()[0] for run in runs] == [here, here]


# -- attributes and operands ---------------------------------------------------------------------------------------------


_SAME: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "keywords": (lambda x: F.hardtanh(x, -2.0, 2.0), lambda x: F.hardtanh(max_val=2.0, input=x, min_val=-2.0)),
    "defaults": (lambda x: F.relu(x), lambda x: F.relu(x, inplace=False)),
    "packed sizes": (lambda x: x.view(2, -1), lambda x: x.view((2, -1))),
    "tuple or list": (lambda x: x.mean((2, 3)), lambda x: x.mean(dim=[2, 3])),
    "unknown function": (
        lambda x: F.triplet_margin_loss(x, x, x, 2.0),
        lambda x: F.triplet_margin_loss(x, positive=x, negative=x, margin=2),
    ),
}
_OTHER: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "swapped": (lambda x, y: x - y, lambda x, y: y - x),
    "swapped sum": (lambda x, y: x + y, lambda x, y: y + x),
    "constant first": (lambda x, y: x - 2, lambda x, y: 2 - x),
    "other place": (lambda x, y: torch.where(y > 0, x, 1.0), lambda x, y: torch.where(y > 0, 1.0, x)),
    "order of cat": (lambda x, y: torch.cat([x, y]), lambda x, y: torch.cat([y, x])),
    "list or not": (lambda x, y: torch.cat([x, y], 1), lambda x, y: torch.cat([x, y], 2)),
    "slice": (lambda x, y: x[:, 1:], lambda x, y: x[:, :1]),
    "infinity": (lambda x, y: x.clamp(-math.inf, 1.0), lambda x, y: x.clamp(-1e30, 1.0)),
    "text": (lambda x, y: F.pad(x, (1, 1, 1, 1), mode="reflect"), lambda x, y: F.pad(x, (1, 1, 1, 1), mode="replicate")),
    "dtype": (lambda x, y: x.to(torch.float64), lambda x, y: x.to(torch.float16)),
    "keyword node": (
        lambda x, y: F.layer_norm(x, (8,), weight=y[0, 0, 0]),
        lambda x, y: F.layer_norm(x, (8,), bias=y[0, 0, 0]),
    ),
}


def _told(snapshot: Snapshot) -> list[Any]:
    return [(n.kind, n.target, n.inputs, n.attributes) for n in snapshot.nodes]


@pytest.mark.parametrize("name", _SAME)
def test_one_call_in_two_spellings(name: str) -> None:
    one, other = (_told(of(function, X)) for function in _SAME[name])
    assert one == other


@pytest.mark.parametrize("name", _OTHER)
def test_another_call(name: str) -> None:
    one, other = (_told(of(function, X, X + 1)) for function in _OTHER[name])
    assert one != other


def test_operands_that_are_nodes_are_told_by_their_place() -> None:
    found = of(lambda x, y: F.layer_norm(x, (8,), bias=y[0, 0, 0]), X, X)
    norm = found.nodes[-2]
    assert norm.attributes == {"normalized_shape": [8], "weight": None, "bias": "$1", "eps": 1e-5}
    assert found.nodes[2].attributes == {"index": [0, 0, 0]}
    sliced = of(lambda x, y: x[:, : y.size(1), ..., None], X, X).nodes[-2]
    assert sliced.attributes == {"index": [":", {"slice": [None, "$1", None]}, "...", None]}
    assert sliced.inputs == (0, 2)


def test_a_text_that_looks_like_a_place_is_no_place() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output(graph.call_function(_named, (x, "$0")))
    found = take(GraphModule({}, graph), Inputs((X,)), model="m")
    assert found.nodes[1].attributes == {"name": "$$0"}
    assert found.nodes[1].target.endswith("._named")


def _named(x: Tensor, name: str) -> Tensor:
    return x + len(name)


def test_shared_and_tied_weights_are_there_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
            self.b.weight = self.a.weight
            self.register_buffer("shift", torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.c(self.b(self.a(x)))) + self.shift

    found = fxcompress.snapshot(Tied(), torch.randn(2, 4))
    assert [t.name for t in found.tensors] == ["a.bias", "a.weight", "b.bias", "c.weight", "shift"]
    a, b, c, again = (n for n in found.nodes if n.kind == "linear")
    assert a.tensors["weight"] == b.tensors["weight"]
    assert c.tensors == again.tensors
    constant = next(n for n in found.nodes if n.kind == "constant")
    assert (constant.path, constant.tensors) == ("shift", {"value": 4})


def test_a_value_that_nobody_reads_and_modules_in_modules() -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True).eval()

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = attention

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x, need_weights=False)[0]

    found = fxcompress.snapshot(Two(), torch.randn(1, 3, 8))
    node = next(n for n in found.nodes if n.kind == "multihead_attention")
    assert node.inputs == (0, 0, 0)
    assert node.attributes["num_heads"] == 2
    assert node.attributes["need_weights"] is False
    assert set(node.tensors) == {"in_proj_bias", "in_proj_weight", "out_proj.bias", "out_proj.weight"}


# -- structures of inputs and outputs ------------------------------------------------------------------------------------


class Pair(NamedTuple):
    mean: Tensor
    parts: list[Tensor]


def test_nested_outputs_and_inputs() -> None:
    class Nested(nn.Module):
        def forward(self, images: list[Tensor], options: dict[str, Tensor], scale: float = 2.0) -> Any:
            y = images[0] * scale
            return {"a": y, "b": (options["mask"], [images[1] + 1, None])}, Pair(y.mean(), [y])

    found = fxcompress.snapshot(Nested(), ([X, X[:1]], {"mask": X > 0}))
    assert [(p.name, p.place, p.dtype, p.shape) for p in found.contract.inputs] == [
        ("images", "[0]", "float32", (2, 3, 8, 8)),
        ("images", "[1]", "float32", (1, 3, 8, 8)),
        ("options", "['mask']", "bool", (2, 3, 8, 8)),
    ]
    assert [(p.name, p.place) for p in found.contract.outputs] == [
        ("a", "[0]['a']"),
        ("output[0]['b'][0]", "[0]['b'][0]"),
        ("output[0]['b'][1][0]", "[0]['b'][1][0]"),
        ("mean", "[1].mean"),
        ("output[1].parts[0]", "[1].parts[0]"),
    ]
    assert found.contract.structure == "({'a': Tensor, 'b': (Tensor, [Tensor, None])}, Pair(mean=Tensor, parts=[Tensor]))"
    assert found.contract.signature == "(images, options, scale=2.0)"
    assert found.numbers is not None
    assert len(found.numbers.outputs) == 5


def test_a_shape_that_depends_on_data_is_unknown() -> None:
    found = of(lambda x: (torch.nonzero(x > 0.5), torch.unique(x > 0).float().sum(), x + 1), X)
    forms = [(p.dtype, p.shape) for p in found.contract.outputs]
    assert forms == [("unknown", ()), ("float32", ()), ("float32", (2, 3, 8, 8))]
    kinds = {n.target: n.outputs for n in found.nodes}
    assert kinds["torch.nonzero"] == ()
    bare = of(lambda x: (torch.nonzero(x > 0.5), torch.unique(x > 0).float().sum(), x + 1), X, numbers=False)
    assert bare.contract == found.contract


# -- quantized networks --------------------------------------------------------------------------------------------------


def _quantized() -> tuple[GraphModule, QParams, QParams]:
    torch.manual_seed(0)
    source, result = QParams(0.05, 120), QParams(0.1, 7)
    weight = torch.randint(-127, 128, (4, 8), dtype=torch.int8)
    layers: dict[str, nn.Module] = {
        "q": Quantize(source),
        "linear": QuantLinear(weight, torch.full((4,), 0.01), None, source=source, qparams=result),
        "d": Dequantize(result),
    }
    graph = fx.Graph()
    y = graph.placeholder("x")
    for name in ("q", "linear"):
        y = graph.call_module(name, (y,))
    y = graph.call_method("view", (y, -1))
    graph.output(graph.call_module("d", (y,)))
    return GraphModule(layers, graph), source, result


def test_grids_follow_the_values() -> None:
    module, source, result = _quantized()
    found = take(module, Inputs((torch.randn(3, 8),)), model="m")
    grids = [n.outputs[0].grid if n.outputs else None for n in found.nodes]
    told = [None if g is None else (g.scale, g.zero_point, g.bits) for g in grids]
    a, b = ((q.scale, q.zero_point, q.bits) for q in (source, result))
    assert told == [None, a, b, b, None, None]
    assert [n.kind for n in found.nodes] == ["input", "quantize", "linear", "view", "dequantize", "output"]
    assert [n.attributes for n in found.nodes[1:5]] == [{}, {}, {"shape": [-1]}, {}]


def test_integers_count_as_what_they_stand_for() -> None:
    module, _, result = _quantized()
    found = take(module, Inputs((torch.randn(3, 8),)), model="m")
    assert found.nodes[2].print == found.nodes[4].print  # before and after Dequantize
    assert found.nodes[2].print is not None
    assert found.nodes[2].print.max_abs <= 255 * result.scale


def test_a_grid_that_operand_and_layer_see_differently_is_told() -> None:
    module, _, result = _quantized()
    module.get_submodule("d").qparams = QParams(result.scale * 2, result.zero_point)
    found = take(module, Inputs((torch.randn(3, 8),)), model="m")
    assert found.nodes[4].attributes["source"]["scale"] == pytest.approx(2 * result.scale)
    module.get_submodule("linear").source = QParams(0.05, 121)
    assert "source" in take(module, Inputs((torch.randn(3, 8),)), model="m").nodes[2].attributes


def test_one_scale_is_one_change() -> None:
    module, source, _ = _quantized()
    before = take(module, Inputs((torch.randn(3, 8),)), model="m")
    other = QParams(source.scale * 1.01, source.zero_point)
    module.get_submodule("q").qparams = module.get_submodule("linear").source = other
    after = take(module, Inputs((torch.randn(3, 8),)), model="m")
    bare = [[replace(n, print=None) for n in s.nodes] for s in (before, after)]
    assert [a != b for a, b in zip(*bare, strict=True)] == [False, True, False, False, False, False]


def test_fake_quantized_values_have_a_grid() -> None:
    graph = fx.Graph()
    graph.output(graph.call_module("q", (graph.placeholder("x"),)))
    found = take(GraphModule({"q": FakeQuantize(QParams(0.5, 3, 4))}, graph), Inputs((X,)), model="m")
    value = found.nodes[1].outputs[0]
    assert value.dtype == "float32"
    assert value.grid is not None
    assert (value.grid.scale, value.grid.zero_point, value.grid.bits) == (0.5, 3, 4)


@pytest.mark.parametrize("target", ["none", "cpu"])
def test_results_of_the_library(target: str) -> None:
    model = small()
    kinds, convs = {}, []
    for name, result in {
        "float": fxcompress.compress(model, X, target=target),
        "int8": fxcompress.quantize(model, X, fxcompress.Int8(speed="none"), calibration=[X], target=target),
        "pruned": fxcompress.compress(model, X, prune=0.5, target=target),
    }.items():
        found = fxcompress.snapshot(result, X)
        assert codec.decode(codec.encode(found)) == found
        assert found.model == "Small"
        assert found.contract == fxcompress.snapshot(model, X).contract
        kinds[name] = [n.kind for n in found.nodes]
        convs += [n.attributes for n in found.nodes if n.kind == "conv+relu"]
    assert kinds["float"] == ["input", "conv+relu", "mean", "linear", "output"] == kinds["pruned"]
    assert [k for k in kinds["int8"] if "quantize" not in k] == kinds["float"]
    wanted = {"activation": "relu", "dilation": [1, 1], "groups": 1, "kernel_size": [3, 3], "padding": [1, 1], "stride": [1, 1]}
    assert [{key: conv[key] for key in wanted} for conv in convs] == [wanted] * 3
    assert all(set(conv) <= {*wanted, "overwrites_residual", "padding_mode"} for conv in convs)


# -- what cannot be taken ------------------------------------------------------------------------------------------------


def test_a_graph_that_is_not_well_formed() -> None:
    graph = fx.Graph()
    graph.output(graph.get_attr("found"))
    module = GraphModule({"found": X}, graph)
    del module.found
    with pytest.raises(GraphError):
        take(module, Inputs((X,)), model="m")


@pytest.mark.parametrize("example", [None, (X, X), {"y": X}, "text"], ids=["None", "two", "other name", "text"])
def test_wrong_arguments(example: Any) -> None:
    for subject in (small(), fxcompress.trace(small(), X)):
        with pytest.raises(FxCompressError) as caught:
            fxcompress.snapshot(subject, example)
        assert caught.value.hint or "forward" in str(caught.value)
    with pytest.raises(InputError):
        fxcompress.snapshot("resnet18", X)  # type: ignore[arg-type]


# -- models in parts -----------------------------------------------------------------------------------------------------


class InParts(nn.Module):
    """Python code on values between two parts that can be captured."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(4, 2, 1), nn.Flatten())

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.first(x)
        if y.sum().item() > 0:
            y = y * 2
        return {"scores": self.second(y), "found": torch.nonzero(y > 0.1)}


def test_parts_are_joined() -> None:
    torch.manual_seed(0)
    model = InParts().eval()
    found = fxcompress.snapshot(model, X)
    assert found.capture == "parts"
    assert [n.kind for n in found.nodes] == ["input", "conv", "relu", "output", "input", "conv", "flatten", "output"]
    assert [n.name.split(".")[0] for n in found.nodes] == ["first"] * 4 + ["second"] * 4
    assert len({n.name for n in found.nodes}) == 8
    assert [n.inputs for n in found.nodes] == [(), (0,), (1,), (2,), (), (4,), (5,), (6,)]
    assert [t.name for t in found.tensors] == ["first.0.bias", "first.0.weight", "second.0.bias", "second.0.weight"]
    assert list(found.nodes[5].tensors.values()) == [2, 3]
    assert [(p.name, p.dtype, p.shape) for p in found.contract.outputs] == [("scores", "float32", (2, 128)), ("found", "unknown", ())]
    assert found.contract.signature == "(x)"
    assert found.live is None
    assert found.numbers is not None
    assert len(found.numbers.outputs) == 2
    assert all(n.print is not None for n in found.nodes if n.kind != "output")
    assert codec.encode(fxcompress.snapshot(model, X)) == codec.encode(found)
    assert codec.decode(codec.encode(found)) == found


# -- sources -------------------------------------------------------------------------------------------------------------


def test_sources_are_the_same_in_every_checkout(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert portable(None) is None
    assert portable("/any/lib/python3/site-packages/timm/models/a.py:7") == "timm/models/a.py:7"
    for name in ("one", "two"):
        (tmp_path / name / ".git").mkdir(parents=True)
        assert portable(f"{tmp_path}/{name}/models/net.py:12") == "models/net.py:12"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loose").mkdir()
    assert portable("/elsewhere/net.py:3") == "/elsewhere/net.py:3"
    assert portable("<string>:3") == "<string>:3"
