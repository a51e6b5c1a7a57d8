"""Facts about graphs, held against what really happens when the graph runs."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from counterexamples import KNOWN
from drawing import Feed, networks
from hypothesis import given, settings
from networks import Net, step, trace
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from fxcompress.analysis import Aliases, Analyses, Cost, Shapes, Sharing
from fxcompress.ir.effects import effect_of
from fxcompress.ir.inputs import Inputs


class Watcher(fx.Interpreter):
    """Keeps every value of a run, and a copy of what it was when it was made."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.values: dict[fx.Node, Any] = {}
        self.at_first: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor) and n.op != "output":
            self.values[n], self.at_first[n] = value, value.clone()
        return value


def watch(net: Net) -> tuple[fx.GraphModule, Inputs, Watcher]:
    graph = trace(net.build())
    inputs = Inputs(Feed().inputs(net))
    watcher = Watcher(graph)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        watcher.run(*inputs.clone().args)
    return graph, inputs, watcher


@settings(max_examples=60)
@given(networks())
def test_shapes_are_those_of_a_run(net: Net) -> None:
    graph, inputs, watcher = watch(net)
    shapes = Shapes.of(graph, inputs)
    for node in graph.graph.nodes:
        if node.op == "output":
            continue
        value = watcher.values.get(node)
        assert shapes.reason(node) is None
        assert shapes.shape(node) == (None if value is None else tuple(value.shape))
        assert shapes.dtype(node) == (None if value is None else value.dtype)


def test_a_shape_that_needs_data_is_unknown_with_a_reason() -> None:
    class Masked(nn.Module):
        def forward(self, x):
            return torch.nonzero(x).float().sum(), x + 1

    graph = fx.symbolic_trace(Masked())
    shapes = Shapes.of(graph, Inputs.of(torch.randn(2, 3)))
    by_name = {node.name: node for node in graph.graph.nodes}
    assert shapes.shape(by_name["nonzero"]) is None
    assert shapes.shape(by_name["sum_1"]) is None
    assert "nonzero needs data" in str(shapes.reason(by_name["sum_1"]))
    assert shapes.shape(by_name["add"]) == (2, 3)


def test_shapes_of_a_deep_graph() -> None:
    graph = fx.Graph()
    node = graph.placeholder("x")
    for _ in range(3000):
        node = graph.call_function(torch.relu, (node,))
    graph.output(node)
    module = fx.GraphModule(nn.Module(), graph)
    assert Shapes.of(module, Inputs.of(torch.randn(2))).shape(node) == (2,)


@settings(max_examples=100)
@given(networks(train=False))
def test_values_that_share_memory_are_known_to(net: Net) -> None:
    _aliases_are_sound(net)


@pytest.mark.parametrize("known", KNOWN)
def test_aliases_of_known_networks(known: str) -> None:
    _aliases_are_sound(KNOWN[known])


def _aliases_are_sound(net: Net) -> None:
    graph, inputs, watcher = watch(net)
    aliases = Aliases.of(graph, inputs)
    for a, b in itertools.combinations(watcher.values, 2):
        if watcher.values[a].untyped_storage().data_ptr() == watcher.values[b].untyped_storage().data_ptr():
            assert aliases.together(a, b), f"{a} and {b} share memory"
    for node, value in watcher.values.items():
        if not torch.equal(value.nan_to_num(), watcher.at_first[node].nan_to_num()):
            assert aliases.is_written(node), f"{node} is written after it is made"


