"""Selection: how many channels of each layer remain, and which."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from fxcompress.analysis import Analyses
from fxcompress.analysis.channels import ChannelDependencyGraph, Mask
from fxcompress.errors import InputError
from fxcompress.ir.inputs import Inputs
from fxcompress.pruning.criteria import Scores
from fxcompress.pruning.options import Budget, Prune
from fxcompress.pruning.rounding import Widths
from fxcompress.pruning.select import Selector, normalized, select, structures
from fxcompress.pruning.slicing import sliced


def dependencies(model: nn.Module, *shape: int) -> ChannelDependencyGraph:
    inputs = Inputs((torch.randn(*shape),))
    return Analyses(fx.symbolic_trace(model.eval()), inputs).get(ChannelDependencyGraph)


class Chain(nn.Module):
    """Linear layers l0, l1, ... of the given widths, and a head."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        for i, (before, after) in enumerate(zip((4, *widths), (*widths, 3), strict=False)):
            self.add_module(f"l{i}", nn.Linear(before, after))
        self.count = len(widths)

    def forward(self, x: Tensor) -> Tensor:
        for i in range(self.count):
            x = torch.tanh(getattr(self, f"l{i}")(x))
        return getattr(self, f"l{self.count}")(x)


def chain(*widths: int) -> ChannelDependencyGraph:
    return dependencies(Chain(*widths), 2, 4)


def place(deps: ChannelDependencyGraph, values: Sequence[Sequence[float]]) -> Scores:
    """Scores of the classes of a chain, layer by layer."""
    scores = np.zeros(deps.classes)
    for i, part in enumerate(values):
        scores[deps.slots[f"l{i}.weight", 0]] = part
    return scores


def left(deps: ChannelDependencyGraph, keep: Mask, name: str, axis: int = 0) -> list[int]:
    """The indices that remain."""
    return np.flatnonzero(np.append(keep, True)[deps.slots[name, axis]]).tolist()


def counts(model_widths: Sequence[int], **options: Any) -> list[int]:
    deps = chain(*model_widths)
    keep = select(deps, Prune(**options), np.random.default_rng(0).random(deps.classes))
    return [len(left(deps, keep, f"l{i}.weight")) for i in range(len(model_widths))]


# -- which --------------------------------------------------------------------------------------------------------------


def test_the_lowest_scores_go_first() -> None:
    deps = chain(6)
    keep = select(deps, Prune(ratio=0.5, round_to=1), place(deps, [[3.0, 1.0, 6.0, 2.0, 5.0, 4.0]]))
    assert left(deps, keep, "l0.weight") == [2, 4, 5]
    assert left(deps, keep, "l1.weight", 1) == [2, 4, 5]


def test_of_equal_scores_the_higher_index_goes() -> None:
    deps = chain(6, 6)
    for scope in ("local", "global", "isomorphic"):
        keep = select(deps, Prune(ratio=0.5, round_to=1, scope=scope), np.ones(deps.classes))
        assert left(deps, keep, "l0.weight")[:1] == [0], scope
        assert left(deps, keep, "l0.weight") == list(range(len(left(deps, keep, "l0.weight")))), scope
        assert keep.sum() == 6, scope
        assert len(left(deps, keep, "l1.weight")) == (3 if scope == "local" else 1), scope


def test_nothing_goes_at_ratio_zero() -> None:
    assert counts([6, 20, 9, 64], ratio=0) == [6, 20, 9, 64]
    assert counts([6, 20, 9, 64], ratio=0, scope="global") == [6, 20, 9, 64]


# -- how many -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "ratio", "remains"),
    [
        (64, 0.5, 32),
        (20, 0.5, 8),  # 10 is nearer to 8 than to 16
        (24, 0.5, 16),  # of two equally near multiples the larger
        (20, 0.1, 20),  # 18 is as near to 16 as to the whole width
        (20, 0.2, 16),
        (8, 0.5, 8),  # never fewer than one multiple
        (16, 0.99, 8),
        (6, 0.5, 3),  # below one multiple: whole channels
        (5, 0.5, 3),
        (5, 0.99, 1),
    ],
)
def test_what_remains_is_the_nearest_multiple(width: int, ratio: float, remains: int) -> None:
    assert counts([width], ratio=ratio) == [remains]


@pytest.mark.parametrize(("multiple", "remains"), [(1, 24), (4, 24), (16, 32), (32, 32), (64, 24)])
def test_the_multiple_can_be_chosen(multiple: int, remains: int) -> None:
    assert counts([48], round_to=multiple) == [remains]


