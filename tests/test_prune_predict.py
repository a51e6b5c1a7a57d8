"""The predicted cost of a removal: exactly that of the sliced graph."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from prune_patterns import Pattern, patterns
from torch import Tensor, nn

from fxcompress.analysis import Analyses, Cost
from fxcompress.analysis.channels import ChannelDependencyGraph, Mask
from fxcompress.capture import capture
from fxcompress.pruning.predict import predicted
from fxcompress.pruning.slicing import sliced


class Grouped(nn.Module):
    """Every kind of convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1, stride=2), nn.BatchNorm2d(16)
        self.up, self.groups_up = nn.ConvTranspose2d(16, 12, 2, stride=2), nn.ConvTranspose2d(12, 24, 3, groups=4)
        self.few, self.many = nn.Conv2d(24, 24, 3, groups=2), nn.Conv2d(24, 24, 3, groups=8)
        self.depthwise, self.head = nn.Conv2d(24, 48, 3, groups=24, dilation=2), nn.Conv2d(48, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.groups_up(self.up(self.norm(self.stem(x)).relu()))
        return self.head(self.depthwise(self.many(self.few(y))))


class Lines(nn.Module):
    """One- and three-dimensional convolutions, unbatched ones among them."""

    def __init__(self) -> None:
        super().__init__()
        self.line, self.next = nn.Conv1d(4, 10, 3), nn.Conv1d(10, 12, 1, groups=2)
        self.space, self.head = nn.Conv3d(1, 6, 2), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.next(self.line(x)).unsqueeze(0).unsqueeze(0)
        return self.head(self.space(y.expand(1, 1, 3, -1, -1)).mean((2, 3, 4)))


class Linears(nn.Module):
    """Linears over any number of axes, after a flatten, and functional ones."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.wide = nn.Conv2d(3, 12, 3), nn.LayerNorm(12), nn.Linear(12, 20)
        self.flat, self.weight, self.bias = nn.Linear(20 * 9, 14), nn.Parameter(torch.randn(10, 14)), nn.Parameter(torch.randn(10))
        self.vector, self.head = nn.Parameter(torch.randn(10)), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.wide(self.norm(self.conv(x).permute(0, 2, 3, 1))).relu()
        y = F.linear(self.flat(y.permute(0, 3, 1, 2).flatten(1)), self.weight, self.bias)
        return self.head(y) + (y @ self.vector).unsqueeze(1)


class Attention(nn.Module):
    """Hand-written and fused attention over heads, with a fused projection."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv, self.project = nn.Linear(16, 32), nn.Linear(32, 96), nn.Linear(32, 32)
        self.second, self.head = nn.Linear(32, 96), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        n, length, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, length, 3, 4, 8).permute(2, 0, 3, 1, 4).unbind(0)
        y = (q @ k.transpose(-2, -1) * 0.3).softmax(-1) @ v
        x = x + self.project(y.transpose(1, 2).reshape(n, length, -1))
        q, k, v = self.second(x).reshape(n, length, 3, 4, 8).permute(2, 0, 3, 1, 4).unbind(0)
        return self.head(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Products(nn.Module):
    """einsum of two and of three operands, bmm, addmm."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(8, 24), nn.Linear(8, 24), nn.Linear(10, 4)
        self.weight, self.bias = nn.Parameter(torch.randn(24, 10)), nn.Parameter(torch.randn(10))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        scores = torch.einsum("bic,bjc->bij", a, b)
        y = torch.einsum("bij,bjc,cd->bid", scores, a, self.weight)
        z = torch.addmm(self.bias, torch.bmm(scores, a)[0], self.weight)
        return self.head(y + z)


class Experts(nn.Module):
    """An einsum over an axis of which one position may remain."""

    def __init__(self) -> None:
        super().__init__()
        self.route, self.weight = nn.Linear(8, 3), nn.Parameter(torch.randn(3, 8, 6))
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.bmm(x, torch.einsum("nk,kio->nio", self.route(x.mean(1)).relu(), self.weight)))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(11, 12), nn.Linear(40, 3)
        self.layer = kind(12, 20, 2, bidirectional=True, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(x))[0])


class Shared(nn.Module):
    """A module called twice, tied weights, and a parameter nobody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.twice, self.tied = nn.Embedding(30, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.out = nn.Linear(16, 30, bias=False)
        self.out.weight, self.tied.weight = self.embed.weight, self.twice.weight
        self.narrow, self.wide, self.unread = nn.Linear(16, 24), nn.Linear(24, 16), nn.Parameter(torch.zeros(9))

    def forward(self, x: Tensor) -> Tensor:
        y = self.twice(self.twice(self.embed(x)))
        return self.out(self.tied(y) + self.wide(self.narrow(y).relu()) + self.wide(self.narrow(y).tanh()))


class Indexed(nn.Module):
    """Indices that slicing has to write out."""

    index: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.every, self.five = nn.Conv2d(3, 24, 3), nn.Conv2d(12, 8, 1), nn.Conv2d(5, 8, 1)
        self.six, self.head = nn.Conv2d(6, 8, 1), nn.Conv2d(8, 2, 1)
        self.register_buffer("index", torch.tensor([3, 7, 7, 1, 20]))

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        picked = self.five(y[:, self.index]) + self.six(y[..., [0, 2, 4, 9, 1, 3], :, :])
        return self.head(self.every(y[:, ::2]) + picked + self.five(torch.index_select(y, 1, self.index)))


class Unknown(nn.Module):
    """A contraction that nobody has taught, which counts as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 16, 1)
        self.d = nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.a(x))
        gram = torch.linalg.multi_dot((y[0, 0], y[0, 1].t(), y[0, 0]))
        return self.d(self.c(y + gram))


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.wide, self.narrow = nn.Linear(16, 64), nn.Linear(64, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.narrow(F.gelu(self.wide(x)))


MODELS: dict[str, tuple[Any, Any]] = {
    "convolutions": (Grouped, torch.randn(2, 3, 9, 9)),
    "lines and spaces": (Lines, torch.randn(4, 9)),
    "linears": (Linears, torch.randn(2, 3, 5, 5)),
    "attention": (Attention, torch.randn(2, 7, 16)),
    "products": (Products, torch.randn(2, 7, 8)),
    "experts": (Experts, torch.randn(2, 7, 8)),
    "LSTM": (lambda: Recurrent(nn.LSTM), torch.randint(0, 11, (2, 5))),
    "GRU": (lambda: Recurrent(nn.GRU), torch.randint(0, 11, (2, 5))),
    "shared and tied": (Shared, torch.randint(0, 30, (2, 5))),
    "indices": (Indexed, torch.randn(2, 3, 6, 6)),
    "unknown": (Unknown, torch.randn(2, 3, 7, 7)),
    "multi-head attention": (Tokens, torch.randn(2, 5, 16)),
    "half precision": (lambda: Grouped().half(), torch.randn(2, 3, 9, 9).half()),
}


def _random(deps: ChannelDependencyGraph, seed: int) -> Mask:
    """A different share of every group."""
    rng = np.random.default_rng(seed)
    keep = np.ones(deps.classes, dtype=bool)
    for group in deps.groups:
        keep[rng.permutation(group.classes)[: rng.integers(0, len(group.classes))]] = False
    return keep


def _check(model: nn.Module, x: Any, seeds: int = 4) -> None:
    changed = False
    for part in capture(model.eval(), x).parts:
        deps = Analyses(part.graph, part.inputs).get(ChannelDependencyGraph)
        for seed in range(seeds):
            keep = _random(deps, seed) if seed else np.ones(deps.classes, dtype=bool)
            cost, found = Cost.of(sliced(deps, keep), part.inputs), predicted(deps, keep)
            assert (found.macs, found.params, found.weight_bytes) == (cost.macs, cost.params, cost.weight_bytes)
            changed |= not keep.all()
    assert changed, "nothing was removed, so nothing was tested"


@pytest.mark.parametrize("name", MODELS)
def test_small_networks(name: str) -> None:
    build, x = MODELS[name]
    _check(build(), x)


@pytest.mark.parametrize("name", ["resnet18", "shufflenet_v2_x0_5", "mobilenet_v2", "regnet_y_400mf"])
def test_networks(name: str) -> None:
    torchvision = pytest.importorskip("torchvision")
    _check(torchvision.models.get_model(name, weights=None), torch.randn(1, 3, 64, 64), seeds=2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"), [("densenet121", 64), ("swin_t", 224), ("googlenet", 96), ("convnext_tiny", 64), ("vit_b_32", 224)]
)
def test_large_networks(name: str, size: int) -> None:
    torchvision = pytest.importorskip("torchvision")
    more = {"init_weights": False} if name == "googlenet" else {}
    _check(torchvision.models.get_model(name, weights=None, **more), torch.randn(1, 3, size, size), seeds=2)


@pytest.mark.slow
@pytest.mark.parametrize("pattern", patterns(), ids=lambda pattern: pattern.name)
def test_every_pattern(pattern: Pattern) -> None:
    part = capture(pattern.build().double().eval(), pattern.example()).parts[0]
    deps = Analyses(part.graph, part.inputs).get(ChannelDependencyGraph)
    for seed in range(2):
        keep = _random(deps, seed)
        cost, found = Cost.of(sliced(deps, keep), part.inputs), predicted(deps, keep)
        assert (found.macs, found.params, found.weight_bytes) == (cost.macs, cost.params, cost.weight_bytes)


def test_many_choices_are_cheap() -> None:
    """The first prediction prepares everything; a hundred more take less than the slicing of one choice."""
    torchvision = pytest.importorskip("torchvision")
    part = capture(torchvision.models.mobilenet_v2(weights=None).eval(), torch.randn(1, 3, 64, 64)).parts[0]
    deps = Analyses(part.graph, part.inputs).get(ChannelDependencyGraph)
    choices = [_random(deps, seed) for seed in range(100)]
    predicted(deps, choices[0])
    began = time.perf_counter()
    for keep in choices:
        predicted(deps, keep)
    searched = time.perf_counter() - began
    began = time.perf_counter()
    Cost.of(sliced(deps, choices[0]), part.inputs)
    assert searched < time.perf_counter() - began
