"""Removing channels inside a pipeline: the result against the masked network, the frame's proof, and what it refuses."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from oracle import same
from rewriting import image, randomized
from torch import nn
from torch.fx import GraphModule

import fxcompress
from fxcompress.analysis import Analyses
from fxcompress.analysis.channels import ChannelDependencyGraph
from fxcompress.errors import EquivalenceError, InputError, OrderError, PlanError
from fxcompress.ir.inputs import Inputs
from fxcompress.passes import prune_apply, prune_select
from fxcompress.pipeline import Calibration, Pass, PassContext, PassResult, Pipeline, Semantics
from fxcompress.pruning.handover import applied, leave, waiting
from fxcompress.pruning.mask import masked
from fxcompress.pruning.slicing import sliced


class Residual(nn.Module):
    """A stem, a residual block with norms, and a head; ``inplace`` and a written-out size on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(4, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.inner, self.inner_norm, self.outer = nn.Conv2d(16, 24, 3, padding=1), nn.BatchNorm2d(24), nn.Conv2d(24, 16, 1)
        self.relu, self.head = nn.ReLU(inplace=True), nn.Linear(16 * 35, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.norm(self.stem(x)))
        y = self.outer(self.relu(self.inner_norm(self.inner(x)))) + x
        return self.head(y.view(-1, 16 * 35))


def graph(model: nn.Module | None = None) -> GraphModule:
    return fxcompress.trace(randomized(model or Residual()), image())


def run(text: str, module: GraphModule | None = None, calibration: tuple[Inputs, ...] = (), verify: bool = True):
    pipeline = Pipeline.parse(text)
    return pipeline.execute(module or graph(), Inputs.of(image()), calibration=Calibration(calibration), verify=verify)


def oracle(start: GraphModule, plan: fxcompress.PruningPlan) -> torch.Tensor:
    """The output of the network in which the readers of removed channels have zero weights there.

    Valid for networks in which channels end in convolutions and linears only.
    """
    twin = fxcompress.trace(start, image()).double()
    with torch.no_grad():
        for group in plan.groups:
            for slot in group.slots:
                if slot.role == "consumer":
                    weight = twin.get_parameter(slot.parameter)
                    gone = sorted(_indices(slot.channels) - _indices(slot.kept))
                    weight.movedim(slot.axis, 0)[gone] = 0.0
        return twin(image().double())


def wide(module: GraphModule) -> torch.Tensor:
    """The output in float64; a pipeline's result shares tensors with its start, so it is copied."""
    return copy.deepcopy(module).double()(image().double()).detach()


def _indices(text: str) -> set[int]:
    found: set[int] = set()
    for part in text.split(",") if text else ():
        ends, _, step = part.partition(":")
        first, _, last = ends.partition("-")
        found |= set(range(int(first), int(last or first) + 1, int(step or 1)))
    return found


def test_it_computes_what_the_network_without_these_readers_computes() -> None:
    start = graph()
    found = run("prune-select{round_to=1,criterion=random},prune-apply", start)
    plan = applied(found.module)
    assert plan is not None
    assert plan.removed == 8 + 12
    want, before = oracle(start, plan), wide(start)
    same(want, wide(found.module), 1e-12)
    assert float((want - before).abs().max()) > 1e-3


def test_what_survives_keeps_its_bits() -> None:
    start = graph()
    found = run("prune-select,prune-apply", start)
    deps = Analyses(start, Inputs.of(image())).get(ChannelDependencyGraph)
    plan = applied(found.module)
    assert plan is not None
    want = sliced(deps, plan.keep(deps)).state_dict()
    assert list(found.module.state_dict()) == list(start.state_dict())
    for name, tensor in found.module.state_dict().items():
        assert torch.equal(tensor, want[name])
        assert tensor.flatten().tolist()[0] in start.state_dict()[name].flatten().tolist()


def test_the_frame_reports_the_difference_and_proves_the_slicing() -> None:
    found = run("prune-select,prune-apply")
    assert found.steps[1].error is not None
    assert found.steps[1].error > 1e-2
    assert found.proof.error64 is not None
    assert found.proof.error64.relative < 1e-12
    assert found.proof.note == "checked in float64, lossy passes against their references"


def test_the_passes_after_it_are_held_to_the_pruned_network() -> None:
    rest = "functionalize,drop-noops,fold-norm,fold-norm-before,fold-scale,fuse"
    found = run(f"prune-select,prune-apply,{rest}")
    assert [step.text for step in found.steps if step.changed][:1] == ["prune-apply"]
    assert found.steps[4].text == "fold-norm"
    assert found.steps[4].changed
    assert found.proof.error64 is not None
    assert found.proof.error64.relative < 1e-12
    alone = run("prune-select,prune-apply").module
    same(wide(alone), wide(found.module), 1e-6)


@dataclass(frozen=True)
class Slightly(Pass):
    """Changes a weight by less than rounding in float32 would show."""

    name: ClassVar[str] = "slightly"

    def run(self, module: GraphModule, ctx: PassContext) -> PassResult:
        module.head.weight = nn.Parameter(module.head.weight.detach() * (1 + 1e-6))
        return PassResult(module, True)


def test_a_small_error_after_it_is_found_in_float64() -> None:
    with pytest.raises(EquivalenceError, match="'slightly' promises equal numbers"):
        Pipeline.of("prune-select,prune-apply", Slightly()).execute(graph(), Inputs.of(image()))


def test_a_small_error_before_it_is_found_too() -> None:
    with pytest.raises(EquivalenceError, match="'slightly' promises equal numbers"):
        Pipeline.of(Slightly(), "prune-select,prune-apply").execute(graph(), Inputs.of(image()))


def test_wrong_slicing_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def off_by_little(deps, keep):
        result = sliced(deps, keep)
        result.head.weight = nn.Parameter(result.head.weight.detach() * (1 + 1e-6))
        return result

    monkeypatch.setattr(prune_select, "sliced", off_by_little)
    with pytest.raises(EquivalenceError, match=r"'prune-apply' promises the numbers of its reference") as caught:
        run("prune-select,prune-apply")
    assert "to reproduce: python" in "".join(caught.value.__notes__)
    run("prune-select,prune-apply", verify=False)


@dataclass(frozen=True)
class Halved(Pass):
    """A lossy pass whose reference is right, or not."""

    name: ClassVar[str] = "halved"
    semantics: ClassVar[Semantics] = Semantics.LOSSY
    wrong: bool = False

    def run(self, module: GraphModule, ctx: PassContext) -> PassResult:
        before = fxcompress.trace(module, ctx.inputs)
        module.head.weight = nn.Parameter(module.head.weight.detach() * 0.5)
        module.head.bias = nn.Parameter(module.head.bias.detach() * 0.5)

        def reference() -> GraphModule:
            node = before.graph.output_node()
            with before.graph.inserting_before(node):
                node.args = (before.graph.call_function(torch.mul, (node.args[0], 0.5 + 1e-6 * self.wrong)),)
            before.recompile()
            return before

        return PassResult(module, True, reference=reference)


def test_any_lossy_pass_may_have_a_reference() -> None:
    Pipeline.of(Halved()).execute(graph(), Inputs.of(image()))
    with pytest.raises(EquivalenceError, match="halved"):
        Pipeline.of(Halved(wrong=True)).execute(graph(), Inputs.of(image()))


def test_half_precision_is_compared_as_it_is() -> None:
    start = graph().half()
    inputs = Inputs.of(image().half())
    for node in start.graph.nodes:  # a cast that stands in the graph forbids a float64 twin
        if node.name == "norm":
            with start.graph.inserting_after(node):
                cast = start.graph.call_method("half", (node,))
            node.replace_all_uses_with(cast, delete_user_cb=lambda user, cast=cast: user is not cast)
    start.recompile()
    found = Pipeline.parse("prune-select,prune-apply").execute(start, inputs)
    assert "own dtype" in found.proof.note
    assert found.steps[1].changed


def test_nothing_to_remove() -> None:
    found = run("prune-select{ratio=0.0},prune-apply")
    assert [step.changed for step in found.steps] == [False, False]
    plan = applied(found.module)
    assert plan is not None
    assert plan.removed == 0


def test_a_plan_is_needed_and_used_once() -> None:
    with pytest.raises(OrderError, match="'prune-apply' requires a graph that is PLANNED") as caught:
        run("prune-apply")
    assert "put prune-select before it" in str(caught.value)
    found = run("prune-select,prune-apply,prune-apply")
    assert [step.changed for step in found.steps] == [False, True, False]
    assert "no plan waits" in str(found.steps[2].remarks[0])
    assert waiting(found.module) is None


def test_again_and_again() -> None:
    found = run("prune-select{round_to=1},prune-apply,prune-select{round_to=1},prune-apply")
    assert found.module.stem.out_channels == 4
    assert found.proof.error64 is not None
    assert found.proof.error64.relative < 1e-12


def test_a_plan_for_another_graph_is_refused() -> None:
    plan = waiting(run("prune-select").module)
    assert plan is not None
    other = fxcompress.trace(randomized(nn.Sequential(nn.Conv2d(4, 16, 1), nn.Conv2d(16, 4, 1))), image())
    leave(other, plan)
    with pytest.raises(PlanError, match="made for another network"):
        Pipeline.of("prune-select", prune_apply.PruneApply()).passes[1].run(other, _context(other))
    with pytest.raises(PlanError, match="made for another network"):
        run("prune-select,functionalize,prune-apply")


def _context(module: GraphModule) -> PassContext:
    return PassContext(Inputs.of(image()), Analyses(module, Inputs.of(image())))


def test_random_numbers_are_refused() -> None:
    model = randomized(nn.Sequential(nn.Conv2d(4, 16, 1), nn.Dropout(), nn.Conv2d(16, 4, 1)))
    model[1].train()
    with pytest.raises(InputError, match="draws random numbers") as caught:
        run("prune-select,prune-apply", fxcompress.trace(model, image()))
    assert "model.eval()" in str(caught.value)


def test_statistics_that_change_are_named() -> None:
    model = nn.Sequential(nn.Linear(5, 16), nn.LayerNorm(16), nn.Linear(16, 4))
    found = run("prune-select,prune-apply", graph(model))
    assert any("statistic over axis 3" in str(remark) for remark in found.steps[1].remarks)
    assert found.proof.error64 is not None
    assert found.proof.error64.relative < 1e-12


class TestCompensation:
    batches = tuple(Inputs.of(image(8, 4, 7, 5, seed=seed)) for seed in range(2, 6))

    def test_the_loss_is_smaller_and_still_proven(self) -> None:
        plain = run("prune-select,prune-apply")
        better = run("prune-select,prune-apply{compensate=true}", calibration=self.batches)
        assert plain.proof.error is not None
        assert better.proof.error is not None
        assert better.proof.error.relative < 0.7 * plain.proof.error.relative
        assert better.proof.error64 is not None
        assert better.proof.error64.relative < 1e-9
        assert len(better.steps[1].remarks) > len(plain.steps[1].remarks)

    def test_the_reference_has_the_compensated_weights(self) -> None:
        start = graph()
        better = run("prune-select,prune-apply{compensate=true}", start, self.batches).module
        plan = applied(better)
        assert plan is not None
        deps = Analyses(start, Inputs.of(image())).get(ChannelDependencyGraph)
        keep = plan.keep(deps)
        reference = prune_apply.with_tensors_of(better, masked(deps, keep), deps, keep)
        same(wide(reference), wide(better), 1e-12)

    def test_data_is_needed(self) -> None:
        with pytest.raises(InputError, match="calibration"):
            run("prune-select,prune-apply{compensate=true}")
