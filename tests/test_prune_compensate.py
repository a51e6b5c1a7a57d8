"""Compensation against closed-form oracles: what can be recovered exactly must be, what cannot must be no worse."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rewriting import randomized
from torch import Tensor, nn

from fxcompress.analysis import Analyses
from fxcompress.analysis.channels import ChannelDependencyGraph
from fxcompress.capture import capture
from fxcompress.errors import InputError
from fxcompress.ir.inputs import Inputs
from fxcompress.pruning.compensate import Compensated, Compensation, compensate
from fxcompress.pruning.layer_rows import as_weight, layer_rows, weight_matrix
from fxcompress.pruning.norms import BatchMoments, matched, reestimated
from fxcompress.pruning.output_error import output_error
from fxcompress.pruning.slicing import sliced
from fxcompress.pruning.statistics import Moments


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Pruned:
    """A model, the parameter whose output channels are removed, and the sliced graph."""

    def __init__(self, model: nn.Module, example: Tensor, removed: dict[str, Sequence[int]]) -> None:
        self.model = model.double().eval()
        part = capture(self.model, (example,)).parts[0]
        self.graph = part.graph
        self.deps = Analyses(part.graph, part.inputs).get(ChannelDependencyGraph)
        self.keep = np.ones(self.deps.classes, dtype=bool)
        for name, channels in removed.items():
            self.keep[self.deps.slots[name, 0][list(channels)]] = False
        assert not self.keep.all()
        self.sliced = sliced(self.deps, self.keep)

    def compensate(self, batches: Sequence[Tensor], **options: Any) -> Compensated:
        before = {k: v.clone() for k, v in self.sliced.state_dict().items()}
        original = {k: v.clone() for k, v in self.graph.state_dict().items()}
        found = compensate(self.deps, self.keep, self.sliced, [Inputs((b,)) for b in batches], Compensation(**options))
        assert all(torch.equal(v, before[k]) for k, v in self.sliced.state_dict().items()), "the sliced graph was changed"
        assert all(torch.equal(v, original[k]) for k, v in self.graph.state_dict().items()), "the original was changed"
        assert found.after.noise <= found.before.noise
        return found

    def error(self, module: nn.Module, batch: Tensor) -> float:
        with torch.no_grad():
            return output_error([[self.graph(batch)]], [[module(batch)]]).relative


def shown(found: Compensated) -> str:
    return "\n".join(map(str, found.remarks))


def batches(*shape: int, count: int = 4) -> list[Tensor]:
    return [draw(*shape, seed=100 + i) for i in range(count)]


# -- exact recovery -------------------------------------------------------------------------------------------------------


def dependent(layer: Any, removed: Sequence[int], kept: Sequence[int]) -> None:
    """Let the removed outputs of a layer be linear combinations of the kept ones, plus constants."""
    with torch.no_grad():
        mix = draw(len(removed), len(kept), seed=7).to(layer.weight)
        layer.weight[list(removed)] = (mix @ layer.weight[list(kept)].flatten(1)).reshape(len(removed), *layer.weight.shape[1:])
        if layer.bias is not None:
            layer.bias[list(removed)] = mix @ layer.bias[list(kept)]


SECOND: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: nn.Conv2d(8, 6, 3),
    "padded": lambda: nn.Conv2d(8, 6, 3, padding=1),
    "strided": lambda: nn.Conv2d(8, 6, 3, stride=2, padding=(2, 1)),
    "dilated": lambda: nn.Conv2d(8, 6, (3, 2), dilation=(2, 1), padding=(1, 0)),
    "same": lambda: nn.Conv2d(8, 6, (5, 3), padding="same"),
    "reflect": lambda: nn.Conv2d(8, 6, 3, padding=1, padding_mode="reflect"),
    "circular": lambda: nn.Conv2d(8, 6, 3, padding=(1, 2), padding_mode="circular"),
    "no bias": lambda: nn.Conv2d(8, 6, 3, padding=1, bias=False),
    "pointwise": lambda: nn.Conv2d(8, 6, 1, stride=2),
    "transposed": lambda: nn.ConvTranspose2d(8, 6, (3, 2)),
    "transposed, strided": lambda: nn.ConvTranspose2d(8, 6, 3, stride=(2, 3), padding=(1, 2), output_padding=1),
    "transposed, dilated": lambda: nn.ConvTranspose2d(8, 6, 2, dilation=2, stride=2, padding=(3, 0), bias=False),
    "transposed, grouped": lambda: nn.ConvTranspose2d(8, 6, 3, groups=2, stride=2),
}


@pytest.mark.parametrize("name", SECOND)
def test_combinations_of_kept_channels_are_recovered(name: str) -> None:
    first, last = nn.Conv2d(3, 8, 3), nn.Conv2d(6, 4, 1)
    model = randomized(nn.Sequential(first, SECOND[name](), nn.ReLU(), last)).double()
    dependent(first, [1], [0, 2, 3])  # within the halves that two groups read
    dependent(first, [5], [4, 6, 7])
    pruned = Pruned(model, draw(2, 3, 9, 8), {"0.weight": [1, 5]})
    found = pruned.compensate(batches(4, 3, 9, 8))
    test = draw(3, 3, 9, 8, seed=9)
    assert pruned.error(pruned.sliced, test) > 1e-2
    assert pruned.error(found.module, test) < 1e-9, shown(found)


def test_a_convolution_in_one_and_three_dimensions() -> None:
    for conv, shape in ((nn.Conv1d, (4, 3, 20)), (nn.Conv3d, (4, 3, 6, 7, 5))):
        first = conv(3, 6, 3)
        model = randomized(nn.Sequential(first, conv(6, 4, 2, stride=2, padding=1), nn.Sigmoid(), conv(4, 2, 1))).double()
        dependent(first, [0, 4], [1, 2, 3, 5])
        pruned = Pruned(model, draw(*shape), {"0.weight": [0, 4]})
        found = pruned.compensate(batches(*shape))
        assert pruned.error(found.module, draw(*shape, seed=9)) < 1e-9, shown(found)


def test_a_grouped_convolution_is_fitted_group_by_group() -> None:
    first = nn.Conv2d(3, 12, 1)
    model = randomized(nn.Sequential(first, nn.Conv2d(12, 4, 3, groups=2, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1))).double()
    dependent(first, [1, 4], [0, 2, 3, 5])
    with torch.no_grad():  # what the second group reads depends in the same way within the group
        mix = draw(2, 4, seed=7)
        first.weight[[7, 10]] = (mix @ first.weight[[6, 8, 9, 11]].flatten(1)).reshape(2, 3, 1, 1)
        first.bias[[7, 10]] = mix @ first.bias[[6, 8, 9, 11]]  # type: ignore[index]
    pruned = Pruned(model, draw(2, 3, 6, 6), {"0.weight": [1, 4, 7, 10]})
    assert pruned.sliced.get_submodule("1").weight.shape == (4, 4, 3, 3)
    found = pruned.compensate(batches(4, 3, 6, 6))
    assert pruned.error(found.module, draw(2, 3, 6, 6, seed=9)) < 1e-9, shown(found)


def test_a_linear_after_flatten() -> None:
    first = nn.Conv2d(3, 8, 3)
    model = randomized(nn.Sequential(first, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8 * 4, 10), nn.Tanh(), nn.Linear(10, 3))).double()
    dependent(first, [2, 5], [0, 1, 3, 4, 6, 7])
    pruned = Pruned(model, draw(2, 3, 6, 6), {"0.weight": [2, 5]})
    found = pruned.compensate(batches(40, 3, 6, 6))
    assert pruned.error(found.module, draw(5, 3, 6, 6, seed=9)) < 1e-9, shown(found)


class Shared(nn.Module):
    """One layer is called twice; the second call reads what the first gives."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.twice, self.out = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.twice(self.into(x))
        return self.out(torch.relu(self.twice(y) + y))


