"""smooth moves the range of activations into linears by the formula of SmoothQuant and keeps the function."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from fakes import fake_quantize, outputs, sqnr
from torch import Tensor, fx, nn

from fxcompress.errors import InputError
from fxcompress.ir.inputs import Inputs
from fxcompress.passes.smooth import Smooth
from fxcompress.pipeline import Calibration, Pipeline, Run


class Block(nn.Module):
    """Two norms, whose outputs two linears (one behind a window partition) and one linear read; GELU stops the third."""

    def __init__(self) -> None:
        super().__init__()
        self.n, self.n2 = nn.LayerNorm(32), nn.LayerNorm(32)
        self.a, self.b, self.q, self.k = nn.Linear(32, 64), nn.Linear(64, 32), nn.Linear(32, 48), nn.Linear(32, 48)
        with torch.no_grad():
            self.n.weight[3] = 50
            self.n.bias[7] = 20
            self.n2.weight[5] = 80
            self.q.weight[:, 2] *= 5

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.b(F.gelu(self.a(self.n(x))))
        y = self.n2(x)
        window = y.view(-1, 2, 4, 32).permute(0, 2, 1, 3).reshape(-1, 8, 32)
        z: Tensor = self.q(window) + self.k(y)
        return z


def batches(count: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(4, 8, 32, generator=generator) for _ in range(count)]


TRAIN, HELD = batches(4, 0), batches(2, 1)


def run(model: nn.Module, text: str = "functionalize,smooth", data: list[Tensor] = TRAIN) -> Run:
    calibration = Calibration(tuple(Inputs((b,)) for b in data))
    return Pipeline.parse(text).execute(fx.symbolic_trace(model.eval()), Inputs((TRAIN[0],)), calibration=calibration)


@pytest.mark.parametrize("text", ["functionalize,smooth", "functionalize,fuse,smooth", "functionalize,smooth{alpha=0.8}"])
def test_outliers_cost_less(text: str) -> None:
    torch.manual_seed(0)
    model = Block().eval()
    found = run(model, text)
    assert found.steps[-1].changed
    assert found.proof.error64 is not None
    assert found.proof.error64.relative < 1e-12
    before = sqnr(outputs(model, HELD), outputs(fake_quantize(fx.symbolic_trace(model), TRAIN), HELD))
    after = sqnr(outputs(model, HELD), outputs(fake_quantize(found.module, TRAIN), HELD))
    assert after > before + 6


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_the_scales_are_those_of_the_paper(alpha: float) -> None:
    """Up to a common factor: s_j = max|X_j|^alpha / max|W_j|^(1 - alpha), over both linears that read the norm."""
    torch.manual_seed(0)
    model = Block().eval()
    better = run(model, f"functionalize,smooth{{alpha={alpha}}}").module
    with torch.no_grad():
        x = torch.cat([t + model.b(F.gelu(model.a(model.n(t)))) for t in TRAIN])
        largest = model.n2(x).abs().flatten(0, 1).amax(0)
        weights = torch.maximum(model.q.weight.abs().amax(0), model.k.weight.abs().amax(0))
    wanted = largest**alpha / weights ** (1 - alpha)
    ratio = better.get_submodule("n2").weight * wanted / model.n2.weight
    torch.testing.assert_close(ratio, ratio[:1].expand(32), rtol=1e-4, atol=0)
    for name in ("q", "k"):
        columns = better.get_submodule(name).weight / model.get_submodule(name).weight
        torch.testing.assert_close(columns * ratio[0], wanted.expand_as(columns), rtol=1e-4, atol=0)


def test_settles_and_leaves_what_it_cannot_move() -> None:
    torch.manual_seed(0)
    model = Block().eval()
    found = run(model)
    assert torch.equal(found.module.get_submodule("b").weight, model.b.weight)
    calibration = Calibration(tuple(Inputs((b,)) for b in TRAIN))
    again = Pipeline.parse("functionalize,smooth").execute(found.module, Inputs((TRAIN[0],)), calibration=calibration)
    assert not again.steps[-1].changed


def test_a_norm_that_something_else_reads_stays() -> None:
    class Read(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.n, self.a = nn.LayerNorm(32), nn.Linear(32, 8)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.n(x)
            return self.a(y), y.softmax(-1)

    model = Read()
    with torch.no_grad():
        model.n.weight[3] = 50
    assert not run(model).steps[-1].changed


def test_rms_norm() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.RMSNorm(32), nn.Linear(32, 16))
    with torch.no_grad():
        model[0].weight[3] = 50
    found = run(model)
    assert found.steps[-1].changed
    torch.testing.assert_close(outputs(found.module, HELD), outputs(model, HELD), rtol=1e-4, atol=1e-4)


def test_it_comes_to_rest_beside_equalize() -> None:
    torch.manual_seed(0)
    model: nn.Module = nn.Sequential(nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 16)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p *= 100 ** (torch.rand(p.shape[0]) - 0.5).reshape(-1, *[1] * (p.dim() - 1))
    for _ in range(4):
        found = run(model, "functionalize,equalize,smooth")
        model = found.module
    assert not any(step.changed for step in found.steps)


def test_needs_data() -> None:
    with pytest.raises(InputError, match="calibration"):
        run(Block(), data=[])


def test_alpha_is_checked() -> None:
    with pytest.raises(InputError, match="alpha"):
        Smooth(alpha=1.5)
