"""How far tensors are apart, and which channels of a pruned layer are gone."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import fxcompress
from fxcompress.compare import codec
from fxcompress.compare.diff import diff
from fxcompress.compare.slices import alike, blocks, embedding, rows_and_columns
from fxcompress.report.difference import Change, Difference

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """Two branches that are joined, a residual, a depthwise convolution, and channels that are flattened."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.left = nn.Conv2d(width, 8, 1)
        self.right = nn.Conv2d(width, 6, 3, padding=1, bias=False)
        self.joined = nn.Conv2d(14, width, 1)
        self.head = nn.Linear(width * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.stem(x)))
        y = y + self.depthwise(y)
        z = torch.cat([self.left(y), torch.tanh(self.right(y))], 1)
        z = torch.nn.functional.max_pool2d(self.joined(z), 2)
        return self.head(torch.flatten(z, 1))


def made(seed: int = 3) -> Net:
    torch.manual_seed(seed)
    net = Net().eval()
    net.norm.running_mean.copy_(torch.randn(12))
    net.norm.running_var.copy_(torch.rand(12) + 0.5)
    return net


STEM, LEFT, RIGHT, JOINED = (0, 2, 3, 7, 11), (1, 2, 5), (0, 4, 5), (1, 3, 4, 5, 6, 8, 9)
"""Channels that are kept."""


def pruned(net: Net) -> Net:
    """By hand: only the channels above."""
    stem, left, right, joined = (list(kept) for kept in (STEM, LEFT, RIGHT, JOINED))
    small = copy.deepcopy(net)
    cut = small.state_dict()

    def keep(name: str, rows: list[int] | None = None, columns: list[int] | None = None) -> None:
        tensor = cut[name] if rows is None else cut[name][rows]
        cut[name] = tensor if columns is None else tensor[:, columns]

    for name in (
        "stem.weight",
        "stem.bias",
        "norm.weight",
        "norm.bias",
        "norm.running_mean",
        "norm.running_var",
        "depthwise.weight",
        "depthwise.bias",
    ):
        keep(name, stem)
    keep("left.weight", left, stem)
    keep("left.bias", left)
    keep("right.weight", right, stem)
    keep("joined.weight", joined, [*left, *(8 + place for place in right)])
    keep("joined.bias", joined)
    keep("head.weight", None, [channel * 16 + at for channel in joined for at in range(16)])
    small.stem = nn.Conv2d(3, 5, 3, padding=1)
    small.norm = nn.BatchNorm2d(5)
    small.depthwise = nn.Conv2d(5, 5, 3, padding=1, groups=5)
    small.left, small.right = nn.Conv2d(5, 3, 1), nn.Conv2d(5, 3, 3, padding=1, bias=False)
    small.joined, small.head = nn.Conv2d(6, 7, 1), nn.Linear(7 * 16, 5)
    small.load_state_dict(cut)
    return small.eval()


