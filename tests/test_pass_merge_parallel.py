"""merge-parallel against the modules themselves, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from algebra import CONV, applied, count, execute, image, operations, outputs, randomise, reasons, rewritten, sample
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fxcompress.analysis import Cost
from fxcompress.ir.inputs import Inputs
from fxcompress.pipeline import Pipeline

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
BOTH = "merge-parallel{convs=true,linears=true}"


class Heads(nn.Module):
    """All layers on the same input, each with an activation."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Any:
        return tuple(torch.tanh(layer(x)) for layer in self.layers)


def merged(module: nn.Module, *inputs: Tensor, left: int = 1, **kwargs: Any) -> Any:
    run = rewritten(module, BOTH, *inputs, **kwargs)
    assert count(run.module, *LAYERS) == left, reasons(run)
    return run


def refused(module: nn.Module, *inputs: Tensor) -> str:
    run = rewritten(module, BOTH, *inputs)
    assert applied(run) == 0
    return reasons(run)


@pytest.mark.parametrize("biases", [(True, True, True), (False, False, False), (True, False, True)])
@pytest.mark.parametrize("shape", [(5,), (2, 5), (2, 3, 5)])
def test_linears(biases: tuple[bool, ...], shape: tuple[int, ...]) -> None:
    layers = [nn.Linear(5, 3 + i, bias=bias) for i, bias in enumerate(biases)]
    run = merged(randomise(Heads(*layers)), sample(*shape))
    layer = run.module.get_submodule("layers.0_1_2")
    assert isinstance(layer, nn.Linear)
    assert (layer.in_features, layer.out_features, layer.bias is None) == (5, 12, not any(biases))


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_convs(axes: int, kernel: int, mode: str) -> None:
    layers = [CONV[axes](4, 3 + i, kernel, stride=2, padding=1, padding_mode=mode, bias=i > 0) for i in range(3)]
    merged(randomise(Heads(*layers)), image(axes, 4), more=((image(axes, 4, 5),),))
    merged(randomise(Heads(*layers)), sample(4, *(9, 7, 5)[:axes]))


def test_only_what_agrees_is_merged() -> None:
    layers = [
        nn.Conv2d(4, 4, 1),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.Conv2d(4, 2, 1),
        nn.Conv2d(4, 4, 1, stride=2),
        nn.Conv2d(4, 6, 3, padding=1),
    ]
    merged(randomise(Heads(*layers)), image(2, 4), left=3)


def test_options() -> None:
    module = randomise(Heads(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)))
    assert applied(execute(module, "merge-parallel{convs=false}", image(2, 4))) == 0
    assert applied(execute(module, "merge-parallel{convs=true}", image(2, 4))) == 1
    module = randomise(Heads(nn.Linear(4, 4), nn.Linear(4, 4)))
    assert applied(execute(module, "merge-parallel{linears=false}", sample(2, 4))) == 0
    assert applied(execute(module, "merge-parallel{linears=true}", sample(2, 4))) == 1


class Attention(nn.Module):
    """Queries, keys and values by three linears; the heads are cut with ``view`` or ``reshape``."""

    def __init__(self, width: int, method: str) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.method = method

    def heads(self, y: Tensor) -> Tensor:
        return getattr(y, self.method)(y.shape[0], -1, 2, y.shape[-1] // 2).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(self.query(x)), self.heads(self.key(x)), self.heads(self.value(x))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.out(y.reshape(x.shape))


@pytest.mark.parametrize("method", ["view", "reshape"])
def test_attention(method: str) -> None:
    run = merged(randomise(Attention(8, method)), sample(2, 5, 8), left=2, more=((sample(1, 7, 8),),))
    assert run.module.get_submodule("query_key_value").out_features == 24


class Flat(nn.Module):
    """Views that need the strides of a whole tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Any:
        a, b = self.a(x), self.b(x)
        return a.view(-1).relu(), b.transpose(0, 1).transpose(1, 0).view(b.shape[0], -1).relu(), b.permute(1, 0, 2, 3).relu()


def test_views_of_pieces() -> None:
    merged(randomise(Flat()), image(2, 3, 1), more=((image(2, 3, 3),),))


class Leaves(Heads):
    """The outputs of the layers leave the graph, one of them through a view."""

    def forward(self, x: Tensor) -> Any:
        return self.layers[0](x), self.layers[1](x).transpose(0, 1), self.layers[2](x).relu(), self.layers[3](x).relu()


def test_outputs_of_the_graph_are_left_alone() -> None:
    run = merged(randomise(Leaves(*(nn.Linear(4, 3) for _ in range(4)))), sample(2, 4), left=3)
    assert "leaves the graph" in reasons(run)
    assert all(t.is_contiguous() for t in run.module(sample(2, 4))[:1])


class Strided(Heads):
    def forward(self, x: Tensor) -> Any:
        return torch.as_strided(self.layers[0](x), (2, 2), (1, 1)) + 1, self.layers[1](x) + 1


def test_an_operation_on_strides_is_left_alone() -> None:
    assert "as_strided" in refused(randomise(Strided(nn.Linear(4, 3), nn.Linear(4, 3))), sample(2, 4))


class Bits(Heads):
    def forward(self, x: Tensor) -> Any:
        return self.layers[0](x).view(torch.int64) + 1, self.layers[1](x) + 1


def test_a_view_as_another_type_is_left_alone() -> None:
    assert "another type" in refused(randomise(Bits(nn.Linear(4, 3), nn.Linear(4, 3))), sample(2, 4))


class Shared(nn.Module):
    """One layer with two calls, and two with tied weights."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.c.weight = self.b.weight

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.a(x)) + torch.tanh(self.b(x)) * torch.tanh(self.c(x)) + self.a(torch.tanh(x))


