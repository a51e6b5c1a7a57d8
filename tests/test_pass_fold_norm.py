"""fold-norm against the modules themselves, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from algebra import CONV, NORM, TRANSPOSED, applied, count, execute, image, randomise, reasons, relative, rewritten, sample
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fxcompress.ir.inputs import Inputs
from fxcompress.pipeline import Pipeline

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def folded(module: nn.Module, *inputs: Tensor, norms: int = 0, **kwargs: Any) -> Any:
    run = rewritten(module, "fold-norm", *inputs, **kwargs)
    assert count(run.module, *BATCH_NORMS) == norms, reasons(run)
    return run


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_conv(axes: int, groups: int, bias: bool, affine: bool) -> None:
    layers = CONV[axes](6, 12, 3, stride=2, padding=1, groups=groups, bias=bias), NORM[axes](12, affine=affine)
    folded(randomise(nn.Sequential(*layers)), image(axes, 6), more=((image(axes, 6, 5),),))


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_conv_transpose(axes: int, groups: int, bias: bool, affine: bool) -> None:
    layer = TRANSPOSED[axes](6, 12, 3, stride=2, padding=1, output_padding=1, groups=groups, bias=bias)
    folded(randomise(nn.Sequential(layer, NORM[axes](12, affine=affine))), image(axes, 6))


@pytest.mark.parametrize("bias", [True, False])
def test_linear(bias: bool) -> None:
    folded(randomise(nn.Sequential(nn.Linear(5, 7, bias=bias), nn.BatchNorm1d(7))), sample(3, 5), more=((sample(1, 5),),))


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", ["same", 2])
def test_padding_modes(mode: str, padding: Any) -> None:
    folded(randomise(nn.Sequential(nn.Conv2d(3, 4, (4, 3), padding=padding, padding_mode=mode), nn.BatchNorm2d(4))), image(2, 3))


def test_norm_of_a_chain() -> None:
    folded(randomise(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.ReLU())), image(2, 3))


class TwoNorms(nn.Module):
    """One convolution feeds two norms: neither may be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.a, self.b = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.a(y) * self.b(y)


class ConvTwice(nn.Module):
    """One convolution called twice, one norm each (pytorch issues 104593, 197539)."""

    def __init__(self, same_norm: bool) -> None:
        super().__init__()
        self.conv, self.a = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.b = self.a if same_norm else nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.conv(self.a(self.conv(x))))


class ConvTwiceOneNorm(ConvTwice):
    def forward(self, x: Tensor) -> Tensor:
        return self.a(self.conv(x)) + self.conv(x + 1)


class Tied(nn.Module):
    """Two convolutions with one weight; only one is normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.norm(self.a(x)))


class ReadsTheWeight(nn.Module):
    """The weight of a layer is also read by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layer(x)) @ self.layer.weight


