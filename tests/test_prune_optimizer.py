"""Slicing the state of optimizers: training goes on as if the state had been sliced by hand."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from pruning import Residual, dependencies, halved, image, planned, residual
from torch import Tensor, nn
from torch.optim import Optimizer

from fxcompress.errors import PlanError
from fxcompress.pruning.plan import PruningPlan, make_plan
from fxcompress.pruning.slicing import kept_indices

SETTINGS: dict[str, list[dict[str, Any]]] = {
    "SGD": [{"lr": 0.05}, {"lr": 0.05, "momentum": 0.9}, {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}],
    "Adam": [{}, {"amsgrad": True}, {"foreach": True}, {"fused": True}],
    "AdamW": [{"weight_decay": 0.1}, {"amsgrad": True, "maximize": True}],
    "RMSprop": [{"lr": 1e-3, "momentum": 0.9, "centered": True}],
    "Adafactor": [{}, {"lr": 0.05}],
}
SPECIAL = ("LBFGS", "SparseAdam", "Muon")
PLAIN = sorted(
    name
    for name, kind in vars(torch.optim).items()
    if inspect.isclass(kind) and issubclass(kind, Optimizer) and kind is not Optimizer and name not in SPECIAL
)
CASES = [(name, settings) for name in PLAIN for settings in SETTINGS.get(name, [{}])]


def made(name: str, parameters: Any, settings: dict[str, Any]) -> Optimizer:
    optimizer: Optimizer = getattr(torch.optim, name)(parameters, **settings)
    return optimizer


def steps(network: nn.Module, optimizer: Optimizer, count: int = 3) -> nn.Module:
    for place in range(count):
        optimizer.zero_grad()
        (network(image() * (1 + place)) ** 2).mean().backward()
        optimizer.step()
    return network


def by_hand(old: Optimizer, before: nn.Module, after: nn.Module, kept: dict[tuple[str, int], Any], kind: Any, settings: Any) -> Optimizer:
    """A new optimizer of ``after``, whose state dict is that of ``old`` with every tensor of a parameter's shape cut.

    Factored tensors have the size 1 where they are means, and are cut along the other axes.
    """
    names = [name for name, _ in before.named_parameters()]
    assert names == [name for name, _ in after.named_parameters()]
    shapes = [p.shape for p in before.parameters()]
    state = copy.deepcopy(old.state_dict())
    for place, values in state["state"].items():
        for key, value in values.items():
            if isinstance(value, Tensor) and value.ndim == len(shapes[place]) and value.numel() > 1:
                for axis in range(value.ndim):
                    if (names[place], axis) in kept and value.shape[axis] > 1:
                        value = value[(slice(None),) * axis + (torch.as_tensor(kept[names[place], axis]),)]
                values[key] = value
    new: Optimizer = kind(list(after.parameters()), **settings)
    new.load_state_dict(state)
    return new


@pytest.fixture(scope="module")
def plan() -> PruningPlan:
    return planned(residual())


@pytest.mark.parametrize(("name", "settings"), CASES, ids=[f"{n}-{i}" for i, (n, _) in enumerate(CASES)])
def test_training_goes_on(name: str, settings: dict[str, Any], plan: PruningPlan) -> None:
    model = residual()
    optimizer = made(name, model.parameters(), settings)
    steps(model, optimizer)
    deps = dependencies(model)
    kept = kept_indices(deps, plan.keep(deps))
    reference = plan.apply(model)
    other = by_hand(optimizer, model, reference, kept, type(optimizer), settings)
    small = plan.apply(model, optimizer)
    new = list(small.parameters())
    assert [id(p) for group in optimizer.param_groups for p in group["params"]] == [id(p) for p in new]
    assert set(map(id, optimizer.state)) <= set(map(id, new))
    before = [p.clone() for p in new]
    steps(small, optimizer)
    steps(reference, other)
    assert any(not torch.equal(a, b) for a, b in zip(before, new, strict=True))
    for a, b in zip(small.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_the_step_is_kept(name: str, plan: PruningPlan) -> None:
    model = residual()
    optimizer = made(name, model.parameters(), {"lr": 1e-3, **({"momentum": 0.9} if name == "SGD" else {})})
    steps(model, optimizer)
    small = plan.apply(model, optimizer)
    for parameter, state in optimizer.state.items():
        assert all(value.shape == parameter.shape for key, value in state.items() if key != "step")
        assert name == "SGD" or float(state["step"]) == 3
    assert len(optimizer.state) == len(list(small.parameters()))


def test_the_training_of_masked_channels_and_sliced_ones_agrees(plan: PruningPlan) -> None:
    """With momentum: train with masks, slice with the optimizer, train on; the same as masks all the way."""
    masked = plan.masked(residual()).train()
    optimizer = made("SGD", masked.parameters(), {"lr": 0.05, "momentum": 0.9})
    steps(masked, optimizer)
    twin = copy.deepcopy(masked)
    others = made("SGD", twin.parameters(), {"lr": 0.05, "momentum": 0.9})
    others.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    small = plan.apply(masked, optimizer)
    steps(small, optimizer)
    steps(twin, others)
    small.eval(), twin.eval()
    torch.testing.assert_close(small(image()), twin(image()), rtol=0, atol=1e-12)


def test_groups_names_and_schedulers_go_on(plan: PruningPlan) -> None:
    model = residual()
    foreign = nn.Parameter(torch.ones(2, dtype=torch.float64))
    biases = [(name, p) for name, p in model.named_parameters() if p.ndim == 1]
    weights = [(name, p) for name, p in model.named_parameters() if p.ndim > 1]
    optimizer = torch.optim.AdamW(
        [{"params": weights, "weight_decay": 0.1}, {"params": [*biases, ("foreign", foreign)], "weight_decay": 0.0}], lr=0.1
    )
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    steps(model, optimizer, 1)
    scheduler.step()
    small = plan.apply(model, optimizer)
    after = dict(small.named_parameters())
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(after[name]) for name, _ in weights]
    assert optimizer.param_groups[1]["params"][-1] is foreign
    assert optimizer.param_groups[1]["param_names"][-1] == "foreign"
    assert optimizer.param_groups[0]["lr"] == 0.05
    steps(small, optimizer, 1)
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.025


def test_a_new_optimizer_without_state(plan: PruningPlan) -> None:
    for name in (*PLAIN, "LBFGS"):
        model = residual()
        optimizer = made(name, model.parameters(), {})
        small = plan.apply(model, optimizer)
        before = [p.clone() for p in small.parameters()]

        def closure(optimizer: Optimizer = optimizer, small: nn.Module = small) -> Tensor:
            optimizer.zero_grad()
            loss = (small(image()) ** 2).mean()
            loss.backward()
            return loss

        optimizer.step(closure)
        assert any(not torch.equal(a, b) for a, b in zip(before, small.parameters(), strict=True)), name


def test_lbfgs_with_a_history_is_refused(plan: PruningPlan) -> None:
    model = residual()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=2)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (model(image()) ** 2).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    with pytest.raises(PlanError, match="LBFGS keeps one history"):
        plan.apply(model, optimizer)
    assert optimizer.param_groups[0]["params"] == list(model.parameters())


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_muon() -> None:
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False)).double()
    x = image(4, 6)
    deps = dependencies(model, x)
    plan = make_plan(deps, halved(deps))
    optimizer = torch.optim.Muon(model.parameters(), lr=0.01)
    (model(x) ** 2).mean().backward()
    optimizer.step()
    momenta = [optimizer.state[p]["momentum_buffer"] for p in model.parameters()]
    kept = kept_indices(deps, plan.keep(deps))
    small = plan.apply(model, optimizer)
    found = [optimizer.state[p]["momentum_buffer"] for p in small.parameters()]
    assert torch.equal(found[0], momenta[0][kept["0.weight", 0]])
    assert torch.equal(found[1], momenta[1][:, kept["2.weight", 1]])


def test_sparse_adam() -> None:
    class Sparse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(9, 8, sparse=True)
            self.fc = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.embed(x).relu())

    model, x = Sparse().double(), torch.arange(6).reshape(2, 3)
    deps = dependencies(model, x)
    plan = make_plan(deps, halved(deps))
    optimizer = torch.optim.SparseAdam([model.embed.weight], lr=0.01)
    model(x).sum().backward()
    optimizer.step()
    average = optimizer.state[model.embed.weight]["exp_avg"]
    small = plan.apply(model, optimizer)
    weight = dict(small.named_parameters())["embed.weight"]
    kept = kept_indices(deps, plan.keep(deps))["embed.weight", 1]
    assert torch.equal(optimizer.state[weight]["exp_avg"], average[:, kept])
    optimizer.zero_grad()
    small(x).sum().backward()
    optimizer.step()


class Whitening(torch.optim.SGD):
    """Keeps a matrix per parameter, as second-order methods do."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["inverse"] = torch.eye(p.numel())
        return super().step(closure)


