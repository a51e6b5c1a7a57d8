"""Choosing channels inside a pipeline: the options as text, the plan that is left behind, what is refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from rewriting import image, randomized
from torch import nn

import fxcompress
from fxcompress.analysis import Analyses
from fxcompress.analysis.channels import ChannelDependencyGraph
from fxcompress.errors import InputError, OrderError, PipelineError, UnknownPassError
from fxcompress.ir.inputs import Inputs
from fxcompress.passes.prune_select import PruneSelect, _deployed
from fxcompress.pipeline import Calibration, Pipeline
from fxcompress.pipeline.base import NO_DATA
from fxcompress.pruning.criteria import Criterion, Scores, Scoring
from fxcompress.pruning.handover import applied, waiting
from fxcompress.pruning.options import Budget, Prune


def net() -> nn.Module:
    return randomized(
        nn.Sequential(nn.Conv2d(4, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 1), nn.Flatten(), nn.Linear(280, 5))
    )


def run(text: str | PruneSelect, calibration: Calibration = NO_DATA):
    pipeline = Pipeline.parse(text) if isinstance(text, str) else Pipeline((text,))
    return pipeline.execute(fxcompress.trace(net(), image()), Inputs.of(image()), calibration=calibration)


def test_the_graph_stays_and_a_plan_waits() -> None:
    found = run("prune-select")
    assert [step.changed for step in found.steps] == [False]
    plan = waiting(found.module)
    assert plan is not None
    assert [(group.name, group.channels, group.remaining) for group in plan.groups] == [("0", 16, 8), ("3", 8, 8)]
    assert applied(found.module) is None
    deps = Analyses(found.module, Inputs.of(image())).get(ChannelDependencyGraph)
    norms = found.module.get_parameter("0.weight").flatten(1).norm(dim=1).detach().numpy()
    assert set(np.flatnonzero(plan.keep(deps)[deps.groups[0].classes])) == set(np.argsort(-norms)[:8])


def test_what_cannot_go_is_said_with_its_reason() -> None:
    missed = [str(remark) for remark in run("prune-select").steps[0].remarks]
    assert any("5.weight" in line and "output" in line for line in missed)


ALL = PruneSelect(
    ratio=0.25,
    criterion="l1",
    reduction="sum",
    normalize="max",
    scope="global",
    macs="-40%",
    params=2000.0,
    ratios=(("3", 0.5), ("0.*", 0.1)),
    ignore=("5", "0.we*"),
    round_to=4,
    min_channels=2,
    max_ratio=0.75,
)


def test_options_as_text() -> None:
    assert Pipeline.parse(str(ALL)).passes == (ALL,)
    assert str(PruneSelect()) == "prune-select"
    assert Pipeline.parse("prune-select{ratio=0.3,ratios=[[layer4.*,0.7]],macs=-40%}").passes == (
        PruneSelect(ratio=0.3, ratios=(("layer4.*", 0.7),), macs="-40%"),
    )


def test_options_are_those_of_prune() -> None:
    asked = Prune(ratio=0.3, budget=Budget(macs="-20%"), ignore=("0",), round_to=2, scope="isomorphic")
    assert PruneSelect.of(asked).options == asked
    assert PruneSelect.of(Prune(compensate=True)).options == Prune()
    assert ALL.options.budget == Budget(macs="-40%", params=2000.0)


def test_options_reach_the_choice() -> None:
    plan = waiting(run("prune-select{ratio=0.5,ignore=[3],round_to=1,ratios=[[0,0.25]]}").module)
    assert plan is not None
    assert [(group.name, group.remaining) for group in plan.groups] == [("0", 12), ("3", 8)]


def test_a_budget() -> None:
    plan = waiting(run("prune-select{params=-30%,round_to=1}").module)
    assert plan is not None
    part = plan.parts[0]
    assert part.before is not None
    assert part.after is not None
    assert 0.6 * part.before.params < part.after.params <= 0.7 * part.before.params


def test_a_latency_is_that_of_the_fused_and_lowered_network() -> None:
    module = fxcompress.trace(net(), image())
    form = _deployed(module, Inputs.of(image()))
    assert not any(isinstance(child, nn.BatchNorm2d) for child in form.modules())
    with torch.no_grad():
        torch.testing.assert_close(form(image()), module(image()), rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("_own_cache")
def test_a_latency_budget() -> None:
    plan = waiting(run("prune-select{latency='1 s'}").module)
    assert plan is not None
    assert plan.removed == 0
    with pytest.raises(InputError, match="cannot be reached"):
        run("prune-select{latency='1 ns'}")


@pytest.fixture
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@dataclass(frozen=True)
class Last(Criterion):
    """The last channels matter most."""

    name: ClassVar[str] = "last"

    def scores(self, ctx: Scoring) -> Scores:
        return np.arange(ctx.deps.classes, dtype=np.float64)


def test_a_criterion_of_ones_own() -> None:
    plan = waiting(run(PruneSelect(criterion=Last())).module)
    assert plan is not None
    assert plan.groups[0].kept == "8-15"


def test_data_reaches_the_criterion() -> None:
    batches = tuple(Inputs.of(image(seed=s)) for s in (2, 3))
    seen: list[int] = []

    def loss(output: torch.Tensor, i: int) -> torch.Tensor:
        seen.append(i)
        return output.square().mean()

    assert waiting(run("prune-select{criterion=taylor}", Calibration(batches, loss)).module) is not None
    assert seen == [0, 1]
    with pytest.raises(InputError, match="taylor' needs data"):
        run("prune-select{criterion=taylor}")


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("prune-select{ratio=1.5}", PipelineError, "ratio=1.5 is not a share"),
        ("prune-select{ratio=half}", PipelineError, "not of type float"),
        ("prune-select{criterion=l3}", PipelineError, "there is no criterion 'l3'"),
        ("prune-select{scope=everywhere}", PipelineError, "everywhere"),
        ("prune-select{macs=40%}", PipelineError, "reduction"),
        ("prune-select{ration=0.5}", UnknownPassError, "no option 'ration'"),
        ("prune-select{ratios=[[a]]}", PipelineError, "ratios"),
        ("prune-select{ignore=[nowhere]}", InputError, "no parameter or module is called 'nowhere'"),
        ("functionalize,lower,prune-select", OrderError, "cannot run after 'lower'"),
    ],
)
def test_wrong_options(text: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        run(text)