class InPlace(nn.Module):
    """The convolution's output is written through a view."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y[:, 0].mul_(2)
        return self.norm(y)


def test_one_conv_feeding_two_norms() -> None:
    assert "also read by" in reasons(folded(randomise(TwoNorms()), image(2, 3), norms=2))


@pytest.mark.parametrize("same_norm", [True, False])
def test_one_conv_called_twice(same_norm: bool) -> None:
    folded(randomise(ConvTwice(same_norm)), image(2, 3))


def test_one_conv_called_twice_with_one_norm() -> None:
    folded(randomise(ConvTwiceOneNorm(False)), image(2, 3))


def test_tied_weights() -> None:
    folded(randomise(Tied()), image(2, 3))


def test_a_weight_read_by_itself() -> None:
    folded(randomise(ReadsTheWeight()), sample(3, 4))


def test_a_written_output_is_left_alone() -> None:
    assert "written in place" in reasons(folded(randomise(InPlace()), image(2, 3), norms=1))


def test_refusals() -> None:
    norm = nn.BatchNorm1d(7, track_running_stats=False)
    assert "no running statistics" in reasons(folded(randomise(nn.Sequential(nn.Linear(5, 7), norm)), sample(3, 5), norms=1))
    assert "axis 1" in reasons(folded(randomise(nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(4))), sample(3, 4, 5), norms=1))
    unbatched = randomise(nn.Sequential(nn.Conv1d(3, 6, 3), nn.BatchNorm1d(5)))
    assert "axis 1" in reasons(folded(unbatched, sample(3, 7), norms=1))


def test_training_mode_is_refused() -> None:
    module = randomise(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    module[1].train()
    run = execute(module, "fold-norm", image(2, 3))
    assert "training mode" in reasons(run)
    assert count(run.module, nn.BatchNorm2d) == 1


def test_parameters_keep_what_the_user_gave_them() -> None:
    module = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8)).eval().to(memory_format=torch.channels_last)
    module[0].requires_grad_(False)
    conv = execute(module, "fold-norm", torch.randn(1, 4, 8, 8)).module.get_submodule("0")
    assert isinstance(conv, nn.Conv2d)
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert not conv.weight.requires_grad
    assert conv.weight.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rounds_once(dtype: torch.dtype) -> None:
    module = randomise(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    half = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    half.load_state_dict(module.state_dict())
    half.to(dtype)
    x = image(2, 3).to(dtype)
    run = execute(half, "fold-norm", x)
    assert applied(run) == 1
    with torch.no_grad():
        assert relative(half.double()(x.double()), run.module(x).double()) < 8 * torch.finfo(dtype).eps


def test_numbers_that_do_not_fit_are_refused() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).eval().half()
    module[1].weight.data.fill_(6e4)
    module[0].weight.data.fill_(30.0)
    assert "not be finite" in reasons(execute(module, "fold-norm", torch.randn(2, 3).half(), verify=False))
    module[1].weight.data.fill_(1e-6)
    module[0].weight.data.fill_(0.03)
    assert "vanish" in reasons(execute(module, "fold-norm", torch.randn(2, 3).half()))
    module.float()[1].weight.data.fill_(1e-42)
    assert applied(execute(module, "fold-norm", torch.randn(2, 3))) == 1


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("passes", ["fold-norm", "fold-scale", "merge-chain", "merge-branches", "merge-parallel{convs=true}"])
def test_layers_without_channels(passes: str) -> None:
    module = nn.Sequential(nn.Linear(3, 0), nn.Linear(0, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)).eval()
    run = execute(module, passes, torch.randn(2, 3))
    assert torch.equal(run.module(torch.ones(2, 3)), module(torch.ones(2, 3)))


def test_meta_tensors() -> None:
    with torch.device("meta"):
        module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
        run = Pipeline.parse("functionalize,fold-norm").execute(
            torch.fx.symbolic_trace(module), Inputs((torch.ones(1, 3, 8, 8),)), verify=False
        )
    assert count(run.module, nn.BatchNorm2d) == 0


@given(data=st.data())
def test_any_layer(data: st.DataObject) -> None:
    axes, transposed = data.draw(st.integers(1, 3)), data.draw(st.booleans())
    groups = data.draw(st.sampled_from([1, 2, 4]))
    settings: dict[str, Any] = {
        "kernel_size": data.draw(st.integers(1, 3)),
        "stride": data.draw(st.integers(1, 2)),
        "padding": data.draw(st.integers(0, 1)),
        "dilation": data.draw(st.integers(1, 2)),
        "groups": groups,
        "bias": data.draw(st.booleans()),
    }
    layer = (TRANSPOSED if transposed else CONV)[axes](
        groups * data.draw(st.integers(1, 2)), groups * data.draw(st.integers(1, 3)), **settings
    )
    module = randomise(nn.Sequential(layer, NORM[axes](layer.out_channels, affine=data.draw(st.booleans()))), data.draw(st.integers(0, 99)))
    folded(module, image(axes, layer.in_channels, data.draw(st.integers(1, 2))))
