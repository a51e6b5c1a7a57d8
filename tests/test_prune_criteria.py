"""Criteria against scores computed by hand in plain torch."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rewriting import randomized
from torch import Tensor, fx, nn

from fxcompress.analysis import Analyses
from fxcompress.analysis.channels import ChannelDependencyGraph
from fxcompress.errors import InputError
from fxcompress.ir.inputs import Inputs
from fxcompress.pruning.criteria import (
    FPGM,
    L1,
    L2,
    Criterion,
    GroupL2,
    NormScale,
    Random,
    Reduction,
    Scores,
    Scoring,
    criterion,
    names,
    scored,
)
from fxcompress.pruning.criteria_data import ActivationAware, APoZ, Hessian, MeanActivation, Taylor


class Plain(nn.Module):
    """conv -> bn -> relu -> conv -> flatten -> linear: a class of the last conv stands at six places of the linear."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 4, 1)
        self.head = nn.Linear(4 * 6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(F.relu(self.norm(self.first(x))))
        return self.head(F.relu(x).flatten(1))


class Residual(nn.Module):
    """Two producers of one stream, and a reader of it that nothing else touches."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch, self.head = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.branch(torch.tanh(x)))


class Grouped(nn.Module):
    """Two groups of three inputs: a class stands at one place of each group, and at two of what makes it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.grouped, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 8, 1, groups=2), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.grouped(F.relu(self.first(x)))))


def scoring(model: nn.Module, *shape: int, batches: int = 1, loss: Any = None, reduction: Reduction = "mean") -> Scoring:
    model = randomized(model).double()
    data = [Inputs((torch.randn(*shape, generator=torch.Generator().manual_seed(i), dtype=torch.float64),)) for i in range(batches)]
    graph = fx.symbolic_trace(model)
    return Scoring(Analyses(graph, data[0]).get(ChannelDependencyGraph), graph, data[0], data, loss, reduction)


def of(ctx: Scoring, judge: Criterion, slot: str, axis: int = 0) -> Tensor:
    """The scores of the classes along one axis of a parameter."""
    scores = scored(judge, ctx)
    assert scores.dtype == np.float64
    return torch.from_numpy(scores[ctx.deps.slots[slot, axis]])


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted.to(torch.float64).detach(), rtol=1e-9, atol=1e-12)


def rows(weight: Tensor, axis: int = 0) -> Tensor:
    return weight.detach().movedim(axis, 0).flatten(1)


# -- weights ------------------------------------------------------------------------------------------------------------


def test_magnitude_is_the_norm_of_the_filters() -> None:
    ctx = scoring(Plain(), 2, 3, 3, 2)
    weight = ctx.tensors["first.weight"]
    close(of(ctx, L1(), "first.weight"), rows(weight).abs().sum(1))
    close(of(ctx, L2(), "first.weight"), rows(weight).square().sum(1).sqrt())


@pytest.mark.parametrize("reduction", ["mean", "sum", "max"])
def test_producers_of_one_stream_are_reduced(reduction: Reduction) -> None:
    ctx = scoring(Residual(), 2, 3, reduction=reduction)
    both = torch.stack([rows(ctx.tensors[name]).abs().sum(1) for name in ("stem.weight", "branch.weight")])
    wanted = {"mean": both.mean(0), "sum": both.sum(0), "max": both.amax(0)}[reduction]
    close(of(ctx, L1(), "stem.weight"), wanted)


def test_places_of_one_class_are_reduced() -> None:
    ctx = scoring(Grouped(), 2, 3, 2, 2)
    ones = rows(ctx.tensors["first.weight"]).norm(dim=1)
    close(of(ctx, L2(), "grouped.weight", 1), ones.reshape(2, 3).mean(0))
    close(of(ctx, L2(), "first.weight"), ones.reshape(2, 3).mean(0).repeat(2))


def test_group_l2_counts_readers_too() -> None:
    ctx = scoring(Plain(), 2, 3, 3, 2)
    made, read = rows(ctx.tensors["first.weight"]).norm(dim=1), rows(ctx.tensors["second.weight"], 1).norm(dim=1)
    close(of(ctx, GroupL2(), "first.weight"), (made + read) / 2)
    close(of(ctx, L2(roles=("consumer",)), "first.weight"), read)


def test_channels_that_no_layer_makes_are_judged_by_what_they_have() -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix, self.shift, self.head = nn.Parameter(torch.randn(3, 6)), nn.Parameter(torch.randn(6)), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.tanh(x @ self.matrix + self.shift))

    ctx = scoring(Product(), 2, 3)
    close(of(ctx, L1(), "matrix", 1), rows(ctx.tensors["matrix"], 1).abs().sum(1))