def test_shared_modules_are_left_alone_and_tied_weights_stay_right() -> None:
    run = merged(randomise(Shared()), sample(2, 4), left=3)
    assert "also called by" in reasons(run)


class Written(nn.Module):
    """An output, or the input, is written in place."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.a, self.b, self.what = nn.Linear(4, 4), nn.Linear(4, 4), what

    def forward(self, x: Tensor) -> Tensor:
        x = x + 1
        a = self.a(x)
        (a if self.what == "output" else x)[:, 0].mul_(2)
        return a * self.b(x)


@pytest.mark.parametrize("what", ["output", "input"])
def test_written_values_are_left_alone(what: str) -> None:
    assert "written in place" in refused(randomise(Written(what)), sample(2, 4))


class InPlaceActivations(Heads):
    def forward(self, x: Tensor) -> Any:
        return tuple(torch.relu_(layer(x)) for layer in self.layers)


def test_activations_in_place() -> None:
    merged(randomise(InPlaceActivations(nn.Linear(4, 4), nn.Linear(4, 4))), sample(2, 4))


def test_grouped_convs_are_refused() -> None:
    assert "grouped" in refused(randomise(Heads(nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 3, groups=2))), image(2, 4))


def test_parameters_keep_what_the_user_gave_them() -> None:
    module = Heads(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)).to(memory_format=torch.channels_last).bfloat16().requires_grad_(False)
    conv: Any = execute(module, BOTH, torch.randn(1, 4, 8, 8).bfloat16()).module.get_submodule("layers.0_1")
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert conv.weight.dtype == torch.bfloat16
    assert not any(p.requires_grad for p in conv.parameters())


def test_meta_tensors() -> None:
    with torch.device("meta"):
        graph = torch.fx.symbolic_trace(Heads(nn.Linear(3, 8), nn.Linear(3, 8)).eval())
        run = Pipeline.parse(f"functionalize,{BOTH}").execute(graph, Inputs((torch.ones(1, 3),)), verify=False)
    assert count(run.module, nn.Linear) == 1


@given(data=st.data())
def test_any_group(data: st.DataObject) -> None:
    """Random layers on one input; multiply-adds stay what they were."""
    axes, widths = data.draw(st.integers(0, 2)), data.draw(st.lists(st.integers(1, 4), min_size=2, max_size=4))
    layers: list[nn.Module] = []
    for width in widths:
        bias = data.draw(st.booleans())
        if axes == 0:
            layers.append(nn.Linear(4, width, bias=bias))
        else:
            kernel, stride = data.draw(st.sampled_from([1, 3])), data.draw(st.integers(1, 2))
            layers.append(CONV[axes](4, width, kernel, stride, padding=data.draw(st.integers(0, 1)), bias=bias))
    module, x = randomise(Heads(*layers), data.draw(st.integers(0, 99))), image(axes, 4)
    run = rewritten(module, BOTH, x)
    before, after = (Cost.of(graph, Inputs((x,))) for graph in (torch.fx.symbolic_trace(module), run.module))
    assert after.macs == before.macs
    assert outputs(run.module(x))
    assert operations(run.module) >= len(widths)


def test_googlenet() -> None:
    torchvision = pytest.importorskip("torchvision")
    module = randomise(torchvision.models.googlenet(weights=None, aux_logits=False, init_weights=False))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(0.1)
    run = rewritten(module, f"drop-noops,fold-norm,{BOTH}", sample(1, 3, 64, 64))
    assert count(run.module, nn.Conv2d) == count(torch.fx.symbolic_trace(module), nn.Conv2d) - 2 * 9  # nine blocks, three 1x1 each
