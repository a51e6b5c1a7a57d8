"""Latency: the table of layer times, the prediction for a network, and the search for a budget, on clocks that compute."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_prune_budget import any_scores, dependencies
from torch import Tensor, nn
from torch.fx import GraphModule

from fxcompress.analysis import Analyses
from fxcompress.analysis.channels import ChannelDependencyGraph
from fxcompress.errors import InputError
from fxcompress.ir.inputs import Inputs
from fxcompress.pruning.budget import fit, fitted
from fxcompress.pruning.clock import MachineClock
from fxcompress.pruning.counts import Counts
from fxcompress.pruning.latency import LatencyModel, LatencyTable
from fxcompress.pruning.layer import Layer, Site, placed_layers
from fxcompress.pruning.options import Budget, Prune
from fxcompress.pruning.predict import predicted
from fxcompress.pruning.slicing import sliced
from fxcompress.targets import latency_cache


def _smooth(layer: Layer) -> float:
    return 1e-9 * layer.macs


def _stairs(layer: Layer) -> float:
    """Kernels that work in blocks of 16 channels: 65 take as long as 80."""
    full = [16 * math.ceil(width / 16) for width in (layer.inputs, layer.outputs)]
    return 1e-9 * math.prod(full) * layer.batch * math.prod(layer.size) * math.prod(layer.kernel) / layer.groups


@dataclass
class Computed:
    """A clock without noise. A network takes as long as its layers times ``slower``, plus ``rest``."""

    time: Callable[[Layer], float] = _smooth
    rest: float = 1e-7
    slower: Callable[[float], float] = lambda seconds: seconds
    asked: list[Layer] = field(default_factory=list)
    networks: list[GraphModule] = field(default_factory=list)
    machine: str = "a machine that computes"

    def layer(self, layer: Layer) -> float:
        self.asked.append(layer)
        return self.time(layer)

    def deployed(self, module: GraphModule, inputs: Inputs) -> Callable[[], object]:
        self.networks.append(module)
        return lambda: self.network(module, inputs)

    def race(self, forms: Sequence[Callable[[], Any]]) -> list[float]:
        return [form() for form in forms]

    def network(self, module: GraphModule, inputs: Inputs) -> float:
        return self.slower(sum(map(self.time, layers_of(module, inputs)))) + self.rest


def layers_of(module: GraphModule, inputs: Inputs) -> list[Layer]:
    deps = Analyses(module, inputs).get(ChannelDependencyGraph)
    counts = Counts(deps)
    layers = placed_layers(deps, counts)
    everything = counts(np.ones(deps.classes, dtype=bool))
    return [placed.site.layer(*placed.widths(everything)) for placed in layers]


def widths_of(deps: ChannelDependencyGraph, keep: Any) -> list[int]:
    return [int(keep[group.classes].sum()) for group in deps.groups]


# -- layers -------------------------------------------------------------------------------------------------------------


class Kinds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depth = nn.Conv2d(3, 24, 3, stride=2, padding=1), nn.Conv2d(24, 48, 3, padding="same", groups=24)
        self.whole, self.inside = nn.Conv2d(48, 24, 3, groups=12), nn.Conv2d(24, 16, (3, 1), dilation=2, groups=2)
        self.line, self.head = nn.Linear(16, 20), nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inside(self.whole(self.depth(self.stem(x))))
        return self.head(self.line(y.permute(0, 2, 3, 1)).relu())


def test_layers_of_a_graph() -> None:
    deps = dependencies(Kinds(), torch.randn(2, 3, 20, 20))
    stem, depth, whole, inside, line, head = layers_of(deps.module, deps.inputs)
    assert stem == Layer("conv", 3, 24, 1, 2, (20, 20), (3, 3), (2, 2), (1, 1), (1, 1))
    assert depth == Layer("conv", 24, 48, 24, 2, (10, 10), (3, 3), (1, 1), "same", (1, 1))
    assert whole == Layer("conv", 48, 24, 12, 2, (10, 10), (3, 3), (1, 1), (0, 0), (1, 1))
    assert inside == Layer("conv", 24, 16, 2, 2, (8, 8), (3, 1), (1, 1), (0, 0), (2, 2))
    assert line == Layer("linear", 16, 20, batch=2 * 4 * 8)
    assert str(stem) == "conv 3->24 n2 g1 20x20 k3x3 s2x2 p1x1 d1x1"
    assert str(head) == "linear 20->5 n64"


@pytest.mark.parametrize("seed", range(5))
def test_layers_after_a_removal_are_those_of_the_sliced_graph(seed: int) -> None:
    deps = dependencies(Kinds(), torch.randn(2, 3, 20, 20))
    counts = Counts(deps)
    placed = placed_layers(deps, counts)
    rng, keep = np.random.default_rng(seed), np.ones(deps.classes, dtype=bool)
    for group in deps.groups:
        keep[rng.permutation(group.classes)[: rng.integers(0, len(group.classes))]] = False
    counted = counts(keep)
    assert [p.site.layer(*p.widths(counted)) for p in placed] == layers_of(sliced(deps, keep), deps.inputs)


class Mixer(nn.Module):
    """The rows of the second pair of linears are the channels of the first."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.tokens, self.back = nn.Linear(16, 64), nn.Linear(40, 32), nn.Linear(32, 40)
        self.head = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.back(self.tokens(self.embed(x).transpose(1, 2))).transpose(1, 2))