def test_minimum_channels() -> None:
    assert counts([32, 6, 3], ratio=0.9, min_channels=4) == [8, 4, 3]
    assert counts([32, 6, 3], ratio=0.9, min_channels=12) == [16, 6, 3]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(2, 70), min_size=1, max_size=4),
    st.floats(0, 0.99),
    st.sampled_from([1, 4, 8]),
    st.sampled_from(["local", "global", "isomorphic"]),
)
def test_widths_are_multiples_or_whole(asked: list[int], ratio: float, multiple: int, scope: Any) -> None:
    for width, remains in zip(asked, counts(asked, ratio=ratio, round_to=multiple, scope=scope), strict=True):
        assert 1 <= remains <= width
        assert remains == width or width < multiple or remains % multiple == 0


class GatedFlat(nn.Module):
    """A gated linear unit (two indices of a class in one weight), and a convolution whose channels are flattened."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gate, self.head = nn.Conv2d(3, 24, 1), nn.Linear(24 * 6, 48), nn.Linear(24, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.glu(self.gate(torch.tanh(self.conv(x)).flatten(1))))


def test_classes_at_several_indices() -> None:
    deps = dependencies(GatedFlat(), 2, 3, 3, 2)
    keep = select(deps, Prune(ratio=0.5), np.random.default_rng(0).random(deps.classes))
    assert len(left(deps, keep, "conv.weight")) == 16
    assert len(left(deps, keep, "gate.weight", 1)) == 16 * 6
    assert len(left(deps, keep, "gate.weight")) == 32
    assert len(left(deps, keep, "head.weight", 1)) == 16


@pytest.mark.parametrize(("groups", "remains"), [(8, 32), (2, 32)])
def test_grouped_convolutions(groups: int, remains: int) -> None:
    model = nn.Sequential(nn.Conv2d(3, 64, 1), nn.ReLU(), nn.Conv2d(64, 64, 3, groups=groups), nn.ReLU(), nn.Conv2d(64, 2, 1))
    deps = dependencies(model, 2, 3, 5, 5)
    keep = select(deps, Prune(ratio=0.5), np.random.default_rng(0).random(deps.classes))
    assert [len(left(deps, keep, f"{i}.weight")) for i in (0, 2)] == [remains, remains]


class Concat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 24), nn.Linear(4, 40), nn.Linear(64, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.a(x), self.b(x)], 1))


def test_a_concatenation_follows_from_its_parts() -> None:
    deps = dependencies(Concat(), 2, 4)
    keep = select(deps, Prune(ratio=0.6, scope="global"), np.random.default_rng(0).random(deps.classes))
    parts = [len(left(deps, keep, f"{name}.weight")) for name in "ab"]
    assert all(part % 8 == 0 for part in parts)
    assert len(left(deps, keep, "head.weight", 1)) == sum(parts)


class Chunked(nn.Module):
    """The halves of one layer go different ways: two groups share a width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.a, self.b = nn.Linear(4, width), nn.Linear(width // 2, 2), nn.Linear(width // 2, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        one, other = torch.tanh(self.first(x)).chunk(2, 1)
        return self.a(one), self.b(other)


def test_groups_that_share_a_width_are_rounded_together() -> None:
    for width, total in ((24, 16), (40, 16), (48, 32), (64, 32)):  # of two equally near multiples the larger
        deps = dependencies(Chunked(width), 2, 4)
        assert len(deps.groups) == 2
        keep = select(deps, Prune(ratio=0.5), np.random.default_rng(0).random(deps.classes))
        assert len(left(deps, keep, "first.weight")) == total
        assert all(left(deps, keep, f"{name}.weight", 1) for name in "ab")


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "shufflenet_v2_x1_0"])
@pytest.mark.parametrize("scope", ["local", "global"])
def test_channel_shuffles(name: str, scope: Any) -> None:
    deps = dependencies(torchvision.models.get_model(name), 1, 3, 32, 32)
    for ratio in (0.0, 0.3, 0.5, 0.8):
        keep = select(deps, Prune(ratio=ratio, scope=scope), np.random.default_rng(0).random(deps.classes))
        assert abs(1 - keep.mean() - ratio) < 0.06
        for (slot, axis), classes in deps.slots.items():
            remains = len(left(deps, keep, slot, axis))
            assert remains > 0
            assert remains % 8 == 0 or len(classes) % 8 != 0 or axis != 0 or remains == len(classes), slot
        sliced(deps, keep)


def test_shuffled_channels_get_multiples_where_there_were_none() -> None:
    deps = dependencies(torchvision.models.shufflenet_v2_x1_0(), 1, 3, 32, 32)
    keep = select(deps, Prune(ratio=0.5), np.random.default_rng(0).random(deps.classes))
    made = {
        name: len(left(deps, keep, name))
        for name, axis in deps.slots
        if name.startswith("stage2") and name.endswith(".weight") and not axis
    }
    assert {len(deps.slots[name, 0]) for name in made} == {24, 58}
    assert all(count % 8 == 0 for count in made.values()), made


