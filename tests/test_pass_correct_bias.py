"""correct-bias takes back the mean error of every layer; the oracle is written out here in float64."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from fakes import fake_quantize, outputs, run_pass, sqnr
from torch import Tensor, fx, nn

from fxcompress.errors import InputError, OrderError
from fxcompress.ir.inputs import Inputs
from fxcompress.passes.correct_bias import CorrectBias
from fxcompress.pipeline import Pipeline

Mode = Literal["analytic", "empirical"]


class Net(nn.Module):
    """Two convolutions (the second grouped, without bias, with a residual) and a linear."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 1, 1, groups=2, bias=False)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.a(x))
        y = F.relu(self.b(y) + y)
        z: Tensor = self.head(y.mean((2, 3)))
        return z


def batches(count: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(size, 3, 9, 9, generator=generator) for size in range(3, 3 + count)]


TRAIN, HELD = batches(4, 0), batches(3, 1)
EXAMPLE = Inputs((TRAIN[0],))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def quantized(net: nn.Module, bits: int = 4) -> fx.GraphModule:
    fused = Pipeline.parse("functionalize,fuse").execute(fx.symbolic_trace(net), EXAMPLE).module
    return fake_quantize(fused, TRAIN, weight_bits=bits)


def mean(values: list[Tensor]) -> Tensor:
    """Over all but axis 1, and all batches."""
    return torch.cat([v.double().movedim(1, 0).flatten(1) for v in values], 1).mean(1)


def test_analytic_is_the_mean_of_the_weights_error(net: Net) -> None:
    fake = quantized(net)
    with torch.no_grad():
        first = [t.double() for t in TRAIN]
        second = [F.relu(F.conv2d(x, net.a.weight.double(), net.a.bias.double(), padding=1)) for x in first]
        third = [F.relu(F.conv2d(y, net.b.weight.double(), padding=1, groups=2) + y).mean((2, 3)) for y in second]
        errors = {n: fake.get_submodule(n).weight.double() - net.get_submodule(n).weight.double() for n in ("a", "b", "head")}
        shifts = {
            "a": mean([F.conv2d(x, errors["a"], padding=1) for x in first]),
            "b": mean([F.conv2d(y, errors["b"], padding=1, groups=2) for y in second]),
            "head": mean([F.linear(z, errors["head"]) for z in third]),
        }
    done = run_pass(CorrectBias("analytic"), fake, TRAIN)
    assert done.changed
    for name, shift in shifts.items():
        old = net.get_submodule(name).bias
        wanted = -shift if old is None else old.double() - shift
        torch.testing.assert_close(done.module.get_submodule(name).bias.double(), wanted, rtol=1e-5, atol=1e-6)


def before_activations(module: fx.GraphModule, data: list[Tensor]) -> dict[str, list[Tensor]]:
    """What every layer of a graph gives before its activation, with its residual."""
    found: dict[str, list[Tensor]] = {}

    class Watch(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Tensor:
            layer = module.get_submodule(str(n.target)) if n.op == "call_module" else None
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                args, _ = self.fetch_args_kwargs_from_env(n)
                y = (
                    F.conv2d(args[0], layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)
                    if isinstance(layer, nn.Conv2d)
                    else F.linear(args[0], layer.weight, layer.bias)
                )
                found.setdefault(str(n.target), []).append(y + args[1] if len(args) > 1 else y)
            value: Tensor = super().run_node(n)
            return value

    with torch.no_grad():
        for x in data:
            Watch(module).run(x)
    return found


def test_empirical_makes_all_means_those_of_the_float_network(net: Net) -> None:
    done = run_pass(CorrectBias("empirical"), quantized(net), TRAIN)
    wanted = before_activations(Pipeline.parse("functionalize,fuse").execute(fx.symbolic_trace(net), EXAMPLE).module, TRAIN)
    given = before_activations(done.module, TRAIN)
    assert set(wanted) == set(given) == {"a", "b", "head"}
    for name, values in wanted.items():
        torch.testing.assert_close(mean(given[name]), mean(values), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["analytic", "empirical"])
def test_the_output_is_nearer_on_other_data_and_it_settles(net: Net, mode: Mode) -> None:
    fake = quantized(net)
    done = run_pass(CorrectBias(mode), fake, TRAIN)
    assert sqnr(outputs(net, HELD), outputs(done.module, HELD)) > sqnr(outputs(net, HELD), outputs(fake, HELD)) + 1
    for node in ("a", "b", "head"):
        assert torch.equal(done.module.get_submodule(node).weight, fake.get_submodule(node).weight)
    assert not run_pass(CorrectBias(mode), done.module, TRAIN).changed


def test_a_layer_with_two_calls_is_left_alone() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.a(F.relu(self.a(x)))
            return y

    fake = fake_quantize(fx.symbolic_trace(Twice().eval()), TRAIN, weight_bits=4)
    for node in fake.graph.nodes:
        if str(node.target).startswith("a"):
            node.target = "a"
    fake.recompile()
    assert not run_pass(CorrectBias(), fake, TRAIN).changed


def test_needs_data_and_a_quantized_graph(net: Net) -> None:
    with pytest.raises(InputError, match="calibration"):
        run_pass(CorrectBias(), quantized(net), [], TRAIN[0])
    with pytest.raises(OrderError, match="QUANTIZED"):
        Pipeline.parse("functionalize,correct-bias")


def test_analytic_looks_at_a_few_inputs_from_everywhere(net: Net) -> None:
    fake = quantized(net)
    data = [torch.full((2, 3, 9, 9), float(k)) for k in range(8)]
    few = run_pass(CorrectBias("analytic", enough=4), fake, data)
    same = run_pass(CorrectBias("analytic"), fake, [data[0], data[4]])
    for name in ("a", "b", "head"):
        assert torch.equal(few.module.get_submodule(name).bias, same.module.get_submodule(name).bias)
    with pytest.raises(InputError, match="enough=0 inputs"):
        CorrectBias("analytic", enough=0)


def test_analytic_of_inputs_of_several_sizes_is_the_mean_over_all_places(net: Net) -> None:
    data = [torch.rand(1, 3, 9, 9), torch.rand(2, 3, 7, 12), torch.rand(3, 3, 9, 9)]
    fake = quantized(net)
    error = fake.get_submodule("a").weight.double() - net.a.weight.double()
    shift = mean([F.conv2d(x.double(), error, padding=1) for x in data])
    given = run_pass(CorrectBias("analytic"), fake, data).module.get_submodule("a").bias
    torch.testing.assert_close(given.double(), net.a.bias.double() - shift, rtol=1e-5, atol=1e-6)
