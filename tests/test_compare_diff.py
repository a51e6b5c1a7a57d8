"""Every kind of change is seen, as exactly that, from graphs at hand and from files; one function under other names differs in nothing."""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from compare_graphs import EDITS, Edits, edited, random_graph, renamed
from diffing import both, said
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn

import fxcompress
from fxcompress.compare import codec
from fxcompress.compare.diff import diff
from fxcompress.compare.schema import Snapshot
from fxcompress.compare.take import take
from fxcompress.ir.inputs import Inputs
from fxcompress.quant.affine import QParams
from fxcompress.quant.fake import FakeQuantize
from fxcompress.report.difference import Change, Difference, NumbersChange


class Net(nn.Module):
    """A bit of everything that can be changed."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.left = nn.Conv2d(8, 4, 1)
        self.right = nn.Conv2d(8, 4, 1)
        self.pool = nn.MaxPool2d(2)
        self.grid = FakeQuantize(QParams(0.05, 3))
        self.head = nn.Linear(4 * 16, 5)
        self.names = ("scores", "features")
        self.swapped = False
        self.extra: nn.Module | None = None
        self.skip_relu = False
        self.other_source = False

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.norm(self.first(x))
        y = y if self.skip_relu else torch.relu(y)
        z = torch.nn.functional.leaky_relu(self.second(y), 0.1)
        if self.extra is not None:
            z = self.extra(z)
        a, b = self.left(y if self.other_source else z), self.right(z)
        c = b - a if self.swapped else a - b
        c = self.pool(self.grid(c))
        return {self.names[0]: self.head(torch.flatten(c, 1)), self.names[1]: c}


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def made() -> Net:
    torch.manual_seed(3)
    net = Net().eval()
    net.norm.running_mean.copy_(torch.randn(8))
    net.norm.running_var.copy_(torch.rand(8) + 0.5)
    return net


def with_weight(net: Net) -> None:
    net.second.weight.data[1, 2, 0, 1] *= 1.001


def with_buffer(net: Net) -> None:
    net.norm.running_mean[3] += 1e-3


def with_attribute(net: Net) -> None:
    net.norm.eps = 1e-3


def with_half_weight(net: Net) -> None:
    net.head.weight.data[0, 0] = torch.nextafter(net.head.weight.data[0, 0], torch.tensor(9.0))


def with_scale(net: Net) -> None:
    net.grid = FakeQuantize(QParams(0.0501, 3))


def with_zero_point(net: Net) -> None:
    net.grid = FakeQuantize(QParams(0.05, 4))


def with_bits(net: Net) -> None:
    net.grid = FakeQuantize(QParams(0.05, 3, bits=7))


def with_swapped(net: Net) -> None:
    net.swapped = True


def with_output(net: Net) -> None:
    net.names = ("scores", "feats")


def with_added(net: Net) -> None:
    net.extra = nn.Sigmoid()


def with_removed(net: Net) -> None:
    net.skip_relu = True


def with_rewired(net: Net) -> None:
    net.other_source = True


def with_other(net: Net) -> None:
    net.pool = nn.AvgPool2d(2)


def with_bias(net: Net) -> None:
    old = net.second
    net.second = nn.Conv2d(8, 8, 3, padding=1)
    net.second.weight.data.copy_(old.weight.data)


def with_train(net: Net) -> None:
    net.train()


SEEN: dict[Callable[[Net], None], dict[str, list[str]]] = {
    with_weight: {"changed": ["conv: tensor weight"]},
    with_buffer: {"changed": ["batch_norm: tensor running_mean"]},
    with_attribute: {"changed": ["batch_norm: attribute eps"]},
    with_half_weight: {"changed": ["linear: tensor weight"]},
    with_swapped: {"rewired": ["sub: 0", "sub: 1"]},
    with_added: {"added": ["sigmoid"]},
    with_removed: {"removed": ["relu"]},
    with_rewired: {"rewired": ["conv: 0"]},
}
"""What has to be said of an edit, and nothing else of the graph."""


def file(snapshot: Snapshot) -> Snapshot:
    return codec.decode(codec.encode(snapshot))


def snap(net: nn.Module) -> Snapshot:
    """With the simulated quantization as one node."""
    return fxcompress.snapshot(fxcompress.trace(net, X, leaves=[FakeQuantize]), X, name="net")


def pairs(base: nn.Module, head: nn.Module) -> list[tuple[Snapshot, Snapshot]]:
    """At hand, from files, and one of each."""
    live = snap(base), snap(head)
    return [live, (file(live[0]), file(live[1])), (file(live[0]), live[1])]


@pytest.mark.parametrize("edit", SEEN, ids=lambda edit: edit.__name__)
def test_an_edit_is_told_as_exactly_that(edit: Callable[[Net], None]) -> None:
    net, other = made(), made()
    edit(other)
    for base, head in pairs(net, other):
        assert said(both(base, head)) == SEEN[edit]


@pytest.mark.parametrize("edit", [with_scale, with_zero_point, with_bits], ids=lambda edit: edit.__name__)
def test_a_grid_that_changed_is_told_with_both_values(edit: Callable[[Net], None]) -> None:
    net, other = made(), made()
    edit(other)
    for base, head in pairs(net, other):
        found = both(base, head)
        grids = [c for n in found.changed for c in n.changes if c.what == "quantization"]
        assert [n.head.kind for n in found.changed] == [found.changed[0].head.kind]  # what takes the largest of it is not told again
        (grid,) = grids
        assert {key for key in grid.base if grid.base[key] != grid.head[key]} == {edit.__name__.removeprefix("with_")}
        assert (grid.amount is not None) is (edit is with_scale)
    if edit is with_scale:
        assert grid.amount == pytest.approx(0.0001 / 0.0501, rel=1e-4)


def test_a_float_island_is_told_at_every_node_of_it() -> None:
    net, other = made(), made()
    other.grid = nn.Identity()
    for base, head in pairs(net, other):
        found = both(base, head)
        lost = [(n.head.kind, c.note) for n in found.changed for c in n.changes if c.what == "quantization" and c.head is None]
        assert ("max_pool", "a value in 8 bits became float") in lost


def test_another_operation_in_the_place_of_one_is_told() -> None:
    net, other = made(), made()
    with_other(other)
    for base, head in pairs(net, other):
        found = said(both(base, head))
        assert found.get("changed", [])[:1] == ["avg_pool: target"] or (found["added"], found["removed"]) == (["avg_pool"], ["max_pool"])


def test_a_tensor_that_is_new_is_told() -> None:
    net, other = made(), made()
    with_bias(other)
    for base, head in pairs(net, other):
        (changed,) = both(base, head).changed
        (bias,) = [c for c in changed.changes if c.what == "tensor"]
        assert (bias.name, bias.base, bias.head["shape"]) == ("bias", None, [8])


def test_a_dtype_is_told_where_it_begins() -> None:
    net, other = made(), made()
    for dtype in (torch.float64, torch.bfloat16):
        head = fxcompress.snapshot(copy.deepcopy(other).to(dtype), X.to(dtype))
        found = both(fxcompress.snapshot(net, X), head)
        name = str(dtype).removeprefix("torch.")
        told = {n.head.kind: {c.what: c for c in n.changes} for n in found.changed}
        assert {"conv", "batch_norm", "linear"} <= set(told)
        assert not {"relu", "leaky_relu", "sub", "max_pool", "flatten"} & set(told)  # they only pass it on
        assert told["conv"]["dtype"].note == ("widened" if dtype is torch.float64 else "narrowed")
        assert {(c.base, c.head) for c in found.contract if c.what == "dtype"} == {("float32", name)}


def test_a_renamed_output_is_told() -> None:
    net, other = made(), made()
    with_output(other)
    for base, head in pairs(net, other):
        found = both(base, head)
        (name,) = [c for c in found.contract if c.what == "name"]
        assert (name.where, name.base, name.head, name.head_name) == ("output", "features", "feats", "feats")
        assert set(said(found)) <= {"contract", "changed"}
        assert found.numbers == NumbersChange()


def test_the_mode_is_told() -> None:
    net, other = made(), made()
    with_train(other)
    for base, head in pairs(net, other):
        assert [(c.base, c.head) for c in both(base, head).contract if c.what == "mode"] == [("eval", "train")]


def test_another_batch_is_a_matter_of_the_contract_only() -> None:
    base, head = fxcompress.snapshot(made(), X), fxcompress.snapshot(made(), X[:1])
    found = both(base, head)
    assert set(said(found)) == {"contract"}
    assert {c.what for c in found.contract} == {"shape"}
    assert "inputs are not the same" in found.numbers.note
    assert {c.name for c in found.cost} == {"macs", "peak_bytes"}


class Renamed(nn.Module):
    """Net with other attributes, other functions for the same operations, and the branches in another order."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.body = nn.ModuleList([net.right, net.left, net.second, net.norm, net.first])
        self.zz, self.yy, self.classifier = net.pool, net.grid, net.head

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = self.body[3](self.body[4](x)).relu()
        activated = torch.nn.functional.leaky_relu(input=self.body[2](hidden), negative_slope=0.1)
        subtrahend = self.body[0](activated)
        pooled = self.zz(self.yy(torch.sub(self.body[1](activated), subtrahend)))
        return {"scores": self.classifier(pooled.flatten(1)), "features": pooled}