def test_rows_that_are_channels_go_too() -> None:
    deps = dependencies(Mixer(), torch.randn(2, 40, 16))
    keep, clock = _half(deps), Computed(rest=0.0)
    before = layers_of(deps.module, deps.inputs)
    after = layers_of(sliced(deps, keep), deps.inputs)
    assert [layer.batch for layer in before] == [80, 128, 128, 80]
    assert [layer.batch for layer in after] == [80, 64, 64, 80]
    model = LatencyModel(deps, LatencyTable(clock))
    assert model.seconds(keep, exact=True) == pytest.approx(sum(map(_smooth, after)))


# -- the table ----------------------------------------------------------------------------------------------------------

DENSE = Site(Layer("conv", 1, 1, 1, 1, (14, 14), (3, 3), (1, 1), (1, 1), (1, 1)))


def test_a_table_measures_a_few_widths_and_interpolates() -> None:
    clock = Computed()
    table = LatencyTable(clock)
    for first, second in itertools.product(range(20, 500, 7), repeat=2):
        assert table.site(DENSE).seconds(first, second) == pytest.approx(_smooth(DENSE.layer(first, second)), rel=1e-9)
    assert table.measurements == len(clock.asked) == len(set(clock.asked)) <= 11**2


def test_widths_that_were_learned_are_measured_as_they_are() -> None:
    clock = Computed(_stairs)
    table = LatencyTable(clock)
    assert table.site(DENSE).seconds(65, 64) < _stairs(DENSE.layer(65, 64))  # on the line from 64 to 96
    table.site(DENSE).learn(65, 64)
    assert table.site(DENSE).seconds(65, 64) == _stairs(DENSE.layer(65, 64)) == _stairs(DENSE.layer(80, 64))
    asked = len(clock.asked)
    table.site(DENSE).learn(65, 64)
    assert len(clock.asked) == asked


def test_measurements_are_bounded() -> None:
    clock = Computed()
    table = LatencyTable(clock, most=5)
    for width in range(100, 1000, 50):
        table.site(DENSE).learn(width, width)
        assert table.site(DENSE).seconds(width, width) == pytest.approx(_smooth(DENSE.layer(width, width)))  # guessed by multiply-adds
    assert table.exhausted
    assert len(clock.asked) == 5
    long = LatencyTable(Computed(lambda layer: 1.0), seconds=3.0)
    for width in range(1, 20):
        long.site(DENSE).learn(width, width)
    assert long.measurements == 3


# -- the cache ----------------------------------------------------------------------------------------------------------