# -- scopes -------------------------------------------------------------------------------------------------------------


def test_local_takes_the_same_share_of_all_and_global_the_least() -> None:
    deps = chain(8, 8)
    scores = place(deps, [[10, 10, 10, 10, 1, 1, 10, 10], [1, 1, 1, 10, 1, 10, 1, 1]])
    local = select(deps, Prune(ratio=0.5, round_to=1, normalize="none"), scores)
    both = select(deps, Prune(ratio=0.5, round_to=1, normalize="none", scope="global"), scores)
    assert [len(left(deps, local, f"l{i}.weight")) for i in (0, 1)] == [4, 4]
    assert left(deps, both, "l0.weight") == [0, 1, 2, 3, 6, 7]
    assert left(deps, both, "l1.weight") == [3, 5]


def test_a_global_ranking_is_of_normalised_scores() -> None:
    deps = chain(4, 4)
    scores = place(deps, [[100, 200, 300, 400], [1, 2, 3, 4]])
    keep = select(deps, Prune(ratio=0.5, round_to=1, scope="global"), scores)
    assert [left(deps, keep, f"l{i}.weight") for i in (0, 1)] == [[2, 3], [2, 3]]


def test_no_layer_starves() -> None:
    deps = chain(10, 10)
    scores = place(deps, [[1.0] * 10, [2.0] * 10])
    options = Prune(ratio=0.5, round_to=1, scope="global", normalize="none", max_ratio=0.7)
    keep = select(deps, options, scores)
    assert [len(left(deps, keep, f"l{i}.weight")) for i in (0, 1)] == [3, 7]


class Mixed(nn.Module):
    """Two pairs of linear layers, and two pairs of convolutions, of different widths."""

    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Conv2d(12, 4, 3))
        self.l = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.l(self.c(x).mean((2, 3)))


def test_isomorphic_ranks_groups_of_one_structure() -> None:
    deps = dependencies(Mixed(), 2, 3, 9, 9)
    kinds = structures(deps, Widths.of(deps))
    of = {slot.parameter: kinds[group.index] for group in deps.groups for slot in group.slots if slot.role == "producer"}
    assert of["c.0.weight"] == of["c.2.weight"] != of["l.0.weight"] == of["l.2.weight"]
    scores = np.zeros(deps.classes)
    for level, name in ((1, "c.0"), (2, "c.2"), (3, "l.0"), (4, "l.2")):
        scores[deps.slots[f"{name}.weight", 0]] = level
    keep = select(deps, Prune(ratio=0.25, round_to=1, scope="isomorphic", normalize="none"), scores)
    assert [len(left(deps, keep, f"{name}.weight")) for name in ("c.0", "c.2", "l.0", "l.2")] == [3, 12, 3, 12]
    keep = select(deps, Prune(ratio=0.25, round_to=1, scope="global", normalize="none"), scores)
    assert [len(left(deps, keep, f"{name}.weight")) for name in ("c.0", "c.2", "l.0", "l.2")] == [1, 11, 8, 12]


def test_normalisation() -> None:
    scores, group_of, sizes = np.array([1.0, 3.0, 5.0, 0.0, 0.0]), np.array([0, 0, 0, 1, 1]), np.array([3, 2])
    wanted = {
        "none": [1, 3, 5],
        "mean": [1 / 3, 1, 5 / 3],
        "max": [0.2, 0.6, 1],
        "sum": [1 / 9, 3 / 9, 5 / 9],
        "standardization": [0, 0.5, 1],
    }
    for how, values in wanted.items():
        np.testing.assert_allclose(normalized(scores, group_of, sizes, how), [*values, 0, 0])  # type: ignore[arg-type]


# -- names --------------------------------------------------------------------------------------------------------------


def test_ratios_by_pattern() -> None:
    assert counts([16, 16, 16], ratio=0.5, round_to=1, ratios=(("l1", 0.25), ("l*.weight", 0.75))) == [4, 12, 4]
    assert counts([16, 16, 16], ratio=0.5, round_to=1, scope="global", ratios=(("l1.weight", 0.25),))[1] == 12


def test_ignored_layers_keep_their_channels() -> None:
    assert counts([16, 16, 16], ignore=("l1", "l2.bias")) == [8, 16, 16]
    assert counts([16, 16, 16], ignore=("l3",)) == [8, 8, 8]  # what l3 makes; what it reads belongs to l2
    assert counts([16, 16, 16], ignore=("*",)) == [16, 16, 16]