def test_names_and_the_order_of_branches_do_not_count() -> None:
    net = made()
    base, head = snap(net), snap(Renamed(copy.deepcopy(net)).eval())
    for a, b in ((base, head), (file(base), file(head)), (file(base), head)):
        found = both(a, b)
        targets = [c for n in found.changed for c in n.changes if c.what != "target"]  # relu() and torch.relu are called differently
        assert not targets
        assert replace(found, changed=(), sides=None) == Difference("net", "net", len(a.nodes), len(b.nodes), len(a.nodes))


def test_one_model_differs_in_nothing_from_itself() -> None:
    for base, head in pairs(made(), made()):
        found = both(base, head)
        assert replace(found, sides=None) == Difference("net", "net", len(base.nodes), len(base.nodes), len(base.nodes))
        assert found.same_function


def told(difference: Difference) -> Edits:
    rewired = Counter((r.base.index, r.base.kind) for r in difference.rewired)
    return Edits(
        tuple(sorted(p.kind for p in difference.added)),
        tuple(sorted(p.kind for p in difference.removed)),
        tuple(sorted(n.base.kind for n in difference.changed)),
        tuple(sorted((kind, count) for (_, kind), count in rewired.items())),
        len(difference.moved),
        len(difference.groups),
    )


@given(st.integers(0, 2**32), st.sampled_from(EDITS))
def test_random_edits_of_random_graphs_are_never_missed_and_read_the_same_from_both_sides(seed: int, edit: str) -> None:
    rng = random.Random(seed)
    graph = random_graph(rng, rng.randint(4, 50), weights=rng.choice(["own", "few"]))
    change = edited(graph, edit, rng)
    if change is None:
        return
    head, _ = renamed(change[0], rng)
    found = both(graph, head)
    assert not found.same_function
    assert both(graph, renamed(graph, rng)[0]).same_function


