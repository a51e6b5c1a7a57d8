"""Budgets: the search finds the least pruned network that fits, or says how far one can go."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fxcompress.analysis import Analyses, Cost
from fxcompress.analysis.channels import ChannelDependencyGraph
from fxcompress.capture import capture
from fxcompress.errors import InputError
from fxcompress.pruning.budget import fit
from fxcompress.pruning.options import Budget, Prune
from fxcompress.pruning.predict import predicted
from fxcompress.pruning.select import Selector
from fxcompress.pruning.slicing import sliced


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 64, 3, padding=1), nn.BatchNorm2d(64)
        self.inner, self.back = nn.Conv2d(64, 96, 3, padding=1), nn.Conv2d(96, 64, 1)
        self.down, self.split = nn.Conv2d(64, 128, 3, stride=2), nn.Conv2d(128, 128, 3, groups=128)
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x + self.back(self.inner(x).relu())
        return self.head(self.split(self.down(x).relu()).mean((2, 3)))


def dependencies(model: nn.Module | None = None, x: Any = None) -> ChannelDependencyGraph:
    model = Residual() if model is None else model
    part = capture(model.eval(), torch.randn(1, 3, 12, 12) if x is None else x).parts[0]
    return Analyses(part.graph, part.inputs).get(ChannelDependencyGraph)


def any_scores(deps: ChannelDependencyGraph, seed: int = 0) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.random.default_rng(seed).random(deps.classes)


BUDGETS = [
    Budget(macs="-40%"),
    Budget(params="-55%"),
    Budget(bytes="-25%"),
    Budget(macs="6 M"),
    Budget(params=60_000),
    Budget(bytes="300 kB"),
    Budget(macs="-30%", params="-30%", bytes="350 kB"),
]


def _limits(budget: Budget, before: Cost) -> dict[str, float]:
    unpruned = {"macs": before.macs, "params": before.params, "bytes": before.weight_bytes}
    return {limit.what: limit.absolute(unpruned[limit.what]) for limit in budget.limits()}


def _holds(cost: Any, limits: dict[str, float]) -> bool:
    names = {"macs": "macs", "params": "params", "bytes": "weight_bytes"}
    return all(getattr(cost, names[what]) <= limit for what, limit in limits.items())


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
@pytest.mark.parametrize("scope", ["local", "global", "isomorphic"])
def test_the_sliced_network_fits_and_no_smaller_ratio_does(budget: Budget, scope: Any) -> None:
    deps = dependencies()
    options, scores = Prune(budget=budget, scope=scope), any_scores(deps)
    limits = _limits(budget, Cost.of(deps.module, deps.inputs))
    keep = fit(deps, options, scores)
    assert _holds(Cost.of(sliced(deps, keep), deps.inputs), limits)
    selector = Selector(deps, options, scores)
    larger = [k for k in map(selector.keep, np.linspace(0, 0.9, 2000)) if k.sum() > keep.sum() and (k >= keep).all()]
    assert larger, "the budget removed nothing"
    assert not any(_holds(predicted(deps, k), limits) for k in larger)


def test_groups_that_step_at_the_same_ratio_step_apart() -> None:
    """With the same width everywhere one ratio moves all groups at once; what fits of the step before stays."""
    deps = dependencies(nn.Sequential(*(nn.Conv2d(3 if i == 0 else 64, 64, 1) for i in range(6)), nn.Conv2d(64, 2, 1)))
    options, scores = Prune(budget=Budget(macs="-40%")), any_scores(deps)
    keep = fit(deps, options, scores)
    widths = [int(keep[group.classes].sum()) for group in deps.groups]
    assert len(set(widths)) == 2
    assert max(widths) - min(widths) == 8
    limit = 0.6 * predicted(deps, np.ones(deps.classes, dtype=bool)).macs
    for group in deps.groups:  # nobody can go one step back
        wider = keep.copy()
        gone = group.classes[~keep[group.classes]]
        wider[gone[np.argsort(-scores[gone])][:8]] = True
        assert int(keep[group.classes].sum()) == max(widths) or predicted(deps, wider).macs > limit


def test_what_is_already_small_enough_stays_whole() -> None:
    deps = dependencies()
    assert fit(deps, Prune(budget=Budget(macs="1 G")), any_scores(deps)).all()


def test_other_options_hold_inside_a_budget() -> None:
    deps = dependencies()
    options = Prune(budget=Budget(macs="-50%"), ignore=("inner",), ratios=(("down", 0.25),), round_to=1, min_channels=20)
    keep = fit(deps, options, any_scores(deps))
    widths = {slot.parameter: int(keep[g.classes].sum()) for g in deps.groups for slot in g.slots if slot.role == "producer"}
    assert widths["inner.weight"] == 96
    assert widths["down.weight"] == 96
    assert 20 <= widths["stem.weight"] < 64


def test_the_choice_inside_a_group_is_that_of_the_scores() -> None:
    deps = dependencies()
    scores = any_scores(deps)
    keep = fit(deps, Prune(budget=Budget(params="-45%")), scores)
    for group in deps.groups:
        kept, gone = scores[group.classes[keep[group.classes]]], scores[group.classes[~keep[group.classes]]]
        assert not len(gone) or kept.min() > gone.max()


def test_a_budget_out_of_reach_says_how_far_one_can_go() -> None:
    deps = dependencies()
    options, scores = Prune(budget=Budget(macs="-99.9%", params="-10%")), any_scores(deps)
    with pytest.raises(InputError, match=r"macs='-99\.9%' allows 1[0-9.]* k of 1[0-9.]* M, and .* leaves [0-9]+ k") as caught:
        fit(deps, options, scores)
    assert "params=" not in str(caught.value)
    hint = str(caught.value.hint)
    assert "max_ratio (now 0.9)" in hint
    assert "round_to (8)" in hint
    possible = hint.partition('macs="')[2].partition('"')[0]
    fit(deps, Prune(budget=Budget(macs=possible)), scores)  # what the hint names can be had


def test_without_a_budget() -> None:
    deps = dependencies()
    with pytest.raises(InputError, match="no budget"):
        fit(deps, Prune(), any_scores(deps))


def test_a_graph_without_channels() -> None:
    deps = dependencies(nn.Sequential(nn.Linear(4, 3)), torch.randn(2, 4))
    assert deps.classes == 0
    with pytest.raises(InputError, match="cannot be reached") as caught:
        fit(deps, Prune(budget=Budget(macs="-40%")), np.zeros(0))
    assert "no channel of this graph can be removed" in str(caught.value.hint)