def test_a_layer_called_twice_is_fitted_to_both_calls() -> None:
    model = randomized(Shared()).double()
    pruned = Pruned(model, draw(3, 5), {"into.weight": [1, 6]})
    found = pruned.compensate(batches(60, 5))
    both = [r for r in found.remarks if r.applied and r.node.startswith("twice")]
    assert len(both) == 1, shown(found)
    layer = pruned.sliced.get_submodule("twice")
    assert isinstance(layer, nn.Linear)
    fitted = found.module.get_submodule("twice")
    full, cut = [], []  # the rows of both calls, by hand
    with torch.no_grad():
        for batch in batches(60, 5)[:3]:
            x, small = model.into(batch), pruned.sliced.get_submodule("into")(batch)
            y, less = model.twice(x), layer(small)
            full += [y, model.twice(y)]
            cut += [small, less]
    kept = [i for i in range(8) if i not in (1, 6)]
    x = torch.cat([torch.cat(cut[0::2]), torch.cat(cut[1::2])])
    z = torch.cat([torch.cat(full[0::2]), torch.cat(full[1::2])])[:, kept]
    a = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    best = torch.linalg.lstsq(a, z).solution
    left = (a @ best - z).square().sum()
    got = (F.linear(x, fitted.weight, fitted.bias) - z).square().sum()
    assert got <= left * 1.05, "not the least-squares fit of both calls"


