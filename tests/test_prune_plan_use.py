"""Plans carried out: on graphs, on the user's class, on parts, after training with masks."""

from __future__ import annotations

import copy
import io
from typing import Any

import numpy as np
import pytest
import torch
from pruning import Residual, Written, call, close, dependencies, halved, image, normed, planned, residual, tokens, written
from rewriting import randomized
from torch import Tensor, nn

from fxcompress.analysis import Analyses
from fxcompress.analysis.channels import ChannelDependencyGraph
from fxcompress.capture import capture
from fxcompress.errors import PlanError
from fxcompress.ir.inputs import Inputs
from fxcompress.pruning.mask import masked
from fxcompress.pruning.plan import PruningPlan, make_plan
from fxcompress.pruning.verify import verify
from fxcompress.rewrite import apply as rewrite
from fxcompress.rewrite.attention import EXPAND_ATTENTION

# -- carrying it out ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("name", ["residual", "written", "normed"])
def test_apply_and_masked_on_the_users_model(name: str, stored: bool) -> None:
    model, inputs = {"residual": (residual(), None), "written": (written(), image(2, 3, 6, 6)), "normed": (normed(), tokens())}[name]
    deps = dependencies(model, inputs)
    keep = halved(deps)
    plan = make_plan(deps, keep)
    plan = PruningPlan.from_json(plan.to_json()) if stored else plan
    before = {k: v.clone() for k, v in model.state_dict().items()}
    small, ignoring = plan.apply(model), plan.masked(model)
    close(call(small, inputs), call(ignoring, inputs))
    close(call(ignoring, inputs), call(masked(deps, keep), inputs))
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    assert list(ignoring.state_dict()) == list(deps.module.state_dict())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_apply_takes_a_captured_graph_and_shares_nothing() -> None:
    deps = dependencies(residual())
    plan = make_plan(deps, halved(deps))
    small = plan.apply(deps.module)
    mine = {id(t) for t in (*deps.module.parameters(), *deps.module.buffers())}
    assert not mine & {id(t) for t in (*small.parameters(), *small.buffers())}
    close(call(small), call(plan.masked(deps.module)))


