"""fold-norm-before against the modules themselves, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from algebra import CONV, NORM, TRANSPOSED, count, execute, image, randomise, reasons, rewritten, sample
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fxcompress.ir.inputs import Inputs
from fxcompress.pipeline import Pipeline

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def folded(module: nn.Module, *inputs: Tensor, norms: int = 0, **kwargs: Any) -> Any:
    run = rewritten(module, "fold-norm-before", *inputs, **kwargs)
    assert count(run.module, *BATCH_NORMS) == norms, reasons(run)
    return run


def without_shift(norm: Any) -> Any:
    norm.running_mean.zero_()
    if norm.bias is not None:
        norm.bias.data.zero_()
    return norm


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_conv_without_padding(axes: int, groups: int, bias: bool, affine: bool) -> None:
    layers = NORM[axes](6, affine=affine), CONV[axes](6, 12, 3, stride=2, groups=groups, bias=bias)
    folded(randomise(nn.Sequential(*layers)), image(axes, 6), more=((image(axes, 6, 5),),))


@pytest.mark.parametrize("padding", [0, "valid", (0, 0)])
def test_the_ways_not_to_pad(padding: Any) -> None:
    folded(randomise(nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, (3, 2), dilation=2, padding=padding))), image(2, 3))


def test_a_kernel_of_size_one_padded_to_the_same_size() -> None:
    folded(randomise(nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1, padding="same"))), image(2, 3))


@pytest.mark.parametrize("padding", [1, "same", (0, 1)])
def test_zero_padding_is_refused_unless_nothing_is_shifted(padding: Any) -> None:
    module: Any = randomise(nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=padding)))
    assert "zeros that the convolution pads with" in reasons(folded(module, image(2, 3), norms=1))
    without_shift(module[0])
    folded(module, image(2, 3))


def test_a_padded_kernel_of_size_one_is_refused() -> None:
    assert "zeros" in reasons(folded(randomise(nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1, padding=1))), image(2, 3), norms=1))


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_padding_with_values_commutes(mode: str, axes: int) -> None:
    folded(randomise(nn.Sequential(NORM[axes](4), CONV[axes](4, 6, 3, padding=2, groups=2, padding_mode=mode))), image(axes, 4))


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_conv_transpose(axes: int, groups: int) -> None:
    layer = TRANSPOSED[axes](6, 12, 3, stride=2, padding=1, output_padding=1, groups=groups)
    module: Any = randomise(nn.Sequential(NORM[axes](6), layer))
    assert "transposed" in reasons(folded(module, image(axes, 6), norms=1))
    without_shift(module[0])
    folded(module, image(axes, 6))
    folded(randomise(nn.Sequential(NORM[axes](6), TRANSPOSED[axes](6, 12, 1, groups=groups))), image(axes, 6))


@pytest.mark.parametrize("bias", [True, False])
def test_linear(bias: bool) -> None:
    folded(randomise(nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 7, bias=bias))), sample(3, 5))


class Readers(nn.Module):
    """A norm read by several convolutions, and by an addition if ``residual``."""

    def __init__(self, residual: bool, padding: int = 0) -> None:
        super().__init__()
        self.norm, self.a, self.b = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1, padding=padding)
        self.residual = residual

    def forward(self, x: Tensor) -> Any:
        y = self.norm(x)
        return self.a(y), self.b(y), self.a(y + 1 if self.residual else y)


def test_several_readers() -> None:
    folded(randomise(Readers(False)), image(2, 4))
    assert "also read by add" in reasons(folded(randomise(Readers(True)), image(2, 4), norms=1))
    assert "zeros" in reasons(folded(randomise(Readers(False, padding=1)), image(2, 4), norms=1))


class Shared(nn.Module):
    """One convolution and one norm, each called twice, and a third reader of the convolution's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv, self.tied = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3)
        self.tied.weight = self.conv.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.tied(torch.relu(self.conv(self.norm(torch.relu(self.conv(self.norm(x)))))))


class Written(nn.Module):
    """The norm's input is overwritten between the norm and the convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x + 1
        y = self.norm(x)
        x[:, 0].mul_(2)
        return self.conv(y) + x


def test_shared_modules() -> None:
    folded(randomise(Shared()), sample(2, 3, 9, 9))


def test_an_overwritten_input_is_left_alone() -> None:
    assert "written in place" in reasons(folded(randomise(Written()), image(2, 3), norms=1))


def test_refusals() -> None:
    assert "axis 1" in reasons(folded(randomise(nn.Sequential(nn.BatchNorm1d(4), nn.Linear(5, 7))), sample(3, 4, 5), norms=1))
    assert "axis 1" in reasons(folded(randomise(nn.Sequential(nn.BatchNorm1d(7), nn.Conv1d(3, 6, 3))), sample(3, 7), norms=1))
    norm = nn.BatchNorm2d(3, track_running_stats=False)
    assert "no running statistics" in reasons(folded(randomise(nn.Sequential(norm, nn.Conv2d(3, 4, 3))), image(2, 3), norms=1))
    module: Any = randomise(nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)))
    module[0].train()
    assert "training mode" in reasons(execute(module, "fold-norm-before", image(2, 3)))


def test_unbatched_inputs_of_three_axes_are_not_mistaken() -> None:
    """(C, H, W) for the convolution is (N, C, L) for the norm."""
    assert "axis 1" in reasons(folded(randomise(nn.Sequential(nn.BatchNorm1d(7), nn.Conv2d(3, 4, 3))), sample(3, 7, 5), norms=1))


def test_meta_tensors() -> None:
    with torch.device("meta"):
        graph = torch.fx.symbolic_trace(nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)).eval())
        run = Pipeline.parse("functionalize,fold-norm-before").execute(graph, Inputs((torch.ones(1, 3, 8, 8),)), verify=False)
    assert count(run.module, nn.BatchNorm2d) == 0


@given(data=st.data())
def test_any_layer(data: st.DataObject) -> None:
    axes, transposed, groups = data.draw(st.integers(1, 3)), data.draw(st.booleans()), data.draw(st.sampled_from([1, 2, 4]))
    settings: dict[str, Any] = {
        "kernel_size": data.draw(st.integers(1, 3)),
        "stride": data.draw(st.integers(1, 2)),
        "padding": data.draw(st.integers(0, 1)),
        "dilation": data.draw(st.integers(1, 2)),
        "groups": groups,
        "bias": data.draw(st.booleans()),
    }
    if not transposed:
        settings["padding_mode"] = data.draw(st.sampled_from(["zeros", "reflect", "circular"]))
    layer = (TRANSPOSED if transposed else CONV)[axes](
        groups * data.draw(st.integers(1, 2)), groups * data.draw(st.integers(1, 3)), **settings
    )
    module: Any = randomise(nn.Sequential(NORM[axes](layer.in_channels), layer), data.draw(st.integers(0, 99)))
    if data.draw(st.booleans()):
        without_shift(module[0])
    rewritten(module, "fold-norm-before", image(axes, layer.in_channels))
