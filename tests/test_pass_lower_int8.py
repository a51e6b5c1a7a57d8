"""From the fake-quantized graph to integers."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from quantized import check_integers, sqnr
from torch import Tensor, fx, nn

from fxcompress.errors import InputError
from fxcompress.ir.inputs import Inputs
from fxcompress.pipeline import Pipeline
from fxcompress.pipeline.base import Calibration
from fxcompress.quant.fake import FakeQuantize
from fxcompress.quant.modules import Dequantize, QuantConv, Quantize, QuantLinear, Requantize


def kinds(module: fx.GraphModule) -> Counter[str]:
    return Counter(type(module.get_submodule(str(n.target))).__name__ for n in module.graph.nodes if n.op == "call_module")


def run(model: nn.Module, *inputs: Tensor, options: str = "", until: str = "lower-int8") -> fx.GraphModule:
    steps = ["functionalize", "raise-layers", "fuse", f"observe{{speed=none{options}}}", "calibrate", "lower-int8"]
    names = [step.partition("{")[0] for step in steps]
    text = ",".join(steps[: names.index(until) + 1])
    example = Inputs(tuple(inputs))
    module = fx.symbolic_trace(model.eval())
    return Pipeline.parse(text).execute(module, example, calibration=Calibration((example,))).module


def close(model: nn.Module, *inputs: Tensor, least: float = 25.0, options: str = "") -> fx.GraphModule:
    """The integer graph of ``model``, whose integers are right and which is near to the float model."""
    with torch.no_grad():
        want = copy.deepcopy(model).eval()(*inputs)
    result = run(model, *inputs, options=options)
    assert check_integers(result, inputs) > 0
    assert sqnr(want, result(*inputs)) >= least
    return result


def x2d(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.a(x))
        return self.c(F.relu(self.b(y) + y))


def test_residual_has_one_conversion() -> None:
    result = close(Residual(), x2d(2, 8, 7, 7))
    assert kinds(result) == {"Quantize": 1, "QuantConv": 3}
    residuals = [m.residual for m in result.modules() if isinstance(m, QuantConv)]
    assert sum(r is not None for r in residuals) == 1


class FloatResidual(Residual):
    def forward(self, x: Tensor) -> Tensor:
        y = torch.erf(self.a(x))
        return self.c(F.relu(self.b(y) + y))


def test_residual_that_is_there_in_float_stays_so() -> None:
    result = close(FloatResidual(), x2d(2, 8, 7, 7))
    adding = [m for m in result.modules() if isinstance(m, QuantConv)][1]
    assert adding.residual is None
    assert kinds(result) == {"Quantize": 2, "QuantConv": 3}


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.relu(self.conv(x) * 3.0))


def test_a_layer_called_twice_has_two_scales_and_one_weight() -> None:
    result = close(Twice(), x2d(2, 4, 7, 7))
    first, second = (m for m in result.modules() if isinstance(m, QuantConv))
    assert first.source != second.source
    assert first.weight is second.weight


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x)))


def test_tied_weights_stay_tied() -> None:
    result = close(Tied(), x2d(5, 6))
    assert len({id(m.weight) for m in result.modules() if isinstance(m, QuantLinear)}) == 1


class Both(nn.Module):
    """A value that integers and float read."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = F.relu(self.a(x))
        return self.b(y), torch.softmax(y, 1), y


def test_a_value_read_as_integers_and_as_float() -> None:
    result = close(Both(), x2d(2, 4, 9, 9))
    assert kinds(result)["QuantConv"] == 2
    assert kinds(result)["Dequantize"] + kinds(result)["Quantize"] == 2  # once for both float readers


class Shuffle(nn.Module):
    """A shufflenet unit: chunk, cat, channel shuffle written with views of sizes that are read from the tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.stem(x)), 2)
        first, second = x.chunk(2, 1)
        x = torch.cat([first, F.relu(self.branch(second))], 1)
        n, c, h, w = x.size()
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)
        x = F.pad(x, (1, 0, 2, 0))
        return self.last(F.interpolate(x, scale_factor=2, mode="nearest").mean([2, 3]))


def test_movers_stay_in_integers_for_any_size() -> None:
    result = close(Shuffle(), x2d(2, 3, 12, 12))
    assert set(kinds(result)) == {"Quantize", "QuantConv", "QuantMaxPool", "QuantMean", "QuantLinear"}
    other = x2d(3, 3, 16, 14)
    assert check_integers(result, (other,)) > 0
    with torch.no_grad():
        assert result(other).shape == (3, 5)


class Squeeze(nn.Module):
    """Squeeze and excite."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.down, self.up, self.b = nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.hardswish(self.a(x))
        gate = F.hardsigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(y, 1)))))
        return self.b(y * gate)


def test_squeeze_and_excite_needs_no_conversion() -> None:
    result = close(Squeeze(), x2d(2, 8, 9, 9))
    assert kinds(result)["Dequantize"] == 0
    assert kinds(result)["Quantize"] == 1