# -- the mean -------------------------------------------------------------------------------------------------------------


def constant(layer: Any, channels: Sequence[int]) -> None:
    with torch.no_grad():
        layer.weight[list(channels)] = 0


@pytest.mark.parametrize(
    "second", [nn.Conv2d(8, 6, 3), nn.Conv2d(8, 6, 3, bias=False), nn.Conv2d(8, 6, 3, padding=1, padding_mode="replicate")]
)
def test_constant_channels_are_folded_into_the_bias(second: nn.Conv2d) -> None:
    first = nn.Conv2d(3, 8, 3)
    model = randomized(nn.Sequential(first, nn.Sigmoid(), second, nn.ReLU(), nn.Conv2d(6, 2, 1))).double()
    constant(first, [0, 3])
    pruned = Pruned(model, draw(2, 3, 8, 8), {"0.weight": [0, 3]})
    found = pruned.compensate(batches(4, 3, 8, 8), methods=("bias",))
    assert pruned.error(found.module, draw(2, 3, 8, 8, seed=9)) < 1e-12, shown(found)
    assert torch.equal(found.module.get_submodule("2").weight, pruned.sliced.get_submodule("2").weight)
    assert first.bias is not None
    given = torch.sigmoid(first.bias[[0, 3]])
    old = 0 if second.bias is None else second.bias
    wanted = old + torch.einsum("oikl,i->o", second.weight[:, [0, 3]], given)
    torch.testing.assert_close(found.module.get_submodule("2").bias, nn.Parameter(wanted), rtol=1e-11, atol=1e-12)


def test_the_bias_is_left_alone_where_zeros_are_padded() -> None:
    first = nn.Conv2d(3, 8, 3)
    model = randomized(nn.Sequential(first, nn.Sigmoid(), nn.Conv2d(8, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 2, 1))).double()
    constant(first, [0, 3])
    pruned = Pruned(model, draw(2, 3, 8, 8), {"0.weight": [0, 3]})
    found = pruned.compensate(batches(4, 3, 8, 8), methods=("bias",))
    assert found.before == found.after
    assert "zeros are padded" in shown(found)
    assert all(torch.equal(v, found.module.state_dict()[k]) for k, v in pruned.sliced.state_dict().items())


def test_an_offset_before_a_batch_norm_moves_its_mean_so_that_the_keys_stay() -> None:
    first = nn.Conv2d(3, 8, 3)
    norm = nn.BatchNorm2d(6)
    model = randomized(nn.Sequential(first, nn.Sigmoid(), nn.Conv2d(8, 6, 3, bias=False), norm, nn.ReLU(), nn.Conv2d(6, 2, 1))).double()
    constant(first, [0, 3])
    pruned = Pruned(model, draw(2, 3, 8, 8), {"0.weight": [0, 3]})
    found = pruned.compensate(batches(4, 3, 8, 8), methods=("bias",))
    assert pruned.error(found.module, draw(2, 3, 8, 8, seed=9)) < 1e-12, shown(found)
    assert list(found.module.state_dict()) == list(pruned.sliced.state_dict())
    assert not torch.equal(found.module.get_submodule("3").running_mean, norm.running_mean)


