"""The cost of quantizing single layers is measured as it says, and the budget keeps the fewest layers in float."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from fakes import fake_quantize, outputs, sqnr
from torch import Tensor, fx, nn

from fxcompress.errors import InputError
from fxcompress.ir.inputs import Inputs
from fxcompress.pipeline import Pipeline
from fxcompress.quant.fake import FakeQuantize
from fxcompress.quant.float_form import float_form
from fxcompress.quant.sensitivity import fewest_in_float, layer_costs, only_quantized, output_sqnr, partly_float, sensitivity


class Net(nn.Module):
    """The input of the second layer is also its residual; a pool stands between rounding and the third."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.a(x))
        y = F.relu(self.b(y) + y)
        y = F.relu(self.c(F.max_pool2d(y, 2)))
        z: Tensor = self.head(y.mean((2, 3)))
        return z


DATA = [torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(3)]
BATCHES = [Inputs((x,)) for x in DATA]


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    found = Net().eval()
    with torch.no_grad():
        found.c.weight[:, 0] *= 30  # one column rules the grid of every row: the most sensitive layer
    return found


@pytest.fixture(scope="module")
def fake(net: Net) -> fx.GraphModule:
    fused = Pipeline.parse("functionalize,fuse").execute(fx.symbolic_trace(net), BATCHES[0]).module
    return fake_quantize(fused, DATA, weight_bits=4)


def by_hand(net: Net, fake: fx.GraphModule, name: str) -> Tensor:
    """The network with one layer quantized, written out."""

    def rounded(x: Tensor, layer: str) -> Tensor:
        if layer != name:
            return x
        node = next(n for n in fake.graph.nodes if n.target == layer)
        module = fake.get_submodule(str(node.all_input_nodes[0].target))
        assert isinstance(module, FakeQuantize)
        return module(x)

    net = copy.deepcopy(net)
    with torch.no_grad():
        net.get_submodule(name).weight.copy_(fake.get_submodule(name).weight)
        found = []
        for x in DATA:
            y = F.relu(net.a(rounded(x, "a")))
            y = F.relu(net.b(rounded(y, "b")) + rounded(y, "b"))
            y = F.relu(net.c(rounded(F.max_pool2d(y, 2), "c")))
            found.append(net.head(rounded(y.mean((2, 3)), "head")))
    return torch.cat(found).double()


def test_alone_is_what_it_says(net: Net, fake: fx.GraphModule) -> None:
    wanted = outputs(net, DATA)
    found = sensitivity(fake, BATCHES)
    assert {layer.name for layer in found.layers} == {"a", "b", "c", "head"}
    for layer in found.layers:
        assert layer.alone == pytest.approx(sqnr(wanted, by_hand(net, fake, layer.name)), abs=0.05)
        assert sqnr(wanted, outputs(only_quantized(fake, layer.name), DATA)) == pytest.approx(layer.alone, abs=0.05)
    assert found.names[0] == "c"
    assert [layer.alone for layer in found.layers] == sorted(layer.alone for layer in found.layers)
    assert found.output == pytest.approx(sqnr(wanted, outputs(fake, DATA)), abs=1e-3)
    last = next(layer for layer in found.layers if layer.name == "head")
    assert last.here == pytest.approx(found.output, abs=1e-3)
    assert "c:" in str(found)


def test_the_ranking_is_the_same_every_time(fake: fx.GraphModule) -> None:
    assert sensitivity(fake, BATCHES) == sensitivity(fake, BATCHES)


def test_costs_by_a_score(net: Net, fake: fx.GraphModule) -> None:
    wanted = outputs(net, DATA)
    costs = layer_costs(fake, BATCHES, score=lambda m: min(sqnr(wanted, outputs(m, DATA)), 200.0))
    assert [name for name, _ in costs] == list(sensitivity(fake, BATCHES).names)
    assert [name for name, _ in layer_costs(fake, BATCHES)] == list(sensitivity(fake, BATCHES).names)
    powers = dict(layer_costs(fake, BATCHES))
    assert powers["c"] == pytest.approx(10 ** (-sensitivity(fake, BATCHES).layers[0].alone / 10))


def test_float_forms(net: Net, fake: fx.GraphModule) -> None:
    before = outputs(fake, DATA)
    assert torch.equal(outputs(float_form(fake), DATA), outputs(net, DATA))
    assert torch.equal(outputs(partly_float(fake, []), DATA), before)
    assert torch.equal(outputs(partly_float(fake, ["a", "b", "c", "head"]), DATA), outputs(net, DATA))
    assert output_sqnr(net, float_form(fake), BATCHES) == math.inf
    assert torch.equal(outputs(fake, DATA), before)


def test_values_that_no_quantized_layer_reads_are_not_rounded(fake: fx.GraphModule) -> None:
    kept = partly_float(fake, ["b"])
    nodes = {n.name: n for n in kept.graph.nodes}
    read_by = {name: nodes[name].all_input_nodes[0] for name in ("a", "b", "c")}
    assert isinstance(kept.get_submodule(str(read_by["b"].target)), nn.Identity)
    assert isinstance(kept.get_submodule(str(read_by["c"].target)), FakeQuantize)
    assert output_sqnr(float_form(fake), partly_float(fake, ["c"]), BATCHES) > output_sqnr(float_form(fake), fake, BATCHES) + 1


def test_needs_data(fake: fx.GraphModule) -> None:
    with pytest.raises(InputError, match="data"):
        sensitivity(fake, [])


# -- the budget -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("needed", [(), ("a",), ("c",), ("a", "d"), ("b", "c", "e"), ("a", "b", "c", "d", "e")])
def test_the_fewest_layers_stay_in_float(needed: Sequence[str]) -> None:
    """The score holds exactly where all of ``needed`` are in float."""
    asked: list[tuple[str, ...]] = []

    def score(names: tuple[str, ...]) -> float:
        asked.append(names)
        return 1.0 if set(needed) <= set(names) else 0.5

    found = fewest_in_float("abcde", score, 0.9)
    assert found.names == tuple(needed)
    assert found.holds
    assert found.score == 1.0
    assert len(asked) == len(set(asked)) == len(found.tried)


def test_a_score_that_goes_up_and_down() -> None:
    """A shorter beginning that happens to hold is taken, whatever longer ones do."""
    scores = {0: 0.1, 1: 0.2, 2: 0.95, 3: 0.3, 4: 0.4, 5: 0.99}
    found = fewest_in_float("abcde", lambda names: scores[len(names)], 0.9)
    assert found.names == ("a", "b")


def test_a_score_that_is_out_of_reach() -> None:
    found = fewest_in_float("abc", lambda names: 0.1 * len(names), 0.9)
    assert not found.holds
    assert found.names == ("a", "b", "c")
    assert "does not hold" in str(found)