def test_a_channel_that_a_layer_makes_is_judged_by_that_alone() -> None:
    class Side(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.shift, self.head = nn.Linear(3, 4), nn.Parameter(torch.randn(5)), nn.Linear(9, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.cat([self.a(x), x[:, :1] * self.shift], 1))

    ctx = scoring(Side(), 2, 3)
    close(of(ctx, L1(), "a.weight"), rows(ctx.tensors["a.weight"]).abs().sum(1))
    close(of(ctx, L1(), "shift"), rows(ctx.tensors["head.weight"], 1).abs().sum(1)[4:])  # nothing but a reader and a vector


def test_norm_scale() -> None:
    ctx = scoring(Plain(), 2, 3, 3, 2)
    close(of(ctx, NormScale(), "first.weight"), ctx.tensors["norm.weight"].abs())
    close(of(ctx, NormScale(), "second.weight"), rows(ctx.tensors["second.weight"]).norm(dim=1))  # no norm: L2


def test_norm_scale_of_a_function() -> None:
    class Functional(Plain):
        def forward(self, x: Tensor) -> Tensor:
            norm = self.norm
            x = F.batch_norm(self.first(x), norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.1, 1e-5)
            return self.head(F.relu(self.second(F.relu(x))).flatten(1))

    ctx = scoring(Functional(), 2, 3, 3, 2)
    close(of(ctx, NormScale(), "first.weight"), ctx.tensors["norm.weight"].abs())


def test_fpgm_is_the_distance_to_all_filters_of_the_layer() -> None:
    ctx = scoring(Plain(), 2, 3, 3, 2)
    filters = rows(ctx.tensors["first.weight"])
    close(of(ctx, FPGM(), "first.weight"), torch.stack([sum((one - other).norm() for other in filters) for one in filters]))


def test_random_follows_its_seed() -> None:
    ctx = scoring(Plain(), 2, 3, 3, 2)
    first, again, other = (scored(Random(seed), ctx) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_half_precision_is_judged_in_single() -> None:
    model = randomized(nn.Sequential(nn.Linear(300, 6), nn.Linear(6, 2))).half()
    model[0].weight.data.fill_(200.0)  # the sum of squares is over what float16 holds
    inputs = Inputs((torch.zeros(1, 300, dtype=torch.float16),))
    graph = fx.symbolic_trace(model)
    ctx = Scoring(Analyses(graph, inputs).get(ChannelDependencyGraph), graph, inputs)
    close(of(ctx, L2(), "0.weight"), torch.full((6,), 200 * 300**0.5)[:6].to(torch.float32))


def test_weights_without_data_are_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 6), nn.Linear(6, 2)).to("meta").eval()
    inputs = Inputs((torch.zeros(1, 3, device="meta"),))
    graph = fx.symbolic_trace(model)
    ctx = Scoring(Analyses(graph, inputs).get(ChannelDependencyGraph), graph, inputs)
    with pytest.raises(InputError, match=r"'0.weight' is on the meta device"):
        scored("l2", ctx)
    assert len(scored("random", ctx)) == 6


# -- gradients ----------------------------------------------------------------------------------------------------------


def energy(output: Tensor, number: int) -> Tensor:
    return output.square().mean() / 2


def weighted(output: Tensor, number: int) -> Tensor:
    return output.sum() * (number + 1)


def by_hand(ctx: Scoring, loss: Callable[[Tensor, int], Tensor]) -> list[dict[str, Tensor]]:
    found = []
    for number, inputs in enumerate(ctx.calibration):
        ctx.module.zero_grad()
        loss(ctx.module(*inputs.args), number).backward()
        found.append({name: p.grad.clone() for name, p in ctx.module.named_parameters() if p.grad is not None})
    ctx.module.zero_grad()
    return found


@pytest.mark.parametrize("loss", [None, weighted])
def test_taylor_is_the_mean_square_of_the_first_order_change(loss: Any) -> None:
    ctx = scoring(Plain(), 4, 3, 3, 2, batches=3, loss=loss)
    grads = by_hand(ctx, loss or energy)
    weight = ctx.tensors["second.weight"]
    wanted = torch.stack([rows(weight * g["second.weight"], 1).sum(1) ** 2 for g in grads]).mean(0)
    close(of(ctx, Taylor(), "first.weight"), wanted)
    head = ctx.tensors["head.weight"]
    wanted = torch.stack([(head * g["head.weight"]).reshape(5, 4, 6).sum((0, 2)) ** 2 for g in grads]).mean(0)
    close(of(ctx, Taylor(), "second.weight"), wanted)
    wanted = torch.stack([rows(weight * g["second.weight"]).sum(1) ** 2 for g in grads]).mean(0)
    close(of(ctx, Taylor(roles=("producer",)), "second.weight"), wanted)