# -- the regression -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "regressors"), [(50, 7), (7, 50), (20, 20)])
def test_ridge_against_lstsq(rows: int, regressors: int) -> None:
    x, r = draw(2, rows, regressors) + 5, draw(2, rows, 3, seed=1) - 2
    damping = 1e-2
    moments = Moments()
    for piece in range(0, rows, 6):
        moments.add(x[:, piece : piece + 6], r[:, piece : piece + 6])
    found = moments.ridge(damping)
    assert found is not None
    for group in range(2):
        centred = x[group] - x[group].mean(0)
        load = damping * centred.square().sum() / min(rows, regressors)
        a = torch.cat([centred, load.sqrt() * torch.eye(regressors, dtype=x.dtype)])
        b = torch.cat([r[group] - r[group].mean(0), torch.zeros(regressors, 3, dtype=x.dtype)])
        wanted = torch.linalg.lstsq(a, b).solution.T
        torch.testing.assert_close(found[0][group], wanted, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(found[1][group], r[group].mean(0) - wanted @ x[group].mean(0), rtol=1e-9, atol=1e-11)


def test_a_group_whose_inputs_do_not_vary_keeps_its_weights() -> None:
    moments = Moments()
    moments.add(torch.ones(2, 9, 3, dtype=torch.float64) * 4, draw(2, 9, 2))
    found = moments.ridge(1e-6)
    assert found is not None
    assert not found[0].any()
    torch.testing.assert_close(found[1], moments.mean_r())


@pytest.mark.parametrize("name", SECOND)
def test_rows_reproduce_the_layer(name: str) -> None:
    layer: Any = randomized(SECOND[name]()).double()
    x = draw(2, 8, 9, 8)
    y = layer(x).detach()
    for rows, out in layer_rows(layer, x, y, 10_000, seed=0):
        bias = 0 if layer.bias is None else layer.bias.detach().reshape(len(out), 1, -1)
        torch.testing.assert_close(out, rows @ weight_matrix(layer).detach().mT + bias, rtol=1e-12, atol=1e-12)
    assert sum(rows.shape[1] for rows, _ in layer_rows(layer, x, y, 17, seed=0)) == 17
    assert torch.equal(as_weight(layer, weight_matrix(layer)), layer.weight)


# -- norms ----------------------------------------------------------------------------------------------------------------


def test_statistics_are_those_of_update_bn() -> None:
    data = [draw(4, 5, 3, 3, seed=i) * (i + 1) for i in range(3)]
    norm = nn.Sequential(nn.BatchNorm2d(5)).double()
    torch.optim.swa_utils.update_bn(data, norm)
    moments = BatchMoments()
    for batch in data:
        moments.add(batch)
    mean, var = reestimated(moments)
    torch.testing.assert_close(mean, norm[0].running_mean)
    torch.testing.assert_close(var, norm[0].running_var)


def test_matched_statistics_give_the_moments_of_the_original() -> None:
    before, now = draw(40, 5), draw(40, 5, seed=1) * 0.3 + 2
    norm = randomized(nn.BatchNorm1d(5)).double()
    one, other = BatchMoments(), BatchMoments()
    one.add(before)
    other.add(now)
    wanted = norm(before)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean, norm.running_var = matched(norm.running_mean, norm.running_var, norm.eps, one, other)
    got = norm(now)
    torch.testing.assert_close(got.mean(0), wanted.mean(0))
    torch.testing.assert_close(got.var(0), wanted.var(0))


# -- the whole ------------------------------------------------------------------------------------------------------------


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True))
        self.a = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16))
        self.b = nn.Sequential(nn.Conv2d(16, 24, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU(inplace=True))
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu_(self.a(x) + x)
        return self.head(self.b(x).mean((2, 3)))


def images(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Five kinds of waves in noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 5, (count,), generator=generator)
    phase = torch.rand(count, 1, 1, 1, generator=generator) * 6
    grid = torch.arange(10.0)
    waves = torch.sin((labels[:, None, None, None] + 1) * 0.5 * (grid[:, None] + 0.5 * grid) + phase)
    return waves + 0.3 * torch.randn(count, 3, 10, 10, generator=generator), labels


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Small()
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        for step in range(60):
            x, y = images(64, step)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model.eval()


def test_a_trained_network_loses_less_than_half(trained: nn.Module) -> None:
    model = copy.deepcopy(trained)
    removed = {"stem.0.weight": range(0, 16, 3), "b.0.weight": range(1, 24, 4)}
    pruned = Pruned(model, images(2, 0)[0].double(), removed)
    found = pruned.compensate([images(32, 1000 + i)[0].double() for i in range(8)])
    test = images(200, 5000)[0].double()
    before, after = pruned.error(pruned.sliced, test), pruned.error(found.module, test)
    assert after < before / 2, f"{before} -> {after}\n{shown(found)}"
    assert found.after.relative < found.before.relative / 2
    assert found.after.sqnr == pytest.approx(-20 * math.log10(found.after.relative))


def test_it_is_deterministic_and_trainable(trained: nn.Module) -> None:
    pruned = Pruned(copy.deepcopy(trained), images(2, 0)[0].double(), {"stem.0.weight": [0, 5, 6]})
    data = [images(16, 1000 + i)[0].double() for i in range(4)]
    one, other = pruned.compensate(data), pruned.compensate(data)
    assert one.after == other.after
    assert one.remarks == other.remarks
    assert all(torch.equal(v, other.module.state_dict()[k]) for k, v in one.module.state_dict().items())
    assert {k: p.requires_grad for k, p in one.module.named_parameters()} == {
        k: p.requires_grad for k, p in pruned.sliced.named_parameters()
    }
    one.module.train()
    one.module(data[0]).sum().backward()
    assert all(p.grad is not None for p in one.module.parameters())


def test_one_batch_is_split_for_the_decision(trained: nn.Module) -> None:
    pruned = Pruned(copy.deepcopy(trained), images(2, 0)[0].double(), {"stem.0.weight": [0, 5, 6]})
    found = pruned.compensate([images(64, 1000)[0].double()])
    assert found.after.noise < found.before.noise
    assert not any(r.node == "calibration" for r in found.remarks)
    lone = pruned.compensate([images(1, 1000)[0].double()])
    assert "one calibration batch" in shown(lone)


def test_half_precision_and_frozen_weights(trained: nn.Module) -> None:
    model = copy.deepcopy(trained).to(torch.bfloat16).requires_grad_(False)
    part = capture(model, (images(2, 0)[0].bfloat16(),)).parts[0]
    deps = Analyses(part.graph, part.inputs).get(ChannelDependencyGraph)
    keep = np.ones(deps.classes, dtype=bool)
    keep[deps.slots["stem.0.weight", 0][[0, 5, 6]]] = False
    found = compensate(deps, keep, sliced(deps, keep), [Inputs((images(16, 1000 + i)[0].bfloat16(),)) for i in range(4)])
    assert found.after.noise < found.before.noise
    assert all(p.dtype == torch.bfloat16 and not p.requires_grad for p in found.module.parameters())


def test_what_does_not_fit_into_memory_is_left_out(trained: nn.Module) -> None:
    pruned = Pruned(copy.deepcopy(trained), images(2, 0)[0].double(), {"stem.0.weight": [0, 5, 6]})
    data = [images(8, 1000 + i)[0].double() for i in range(12)]
    part, few = pruned.compensate(data, memory=2_000_000), pruned.compensate(data[:2])
    assert "of 12 batches are used" in shown(part)
    assert pruned.compensate(data, memory=1).after == few.after


def test_a_layer_whose_weight_is_used_elsewhere_is_left() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into, self.a, self.b, self.out = nn.Linear(5, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.relu(self.a(self.into(x))) + self.b(torch.sigmoid(self.into(x))))

    pruned = Pruned(randomized(Tied()), draw(3, 5), {"into.weight": [1, 6]})
    found = pruned.compensate(batches(30, 5))
    assert "its weight is also b.weight" in shown(found)
    assert found.module.get_submodule("a").weight is found.module.get_submodule("b").weight


def test_a_recurrent_layer_is_named() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into, self.lstm, self.out = nn.Linear(5, 8), nn.LSTM(8, 6, batch_first=True), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.lstm(torch.relu(self.into(x)))[0])

    pruned = Pruned(randomized(Net()), draw(2, 4, 5), {"into.weight": [1, 6]})
    assert "a LSTM is not refitted" in shown(pruned.compensate(batches(4, 4, 5)))