@settings(max_examples=60)
@given(networks())
def test_nodes_without_effect_change_no_state(net: Net) -> None:
    """What ``dead-code`` may remove leaves buffers and the random state alone."""
    graph, inputs, _ = watch(net)
    names = {id(b): name for name, b in graph.named_buffers(remove_duplicate=False)}

    class Effects(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            state, versions = torch.get_rng_state(), {name: b._version for name, b in graph.named_buffers()}
            value = super().run_node(n)
            changed = [name for name, b in graph.named_buffers() if b._version != versions[name]]
            if effect_of(n) is None:
                assert not changed, f"{n} changes {changed}"
                assert torch.equal(state, torch.get_rng_state()), f"{n} draws random numbers"
            return value

    with torch.no_grad():
        Effects(graph).run(*inputs.clone().args)
    assert len(names) == len(set(names.values()))


# -- sharing ------------------------------------------------------------------------------------------------------------


def test_sharing() -> None:
    twice = trace(KNOWN["one conv called twice, one norm"].build())
    sharing = Sharing.of(twice, Inputs.of(torch.randn(1, 3, 7, 5)))
    assert dict(sharing.shared_modules()) == {"m0": 2}
    assert not sharing.tied(twice.m0.weight)
    tied = trace(KNOWN["tied weights, different norms"].build())
    sharing = Sharing.of(tied, Inputs.of(torch.randn(1, 3, 7, 5)))
    assert sharing.tied(tied.m0.weight)
    assert not sharing.tied(tied.m0.bias)
    assert not sharing.shared_modules()


# -- cost ---------------------------------------------------------------------------------------------------------------


def _flops(module: nn.Module, inputs: Inputs) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        inputs.clone().call(module)
    return counter.get_total_flops()


@settings(max_examples=40)
@given(networks(train=False))
def test_multiply_adds_of_random_networks(net: Net) -> None:
    graph, inputs, _ = watch(net)
    if any(one.op == "conv" and one.get("mode", "zeros") != "zeros" for one in net.steps):
        return  # torch's counter runs the padded convolution on other shapes
    assert Cost.of(graph, inputs).macs == _flops(net.build(), inputs) // 2


class Attention(nn.Module):
    def forward(self, x):
        return F.scaled_dot_product_attention(x, x, x) @ x.transpose(1, 2)


@pytest.mark.parametrize(
    ("module", "shape", "macs"),
    [
        (nn.Conv2d(4, 6, 3, padding=1, groups=2), (2, 4, 5, 7), 2 * 6 * 5 * 7 * 9 * 2),
        (nn.Conv1d(4, 6, 3, stride=2), (1, 4, 9), 6 * 4 * 4 * 3),
        (nn.ConvTranspose2d(4, 6, 2, stride=2), (1, 4, 3, 3), 4 * 3 * 3 * 6 * 4),
        (nn.Linear(5, 3), (2, 7, 5), 2 * 7 * 5 * 3),
        (nn.ReLU(), (2, 7), 0),
        (Attention(), (2, 3, 4), 2 * (3 * 4 * 3 * 2) + 2 * 3 * 4 * 3),
    ],
)
def test_multiply_adds_by_hand(module: nn.Module, shape: tuple[int, ...], macs: int) -> None:
    graph = fx.symbolic_trace(nn.Sequential(module))
    inputs = Inputs.of(torch.randn(shape))
    assert Cost.of(graph, inputs).macs == macs == _flops(module, inputs) // 2


def test_parameters_and_bytes_count_shared_tensors_once() -> None:
    tied = KNOWN["tied weights, different norms"].build().float()
    cost = Cost.of(trace(tied), Inputs.of(torch.randn(1, 3, 7, 5)))
    assert cost.params == 81 + 3 + 3 + 2 * 6
    assert cost.weight_bytes == 4 * (81 + 6 + 12 + 2 * 6) + 2 * 8  # with the statistics, and two counters of batches


def test_peak_activation_memory() -> None:
    net = Net(
        ((4, 5, 5),),
        (step("fn", 0, name="relu"), step("cat", 1, 1), step("slice", 2, dim=1, start=0, stop=2), step("fn", 3, name="abs")),
        4,
    )
    cost = Cost.of(trace(net.build()), Inputs.of(torch.randn(1, 4, 5, 5)))
    values = 4 * 25 * 4  # bytes of the input
    # At cat: relu's result and cat's own, twice as large. The slice is a view and keeps all of cat's memory alive.
    assert cost.peak_bytes == values + 2 * values


def test_facts_are_kept_until_dropped() -> None:
    graph, inputs, _ = watch(KNOWN["repvgg"])
    analyses = Analyses(graph, inputs)
    shapes, cost = analyses.get(Shapes), analyses.get(Cost)
    assert analyses.get(Shapes) is shapes
    analyses.drop(frozenset({Shapes}))
    assert analyses.get(Shapes) is shapes
    assert analyses.get(Cost) is not cost


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v3_small", "densenet121", "vit_b_16", "swin_t", "convnext_tiny", "shufflenet_v2_x1_0"]
)
def test_multiply_adds_of_the_zoo(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torchvision = pytest.importorskip("torchvision")
    monkeypatch.setattr(torch.backends.mha, "_is_fastpath_enabled", False)  # torch's counter has no formula for the fused attention
    model = torchvision.models.get_model(name).eval()
    inputs = Inputs.of(torch.randn(1, 3, 224, 224))
    graph = fx.symbolic_trace(model) if name not in ("vit_b_16", "swin_t") else _captured(model, inputs)
    assert Cost.of(graph, inputs).macs == _flops(model, inputs) // 2


def _captured(model: nn.Module, inputs: Inputs) -> fx.GraphModule:
    from fxcompress.capture import capture

    module = capture(model, inputs).module
    assert isinstance(module, fx.GraphModule)
    return module