class FarApart(nn.Module):
    """What is joined has ranges far apart, and one of them is read elsewhere."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 4, 1)
        with torch.no_grad():
            self.b.weight.mul_(scale)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = F.relu(self.a(x)), F.relu(self.b(x))
        return self.c(torch.cat([a, b], 1)), self.d(a)


def test_joined_values_share_a_scale() -> None:
    result = close(FarApart(1.0), x2d(2, 3, 9, 9))
    assert kinds(result)["Requantize"] == 0


def test_a_value_that_would_lose_too_much_keeps_its_scale() -> None:
    result = close(FarApart(50.0), x2d(2, 3, 9, 9))
    assert kinds(result)["Requantize"] == 1
    assert kinds(result) == {"Quantize": 1, "QuantConv": 4, "Requantize": 1}


class Constant(nn.Module):
    """A parameter is joined to an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.a, self.b = nn.Parameter(torch.randn(1, 1, 6)), nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), self.a(x)], 1)
        return self.b(x)


def test_constants_are_quantized_once() -> None:
    result = close(Constant(), x2d(2, 5, 6))
    assert kinds(result)["Quantize"] == 1


@pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel")
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [1, "same", "valid"])
def test_padding(mode: str, padding: Any) -> None:
    conv = nn.Conv2d(3, 4, (4, 3), padding=padding, padding_mode=mode)
    close(nn.Sequential(conv, nn.SiLU(), nn.Conv2d(4, 4, 1)), x2d(2, 3, 9, 8))


class FunctionalPad(nn.Module):
    """Zeros around values of both signs, whose zero point is not 0."""

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, (1, 0, 2, 1))


@pytest.mark.parametrize(
    "pad",
    [
        FunctionalPad(),
        nn.ZeroPad2d((1, 0, 2, 1)),
        nn.ConstantPad2d(1, 0.0),
        nn.ConstantPad2d(1, 2.5),
        nn.ReflectionPad2d(2),
        nn.ReplicationPad2d(1),
    ],
)
def test_padding_modules(pad: nn.Module) -> None:
    result = close(nn.Sequential(nn.Conv2d(3, 4, 3), pad, nn.Conv2d(4, 4, 3)), x2d(2, 3, 9, 8))
    assert kinds(result)["Quantize"] == (2 if isinstance(pad, nn.ConstantPad2d) and pad.value == 2.5 else 1)


@pytest.mark.parametrize("bits", [2, 4, 7])
def test_fewer_bits(bits: int) -> None:
    result = close(Residual(), x2d(2, 8, 7, 7), least=-5.0 if bits == 2 else 10.0, options=f",bits={bits},weight_bits={bits}")
    layers = [m for m in result.modules() if isinstance(m, QuantConv)]
    assert all(int(m.weight.abs().max()) <= 2 ** (bits - 1) - 1 for m in layers)
    assert all(m.source.bits == bits for m in layers)


@pytest.mark.parametrize("shape", [(2, 3, 9), (2, 3, 7, 7), (2, 3, 5, 6, 4)])
def test_every_number_of_dimensions(shape: tuple[int, ...]) -> None:
    spatial = len(shape) - 2
    conv: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[spatial - 1]
    pool: Any = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[spatial - 1]
    mean: Any = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[spatial - 1]
    net = nn.Sequential(conv(3, 6, 3, padding=1), nn.ReLU(), pool(2), conv(6, 6, 2, groups=3), mean(1), nn.Flatten(), nn.Linear(6, 4))
    assert kinds(close(net, x2d(*shape)))["Quantize"] == 1


def test_the_result_is_saved_in_integers() -> None:
    result = run(Residual(), x2d(2, 8, 7, 7))
    state = result.state_dict()
    assert {state[f"{name}.weight"].dtype for name in "abc"} == {torch.int8}
    assert not any(t.dtype == torch.float32 and t.dim() > 1 for t in state.values())
    copied = copy.deepcopy(result)
    assert torch.equal(copied(x2d(2, 8, 7, 7)), result(x2d(2, 8, 7, 7)))


def test_training_mode_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(), nn.Conv2d(4, 4, 3)).train()
    example = Inputs((x2d(2, 3, 8, 8),))
    text = "functionalize,fuse,observe{speed=none},calibrate,lower-int8"
    ran = Pipeline.parse(text).execute(fx.symbolic_trace(model), example, verify=False, calibration=Calibration((example,)))
    assert not ran.steps[-1].changed
    assert any(isinstance(m, FakeQuantize) for m in ran.module.modules())


def test_nothing_quantized_is_left_alone() -> None:
    example = Inputs((x2d(2, 3, 8, 8).double(),))
    model = nn.Conv2d(3, 4, 3).double().eval()
    text = "functionalize,fuse,observe{speed=none},calibrate,lower-int8"
    ran = Pipeline.parse(text).execute(fx.symbolic_trace(nn.Sequential(model).eval()), example, calibration=Calibration((example,)))
    assert not any(step.changed for step in ran.steps[2:])


def test_without_data() -> None:
    example = Inputs((x2d(2, 3, 8, 8),))
    pipeline = Pipeline.parse("functionalize,fuse,observe{speed=none},calibrate")
    with pytest.raises(InputError, match="calibration data"):
        pipeline.execute(fx.symbolic_trace(nn.Sequential(nn.Conv2d(3, 4, 3)).eval()), example)


def test_the_remark_counts_conversions() -> None:
    example = Inputs((x2d(2, 4, 9, 9),))
    text = "functionalize,raise-layers,fuse,observe{speed=none},calibrate,lower-int8"
    ran = Pipeline.parse(text).execute(fx.symbolic_trace(Both().eval()), example, calibration=Calibration((example,)))
    found = kinds(ran.module)
    names = (Quantize, Dequantize, Requantize)
    assert ran.steps[-1].remarks[0].why == ", ".join(f"{found[kind.__name__]} {kind.__name__}" for kind in names)
