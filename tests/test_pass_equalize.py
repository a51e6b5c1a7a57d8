"""equalize keeps the function, evens out the ranges of channels, and leaves alone what it must not scale."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from fakes import fake_quantize, outputs, sqnr
from torch import Tensor, fx, nn

from fxcompress.errors import InputError
from fxcompress.ir.inputs import Inputs
from fxcompress.passes.equalize import Equalize
from fxcompress.pipeline import Calibration, Pipeline


class Separable(nn.Module):
    """Pointwise and depthwise convolutions in turn."""

    def __init__(self, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.dw = nn.Conv2d(16, 16, 3, 1, 1, groups=16)
        self.pw = nn.Conv2d(16, 24, 1)
        self.dw2 = nn.Conv2d(24, 24, 3, 1, 1, groups=24)
        self.pw2 = nn.Conv2d(24, 8, 1)
        self.act = activation or nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.stem, self.dw, self.pw, self.dw2):
            x = self.act(layer(x))
        y: Tensor = self.pw2(x)
        return y


def make_hostile(pairs: Sequence[tuple[nn.Conv2d, nn.Conv2d]], factor: float = 100.0) -> None:
    """Give channels ranges that differ by ``factor``, without changing the function of a network with ReLU."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for first, second in pairs:
            t = factor ** (torch.rand(first.out_channels, generator=generator) - 0.5)
            first.weight *= t.reshape(-1, 1, 1, 1)
            assert first.bias is not None
            first.bias *= t
            second.weight /= t.reshape((-1, 1, 1, 1) if second.groups > 1 else (1, -1, 1, 1))


