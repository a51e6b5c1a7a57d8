"""The pass that keeps the sums of two products within 16 bits."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from fxcompress.errors import OrderError
from fxcompress.ir.inputs import Inputs
from fxcompress.passes import safe_weights as under_test
from fxcompress.passes.safe_weights import MakeWeightsSafe
from fxcompress.pipeline import Pipeline, Run
from fxcompress.pipeline.base import Calibration
from fxcompress.quant.fake import FAKE_LAYERS
from fxcompress.quant.modules import QuantConv, QuantLinear
from fxcompress.targets.int8_kernels import int8_kernels
from fxcompress.targets.saturation import ANYWHERE, NOWHERE, Saturation, violations

FAKE = "functionalize,raise-layers,fuse,observe{speed=none},calibrate"
SATURATING = {"stem", "dense", "dense_1", "grouped", "head"}  # each call of a layer that is called twice has its own
needs_kernels = pytest.mark.skipif(int8_kernels().missing() is not None, reason="this torch has no int8 kernels")


class Net(nn.Module):
    """Single-channel, dense (called twice), grouped and depthwise convolutions and a linear; weights that saturate everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.dense = nn.Conv2d(1, 16, 3), nn.Conv2d(16, 16, 3)
        self.grouped, self.depthwise = nn.Conv2d(16, 16, 3, groups=2), nn.Conv2d(16, 16, 3, groups=16)
        self.head = nn.Linear(16, 10)
        for p in self.parameters():
            nn.init.uniform_(p, -1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.dense(torch.relu(self.dense(x))))
        x = torch.relu(self.depthwise(torch.relu(self.grouped(x))))
        return self.head(x.mean((2, 3)))


def run(text: str, model: nn.Module | None = None) -> Run:
    torch.manual_seed(0)
    example = Inputs((torch.randn(2, 1, 20, 20),))
    steps = Pipeline.parse(f"{FAKE},{text}" if text else FAKE)
    return steps.execute(fx.symbolic_trace((model or Net()).eval()), example, calibration=Calibration((example,)))


def layers(graph: nn.Module) -> dict[str, Any]:
    kinds = (*set(FAKE_LAYERS.values()), QuantConv, QuantLinear)
    return {name: child for name, child in graph.named_modules() if isinstance(child, kinds)}


def integers(layer: Any) -> Tensor:
    found: Tensor = layer.weight if layer.weight.dtype is torch.int8 else layer.integers()
    return found


def unsafe(graph: nn.Module, found: Saturation = ANYWHERE) -> set[str]:
    return {name for name, layer in layers(graph).items() if violations(integers(layer), getattr(layer, "groups", 1), found).any()}


def test_weights_become_safe_for_any_machine_and_depthwise_stays() -> None:
    before, after = run(""), run("safe-weights{machine=any}")
    assert unsafe(before.module) == SATURATING
    assert not unsafe(after.module)
    assert torch.equal(integers(layers(before.module)["depthwise"]), integers(layers(after.module)["depthwise"]))
    remarks = after.steps[-1].remarks
    assert {part for remark in remarks if remark.applied for part in remark.node.split("+")} >= SATURATING
    assert all("without VNNI" in remark.why for remark in remarks)


def test_what_is_fake_and_what_is_integer_agree() -> None:
    fake, lowered = run("safe-weights{machine=any}"), run("safe-weights{machine=any},lower-int8")
    assert not unsafe(lowered.module)
    for name, layer in layers(lowered.module).items():
        assert torch.equal(integers(layer), integers(layers(fake.module)[name]))
        assert torch.equal(layer.weight_scale, layers(fake.module)[name].weight_scale)


def test_the_result_stays_near_to_what_it_was() -> None:
    x, model = torch.randn(4, 1, 20, 20, generator=torch.Generator().manual_seed(3)), Net()
    with torch.no_grad():
        want, before, after = (
            f(x) for f in (copy.deepcopy(model).eval(), run("", model).module, run("safe-weights{machine=any}", model).module)
        )
    errors = [float((y - want).square().sum() / want.square().sum()) for y in (before, after)]
    assert errors[1] < max(4 * errors[0], 1e-3)


def test_the_input_keeps_its_weights() -> None:
    fake = run("").module
    kept = {name: integers(layer).clone() for name, layer in layers(fake).items()}
    torch.manual_seed(0)
    example = Inputs((torch.randn(2, 1, 20, 20),))
    steps = Pipeline((MakeWeightsSafe(machine="any"),), Pipeline.parse(FAKE).establishes_all)
    changed = steps.execute(fake, example).module
    assert not unsafe(changed)
    assert all(torch.equal(integers(layer), kept[name]) for name, layer in layers(fake).items())


def test_nothing_happens_where_nothing_saturates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "saturation", lambda: NOWHERE)
    result = run("safe-weights")
    assert unsafe(result.module) == SATURATING
    assert not result.steps[-1].changed
    assert "32 bits" in result.steps[-1].remarks[0].why


def test_a_machine_that_pairs_channels_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "saturation", lambda: Saturation(pairs=True, taps=False))
    assert unsafe(run("safe-weights").module) == {"stem"}


def test_few_bits_are_safe_by_themselves() -> None:
    few = FAKE.replace("speed=none", "speed=none,bits=7")
    torch.manual_seed(0)
    example = Inputs((torch.randn(2, 1, 20, 20),))
    steps = Pipeline.parse(f"{few},safe-weights{{machine=any}}")
    result = steps.execute(fx.symbolic_trace(Net().eval()), example, calibration=Calibration((example,)))
    assert not result.steps[-1].changed


def test_it_comes_before_the_integers() -> None:
    with pytest.raises(OrderError):
        run("lower-int8,safe-weights")


_SCRIPT = """
import torch
from torch import fx
from test_pass_safe_weights import FAKE, Net, layers
from fxcompress.ir.inputs import Inputs
from fxcompress.pipeline import Pipeline
from fxcompress.pipeline.base import Calibration
from fxcompress.targets.cpu import CpuTarget
from fxcompress.targets.int8_modules import int8_lowerable

torch.manual_seed(0)
example = Inputs((torch.randn(2, 1, 20, 20),))
for text in ("lower-int8", "safe-weights,lower-int8"):
    steps = Pipeline.parse(f"{FAKE},{text}")
    integer = steps.execute(fx.symbolic_trace(Net().eval()), example, calibration=Calibration((example,))).module
    packed = CpuTarget().lower(integer, example)
    with torch.no_grad():
        for scale in (0.1, 1.0, 100.0):
            x = torch.randn(3, 1, 20, 20).abs() * scale
            assert torch.equal(integer(x), packed(x)), text
    refused = sum(int8_lowerable(layer) is not None for layer in layers(integer).values())
    print(text, refused)
"""


@needs_kernels
@pytest.mark.parametrize("isa", ["AVX2", "AVX512_CORE"])
def test_on_a_cpu_without_vnni(isa: str) -> None:
    """Weights that are not safe are computed by the definition, safe ones by the kernels; both are right."""
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": isa, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.path.dirname(__file__)}
    done = subprocess.run([sys.executable, "-c", _SCRIPT], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    refused = [int(line.split()[-1]) for line in done.stdout.splitlines()]
    assert refused[0] >= 3
    assert refused[1] == 0