def test_half_of_the_batches_may_be_of_another_size(trained: nn.Module) -> None:
    pruned = Pruned(copy.deepcopy(trained), images(2, 0)[0].double(), {"stem.0.weight": [0, 5, 6]})
    data = [images(n, 1000 + n)[0].double() for n in (16, 8, 12, 16, 3)]
    assert pruned.compensate(data).after.noise < pruned.compensate(data).before.noise


@pytest.mark.parametrize("calibration", [None, [], torch.zeros(4, 5), {"x": torch.zeros(4, 5)}])
def test_without_calibration_it_says_what_to_pass(calibration: Any) -> None:
    pruned = Pruned(randomized(Shared()), draw(3, 5), {"into.weight": [1]})
    with pytest.raises(InputError, match="calibration") as error:
        compensate(pruned.deps, pruned.keep, pruned.sliced, calibration)
    assert "pass a list of batches" in str(error.value)


@pytest.mark.parametrize("options", [{"methods": ("magic",)}, {"dampings": (0.0,)}, {"hold_out": 1}])
def test_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        Compensation(**options)


def test_a_network_that_writes_its_state_is_refused() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)
            self.register_buffer("total", torch.zeros(3))

        def forward(self, x: Tensor) -> Tensor:
            y = self.b(torch.relu(self.a(x)))
            self.total.add_(y.sum(0))
            return y

    pruned = Pruned(randomized(Counter()), draw(3, 5), {"a.weight": [1]})
    with pytest.raises(InputError, match="writes its own state"):
        pruned.compensate(batches(8, 5))
