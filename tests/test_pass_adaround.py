"""adaround lowers the error of layers on data it has not seen, and only ever moves a weight to a neighbour on its grid."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from fakes import fake_quantize, outputs, run_pass, sqnr
from torch import Tensor, fx, nn

from fxcompress.errors import InputError
from fxcompress.ir.activation import Activation
from fxcompress.ir.inputs import Inputs
from fxcompress.passes.adaround import AdaRound
from fxcompress.pipeline import Pipeline
from fxcompress.quant.rounding import Problem, Rounding, descended

QUICK = AdaRound(iterations=100, rows=1024)


class Net(nn.Module):
    """Every kind of layer: dense with stride, depthwise, grouped and dilated with a residual, 1x1, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.dw = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1, groups=8)
        self.g = nn.Conv2d(8, 8, 3, 1, 2, dilation=2, groups=2, bias=False)
        self.p, self.head = nn.Conv2d(8, 6, 1), nn.Linear(6 * 36, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.a(x))
        y = F.relu6(self.dw(y))
        y = F.relu(self.g(y) + y)
        z: Tensor = self.head(self.p(y).flatten(1))
        return z


def batches(count: int, seed: int) -> list[Tensor]:
    """Smooth images: neighbouring inputs are correlated, as in photographs."""
    generator = torch.Generator().manual_seed(seed)
    return [F.avg_pool2d(torch.rand(8, 3, 24, 24, generator=generator), 3, 2, 1) for _ in range(count)]


TRAIN, HELD = batches(6, 0), batches(3, 1)


@pytest.fixture(scope="module")
def fake() -> fx.GraphModule:
    torch.manual_seed(0)
    fused = Pipeline.parse("functionalize,fuse").execute(fx.symbolic_trace(Net().eval()), Inputs((TRAIN[0],))).module
    return fake_quantize(fused, TRAIN, weight_bits=4)


@pytest.fixture(scope="module")
def learned(fake: fx.GraphModule) -> fx.GraphModule:
    return run_pass(QUICK, fake, TRAIN).module


def test_the_network_is_better_on_held_out_data(fake: fx.GraphModule, learned: fx.GraphModule) -> None:
    torch.manual_seed(0)
    wanted = outputs(Net().eval(), HELD)
    assert sqnr(wanted, outputs(learned, HELD)) > sqnr(wanted, outputs(fake, HELD)) + 2


def test_weights_end_beside_where_they_were(fake: fx.GraphModule, learned: fx.GraphModule) -> None:
    torch.manual_seed(0)
    net, moved = Net(), 0
    for name in ("a", "dw", "g", "p", "head"):
        layer, original = learned.get_submodule(name), net.get_submodule(name).weight.detach().double()
        scale = layer.weight_scale.double().reshape(-1, *[1] * (original.dim() - 1))
        exact, integers = original / scale, layer.weight.detach().double() / scale
        rounded = integers.round()
        torch.testing.assert_close(integers, rounded, rtol=1e-5, atol=1e-5)
        assert bool(((rounded - exact.floor()).abs() * (rounded - exact.ceil()).abs() < 1e-9).all()), name
        assert int(rounded.abs().max()) <= 7
        moved += int((rounded != fake.get_submodule(name).integers().double()).sum())
    assert moved > 20


def test_it_is_reproducible_and_settles(fake: fx.GraphModule, learned: fx.GraphModule) -> None:
    again = run_pass(QUICK, fake, TRAIN).module
    for a, b in zip(again.parameters(), learned.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not run_pass(QUICK, learned, TRAIN).changed


def problem(activation: Activation | None = None, seed: int = 0, places: int = 64) -> Problem:
    """Correlated inputs, one group, three outputs, five regressors."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, places, 1, generator=generator) + 0.3 * torch.randn(1, places, 5, generator=generator)
    weight, scale = torch.randn(1, 3, 5, generator=generator), torch.full((1, 3, 1), 0.4)
    offset = torch.zeros(1, places, 3)
    exact = weight / scale
    return Problem(x, x @ weight.mT, offset, exact.floor(), exact.ceil(), scale, activation, weight)


@pytest.mark.parametrize("seed", range(4))
def test_near_the_best_of_all_roundings(seed: int) -> None:
    """Of one output channel with five weights there are 32 roundings; all are tried."""
    given = problem(seed=seed)
    best = 0.0
    for row in range(3):
        errors = []
        for ups in itertools.product((0.0, 1.0), repeat=5):
            integers = given.low[0, row] + torch.tensor(ups)
            errors.append(float((given.x[0] @ (integers * 0.4) - given.wanted[0, :, row]).square().mean()))
        best += min(errors)
    found = [descended(given, given.nearest), Rounding(400, 64, 1.0, 0.02, 0).learn(given)]
    found.append(descended(given, found[1]))
    assert min(given.error(f) for f in found) <= 1.3 * best
    assert given.error(found[0]) <= given.error(given.nearest)
    for integers in found:
        assert bool(((integers == given.low) | (integers == given.high)).all())


def test_the_activation_counts() -> None:
    """Where ReLU cuts, errors are free."""
    given = problem(Activation("relu"))
    integers = Rounding(400, 64, 1.0, 0.02, 0).learn(given)
    assert given.error(integers) < given.error(given.nearest)


def test_weights_on_the_grid_stay() -> None:
    given = problem()
    on_grid = Problem(given.x, given.wanted, given.offset, given.low, given.low, given.scale, None, given.low * given.scale)
    assert torch.equal(Rounding(20, 16, 1.0, 0.02, 0).learn(on_grid), given.low)
    assert torch.equal(descended(on_grid, given.low), given.low)


def test_needs_data_and_sensible_options(fake: fx.GraphModule) -> None:
    with pytest.raises(InputError, match="calibration"):
        run_pass(QUICK, fake, [], TRAIN[0])
    with pytest.raises(InputError, match="iterations"):
        AdaRound(iterations=0)