def test_times_are_kept_in_a_file(tmp_path: Path) -> None:
    path, clock = tmp_path / "deep" / "latency.json", Computed()
    table = LatencyTable(clock, cache=path)
    table.site(DENSE).learn(8, 9)
    table.store()
    again = Computed()
    second = LatencyTable(again, cache=path)
    second.site(DENSE).learn(8, 9)
    assert second.site(DENSE).seconds(8, 9) == table.site(DENSE).seconds(8, 9)
    assert again.asked == []
    other = Computed(machine="another machine")
    third = LatencyTable(other, cache=path)
    third.site(DENSE).learn(8, 9)
    third.store()
    assert len(other.asked) == 1
    assert set(json.loads(path.read_text())["seconds"]) == {"a machine that computes", "another machine"}
    assert not table.remarks + second.remarks + third.remarks
    assert [p.name for p in path.parent.iterdir()] == ["latency.json"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "[" * 100_000,
        '{"version": 2, "seconds": {}}',
        '{"version": 1, "seconds": {"a machine that computes": {"x": -1.0}}}',
        '{"version": 1, "seconds": {"a machine that computes": {"x": NaN}}}',
        '{"version": 1, "seconds": {"a machine that computes": "x"}}',
        "\xff\xfe",
    ],
)
def test_a_damaged_file_is_not_used(text: str, tmp_path: Path) -> None:
    path, clock = tmp_path / "latency.json", Computed()
    path.write_bytes(text.encode("latin-1"))
    table = LatencyTable(clock, cache=path)
    assert "is not used" in table.remarks[0]
    table.site(DENSE).learn(8, 9)
    table.store()
    assert len(table.remarks) == 1
    assert latency_cache.load(path, clock.machine) == ({str(DENSE.layer(8, 9)): _smooth(DENSE.layer(8, 9))}, None)


def test_a_file_that_cannot_be_written_is_not_needed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    table = LatencyTable(Computed(), cache=tmp_path / "file" / "latency.json")
    table.site(DENSE).learn(8, 9)
    table.store()
    assert any("could not be stored" in remark for remark in table.remarks)


def test_the_file_lies_where_the_platform_keeps_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    monkeypatch.setattr("sys.platform", "linux")
    assert latency_cache.cache_path() == Path("/caches/fxcompress/latency.json")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert latency_cache.cache_path() == Path.home() / ".cache/fxcompress/latency.json"
    monkeypatch.setattr("sys.platform", "darwin")
    assert latency_cache.cache_path() == Path.home() / "Library/Caches/fxcompress/latency.json"


# -- the model ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rest", [0.0, 1e-3])
@pytest.mark.parametrize("slower", [0.5, 1.0, 3.0])
def test_the_unpruned_network_takes_what_was_measured(rest: float, slower: float) -> None:
    deps = dependencies()
    model = LatencyModel(deps, LatencyTable(Computed(rest=rest, slower=lambda seconds: slower * seconds)))
    everything = np.ones(deps.classes, dtype=bool)
    assert model.seconds(everything) == pytest.approx(model.unpruned)
    assert model.seconds(everything) > model.seconds(_half(deps)) > 0


def _half(deps: ChannelDependencyGraph) -> Any:
    keep = np.ones(deps.classes, dtype=bool)
    for group in deps.groups:
        keep[group.classes[::2]] = False
    return keep


def test_a_network_of_nothing_but_layers_is_predicted_exactly() -> None:
    deps, clock = dependencies(), Computed(_stairs, rest=0.0)
    model, keep = LatencyModel(deps, LatencyTable(clock)), _half(deps)
    assert model.seconds(keep, exact=True) == pytest.approx(clock.network(sliced(deps, keep), deps.inputs))
    model.correct(keep, 1.0)
    assert model.seconds(keep) == pytest.approx(1.0)


# -- the search ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("time", [_smooth, _stairs])
def test_the_measured_latency_fits(time: Any, scope: Any) -> None:
    deps, clock = dependencies(), Computed(time)
    found = fitted(deps, Prune(budget=Budget(latency="-40%"), scope=scope), any_scores(deps), clock)
    assert found.latency is not None
    before, after = found.latency
    assert before == clock.network(deps.module, deps.inputs)
    assert after == pytest.approx(clock.network(sliced(deps, found.keep), deps.inputs))
    assert 0.5 * before < after <= 0.6 * before
    assert found.remarks == ()