def test_apply_takes_example_inputs() -> None:
    class Opaque(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = residual()

        def forward(self, x: Tensor, unused: Any) -> Tensor:
            return self.body(x)

    model, inputs = Opaque(), (image(), torch.float32)
    deps = dependencies(model, inputs)
    plan = make_plan(deps, halved(deps))
    with pytest.raises(PlanError, match="example_inputs"):
        plan.apply(model)
    close(call(plan.apply(model, example_inputs=inputs), inputs), call(masked(deps, plan.keep(deps)), inputs))


def test_a_plan_that_removes_nothing() -> None:
    model = residual()
    deps = dependencies(model)
    plan = make_plan(deps, np.ones(deps.classes, dtype=bool))
    close(call(plan.apply(model)), call(model))
    assert plan.removed == 0


# -- the user's class -----------------------------------------------------------------------------------------------------


def test_apply_to_a_fresh_instance() -> None:
    model = residual()
    plan = planned(model)
    small = plan.apply(model)
    fresh = Residual().double().eval()
    assert plan.apply_to(fresh) is fresh
    fresh.load_state_dict(small.state_dict())
    close(call(fresh), call(small))
    assert fresh.inner.out_channels == 4
    assert fresh.depthwise.groups == 4
    assert fresh.norm.num_features == 4
    assert fresh.stem[2].num_parameters == 4
    assert fresh.head.in_features == fresh.mix.out_channels * 4


def test_apply_to_slices_the_weights_that_are_there() -> None:
    model = residual()
    plan = planned(model)
    close(call(plan.apply_to(copy.deepcopy(model))), call(plan.apply(model)))


def test_apply_to_keeps_ties_and_gradients_off() -> None:
    model = residual()
    model.inner.requires_grad_(False)
    plan = planned(model)
    fresh = plan.apply_to(copy.deepcopy(model))
    assert not fresh.inner.weight.requires_grad
    assert fresh.mix.weight.requires_grad


def test_apply_to_layer_norm_and_embedding() -> None:
    model = normed()
    plan = planned(model, tokens())
    fresh = plan.apply_to(type(model)().double().eval())
    small = plan.apply(model)
    fresh.load_state_dict(small.state_dict())
    close(call(fresh, tokens()), call(small, tokens()))
    assert fresh.norm.normalized_shape == (4,)


def test_apply_to_refuses_a_forward_with_sizes_written_out() -> None:
    plan = planned(written(), image(2, 3, 6, 6))
    fresh = Written().double()
    with pytest.raises(
        PlanError, match=r"forward of Written has a number that has to change at .*pruning.py:\d+: view\(.*96\) -> view\(.*48"
    ):
        plan.apply_to(fresh)
    assert fresh.conv.weight.shape[0] == 6


def test_apply_to_refuses_other_instances_and_changes_nothing() -> None:
    plan = planned(residual())
    other = Residual(width=16).double()
    with pytest.raises(PlanError, match=r"group 'stem.0': 'stem.0.weight' is \[16, 3, 3, 3\]; the plan was made for 8 at axis 0"):
        plan.apply_to(other)
    assert other.stem[0].weight.shape[0] == 16
    with pytest.raises(PlanError, match=r"group 'stem.0': the module has no parameter or buffer 'stem.0.weight'"):
        plan.apply_to(nn.Linear(3, 3))
    swapped_layer = Residual().double()
    swapped_layer.norm = nn.SyncBatchNorm(8).double()
    with pytest.raises(PlanError, match=r"module 'norm' is a .*SyncBatchNorm; the plan is for a .*BatchNorm2d"):
        plan.apply_to(swapped_layer)
    assert swapped_layer.stem[0].weight.shape[0] == 8


class Derived(nn.BatchNorm2d):
    """A norm with an activation; the graph has a plain one at its path."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


def test_apply_to_derived_layers() -> None:
    class Net(nn.Module):
        def __init__(self, width: int = 6) -> None:
            super().__init__()
            self.a, self.norm, self.b = nn.Conv2d(3, width, 3), Derived(width), nn.Conv2d(width, 2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.norm(self.a(x)))

    model = randomized(Net()).double()
    plan = planned(model)
    fresh, small = plan.apply_to(Net().double().eval()), plan.apply(model)
    fresh.load_state_dict(small.state_dict())
    close(call(fresh), call(small))
    assert fresh.norm.num_features == 3
    altered = Net().double()
    altered.norm.num_features = 7
    with pytest.raises(PlanError, match=r"num_features of 'norm' is 7; the plan was made for 6"):
        plan.apply_to(altered)


# -- parts ----------------------------------------------------------------------------------------------------------------


class InParts(nn.Module):
    """Python that looks at values stands between two parts."""

    def __init__(self) -> None:
        super().__init__()
        self.body = residual()
        self.tail = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2)).double()

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        if float(y.sum().item()) > 1e9:
            y = -y
        return self.tail(y)


def test_a_model_in_parts() -> None:
    model = InParts().eval()
    captured = capture(model, image())
    assert captured.step == "parts"
    plans = {}
    for part in captured.parts:
        deps = Analyses(part.graph, part.inputs).get(ChannelDependencyGraph)
        plans[part.path] = make_plan(deps, halved(deps))
        assert (plans[part.path].keep(deps) == halved(deps)).all()
    plan = PruningPlan.joined(plans, captured.inputs)
    plan = PruningPlan.from_json(plan.to_json())
    assert {part.path for part in plan.parts} == {"body", "tail"}
    small, ignoring = plan.apply(model), plan.masked(model)
    close(call(small), call(ignoring))
    close(call(plan.apply(ignoring)), call(small))
    proof = verify(model, plan)
    assert proof.holds
    assert [output.name for output in proof.outputs] == ["body: output", "tail: output"]
    fresh = plan.apply_to(InParts().eval())
    fresh.load_state_dict(small.state_dict())
    close(call(fresh), call(small))
    assert "part 'body'" in str(plan)


# -- plan, train with masks, slice ----------------------------------------------------------------------------------------


def trained(network: nn.Module, inputs: Any = None, steps: int = 4) -> nn.Module:
    """A few steps in training mode."""
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for _ in range(steps):
        out = Inputs.of(image() if inputs is None else inputs, None if inputs is None else network.forward).call(network)
        loss = sum((t**2).mean() for t in (out.values() if isinstance(out, dict) else [out]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


@pytest.mark.parametrize("name", ["residual", "written", "normed"])
def test_slicing_after_training_with_masks(name: str) -> None:
    model, inputs = {"residual": (residual(), None), "written": (written(), image(2, 3, 6, 6)), "normed": (normed(), tokens())}[name]
    plan = planned(model, inputs)
    network = trained(plan.masked(model), inputs)
    assert not torch.equal(next(iter(network.state_dict().values())), next(iter(model.state_dict().values())))
    expected = call(network, inputs)
    close(call(plan.apply(network), inputs), expected)
    close(call(plan.apply(copy.deepcopy(network)), inputs), expected)
    model.load_state_dict(network.state_dict())
    close(call(plan.apply(model), inputs), expected)


def test_masked_and_sliced_train_alike() -> None:
    model = residual()
    plan = planned(model)
    ignoring, small = plan.masked(model), plan.apply(model)
    for network in (ignoring, small):
        network.train()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            (network(image()) ** 2).mean().backward()
            optimizer.step()
        network.eval()
    close(call(ignoring), call(small))


def test_a_masked_network_can_be_masked_again() -> None:
    model = residual()
    plan = planned(model)
    once = plan.masked(model)
    close(call(plan.masked(once)), call(once))


def test_a_masked_network_from_a_file_says_what_to_do() -> None:
    model = residual()
    plan = planned(model)
    network = plan.masked(model)
    stored = io.BytesIO()
    torch.save(network, stored)
    stored.seek(0)
    loaded = torch.load(stored, weights_only=False)
    close(call(loaded), call(network))
    with pytest.raises(PlanError, match=r"load_state_dict\(masked.state_dict\(\)\)"):
        plan.apply(loaded)
    model.load_state_dict(loaded.state_dict())
    close(call(plan.apply(model)), call(network))


class Attending(nn.Module):
    """One block of a transformer, with ``nn.MultiheadAttention`` as a layer that drops weights."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 4, dropout=0.1, batch_first=True)
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x + self.attention(x, x, x, need_weights=False)[0])
        return x + self.down(self.up(x).relu())


@pytest.mark.parametrize("train", [False, True])
def test_attention_that_was_written_out_before_the_plan(train: bool) -> None:
    model, x = randomized(Attending()).double(), image(2, 5, 8)
    (part,) = capture(model, x).parts
    rewrite(EXPAND_ATTENTION, part.graph, Analyses(part.graph, part.inputs))
    deps = Analyses(part.graph, part.inputs).get(ChannelDependencyGraph)
    plan = PruningPlan.from_json(make_plan(deps, halved(deps)).to_json())
    assert any("in_proj_weight" in slot.parameter for group in plan.groups for slot in group.slots)
    model.train(train)
    small, network = plan.apply(model), plan.masked(model)
    assert small.training == train
    assert list(network.state_dict()) == list(model.state_dict())
    close(call(small.eval(), x), call(network.eval(), x))
    with pytest.raises(PlanError, match=r"computes by other operations|has a number that has to change|is missing"):
        plan.apply_to(Attending().double())
