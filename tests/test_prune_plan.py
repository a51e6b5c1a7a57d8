"""What is in a plan, how plans differ, and which graphs refuse one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pruning import Residual, dependencies, edited, group_of, halved, image, normed, planned, residual, tokens, written
from torch import Tensor, nn

from fxcompress.errors import PlanError
from fxcompress.pruning import ranges
from fxcompress.pruning.options import Budget, Prune
from fxcompress.pruning.plan import PruningPlan, make_plan, options_text
from fxcompress.pruning.slicing import sliced

# -- what is in a plan ----------------------------------------------------------------------------------------------------


def test_a_plan_says_what_it_removes() -> None:
    model = residual()
    deps = dependencies(model)
    keep = halved(deps)
    plan = make_plan(deps, keep, np.linspace(0, 1, deps.classes), Prune(ratio=0.25, ignore=("head",)))
    assert plan.options == "Prune(ratio=0.25, ignore=('head',))"
    stem = next(group for group in plan.groups if group.name == "stem.0")
    assert stem.channels == 8
    assert stem.remaining == 4
    assert {"stem.0.weight", "inner.weight"} <= set(stem.producers)
    assert {"inner.weight", "mix.weight"} <= set(stem.consumers)
    assert len(stem.importance) == 8
    assert stem.alone is not None
    (part,) = plan.parts
    assert part.before is not None
    assert part.after is not None
    assert part.before.params == sum(p.numel() for p in model.parameters())
    assert part.after.params == sum(p.numel() for p in sliced(deps, keep).parameters())
    head = [pinned for pinned in plan.pinned if pinned.parameter == "head.weight"]
    assert any("output" in pinned.why for pinned in head)
    assert any(pinned.source and "pruning.py:" in pinned.source for pinned in plan.pinned)
    assert plan.removed == int((~keep).sum())
    assert not plan.statistics


def test_a_plan_says_where_the_function_changes() -> None:
    plan = planned(normed(), tokens())
    assert "norm" in {statistic.node for statistic in plan.statistics}
    assert all(statistic.source for statistic in plan.statistics)
    assert "the function changes" in str(plan)


def test_a_plan_keeps_the_flags_that_it_was_made_of() -> None:
    for model, inputs in ((residual(), None), (written(), image(2, 3, 6, 6)), (normed(), tokens())):
        deps = dependencies(model, inputs)
        for seed in range(3):
            keep = halved(deps, seed)
            assert (make_plan(deps, keep).keep(deps) == keep).all()


def test_an_axis_cannot_lose_all_its_channels() -> None:
    deps = dependencies(residual())
    keep = np.ones(deps.classes, dtype=bool)
    keep[deps.groups[0].classes] = False
    with pytest.raises(PlanError, match=r"group 'stem.0': axis 0 of 'stem.0.weight' would lose all"):
        make_plan(deps, keep)


def test_flags_must_fit() -> None:
    deps = dependencies(residual())
    with pytest.raises(PlanError, match="flags of the shape"):
        make_plan(deps, np.ones(deps.classes + 1, dtype=bool))
    with pytest.raises(PlanError, match="int64, not bool"):
        make_plan(deps, np.ones(deps.classes, dtype=np.int64))  # type: ignore[arg-type]


def test_options_are_text_without_addresses() -> None:
    class Own:
        pass

    assert " at 0x" not in options_text(Own())
    assert options_text(Prune(budget=Budget(macs="-40%"))) == "Prune(budget=Budget(macs='-40%'))"
    assert options_text("as it is") == "as it is"


def test_the_table_shows_everygroup_of() -> None:
    plan = planned(residual())
    text = str(plan)
    for group in plan.groups:
        assert group.name in text
    assert "MACs" in text
    assert "parameters:" in text
    assert "it reaches the output" in text


# -- difference -----------------------------------------------------------------------------------------------------------


def test_diff_names_groups_and_channels() -> None:
    deps = dependencies(residual())
    keep = halved(deps)
    plan = make_plan(deps, keep, options="one")
    other = keep.copy()
    other[deps.groups[0].classes] = True
    text = plan.diff(make_plan(deps, other, options="two"))
    assert "options: one -> two" in text
    assert "stem.0: 4 -> 8 of 8; keeps " in text
    assert "parameters: " in text
    assert plan.diff(plan) == ""


def test_diff_of_plans_for_other_networks() -> None:
    text = planned(residual()).diff(planned(written(), image(2, 3, 6, 6)))
    assert "another network" in text
    assert "only in the new plan" in text


def test_diff_of_other_details() -> None:
    deps = dependencies(residual())
    keep = halved(deps)
    scores = np.linspace(0, 1, deps.classes)
    assert "remove the same channels" in make_plan(deps, keep, scores).diff(make_plan(deps, keep, scores + 1))


# -- contradictions that only the graph shows -----------------------------------------------------------------------------


def swapped(group: Any) -> None:
    """Keep other channels in one slot, as many as before."""
    slot = group["slots"][1]
    slot["kept"] = ranges.encode(np.flatnonzero(~ranges.mask(slot["kept"], group["channels"])))


EDITS = {
    "slot": (swapped, r"group 'stem.0' contradicts itself: axis \d of '.*' (keeps|removes) index \d+, which the group's"),
    "role": (
        lambda g: g["slots"][0].update(role="follower"),
        "group 'stem.0': role of axis 0 of 'stem.0.weight' is 'follower', not 'producer'",
    ),
    "lacks": (lambda g: g["slots"].pop(2), "group 'stem.0' lacks axis"),
    "foreign": (lambda g: g["slots"].append({**g["slots"][0], "parameter": "x"}), "group 'stem.0' has axis 0 of 'x', which does not"),
    "name": (lambda g: g.update(name="x"), "group 'x' stands where the graph has group 'stem.0'"),
    "other channels": (lambda g: g.update(kept="0-3" if g["kept"] != "0-3" else "1-4"), "group 'stem.0' contradicts itself"),
}


@pytest.mark.parametrize("name", EDITS)
def test_a_group_that_was_edited_by_hand_is_named(name: str) -> None:
    change, message = EDITS[name]
    model = residual()
    plan = PruningPlan.from_json(edited(planned(model), lambda d: change(group_of(d))))
    with pytest.raises(PlanError, match=message):
        plan.keep(dependencies(model))


def test_a_missing_group_is_noticed() -> None:
    model = residual()
    plan = PruningPlan.from_json(edited(planned(model), lambda d: d["plan"]["parts"][0]["groups"].pop()))
    with pytest.raises(PlanError, match="groups of channels; the graph has"):
        plan.keep(dependencies(model))


# -- other networks -------------------------------------------------------------------------------------------------------


class Renamed(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(super().forward(x))


def test_another_network_is_refused() -> None:
    plan = planned(residual())
    for model, message in (
        (Residual(width=16), r"'depthwise.bias' is float64\[16\] instead of float64\[8\]"),
        (Renamed(), r"node \d+ is relu instead of output"),
        (nn.Sequential(nn.Conv2d(3, 4, 3)), "'depthwise.bias' is missing"),
    ):
        with pytest.raises(PlanError, match=message):
            plan.keep(dependencies(model.double().eval()))
        with pytest.raises(PlanError, match="another network"):
            plan.apply(model)
    with pytest.raises(PlanError, match=r"'depthwise.bias' is float32\[8\] instead of float64\[8\]"):
        plan.keep(dependencies(Residual(), image().float()))
    with pytest.raises(PlanError, match=r"'depthwise.bias' is float32\[8\] instead of float64\[8\]"):
        plan.apply(Residual())


def test_the_weights_and_the_mode_may_differ() -> None:
    plan = planned(residual())
    other = Residual().double().train()
    assert plan.keep(dependencies(other)).any()
    assert plan.apply(other).training


def test_tied_parameters_belong_to_the_structure() -> None:
    class Tied(nn.Module):
        def __init__(self, tie: bool) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)
            if tie:
                self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.b(self.a(x).relu()).relu())

    x = torch.rand(2, 6)
    deps = dependencies(Tied(tie=False), x)
    plan = make_plan(deps, halved(deps))
    with pytest.raises(PlanError, match=r"'b.weight' is = a.weight instead of float32\[6, 6\]"):
        plan.keep(dependencies(Tied(tie=True), x))