def test_random_edits_are_told_exactly() -> None:
    exact, every = 0, 0
    for seed in range(60):
        rng = random.Random(seed)
        graph = random_graph(rng, rng.randint(5, 60))
        for edit in EDITS:
            change = edited(graph, edit, rng)
            if change is not None:
                every += 1
                exact += told(diff(graph, renamed(change[0], rng)[0])) == change[1]
    assert every > 350
    assert exact / every >= 0.99, f"{exact} of {every}"


@given(st.integers(0, 2**32), st.integers(0, 2**32))
@example(0, 1)
def test_unrelated_graphs_have_an_inverse_too(first: int, second: int) -> None:
    a, b = (random_graph(random.Random(seed), 25, weights="few") for seed in (first, second))
    both(a, b)


def test_a_node_says_where_it_stands() -> None:
    found = diff(*pairs(made(), _with(with_attribute))[0])
    (changed,) = found.changed
    assert changed.head.path == "norm"
    assert changed.head.source is not None
    assert "test_compare_diff.py:" in changed.head.source
    assert found.sides is not None
    assert {m.base for m in found.sides.matches} == {n.id for n in found.sides.base}
    assert sum(n.macs for n in found.sides.head) == sum(n.macs for n in found.sides.base) > 0
    assert sum(n.bytes for n in found.sides.head if n.kind == "linear") == 4 * (5 * 64 + 5)


def _with(edit: Callable[[Net], None]) -> Net:
    net = made()
    edit(net)
    return net


def test_the_front_door_takes_snapshots_files_and_models(tmp_path: Any) -> None:
    net, other = made(), _with(with_weight)
    base = fxcompress.snapshot(net, X)
    codec.write(base, tmp_path / "base.fxs")
    for side in (base, str(tmp_path / "base.fxs"), tmp_path / "base.fxs", (net, X)):
        assert said(fxcompress.diff(side, (other, X))) == SEEN[with_weight]
    with pytest.raises(fxcompress.errors.InputError, match="head is a Net"):
        fxcompress.diff(base, other)  # type: ignore[arg-type]
    with pytest.raises(fxcompress.errors.ArchiveError):
        fxcompress.diff(base, tmp_path / "none.fxs")


def test_a_graph_module_is_compared_as_it_is() -> None:
    traced = fxcompress.trace(made(), X)
    base, head = (take(traced, Inputs.of(X), model=name) for name in ("a", "b"))
    assert both(base, head).same_function


def test_changes_are_plain_data() -> None:
    """Nothing in a change refers to the snapshots."""
    found = diff(*pairs(made(), _with(with_weight))[0])
    (change,) = found.changed[0].changes
    assert isinstance(change, Change)
    assert set(change.base) == {"dtype", "shape", "digest"}
    assert change.base["digest"] != change.head["digest"]