def test_taylor_is_the_gradient_of_a_gate_on_the_channel() -> None:
    """Molchanov et al. 2019: d loss / d gate at gate = 1, squared."""
    ctx = scoring(Plain(), 4, 3, 3, 2)
    model = ctx.module
    gate = torch.ones(6, dtype=torch.float64, requires_grad=True)
    inner = F.relu(model.norm(model.first(ctx.inputs.args[0]))) * gate[:, None, None]
    energy(model.head(F.relu(model.second(inner)).flatten(1)), 0).backward()
    close(of(ctx, Taylor(), "first.weight"), gate.grad**2)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_hessian_is_half_the_fisher_diagonal_times_the_square(reduction: Reduction) -> None:
    ctx = scoring(Plain(), 1, 3, 3, 2, batches=3, reduction=reduction)
    grads = by_hand(ctx, energy)
    head = ctx.tensors["head.weight"]
    fisher = torch.stack([g["head.weight"] ** 2 for g in grads]).mean(0)
    places = (head**2 * fisher / 2).sum(0).reshape(4, 6)
    close(of(ctx, Hessian(), "second.weight"), places.mean(1) if reduction == "mean" else places.sum(1))


def test_gradients_leave_no_trace() -> None:
    ctx = scoring(Plain(), 2, 3, 3, 2)
    for parameter in ctx.module.parameters():
        parameter.requires_grad_(False)
    with torch.no_grad():
        assert (scored("taylor", ctx) > 0).all()
    with torch.inference_mode():
        assert (scored("hessian", ctx) > 0).all()
    assert all(p.grad is None and not p.requires_grad for p in ctx.module.parameters())


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (lambda output, i: output, "a tensor of shape (2, 5)"),
        (lambda output, i: 3.0, "a float"),
        (lambda output, i: torch.tensor(1.0), "shape ()"),
    ],
)
def test_a_loss_that_is_none_is_refused(loss: Any, said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        scored("taylor", scoring(Plain(), 2, 3, 3, 2, loss=loss))


# -- activations --------------------------------------------------------------------------------------------------------


def inner(ctx: Scoring) -> tuple[Tensor, Tensor]:
    """What the second conv and the head read, over all calibration inputs of Plain."""
    model, x = ctx.module, torch.cat([inputs.args[0] for inputs in ctx.calibration])
    with torch.no_grad():
        first = F.relu(model.norm(model.first(x)))
        return first, F.relu(model.second(first)).flatten(1)


def test_mean_activation_and_apoz() -> None:
    ctx = scoring(Plain(), 4, 3, 3, 2, batches=3)
    first, second = inner(ctx)
    close(of(ctx, MeanActivation(), "first.weight"), first.abs().mean((0, 2, 3)))
    close(of(ctx, MeanActivation(), "second.weight"), second.abs().mean(0).reshape(4, 6).mean(1))
    close(of(ctx, APoZ(), "first.weight"), 1 - (first == 0).double().mean((0, 2, 3)))


def test_inputs_of_several_sizes_count_by_their_elements() -> None:
    ctx = scoring(Grouped(), 1, 3, 2, 2)
    other = Inputs((torch.randn(2, 3, 5, 4, dtype=torch.float64),))
    ctx = Scoring(ctx.deps, ctx.module, ctx.inputs, [*ctx.calibration, other])
    with torch.no_grad():
        seen = torch.cat([F.relu(ctx.module.first(i.args[0])).abs().movedim(1, 0).flatten(1) for i in ctx.calibration], 1).mean(1)
    close(of(ctx, MeanActivation(), "first.weight"), seen.reshape(2, 3).mean(0).repeat(2))


def test_activation_aware_is_weight_norm_times_activation_norm() -> None:
    ctx = scoring(Plain(), 4, 3, 3, 2, batches=2)
    first, second = inner(ctx)
    seen = first.square().mean((0, 2, 3)).sqrt()
    close(of(ctx, ActivationAware(), "first.weight"), rows(ctx.tensors["second.weight"], 1).norm(dim=1) * seen)
    places = ctx.tensors["head.weight"].norm(dim=0) * second.square().mean(0).sqrt()
    close(of(ctx, ActivationAware(), "second.weight"), places.reshape(4, 6).mean(1))


def test_activation_aware_of_a_grouped_convolution() -> None:
    ctx = scoring(Grouped(), 2, 3, 2, 2)
    with torch.no_grad():
        seen = F.relu(ctx.module.first(ctx.inputs.args[0])).square().mean((0, 2, 3)).sqrt()
    weight = ctx.tensors["grouped.weight"]
    norms = torch.cat([weight[:4].flatten(2).norm(dim=(0, 2)), weight[4:].flatten(2).norm(dim=(0, 2))])
    close(of(ctx, ActivationAware(), "grouped.weight", 1), (norms * seen).reshape(2, 3).mean(0))


@pytest.mark.parametrize("layer", [nn.ConvTranspose2d(6, 2, 2), nn.ConvTranspose2d(6, 4, 2, groups=2)])
def test_activation_aware_of_a_transposed_convolution(layer: nn.Module) -> None:
    class Up(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.up = nn.Conv2d(3, 6, 1), layer

        def forward(self, x: Tensor) -> Tensor:
            return self.up(self.first(x))

    ctx = scoring(Up(), 2, 3, 2, 2)
    with torch.no_grad():
        places = ctx.module.first(ctx.inputs.args[0]).square().mean((0, 2, 3)).sqrt() * ctx.tensors["up.weight"].flatten(1).norm(dim=1)
    classes = ctx.deps.slots["up.weight", 0]
    wanted = torch.stack([places[torch.from_numpy(classes == c)].mean() for c in classes])
    close(of(ctx, ActivationAware(), "up.weight"), wanted)


def test_groups_that_nothing_reads_are_judged_by_magnitude() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(3, 5)

        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x))

    ctx = scoring(Attention(), 2, 7, 3)
    wanted = sum(rows(ctx.tensors[name]).norm(dim=1) for name in ("q.weight", "k.weight")) / 2
    close(of(ctx, ActivationAware(), "q.weight"), wanted)
    q, k = (getattr(ctx.module, name)(ctx.inputs.args[0]).abs().mean((0, 1)) for name in "qk")
    close(of(ctx, MeanActivation(), "q.weight"), (q + k) / 2)


