"""merge-chain against the modules themselves, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from algebra import CONV, applied, count, execute, image, outputs, randomise, reasons, rewritten, sample
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fxcompress.analysis import Cost
from fxcompress.ir.inputs import Inputs
from fxcompress.pipeline import Pipeline

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def merged(module: nn.Module, *inputs: Tensor, left: int = 1, **kwargs: Any) -> Any:
    run = rewritten(module, "merge-chain", *inputs, **kwargs)
    assert count(run.module, *LAYERS) == left, reasons(run)
    return run


def refused(module: nn.Module, *inputs: Tensor) -> str:
    run = rewritten(module, "merge-chain", *inputs)
    assert applied(run) == 0
    return reasons(run)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("second", [True, False])
@pytest.mark.parametrize("shape", [(5,), (2, 5), (2, 3, 4, 5)])
def test_linears(first: bool, second: bool, shape: tuple[int, ...]) -> None:
    run = merged(randomise(nn.Sequential(nn.Linear(5, 7, bias=first), nn.Linear(7, 4, bias=second))), sample(*shape))
    layer = run.module.get_submodule("1")
    assert isinstance(layer, nn.Linear)
    assert (layer.in_features, layer.out_features, layer.bias is None) == (5, 4, not (first or second))


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_a_kernel_of_size_one_after_another(axes: int, bias: bool, stride: int, mode: str) -> None:
    first = CONV[axes](3, 8, 3, stride=stride, padding=2, dilation=2, bias=bias, padding_mode=mode)
    module = randomise(nn.Sequential(first, CONV[axes](8, 4, 1, stride=stride)))
    merged(module, image(axes, 3), more=((sample(2, 3, *[8] * axes),),))


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_kernel_of_size_one_before_another(axes: int, bias: bool, stride: int) -> None:
    for settings in ({}, {"padding": 1, "padding_mode": "circular"}, {"padding": 0, "dilation": 2}):
        second = CONV[axes](8, 4, 3, stride=stride, **settings)
        merged(randomise(nn.Sequential(CONV[axes](3, 8, 1, bias=bias), second)), image(axes, 3))


def test_a_bias_must_not_meet_zero_padding() -> None:
    module: Any = randomise(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 3, padding=1)))
    assert "does not reach the zeros" in refused(module, image(2, 3))
    module[0].bias.data.zero_()
    merged(module, image(2, 3))
    merged(randomise(nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), nn.Conv2d(8, 4, 3, padding="same"))), image(2, 3))


def test_three_in_a_row() -> None:
    merged(randomise(nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 7), nn.Linear(7, 4))), sample(2, 5))
    merged(randomise(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 1))), image(2, 3))


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        ((nn.Linear(9, 2), nn.Linear(2, 9)), "81 weights instead of 36"),
        ((nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)), "kernel of size 1"),
        ((nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1, padding=1)), "kernel of size 1"),
        ((nn.Conv2d(3, 8, 1, padding=1), nn.Conv2d(8, 4, 3)), "kernel of size 1"),
        ((nn.Conv2d(3, 8, 1, stride=2), nn.Conv2d(8, 4, 3)), "skips inputs"),
        ((nn.Conv2d(3, 9, 3, groups=3), nn.Conv2d(9, 4, 1)), "grouped"),
        ((nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1, groups=4)), "grouped"),
        ((nn.Conv2d(3, 8, 3, padding="same"), nn.Conv2d(8, 4, 1, stride=2)), "has no stride"),
        ((nn.Conv2d(8, 2, 3), nn.Conv2d(2, 8, 1)), "weights instead"),
    ],
)
def test_refusals(layers: tuple[nn.Module, ...], reason: str) -> None:
    module = randomise(nn.Sequential(*layers))
    assert reason in refused(module, sample(2, 9) if isinstance(layers[0], nn.Linear) else image(2, layers[0].in_channels))  # type: ignore[arg-type]


def test_more_multiply_adds_are_refused() -> None:
    """Padding makes the second output much larger than the first: fewer weights, more work."""
    layers = nn.Conv1d(6, 5, 1), nn.Conv1d(5, 4, 3, padding=9, padding_mode="replicate")
    assert "more multiply-adds" in refused(randomise(nn.Sequential(*layers)), sample(1, 6, 9))


class Other(nn.Module):
    """The value between the layers is read by somebody else."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 7), nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Any:
        y = self.a(x)
        return self.b(y), y


class Shared(nn.Module):
    """One layer called three times, twice without an activation between; its weight is tied to another's."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 5), nn.Linear(5, 5)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(self.a(torch.relu(self.a(x))))))


class Written(nn.Module):
    """The input is overwritten between the layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 7), nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Any:
        x = x + 1
        y = self.a(x)
        x[:, 0].mul_(2)
        return self.b(y), x


def test_another_reader_is_refused() -> None:
    assert "also read by output" in refused(randomise(Other()), sample(2, 5))


def test_shared_layers_and_tied_weights() -> None:
    merged(randomise(Shared()), sample(2, 5), left=3)


def test_an_overwritten_input_is_left_alone() -> None:
    assert "written in place" in refused(randomise(Written()), sample(2, 5))


def test_parameters_keep_what_the_user_gave_them() -> None:
    module = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 4, 1)).to(memory_format=torch.channels_last).half().requires_grad_(False)
    x = torch.randn(1, 4, 8, 8).half()
    conv = execute(module, "merge-chain", x).module.get_submodule("1")
    assert isinstance(conv, nn.Conv2d)
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert conv.weight.dtype == torch.float16
    assert not any(p.requires_grad for p in conv.parameters())


def test_a_product_that_overflows_is_refused() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).half()
    for layer in module:
        layer.weight.data.fill_(300.0)  # type: ignore[union-attr,operator]
    assert "finite" in reasons(execute(module, "merge-chain", torch.randn(2, 4).half() * 1e-3, verify=False))
    for layer in module:
        layer.weight.data.fill_(1e-3)  # type: ignore[union-attr,operator]
    assert "vanish" in reasons(execute(module, "merge-chain", torch.randn(2, 4).half()))


def test_meta_tensors() -> None:
    with torch.device("meta"):
        graph = torch.fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)).eval())
        run = Pipeline.parse("functionalize,merge-chain").execute(graph, Inputs((torch.ones(1, 3, 8, 8),)), verify=False)
    assert count(run.module, nn.Conv2d) == 1


@given(data=st.data())
def test_any_chain(data: st.DataObject) -> None:
    """Two convolutions; if merged, parameters and multiply-adds do not grow."""
    axes = data.draw(st.integers(1, 3))
    sizes = data.draw(st.sampled_from([(1, 1), (1, 3), (3, 1), (2, 1), (1, 2), (3, 3)]))
    widths = [data.draw(st.integers(1, 6)) for _ in range(3)]
    layers = []
    for i, size in enumerate(sizes):
        mode = data.draw(st.sampled_from(["zeros", "replicate"]))
        stride, padding, bias = data.draw(st.integers(1, 2)), data.draw(st.integers(0, 1)), data.draw(st.booleans())
        layers.append(CONV[axes](widths[i], widths[i + 1], size, stride=stride, padding=padding, bias=bias, padding_mode=mode))
    module, x = randomise(nn.Sequential(*layers), data.draw(st.integers(0, 99))), image(axes, widths[0])
    run = rewritten(module, "merge-chain", x)
    before, after = (Cost.of(graph, Inputs((x,))) for graph in (torch.fx.symbolic_trace(module), run.module))
    assert after.macs <= before.macs
    assert after.params <= before.params + widths[2]  # a bias may be added
    assert outputs(run.module(x))
