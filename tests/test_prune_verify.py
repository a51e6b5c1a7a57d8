"""The proof of a plan: exact, empty, wrong, without float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pruning import Residual, dependencies, halved, image, normed, residual, tokens
from rewriting import randomized
from torch import Tensor, nn
from torch.fx import GraphModule

from fxcompress.errors import EquivalenceError, PlanError
from fxcompress.ir.inputs import Inputs
from fxcompress.pruning import verify as verifying
from fxcompress.pruning.plan import make_plan
from fxcompress.pruning.slicing import sliced
from fxcompress.pruning.verify import OutputProof, verify


def test_a_proof_reports_every_output() -> None:
    deps = dependencies(normed(), tokens())
    proof = verify(deps, make_plan(deps, halved(deps)))
    assert [output.name for output in proof.outputs] == ["output['scores']", "output['size']"]
    assert [output.shape for output in proof.outputs] == [(4, 3), (4, 5)]
    assert proof.holds
    assert proof.error < 1e-12
    assert proof.changed > 1e-3
    assert all(output.changed > 1e-3 for output in proof.outputs)
    assert not proof.is_empty
    assert proof.dtype == "float64"
    assert proof.note == ""
    assert any("norm axis 2 at " in place for place in proof.statistics)
    assert proof.removed == int((~halved(deps)).sum())
    proof.check()
    text = str(proof)
    assert "output['scores'] [4, 3]: error" in text
    assert "the function changes" in text


def test_flags_do_as_well_and_float32_is_proven_in_float64() -> None:
    deps = dependencies(randomized(Residual()), image().float())
    proof = verify(deps, halved(deps))
    assert proof.holds
    assert proof.error < 1e-12
    assert not proof.statistics


def test_other_inputs() -> None:
    deps = dependencies(residual())
    assert not verify(deps, halved(deps), Inputs((image(3, 3, 8, 8),))).is_empty
    blank = Inputs((torch.full((1, 3, 6, 6), torch.nan, dtype=torch.float64),))
    proof = verify(deps, halved(deps), blank)
    assert proof.is_empty
    assert "no finite number" in proof.note


def test_training_mode_is_left_as_it_is() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.Conv2d(8, 2, 3))
    deps = dependencies(model.train(), image().float())
    before = {k: v.clone() for k, v in deps.module.state_dict().items()}
    assert verify(deps, halved(deps)).error < 1e-12
    assert deps.module.training
    assert all(torch.equal(v, before[k]) for k, v in deps.module.state_dict().items())


def test_an_empty_proof_says_so() -> None:
    deps = dependencies(residual())
    nothing = verify(deps, np.ones(deps.classes, dtype=bool))
    assert nothing.is_empty
    assert "nothing is removed" in nothing.note
    model = residual()
    nn.init.zeros_(model.head.weight)
    deps = dependencies(model)
    proof = verify(deps, halved(deps))
    assert proof.holds
    assert proof.is_empty
    assert "does not change any output" in proof.note
    assert "note: " in str(proof)


def test_a_wrong_slice_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(deps: object, keep: object) -> GraphModule:
        result = sliced(deps, keep)  # type: ignore[arg-type]
        result.get_parameter("inner.bias").data = result.get_parameter("inner.bias").flip(0)
        return result

    monkeypatch.setattr(verifying, "sliced", wrong)
    deps = dependencies(residual())
    proof = verify(deps, halved(deps))
    assert not proof.holds
    assert "TOO LARGE" in str(proof)
    with pytest.raises(EquivalenceError, match=r"output differs, relative error .* in float64"):
        proof.check()


def test_a_wrong_shape_is_noticed() -> None:
    expected, found = torch.rand(2, 3), torch.rand(2, 4)
    (output,) = verifying._outputs(expected, found, expected)
    assert output == OutputProof("output", (2, 3), float("inf"), 0.0, True, "torch.float32[2, 3] became torch.float32[2, 4]")
    (output,) = verifying._outputs((expected,), (expected, expected), (expected,))
    assert output.why == "1 output values became 2"


def test_half_precision_that_stands_in_the_graph() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).relu().to(torch.bfloat16).float())

    deps = dependencies(Half(), torch.rand(4, 6))
    proof = verify(deps, halved(deps))
    assert proof.dtype == "its own dtype"
    assert "computes in half precision" in proof.note
    assert proof.holds


def test_without_data_nothing_is_verified() -> None:
    with torch.device("meta"):
        model, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), torch.rand(2, 6)
    real = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    deps = dependencies(real, torch.rand(2, 6))
    deps.module.to("meta")
    proof = verify(deps, halved(deps), Inputs((x,)))
    assert proof.outputs == ()
    assert "no data" in proof.note
    del model


def test_a_plan_for_another_network_is_refused() -> None:
    deps = dependencies(residual())
    other = dependencies(Residual(width=16).double().eval())
    with pytest.raises(PlanError, match="another network"):
        verify(other, make_plan(deps, halved(deps)))


def test_a_model_is_captured() -> None:
    model = residual()
    deps = dependencies(model)
    plan = make_plan(deps, halved(deps))
    for proof in (verify(model, plan), verify(model, plan, image(1, 3, 7, 9)), verify(plan.masked(model), plan), verify(deps.module, plan)):
        assert proof.holds
        assert not proof.is_empty
    with pytest.raises(PlanError, match="without the graph"):
        verify(model, halved(deps))


def test_random_numbers_cannot_be_compared() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return self.b(y + torch.rand_like(y))

    deps = dependencies(Noisy(), torch.rand(4, 6))
    proof = verify(deps, halved(deps))
    assert proof.outputs == ()
    assert "not verified: 'rand_like' draws random numbers at " in proof.note