def test_calibration_inputs_of_another_kind_are_refused() -> None:
    ctx = scoring(Residual(), 2, 3)
    wrong = Scoring(ctx.deps, ctx.module, ctx.inputs, [Inputs((torch.randn(2, 4, dtype=torch.float64),))])
    for name in ("activation", "taylor"):
        with pytest.raises(InputError, match="cannot run on calibration input 0"):
            scored(name, wrong)


# -- names, checks, one's own -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Peak(Criterion):
    name: ClassVar[str] = "peak"

    def scores(self, ctx: Scoring) -> Scores:
        return ctx.of_weights(lambda weights: weights.abs().amax(1))


def test_a_criterion_of_ones_own() -> None:
    ctx = scoring(Plain(), 2, 3, 3, 2)
    close(of(ctx, Peak(), "first.weight"), rows(ctx.tensors["first.weight"]).abs().amax(1))


def test_all_names_are_criteria_of_that_name() -> None:
    ctx = scoring(Plain(), 2, 3, 3, 2)
    assert set(names()) >= {
        "l1",
        "l2",
        "group-l2",
        "bn-scale",
        "fpgm",
        "taylor",
        "hessian",
        "activation",
        "apoz",
        "activation-aware",
        "random",
    }
    for name in names():
        found = criterion(name)
        assert found.name == name
        assert np.array_equal(scored(found, ctx), scored(name, ctx)), name


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'taylor'"):
        criterion("tailor")
    with pytest.raises(InputError, match="no criterion"):
        criterion(L2)  # type: ignore[arg-type]


def test_data_is_asked_for() -> None:
    ctx = scoring(Plain(), 2, 3, 3, 2)
    with pytest.raises(InputError, match="'taylor' needs data"):
        scored("taylor", Scoring(ctx.deps, ctx.module, ctx.inputs))


@pytest.mark.parametrize(("made", "said"), [(np.zeros(3), "shape"), (np.full(10, np.nan), "nan for a channel of 'first.weight'")])
def test_scores_are_checked(made: Scores, said: str) -> None:
    class Wrong(Criterion):
        name = "wrong"

        def scores(self, ctx: Scoring) -> Scores:
            return made

    with pytest.raises(InputError, match=said):
        scored(Wrong(), scoring(Plain(), 2, 3, 3, 2))
