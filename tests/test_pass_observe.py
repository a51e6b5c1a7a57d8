"""Which values are observed, which layers become int8, and what is said about it."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxcompress.analysis import Analyses
from fxcompress.errors import OrderError, PipelineError
from fxcompress.ir.inputs import Inputs
from fxcompress.pipeline import Pipeline
from fxcompress.pipeline.pipeline import Run
from fxcompress.quant.costs import Costs
from fxcompress.quant.mincut import NEVER, Labelling
from fxcompress.quant.observed import ObservedConv2d, ObservedLinear
from fxcompress.quant.observers import Observer
from fxcompress.quant.placement import place


def run(model: nn.Module, *inputs: Tensor, options: str = "speed=none") -> Run:
    text = f"functionalize,raise-layers,fuse,observe{{{options}}}"
    return Pipeline.parse(text).execute(fx.symbolic_trace(model.eval()), Inputs(tuple(inputs)))


def watched(module: fx.GraphModule) -> dict[str, list[str]]:
    """Observed value -> those who read it through the observer."""
    calls = [n for n in module.graph.nodes if n.op == "call_module" and isinstance(module.get_submodule(str(n.target)), Observer)]
    return {n.args[0].name: sorted(user.name for user in n.users) for n in calls}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = F.relu(self.a(x))
        z = F.relu(self.b(y) + y)
        return self.c(torch.flatten(F.max_pool2d(z, 3).mean((2, 3)), 1)), torch.softmax(y, 1)


X = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))


def test_one_observer_per_value_and_none_on_what_is_moved() -> None:
    result = run(Net(), X).module
    names = watched(result)
    assert names == {"x": ["a"], "a": ["b", "softmax"], "b": ["max_pool2d"], "mean": ["flatten"]}
    assert {type(m) for m in (result.a, result.b, result.c)} == {ObservedConv2d, ObservedLinear}


def test_the_numbers_stay() -> None:
    model = Net().eval()
    result = run(model, X).module
    for want, got in zip(model(X), result(X), strict=True):
        torch.testing.assert_close(want, got)
    assert not any(m.enabled for m in result.modules() if isinstance(m, Observer))


def test_every_operation_has_a_reason() -> None:
    remarks = run(Net(), X).steps[-1].remarks
    by_node = {r.node: r for r in remarks}
    assert by_node["softmax"].why == "float: softmax has no integer form"
    assert not by_node["softmax"].applied
    assert by_node["c"].why.startswith("int8: ")
    assert by_node["c"].applied
    assert len(remarks) == len(by_node) == 7


def test_ignore_and_only() -> None:
    first = run(Net(), X, options='speed=none,ignore=["a"]')
    assert type(first.module.a) is not ObservedConv2d
    assert next(r for r in first.steps[-1].remarks if r.node.startswith("a")).why == "float: it is among those to ignore"
    second = run(Net(), X, options='speed=none,only=["c"]').module
    assert [type(m).__name__ for m in (second.b, second.c)] == ["FusedConv2d", "ObservedLinear"]


def test_options_reach_the_graph() -> None:
    result = run(Net(), X, options='speed=none,bits=6,weight_bits=5,observer="min-max",weight_observer=mse').module
    assert {m.bits for m in result.modules() if isinstance(m, Observer)} == {6}
    assert {type(m).__name__ for m in result.modules() if isinstance(m, Observer)} == {"MinMax"}
    assert (result.a.weight_bits, result.a.weight_observer) == (5, "mse")


@pytest.mark.parametrize("options", ["bits=9", "weight_bits=1"])
def test_wrong_numbers_of_bits(options: str) -> None:
    with pytest.raises(PipelineError, match="bits per"):
        run(Net(), X, options=options)


def test_wrong_observer() -> None:
    with pytest.raises(PipelineError):
        run(Net(), X, options="observer=maximum")


def test_order() -> None:
    with pytest.raises(OrderError, match="FUSED"):
        Pipeline.parse("functionalize,observe")
    with pytest.raises(OrderError, match="OBSERVED"):
        Pipeline.parse("functionalize,fuse,observe,observe")


def test_float64_stays() -> None:
    result = run(Net().double(), X.double())
    assert not result.steps[-1].changed
    assert any("float32" in r.why for r in result.steps[-1].remarks)


class Written(nn.Module):
    """A value that somebody writes into is not observed: the observer would show it before, or after."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        y.select(1, 0).mul_(torch.sigmoid(x[:, 0, 1:-1, 1:-1]))
        return self.b(y)


def test_what_is_written_in_place_stays_float() -> None:
    text = "functionalize,raise-layers,fuse,observe{speed=none}"
    graph = fx.symbolic_trace(Written().eval())
    result = Pipeline.parse(text).execute(graph, Inputs((X,))).module
    assert "a" not in watched(result)


# -- placement with times ------------------------------------------------------------------------------------------------


def placed(model: nn.Module, times: dict[str, tuple[float, float]], *inputs: Tensor) -> set[str]:
    """Names of layers in integers, for given microseconds in float and in int8."""
    module = Pipeline.parse("functionalize,raise-layers,fuse").execute(fx.symbolic_trace(model.eval()), Inputs(tuple(inputs))).module
    by_layer = {id(module.get_submodule(name)): (a * 1e-6, b * 1e-6) for name, (a, b) in times.items()}
    found = place(module, Analyses(module, Inputs(tuple(inputs))), Costs(lambda layer, shape: by_layer[id(layer)]))
    return {str(n.target) for n in found.integer if n.op == "call_module" and str(n.target) in times}


def chain() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))


def test_a_slow_stem_stays_float_and_a_slow_layer_between_fast_ones_does_not() -> None:
    assert placed(chain(), {"0": (10, 30), "2": (50, 20), "4": (50, 20)}, X) == {"2", "4"}
    assert placed(chain(), {"0": (50, 20), "2": (10, 11), "4": (50, 20)}, X) == {"0", "2", "4"}
    assert placed(chain(), {"0": (50, 20), "2": (10, 90), "4": (50, 20)}, X) == {"0", "4"}


def test_nothing_is_quantized_where_it_does_not_pay() -> None:
    assert placed(chain(), {"0": (10, 9), "2": (10, 11), "4": (10, 11)}, X) == set()


# -- the labelling -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(60))
def test_labelling_is_the_cheapest(seed: int) -> None:
    draw = random.Random(seed)
    count = draw.randint(1, 6)
    first, second = ([draw.choice([0, draw.randint(0, 9)]) for _ in range(count)] for _ in range(2))
    pairs = [(draw.randrange(count), draw.randrange(count), draw.randint(0, 9)) for _ in range(draw.randint(0, 12))]

    def cost(chosen: set[int]) -> int:
        alone = sum(first[i] if i in chosen else second[i] for i in range(count))
        return alone + sum(c for a, b, c in pairs if a in chosen and b not in chosen)

    problem = Labelling()
    for i in range(count):
        problem.if_first(i, first[i])
        problem.if_second(i, second[i])
    for a, b, c in pairs:
        problem.if_differ(a, b, c)
    found = {i for i in problem.solve() if isinstance(i, int)}
    every = [set(c) for k in range(count + 1) for c in itertools.combinations(range(count), k)]
    assert (cost(found), len(found)) == min((cost(c), len(c)) for c in every)


def test_what_must_not_be_is_not() -> None:
    problem = Labelling()
    problem.if_second("a", 5)
    problem.if_differ("a", "b")
    problem.if_first("b", 7)
    assert problem.solve() == frozenset()
    problem.if_second("a", 5)
    assert problem.solve() == {"a", "b"}
    assert NEVER > 10**12