def gone(size: int, kept: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(place for place in range(size) if place not in kept)


WANTED = {
    ("stem", "weight"): {0: gone(12, STEM)},
    ("stem", "bias"): {0: gone(12, STEM)},
    ("norm", "weight"): {0: gone(12, STEM)},
    ("norm", "running_var"): {0: gone(12, STEM)},
    ("depthwise", "weight"): {0: gone(12, STEM)},
    ("left", "weight"): {0: gone(8, LEFT), 1: gone(12, STEM)},
    ("right", "weight"): {0: gone(6, RIGHT), 1: gone(12, STEM)},
    ("joined", "weight"): {0: gone(12, JOINED), 1: gone(14, (*LEFT, *(8 + place for place in RIGHT)))},
    ("joined", "bias"): {0: gone(12, JOINED)},
    ("head", "weight"): {1: gone(192, tuple(c * 16 + at for c in JOINED for at in range(16)))},
}


def resized(found: Difference) -> dict[tuple[str, str], Change]:
    return {(n.base.path, c.name): c for n in found.changed for c in n.changes if c.what == "tensor"}


def removed(change: Change) -> dict[int, tuple[int, ...]]:
    return {channels.dim: channels.removed for channels in change.channels}


def test_the_channels_that_were_pruned_are_named() -> None:
    net = made()
    base, head = fxcompress.snapshot(net, X), fxcompress.snapshot(pruned(net), X)
    found = diff(base, head)
    assert found.matched == len(base.nodes)
    changes = resized(found)
    for key, wanted in WANTED.items():
        assert removed(changes[key]) == wanted, key
    assert "channels 1, 4, 5, 6, 8, 9 and 10 removed" in changes[("stem", "weight")].note
    assert not [c for n in found.changed for c in n.changes if c.what == "attribute" and c.name != "groups"]  # the weights tell it
    back = diff(head, base)
    assert back == found.inverse()
    assert {c.dim: c.added for c in resized(back)[("left", "weight")].channels} == WANTED[("left", "weight")]
    assert "input channels 1, 4, 5, 6, 8, 9 and 10 added" in resized(back)[("left", "weight")].note


def test_channels_are_known_when_the_weights_were_changed_after_pruning() -> None:
    net = made()
    small = pruned(net)
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.mul_(1 + 0.02 * torch.rand_like(parameter))
        small.norm.running_mean.add_(0.01)
    changes = resized(diff(fxcompress.snapshot(net, X), fxcompress.snapshot(small, X)))
    for key in (
        ("stem", "weight"),
        ("norm", "weight"),
        ("norm", "running_var"),
        ("depthwise", "weight"),
        ("left", "weight"),
        ("joined", "weight"),
    ):
        assert removed(changes[key]) == WANTED[key], key
    assert removed(changes[("head", "weight")]) == WANTED[("head", "weight")]  # through the pooling and the flattening


def test_weights_that_have_nothing_in_common_name_no_channels() -> None:
    changes = resized(diff(fxcompress.snapshot(made(), X), fxcompress.snapshot(pruned(made(9)), X)))
    assert changes[("stem", "weight")].channels == ()
    assert changes[("stem", "weight")].note == "dimension 0: 12 -> 5"


def test_files_tell_how_many_channels_are_gone() -> None:
    net = made()
    base, head = (codec.decode(codec.encode(fxcompress.snapshot(one, X))) for one in (net, pruned(net)))
    change = resized(diff(base, head))[("left", "weight")]
    assert change.note == "dimension 0: 8 -> 3, dimension 1: 12 -> 5"
    assert change.channels == ()


def test_the_pruner_of_the_project_is_understood() -> None:
    net = made()
    small = fxcompress.prune(net, X, ratio=0.3)
    found = diff(fxcompress.snapshot(net, X), fxcompress.snapshot(small, X))
    sizes = [
        (key, dim)
        for key, c in resized(found).items()
        for dim, (a, b) in enumerate(zip(c.base["shape"], c.head["shape"], strict=True))
        if a != b
    ]
    assert len(sizes) > 5
    for key, dim in sizes:
        change = resized(found)[key]
        shape = change.base["shape"][dim], change.head["shape"][dim]
        assert len(removed(change)[dim]) == shape[0] - shape[1]


def test_amounts_are_exact_with_the_graphs_at_hand_and_estimated_from_files() -> None:
    net, other = made(), made()
    with torch.no_grad():
        other.left.weight += 0.01 * torch.randn_like(other.left.weight)
        other.head.weight[2, 3] *= 1.001
    live = fxcompress.snapshot(net, X), fxcompress.snapshot(other, X)
    exact = resized(diff(*live))
    for name in ("left", "head"):
        was, now = (getattr(one, name).weight.detach().double().numpy() for one in (net, other))
        wanted = np.sqrt(((was - now) ** 2).sum()) / max(np.sqrt((was**2).sum()), np.sqrt((now**2).sum()))
        assert exact[(name, "weight")].amount == pytest.approx(wanted, rel=1e-12)
        assert not exact[(name, "weight")].estimated
    files = resized(diff(*(codec.decode(codec.encode(one)) for one in live)))
    assert set(files) == set(exact) == {("left", "weight"), ("head", "weight")}
    assert files[("left", "weight")].estimated
    assert "estimated" in files[("left", "weight")].note
    assert files[("left", "weight")].amount == pytest.approx(exact[("left", "weight")].amount, rel=1)
    assert (files[("head", "weight")].amount or 0.0) < 1e-3


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_tensors_without_a_distance_have_no_amount(value: float) -> None:
    net, other = made(), made()
    with torch.no_grad():
        net.left.bias.zero_()
        other.left.bias.fill_(value)
        other.left.bias[0] = -0.0
    for pair in ((net, other), (other, net)):
        live = [fxcompress.snapshot(one, X, numbers=False) for one in pair]
        for base, head in (live, [codec.decode(codec.encode(one)) for one in live]):
            (change,) = resized(diff(base, head)).values()
            assert change.name == "bias"
            assert change.amount in (None, 1.0)


@given(st.data())
def test_rows_and_columns_are_found(data: st.DataObject) -> None:
    rows, columns, rest = data.draw(st.integers(2, 12)), data.draw(st.integers(2, 12)), data.draw(st.sampled_from([(), (3, 3)]))
    kept = [sorted(data.draw(st.sets(st.integers(0, size - 1), min_size=1))) for size in (rows, columns)]
    large = torch.randn(rows, columns, *rest, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 1000))))
    small = large[kept[0]][:, kept[1]]
    found = rows_and_columns(blocks(large), blocks(small))
    assert found == (kept[0], kept[1])


@given(st.lists(st.integers(0, 3), max_size=10), st.data())
def test_an_embedding_is_told_only_when_there_is_one(items: list[int], data: st.DataObject) -> None:
    large = [bytes([item]) for item in items]
    places = sorted(data.draw(st.sets(st.sampled_from(range(len(items))))) if items else [])
    small = [large[place] for place in places]

    def every(start: int, left: int) -> int:
        """How many ways there are, counted one by one."""
        if left == len(small):
            return 1
        return sum(every(at + 1, left + 1) for at in range(start, len(large)) if large[at] == small[left])

    assert embedding(large, small) == (places if every(0, 0) == 1 else None)
    assert embedding(large, [*small, b"x"]) is None


def test_rows_in_one_direction_are_alike() -> None:
    large = torch.randn(9, 20)
    kept = [0, 3, 4, 8]
    assert alike(large, large[kept] * torch.tensor([[0.1], [2.0], [3.0], [1.0]]) + 0.01 * torch.randn(4, 20)) == kept
    assert alike(large, -large[kept]) is None
    assert alike(large, large[kept[::-1]]) is None
    assert alike(large, torch.randn(4, 20)) is None
    assert alike(large[:, :1], large[kept, :1]) is None  # one number has no direction


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.bool, torch.int64])
def test_blocks_hold_the_bits_of_any_dtype(dtype: Any) -> None:
    tensor = (torch.arange(12).reshape(3, 4) * 7 % 5).to(dtype)
    found = blocks(tensor)
    assert found.shape == (3, 4, 1)
    assert rows_and_columns(found, blocks(tensor[[0, 2]][:, [1, 2, 3]])) in (([0, 2], [1, 2, 3]), None)