def test_unknown_state_is_refused_and_nothing_is_changed(plan: PruningPlan) -> None:
    model = residual()
    optimizer = Whitening(model.parameters(), lr=0.1)
    steps(model, optimizer, 1)
    state = dict(optimizer.state)
    with pytest.raises(PlanError, match=r"Whitening's inverse of 'stem.0.weight' is \[216, 216\] for a parameter of \[8, 3, 3, 3\]"):
        plan.apply(model, optimizer)
    assert optimizer.param_groups[0]["params"] == list(model.parameters())
    assert dict(optimizer.state) == state


def test_state_that_is_an_object_is_refused(plan: PruningPlan) -> None:
    model = residual()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.state[model.inner.weight]["history"] = {"a": 1}
    with pytest.raises(PlanError, match=r"SGD's history of 'inner.weight' is a dict"):
        plan.apply(model, optimizer)


def test_parameters_that_the_pruned_network_lacks_leave(plan: PruningPlan) -> None:
    class More(Residual):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Linear(3, 3)

    model = More().double()
    deps = dependencies(model)
    optimizer = torch.optim.Adam(model.named_parameters(), lr=0.1)
    steps(model, optimizer, 1)
    small = make_plan(deps, halved(deps)).apply(model, optimizer)
    names = [name for name, _ in small.named_parameters()]
    if "unused.weight" not in names:
        assert optimizer.param_groups[0]["param_names"] == names
    assert len(optimizer.param_groups[0]["params"]) == len(names)


def test_tied_parameters_share_their_state() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.b(self.a(x).relu()).relu())

    model, x = Tied().double(), image(4, 6)
    deps = dependencies(model, x)
    plan = make_plan(deps, halved(deps))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    model(x).sum().backward()
    optimizer.step()
    small = plan.apply(model, optimizer)
    assert len(optimizer.param_groups[0]["params"]) == len(list(small.parameters()))
    assert len(optimizer.state) == len(list(small.parameters()))


def test_channels_last_state_stays_so(plan: PruningPlan) -> None:
    model = residual().to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    steps(model, optimizer, 1)
    small = plan.apply(model, optimizer)
    weight = dict(small.named_parameters())["mix.weight"]
    inner = dict(small.named_parameters())["inner.weight"]
    assert optimizer.state[weight]["exp_avg"].stride() == weight.stride()
    assert optimizer.state[inner]["exp_avg"].is_contiguous(memory_format=torch.channels_last)