def data(count: int = 4, shape: tuple[int, ...] = (4, 3, 16, 16), seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


def equalized(model: nn.Module, batches: Sequence[Tensor], *, calibrate: bool, text: str = "functionalize,fuse,equalize") -> fx.GraphModule:
    calibration = Calibration(tuple(Inputs((b,)) for b in batches)) if calibrate else Calibration()
    run = Pipeline.parse(text).execute(fx.symbolic_trace(model.eval()), Inputs((batches[0],)), calibration=calibration)
    assert run.steps[-1].changed, "nothing was equalized"
    return run.module


@pytest.mark.parametrize("calibrate", [True, False])
@pytest.mark.parametrize("text", ["functionalize,fuse,equalize", "functionalize,equalize"])
def test_hostile_channels_come_back(calibrate: bool, text: str) -> None:
    torch.manual_seed(0)
    model, train, held = Separable().eval(), data(), data(2, seed=9)
    friendly = sqnr(outputs(model, held), outputs(fake_quantize(fx.symbolic_trace(model), train), held))
    make_hostile([(model.stem, model.dw), (model.dw, model.pw), (model.pw, model.dw2), (model.dw2, model.pw2)])
    graph = fx.symbolic_trace(model)
    hostile = sqnr(outputs(model, held), outputs(fake_quantize(graph, train), held))
    better = equalized(model, train, calibrate=calibrate, text=text)
    torch.testing.assert_close(outputs(better.double(), [b.double() for b in held]), outputs(model.double(), [b.double() for b in held]))
    found = sqnr(outputs(model.float(), held), outputs(fake_quantize(better.float(), train), held))
    assert hostile < friendly - 12
    assert found > friendly - 3


def test_the_result_does_not_depend_on_the_scales_that_were_there() -> None:
    """But for one factor that all channels of a value share."""
    torch.manual_seed(1)
    model, train = Separable().eval(), data()
    with torch.no_grad():
        model.pw.bias += 1  # no channel is silent
    pairs = [(model.stem, model.dw), (model.dw, model.pw), (model.pw, model.dw2), (model.dw2, model.pw2)]
    make_hostile(pairs)
    once = equalized(model, train, calibrate=True)
    make_hostile(pairs, 0.02)
    twice = equalized(model, train, calibrate=True)
    for a, b in zip(once.parameters(), twice.parameters(), strict=True):
        torch.testing.assert_close(a / a.abs().max(), b / b.abs().max(), rtol=1e-3, atol=1e-6)


def test_weights_as_in_the_paper() -> None:
    """One pair of layers: both ranges of channel i become sqrt(r1 r2), but for one factor that all channels share."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5)).eval()
    with torch.no_grad():
        model[0].weight *= torch.logspace(-2, 2, 8)[:, None]
    better = equalized(model, [torch.randn(4, 6)], calibrate=False, text="functionalize,equalize")
    first, second = (layer.weight for layer in better.children() if isinstance(layer, nn.Linear))
    wanted = (model[0].weight.abs().amax(1) * model[2].weight.abs().amax(0)).sqrt()
    ratio = first.abs().amax(1) / wanted
    torch.testing.assert_close(ratio, ratio[:1].expand(8), rtol=1e-3, atol=0)
    torch.testing.assert_close(second.abs().amax(0) * ratio, wanted, rtol=1e-3, atol=0)


def settles(model: nn.Module, batches: Sequence[Tensor], calibrate: bool) -> bool:
    calibration = Calibration(tuple(Inputs((b,)) for b in batches)) if calibrate else Calibration()
    again = Pipeline.parse("functionalize,equalize").execute(
        equalized(model, batches, calibrate=calibrate), Inputs((batches[0],)), calibration=calibration
    )
    return not again.steps[-1].changed


@pytest.mark.parametrize("calibrate", [True, False])
def test_settles(calibrate: bool) -> None:
    torch.manual_seed(4)
    model = Separable().eval()
    make_hostile([(model.stem, model.dw), (model.pw, model.dw2)])
    assert settles(model, data(2), calibrate)


class Residual(nn.Module):
    """The trunk has two writers and two readers; max-pooling, a mean and a gate stand in between."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 6, 1)
        self.gate, self.head = nn.Linear(3, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = F.relu(self.a(x))
        y = F.relu(self.b(y) + y) * torch.sigmoid(self.gate(x.mean((2, 3))))[:, :, None, None]
        y = F.max_pool2d(y, 2)
        return self.c(y), self.head(F.adaptive_avg_pool2d(y, 1).flatten(1))


class Joined(nn.Module):
    """Channels are shuffled, split, and joined with others."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 4, 3, 1, 1), nn.Conv2d(11, 5, 1)
        self.head = nn.Linear(5 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.a(x))
        n, c, h, w = y.shape
        y = y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        left, right = y.chunk(2, 1)
        y = F.leaky_relu(self.c(torch.cat([F.relu(self.b(left)), right, x], 1)), 0.1)
        z: Tensor = self.head(F.adaptive_max_pool2d(y, 2).flatten(1))
        return z


class Stopped(nn.Module):
    """Each of these must stay as it is: SiLU, an output that is also read, a layer called twice, a flattened softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = F.relu(self.b(F.silu(self.a(x))))
        return self.c(F.relu(self.c(y))), y


def uneven(model: nn.Module) -> None:
    """Spread the ranges of all output channels, whatever that does to the function."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                t = 100 ** (torch.rand(layer.weight.shape[0], generator=generator) - 0.5)
                layer.weight *= t.reshape(-1, *[1] * (layer.weight.dim() - 1))


@pytest.mark.parametrize("calibrate", [True, False])
@pytest.mark.parametrize("kind", [Residual, Joined])
def test_groups_over_many_layers(kind: type[nn.Module], calibrate: bool) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    uneven(model)
    batches = data(3, (2, 3, 8, 8))
    better = equalized(model, batches, calibrate=calibrate).double()
    for got, wanted in zip(*(torch.utils._pytree.tree_leaves(m.double()(batches[2].double())) for m in (better, model)), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6 * float(wanted.detach().abs().max()))


@pytest.mark.parametrize("calibrate", [True, False])
def test_what_must_stay_stays(calibrate: bool) -> None:
    torch.manual_seed(0)
    model = Stopped().eval()
    uneven(model)
    batches = data(2, (2, 3, 8, 8))
    calibration = Calibration(tuple(Inputs((b,)) for b in batches)) if calibrate else Calibration()
    run = Pipeline.parse("functionalize,equalize").execute(fx.symbolic_trace(model), Inputs((batches[0],)), calibration=calibration)
    assert not run.steps[-1].changed


class Bounded(nn.Module):
    """Pointwise, ReLU6, depthwise, ReLU6, pointwise."""

    def __init__(self) -> None:
        super().__init__()
        self.pw, self.dw, self.out = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(F.relu6(self.dw(F.relu6(self.pw(x)))))
        return y


@pytest.mark.parametrize("calibrate", [True, False])
@pytest.mark.parametrize("text", ["functionalize,fuse,equalize", "functionalize,equalize"])
def test_relu6_is_scaled_only_where_it_provably_does_not_cut(calibrate: bool, text: str) -> None:
    torch.manual_seed(0)
    model = Bounded().eval()
    with torch.no_grad():
        model.dw.weight.abs_()
        model.dw.bias.zero_()
        model.dw.weight *= torch.tensor([1e-3, 1e-2, 1e-2, 1e-2, 1e-1, 4.0, 4.0, 4.0]).reshape(-1, 1, 1, 1)
        model.out.weight /= torch.tensor([1e-3, 1e-2, 1e-2, 1e-2, 1e-1, 1.0, 1.0, 1.0]).reshape(1, -1, 1, 1)
    batches = data(2, (2, 3, 8, 8))
    better = equalized(model, batches, calibrate=calibrate, text=text)
    moved = (better.get_submodule("dw").weight / model.dw.weight).flatten(1).mean(1)
    assert bool((moved[:4] > 2).all())  # small channels come up
    torch.testing.assert_close(moved[5:], torch.ones(3))  # these are cut at 6: 9 taps of 6 times up to 4/3
    assert torch.equal(better.get_submodule("pw").weight, model.pw.weight)  # nothing bounds what it reads
    extreme = [torch.randn(4, 3, 8, 8).double() * scale for scale in (1.0, 100.0, 1e4)]  # far from the calibration data
    torch.testing.assert_close(outputs(better.double(), extreme), outputs(model.double(), extreme), rtol=1e-5, atol=1e-4)


def test_a_channel_that_is_zero_on_all_data_does_not_rule_the_weights() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 6, 1)).eval()
    first, second = model[0], model[2]
    assert isinstance(first, nn.Conv2d)
    assert isinstance(second, nn.Conv2d)
    assert first.bias is not None
    with torch.no_grad():
        first.bias[0] = -1e3  # never positive
        second.weight[:, 0] *= 1e4
        first.weight[4:] *= 50
        second.weight[:, 4:] /= 50
    train, held = data(), data(2, seed=9)
    better = equalized(model, train, calibrate=True, text="functionalize,equalize")
    assert sqnr(outputs(model, held), outputs(fake_quantize(fx.symbolic_trace(model), train), held)) < 10
    assert sqnr(outputs(model, held), outputs(fake_quantize(better, train), held)) > 35


def test_norms_in_training_mode_keep_their_statistics() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)).train()
    uneven(model)
    batches = data(2)
    calibration = Calibration(tuple(Inputs((b,)) for b in batches))
    run = Pipeline.parse("functionalize,equalize").execute(
        fx.symbolic_trace(model), Inputs((batches[0],)), calibration=calibration
    )  # which raises if a pass writes into a buffer
    assert torch.equal(run.module.get_submodule("3").running_mean, torch.zeros(8))


@pytest.mark.parametrize("bits", [1, 9])
def test_bits_are_checked(bits: int) -> None:
    with pytest.raises(InputError, match="bits"):
        Equalize(bits=bits)
