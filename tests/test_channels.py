"""Channel labels and their arrays, and what the dependency graph says of small networks."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from prune_patterns import Small, conv
from torch import Tensor, nn

from fxcompress.analysis import Analyses
from fxcompress.analysis.channels import PINNED, ChannelDependencyGraph
from fxcompress.analysis.channels.labels import FIXED, Labels
from fxcompress.analysis.channels.value import Value, axes, on_axis, reshaped, squeezed
from fxcompress.capture import capture
from fxcompress.pruning.mask import masked
from fxcompress.pruning.slicing import sliced

# -- labels ---------------------------------------------------------------------------------------------------------------


@settings(max_examples=100)
@given(pairs=st.lists(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), min_size=1), max_size=6))
def test_labels_are_what_a_plain_partition_is(pairs: list[list[tuple[int, int]]]) -> None:
    """Whole arrays of ties at once give the partition that tying one by one gives."""
    labels = Labels()
    made = labels.fresh(20)
    expected = {i: {i} for i in range(20)}
    for together in pairs:
        left, right = np.array(together).T
        labels.unite(made[left], made[right])
        for a, b in together:
            both = expected[a] | expected[b]
            expected.update(dict.fromkeys(both, both))
    roots = labels.find(made)
    for i in range(20):
        assert {j for j in range(20) if roots[j] == roots[i]} == expected[i]


def test_labels_grow() -> None:
    labels = Labels()
    first, second = labels.fresh(700), labels.fresh(5000)
    labels.unite(first, second[:700])
    assert np.array_equal(labels.find(second[:700]), first)
    assert np.array_equal(labels.find(second[700:]), second[700:])
    assert labels.count == 5701


def test_fixed_ties_nothing() -> None:
    labels = Labels()
    made = labels.fresh(3)
    labels.unite(np.array([FIXED, FIXED]), made[:2])
    assert np.array_equal(labels.find(made), made)


def test_unite_broadcasts() -> None:
    labels = Labels()
    rows, column = labels.fresh(6).reshape(2, 3), labels.fresh(2).reshape(2, 1)
    labels.unite(rows, column)
    assert [len(set(labels.find(row).tolist())) for row in rows] == [1, 1]
    assert len(set(labels.find(rows).ravel().tolist())) == 2


# -- values ---------------------------------------------------------------------------------------------------------------


@st.composite
def splits(draw: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Two shapes of the same number of elements, the second with axes merged and split."""
    old = tuple(draw(st.lists(st.sampled_from([1, 2, 3, 4]), min_size=1, max_size=4)))
    new: list[int] = []
    left = int(np.prod(old))
    while left > 1:
        size = draw(st.sampled_from([d for d in range(1, left + 1) if left % d == 0]))
        new.append(size)
        left //= size
    return old, tuple(new) or (1,)


@settings(max_examples=200)
@given(shapes=splits(), axis=st.integers(0, 3))
def test_reshaped_is_reshape_of_the_written_out_labels(shapes: tuple[tuple[int, ...], tuple[int, ...]], axis: int) -> None:
    old, new = shapes
    axis %= len(old)
    factor = on_axis(np.arange(1, old[axis] + 1), axis, len(old))
    found = reshaped(Value(old, (factor,)), new)
    assert found.shape == new
    full = np.broadcast_to(factor, old).reshape(new)
    assert np.array_equal(np.broadcast_to(found.factors[0], new), full)
    assert all(found.factors[0].shape[a] in (1, new[a]) for a in range(len(new)))


def test_reshaped_writes_out_only_what_merges() -> None:
    factor = on_axis(np.arange(1, 9), 1, 4)
    (found,) = reshaped(Value((2, 8, 50, 50), (factor,)), (2, 2, 4, 50, 50)).factors
    assert found.shape == (1, 2, 4, 1, 1)
    (found,) = reshaped(Value((2, 8, 50, 50), (factor,)), (2, 8, 2500)).factors
    assert found.shape == (1, 8, 1)


def test_squeezed() -> None:
    factor = np.array([[1, 2, 3], [1, 2, 3]])
    assert squeezed(factor).shape == (1, 3)
    assert axes(squeezed(np.full((2, 3), 7))) == ()


# -- the graph of dependencies --------------------------------------------------------------------------------------------


def dependencies(model: nn.Module, *shape: int, **cast: Any) -> ChannelDependencyGraph:
    part = capture(model.eval(), (torch.randn(shape or (2, 3, 7, 5)).to(**cast),)).parts[0]
    return Analyses(part.graph, part.inputs).get(ChannelDependencyGraph)


def residual() -> nn.Module:
    run = lambda m, x: m.c(F.relu(m.n(m.b(m.a(x))) + m.a(x)))  # noqa: E731
    return Small(run, a=conv(3, 8), b=conv(8, 8), n=nn.BatchNorm2d(8), c=conv(8, 4))


def test_slots_and_roles() -> None:
    deps = dependencies(residual())
    assert deps.classes == 8
    (group,) = deps.groups
    found = {(slot.parameter, slot.axis): slot.role for slot in group.slots}
    followers = [(name, 0) for name in ("a.bias", "b.bias", "n.weight", "n.bias", "n.running_mean", "n.running_var")]
    assert found == {
        ("a.weight", 0): "producer",
        ("b.weight", 0): "producer",
        ("b.weight", 1): "consumer",
        ("c.weight", 1): "consumer",
        **dict.fromkeys(followers, "follower"),
    }
    assert all(np.array_equal(deps.slots[slot], np.arange(8)) for slot in found)
    assert (deps.slots["c.weight", 0] == PINNED).all()


