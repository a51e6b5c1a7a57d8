"""From observers to grids: the fake-quantized graph."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxcompress.errors import InputError
from fxcompress.ir.inputs import Inputs
from fxcompress.pipeline import Pipeline
from fxcompress.pipeline.base import Calibration
from fxcompress.pipeline.pipeline import Run
from fxcompress.quant.fake import FakeQuantize
from fxcompress.quant.observers import Observer


def run(model: nn.Module, batches: list[Tensor], options: str = 'observer="min-max"', calibrate: str = "calibrate") -> Run:
    text = f"functionalize,raise-layers,fuse,observe{{speed=none,{options}}},{calibrate}"
    data = Calibration(tuple(Inputs((x,)) for x in batches))
    return Pipeline.parse(text).execute(fx.symbolic_trace(model.eval()), Inputs((batches[0],)), calibration=data)


def fakes(module: fx.GraphModule) -> dict[str, FakeQuantize]:
    """By the name of the value on which they stand."""
    calls = [n for n in module.graph.nodes if n.op == "call_module"]
    found = {n.all_input_nodes[0].name: module.get_submodule(str(n.target)) for n in calls}
    return {name: m for name, m in found.items() if isinstance(m, FakeQuantize)}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.b(torch.cat([F.relu(y), F.silu(y)], 1))


def batches(count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, 9, 9, generator=generator) * (i + 1) for i in range(count)]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_scales_are_those_of_the_data() -> None:
    model, data = Net(), batches()
    found = fakes(run(model, data).module)
    seen = torch.cat(data).double()
    assert found["x"].qparams.scale == pytest.approx(float(seen.max() - seen.min()) / 255, rel=1e-6)
    low, high = found["x"].qparams.range
    step = found["x"].qparams.scale
    assert low <= float(seen.min()) + step / 2
    assert high >= float(seen.max()) - step / 2


def test_what_is_joined_has_one_scale() -> None:
    model, data = Net(), batches()
    found = fakes(run(model, data).module)
    with torch.no_grad():
        y = torch.cat([model.a(x) for x in data]).double()
    low, high = float(F.silu(y).min()), float(torch.maximum(F.relu(y), F.silu(y)).max())
    joined = {name: fake.qparams for name, fake in found.items() if name in ("relu", "silu")}
    assert len(joined) == 2
    assert len(set(joined.values())) == 1
    assert next(iter(joined.values())).scale == pytest.approx((high - low) / 255, rel=1e-5)


def test_weights_lie_on_their_grid() -> None:
    model = Net()
    want = model.a.weight.detach().double()
    layer = run(model, batches()).module.a
    scale = want.flatten(1).abs().amax(1) / 127
    grid = layer.weight.detach().double() / scale.reshape(-1, 1, 1, 1)
    assert (grid - grid.round()).abs().max() < 1e-4
    assert ((layer.weight.detach().double() - want).abs() <= scale.reshape(-1, 1, 1, 1) * 0.501).all()


def test_the_result_is_near() -> None:
    model, data = Net().eval(), batches()
    result = run(model, data).module
    with torch.no_grad():
        want, got = model(data[0]).double(), result(data[0]).double()
    assert 10 * math.log10(float(want.square().sum() / (want - got).square().sum())) > 25
    assert not any(isinstance(m, Observer) for m in result.modules())


def test_the_number_of_batches() -> None:
    data = batches()
    few = fakes(run(Net(), data, calibrate="calibrate{batches=1}").module)["x"]
    assert few.qparams.scale == pytest.approx(float(data[0].max() - data[0].min()) / 255, rel=1e-6)


def test_nothing_is_random_and_a_second_run_changes_nothing() -> None:
    model, data = Net(), batches()
    first, second = (run(model, data, options="observer=histogram").module for _ in range(2))
    assert {n: f.qparams for n, f in fakes(first).items()} == {n: f.qparams for n, f in fakes(second).items()}
    example = Inputs((data[0],))
    again = Pipeline.parse("functionalize,fuse,observe{speed=none},calibrate").execute(first, example, calibration=Calibration((example,)))
    assert not any(step.changed for step in again.steps)


def test_the_user_s_model_and_the_observed_graph_stay() -> None:
    model = Net().eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    run(model, batches())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_not_a_number_is_named() -> None:
    data = batches()
    data[1][0, 0, 0, 0] = math.nan
    with pytest.raises(InputError, match="NaN"):
        run(Net(), data)


def test_a_constant_value_gets_a_remark() -> None:
    model = Net()
    with torch.no_grad():
        model.a.weight.zero_()
        model.a.bias.fill_(-1.0)
    remarks = run(model, batches()).steps[-1].remarks
    assert any("everywhere" in r.why for r in remarks)


def test_tied_weights_stay_tied() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU(), nn.Conv2d(3, 3, 3))
    model[2].weight = model[0].weight
    result = run(model, batches()).module
    layers = [m for m in result.modules() if type(m).__name__ == "FakeQuantConv2d"]
    assert len(layers) == 2
    assert layers[0].weight is layers[1].weight