def test_a_width_in_the_middle_of_a_stair_is_avoided() -> None:
    """65 channels cost what 80 do: whoever may keep 65 keeps 80."""
    deps, clock = dependencies(), Computed(_stairs)
    options, scores = Prune(budget=Budget(latency="-45%"), round_to=1), any_scores(deps)
    keep = fit(deps, options, scores, clock)
    widths = widths_of(deps, keep)
    assert all(width % 16 == 0 for width in widths), widths
    macs = fit(deps, Prune(budget=Budget(macs="-45%"), round_to=1), scores)
    assert any(width % 16 for width in widths_of(deps, macs))  # who counts multiply-adds does not see the stairs


@pytest.mark.parametrize(("time", "stair"), [(_stairs, 16), (_smooth, 8)])
def test_the_stairs_of_a_machine_are_seen(time: Any, stair: int) -> None:
    model = LatencyModel(dependencies(), LatencyTable(Computed(time)))
    assert model.stair == stair


def test_multiples_of_8_stand_on_stairs_of_16() -> None:
    deps, clock = dependencies(), Computed(_stairs)
    for cut in range(15, 75, 15):
        widths = widths_of(deps, fit(deps, Prune(budget=Budget(latency=f"-{cut}%")), any_scores(deps), clock))
        assert all(width % 16 == 0 for width in widths), widths


def test_what_is_free_for_the_clock_is_not_free_for_another_limit() -> None:
    deps, clock = dependencies(), Computed(_stairs)
    options = Prune(budget=Budget(latency="-10%", params="-60%"), round_to=1)
    keep = fit(deps, options, any_scores(deps), clock)
    unpruned = predicted(deps, np.ones(deps.classes, dtype=bool))
    assert 0.35 * unpruned.params < predicted(deps, keep).params <= 0.4 * unpruned.params


@pytest.mark.parametrize("exponent", [0.7, 1.3])
def test_a_wrong_prediction_is_corrected_by_measuring(exponent: float) -> None:
    """A network whose time does not follow its layers: caches, or overhead."""
    deps = dependencies()
    whole = sum(map(_smooth, layers_of(deps.module, deps.inputs)))
    clock = Computed(slower=lambda seconds: whole * (seconds / whole) ** exponent)
    found = fitted(deps, Prune(budget=Budget(latency="-40%")), any_scores(deps), clock)
    assert found.latency is not None
    assert 0.5 < found.latency[1] / found.latency[0] <= 0.6
    assert len(clock.networks) <= 5


def test_a_drifting_machine_is_measured_by_ratios() -> None:
    """Whoever else uses the machine slows both networks down."""
    deps, clock = dependencies(), Computed(rest=0.0)
    load = itertools.count(1)
    race = clock.race
    clock.race = lambda forms: [next_load * seconds for next_load in [next(load)] for seconds in race(forms)]  # type: ignore[method-assign]
    found = fitted(deps, Prune(budget=Budget(latency="-40%")), any_scores(deps), clock)
    assert found.latency is not None
    before, after = found.latency
    assert after / before == pytest.approx(clock.network(sliced(deps, found.keep), deps.inputs) / before)
    assert 0.5 < after / before <= 0.6


def test_noise_is_said() -> None:
    """A clock that never shows what it should: the fastest is taken, with a remark."""
    deps, clock = dependencies(), Computed(rest=0.0)
    times = iter([[1.0], [1.0, 0.7], [1.0, 0.62], [1.0, 0.65], [1.0, 0.63], [1.0, 0.64]])
    clock.race = lambda forms: next(times)  # type: ignore[method-assign]
    found = fitted(deps, Prune(budget=Budget(latency="600 ms"), max_ratio=0.95), any_scores(deps), clock)
    assert found.latency == (1.0, 0.62)
    assert found.remarks == ("the latency was measured at 620 ms, over the 600 ms asked for",)