def test_every_pinned_axis_has_a_reason() -> None:
    deps = dependencies(residual())
    reasons = {(p.parameter, p.axis): p for p in deps.pinned}
    assert set(reasons) == {slot for slot, classes in deps.slots.items() if (classes == PINNED).any()}
    assert reasons["c.weight", 0].why == "it reaches the output"
    assert reasons["a.weight", 1].why == "it reads fixed channels"
    assert reasons["c.weight", 0].count == 4
    source = reasons["c.weight", 0].source
    assert source is not None
    assert source.rpartition(":")[0] == __file__


def test_deterministic() -> None:
    first, second = dependencies(residual()), dependencies(residual())
    assert first.groups[0].slots == second.groups[0].slots
    assert all(np.array_equal(first.slots[slot], second.slots[slot]) for slot in first.slots)


def test_pieces_of_a_tensor_are_groups_of_their_own() -> None:
    """Removing a part of every group never empties a piece."""

    def run(m: Small, x: Tensor) -> Tensor:
        left, right = m.a(x).chunk(2, 1)
        return m.b(torch.cat([right, left.sigmoid()], 1))

    deps = dependencies(Small(run, a=conv(3, 8), b=conv(8, 4)))
    assert [group.classes.tolist() for group in deps.groups] == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize("how", ["meta", "half", "bfloat16", "frozen", "no_grad", "inference"])
def test_other_kinds_of_models(how: str) -> None:
    """Neither data nor gradients nor float32 are needed."""
    model, plain = residual(), dependencies(residual())
    if how == "meta":
        graph = capture(model.eval(), (torch.randn(2, 3, 7, 5),)).parts[0]
        deps = Analyses(graph.graph.to("meta"), graph.inputs).get(ChannelDependencyGraph)
    elif how in ("half", "bfloat16"):
        dtype = torch.half if how == "half" else torch.bfloat16
        deps = dependencies(model.to(dtype), dtype=dtype)
    elif how == "frozen":
        deps = dependencies(model.requires_grad_(False))
    else:
        with torch.no_grad() if how == "no_grad" else torch.inference_mode():
            deps = dependencies(model)
    assert {slot: classes.tolist() for slot, classes in deps.slots.items()} == {s: c.tolist() for s, c in plain.slots.items()}
    keep = np.arange(8) % 3 > 0
    small, mask = sliced(deps, keep), masked(deps, keep)
    weight = small.get_parameter("b.weight")
    assert weight.shape == (5, 5, 3, 3)
    assert weight.dtype == deps.module.get_parameter("b.weight").dtype
    assert weight.device == deps.module.get_parameter("b.weight").device
    assert weight.requires_grad == deps.module.get_parameter("b.weight").requires_grad
    if how in ("half", "bfloat16"):
        x = torch.randn(2, 3, 7, 5, dtype=weight.dtype)
        assert torch.allclose(small(x), mask(x), rtol=0.1, atol=0.1)


def test_slicing_keeps_what_it_does_not_cut() -> None:
    """The graph and its parameters stay as they were; parameters that lose nothing are shared; modules know their sizes."""
    deps = dependencies(residual())
    before = {name: tensor.clone() for name, tensor in deps.module.state_dict().items()}
    text = deps.module.code
    keep = np.arange(8) < 5
    small = sliced(deps, keep)
    assert small.get_parameter("c.bias") is deps.module.get_parameter("c.bias")
    assert small.get_parameter("a.weight") is not deps.module.get_parameter("a.weight")
    assert torch.equal(small.get_parameter("a.weight"), before["a.weight"][:5])
    assert (small.get_submodule("b").in_channels, small.get_submodule("b").out_channels) == (5, 5)
    assert small.get_submodule("n").num_features == 5
    assert deps.module.code == text
    assert all(torch.equal(tensor, before[name]) for name, tensor in deps.module.state_dict().items())
    assert deps.module.get_submodule("n").num_features == 8


def test_gradients_are_cut_with_their_parameters() -> None:
    deps = dependencies(residual())
    for parameter in deps.module.parameters():
        parameter.grad = torch.randn_like(parameter)
    small = sliced(deps, np.arange(8) < 3)
    grad, old = small.get_parameter("b.weight").grad, deps.module.get_parameter("b.weight").grad
    assert grad is not None
    assert old is not None
    assert torch.equal(grad, old[:3, :3])


def test_tied_parameters_stay_tied() -> None:
    model = Small(lambda m, x: m.c(F.relu(m.b(F.relu(m.a(m.s(x)))))), s=conv(3, 8), a=conv(8, 8), b=conv(8, 8), c=conv(8, 4))
    model.b.weight = model.a.weight
    deps = dependencies(model)
    small = copy.deepcopy(sliced(deps, np.arange(deps.classes) % 2 == 0))
    assert small.get_parameter("a.weight") is small.get_parameter("b.weight")
    assert small.get_parameter("a.weight").shape == (4, 4, 3, 3)


def test_nothing_removed_is_the_same_graph() -> None:
    deps = dependencies(residual())
    small = sliced(deps, np.ones(deps.classes, dtype=bool))
    x = torch.randn(2, 3, 7, 5)
    assert torch.equal(small(x), deps.module(x))
    assert all(tensor is deps.module.get_parameter(name) for name, tensor in small.named_parameters())


def test_channels_last_stays() -> None:
    deps = dependencies(residual().to(memory_format=torch.channels_last))
    weight = sliced(deps, np.arange(8) < 4).get_parameter("b.weight")
    assert weight.is_contiguous(memory_format=torch.channels_last)