def test_a_pattern_fits_a_module_that_holds_the_layer() -> None:
    deps = dependencies(Mixed(), 2, 3, 9, 9)
    keep = select(deps, Prune(ratio=0.5, ignore=("c",), round_to=1), np.random.default_rng(0).random(deps.classes))
    assert [len(left(deps, keep, f"{name}.weight")) for name in ("c.0", "c.2", "l.0", "l.2")] == [8, 12, 4, 6]


def test_a_pattern_that_fits_nothing_is_answered_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"'l1.wieght'(?s:.*)did you mean 'l1.weight'"):
        counts([16, 16], ignore=("l1.wieght",))
    with pytest.raises(InputError, match="no parameter or module"):
        counts([16, 16], ratios=(("conv*", 0.5),))


def test_a_ratio_for_channels_that_cannot_go_is_refused_with_the_reason() -> None:
    with pytest.raises(InputError, match="it reaches the output"):
        counts([16, 16], ratios=(("l2", 0.5),))


def test_tied_weights_go_by_both_names() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Linear(4, 16), nn.Linear(4, 16), nn.Linear(16, 2)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.tanh(self.a(x)) + torch.tanh(self.b(x)))

    deps = dependencies(Tied(), 2, 4)
    keep = select(deps, Prune(ignore=("b.weight",)), np.random.default_rng(0).random(deps.classes))
    assert keep.all()


# -- the rest -----------------------------------------------------------------------------------------------------------


def test_buffers_alone_hold_no_channels() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.randn(16, 4))
            self.register_buffer("other", torch.randn(16, 3))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.table.t() @ self.other

    deps = dependencies(Table(), 2, 4)
    assert deps.classes
    assert select(deps, Prune(), np.random.default_rng(0).random(deps.classes)).all()


def test_a_graph_without_channels() -> None:
    deps = dependencies(nn.Sequential(nn.Linear(4, 2)), 2, 4)
    for scope in ("local", "global", "isomorphic"):
        assert select(deps, Prune(scope=scope), np.zeros(0)).shape == (0,)


def test_scores_must_be_numbers() -> None:
    deps = chain(8)
    with pytest.raises(InputError, match="nan"):
        select(deps, Prune(), np.full(8, np.nan))


def test_a_hundred_thousand_classes_take_under_a_second() -> None:
    deps = chain(*[25_000, 8] * 4)
    scores = np.random.default_rng(0).random(deps.classes)
    assert deps.classes > 100_000
    start = time.process_time()
    for scope in ("local", "global", "isomorphic"):
        select(deps, Prune(scope=scope), scores)
    assert time.process_time() - start < 3
    selector = Selector(deps, Prune(scope="global"), scores)
    start = time.process_time()
    found = [int(selector.keep(ratio).sum()) for ratio in np.linspace(0, 0.9, 20)]
    assert time.process_time() - start < 2
    assert found == sorted(found, reverse=True)


# -- options ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "absolute"),
    [
        ("macs", "-40%", 60.0),
        ("macs", "1.2 G", 1.2e9),
        ("macs", "1.2 GMACs", 1.2e9),
        ("macs", 5, 5.0),
        ("params", "3.5M", 3.5e6),
        ("bytes", "3.5 MB", 3.5e6),
        ("bytes", "2 MiB", 2.0**21),
        ("latency", "12 ms", 0.012),
        ("latency", "-12.5 %", 87.5),
    ],
)
def test_budgets_are_read(field: str, value: str | float, absolute: float) -> None:
    (limit,) = Budget(**{field: value}).limits()
    assert limit.what == field
    assert limit.absolute(100.0) == pytest.approx(absolute)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("macs", "40%", '"-60%" leaves 40%'),
        ("macs", "-100%", "not a reduction"),
        ("macs", "12 ms", "write"),
        ("latency", "fast", '"12 ms"'),
        ("bytes", -3, "write"),
        ("bytes", True, "write"),
        ("params", float("nan"), "write"),
    ],
)
def test_budgets_that_cannot_be_read(field: str, value: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Budget(**{field: value})


@pytest.mark.parametrize(
    "wrong",
    [
        {"ratio": 1.0},
        {"ratio": -0.1},
        {"ratio": "0.5"},
        {"reduction": "median"},
        {"normalize": "l2"},
        {"scope": "layer"},
        {"ratios": (("l1", 2.0),)},
        {"ratios": ("l1", 0.5)},
        {"ratios": {"l1": 0.5}},
        {"ignore": "head"},
        {"round_to": 0},
        {"min_channels": 0},
        {"max_ratio": 0},
        {"budget": "-40%"},
    ],
)
def test_options_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"(?s)->"):
        Prune(**wrong)


def test_a_budget_needs_a_limit() -> None:
    with pytest.raises(InputError, match="without a limit"):
        Budget()