def test_absolute_latencies() -> None:
    deps, clock = dependencies(), Computed()
    before = clock.network(deps.module, deps.inputs)
    text = f"{before * 0.5 * 1e3:.6f} ms"
    found = fitted(deps, Prune(budget=Budget(latency=text)), any_scores(deps), clock)
    assert found.latency is not None
    assert 0.4 * before < found.latency[1] <= 0.5 * before


def test_what_is_fast_enough_is_measured_once() -> None:
    deps, clock = dependencies(), Computed()
    found = fitted(deps, Prune(budget=Budget(latency="10 s")), any_scores(deps), clock)
    assert found.keep.all()
    assert len(clock.networks) == 1


def test_a_latency_out_of_reach_says_how_far_one_can_go() -> None:
    deps = dependencies()
    with pytest.raises(InputError, match=r"latency='-99%' allows .* ms of .* ms, and .* leaves .* ms") as caught:
        fit(deps, Prune(budget=Budget(latency="-99%"), round_to=32), any_scores(deps), Computed())
    assert 'ask for at most latency="-' in str(caught.value.hint)


def test_a_cache_serves_a_second_search(tmp_path: Path) -> None:
    deps, path = dependencies(), tmp_path / "latency.json"
    options, scores = Prune(budget=Budget(latency="-40%")), any_scores(deps)
    first, second = Computed(), Computed()
    keep = fitted(deps, options, scores, first, cache=path).keep
    assert np.array_equal(fitted(deps, options, scores, second, cache=path).keep, keep)
    assert first.asked
    assert second.asked == []


# -- this machine -------------------------------------------------------------------------------------------------------

REAL = [
    Layer("linear", 16, 8, batch=3),
    Layer("conv", 4, 8, 2, 2, (9,), (3,), (1,), (1,), (1,)),
    Layer("conv", 8, 16, 1, 1, (9, 7), (3, 3), (2, 2), (1, 1), (1, 1)),
    Layer("conv", 8, 8, 8, 1, (9, 7), (3, 3), (1, 1), "same", (2, 2)),
    Layer("conv", 2, 4, 1, 1, (4, 4, 4), (2, 2, 2), (1, 1, 1), (0, 0, 0), (1, 1, 1)),
]


@pytest.mark.parametrize("layer", REAL, ids=str)
def test_this_machine_measures_every_kind_of_layer(layer: Layer) -> None:
    clock = MachineClock()
    assert 0 < clock.layer(layer) < 1
    assert f"{torch.get_num_threads()} threads" in clock.machine
    assert str(torch.__version__) in clock.machine


def test_this_machine_measures_the_lowered_network() -> None:
    deps, seen = dependencies(), []

    def lower(module: GraphModule, inputs: Inputs) -> GraphModule:
        seen.append(module)
        return module

    plain, own = MachineClock.of(deps.module), MachineClock.of(deps.module, lower)
    times = plain.race([plain.deployed(deps.module, deps.inputs), own.deployed(deps.module, deps.inputs)])
    assert len(times) == 2
    assert all(0 < seconds < 10 for seconds in times)
    assert seen == [deps.module]


def test_a_model_without_data_has_no_latency() -> None:
    deps = dependencies()
    meta = MachineClock.of(nn.Linear(2, 2, device="meta"))
    with pytest.raises(InputError, match="meta device"):
        fit(deps, Prune(budget=Budget(latency="-20%")), any_scores(deps), meta)


def test_a_search_on_this_machine(tmp_path: Path) -> None:
    """Whatever the clock says, the result is a choice that can be sliced."""
    deps = dependencies()
    options = Prune(budget=Budget(latency="-20%"))
    try:
        found = fitted(deps, options, any_scores(deps), MachineClock.of(deps.module), cache=tmp_path / "latency.json")
    except InputError as error:  # a network so small that calls cost more than their work
        assert "latency='-20%'" in error.message  # noqa: PT017
        return
    sliced(deps, found.keep)
    assert found.latency is not None
