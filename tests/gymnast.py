"""Random chains of operations that move, mix and measure the axes of one tensor, written in numbers or in sizes of the input."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Move = Callable[["Gymnast", Tensor], Tensor]
LARGEST = 1500


class Gymnast(nn.Module):
    """conv, the moves that ``seed`` draws, and a linear layer over all that is left.

    ``moves`` are kept as text for the message of a failing test.
    """

    def __init__(self, seed: int, length: int) -> None:
        super().__init__()
        self.rng = random.Random(seed)
        torch.manual_seed(seed)
        self.stem = nn.Conv2d(3, 12, 1)
        self.moves: list[tuple[str, dict[str, Any]]] = []
        self.weights = nn.ParameterDict()
        self.layers = nn.ModuleDict()
        x = torch.rand(2, 3, 2, 4)
        y = self.stem(x).sigmoid()
        for _ in range(length):
            name = self.rng.choice(list(MOVES))
            options = MOVES[name][0](self, y)
            if options is None:
                continue
            z = MOVES[name][1](self, y, **options)
            if z.ndim > 6 or z.numel() > LARGEST or z.numel() < 8 or z.shape[0] != 2:
                continue
            self.moves.append((name, options))
            y = z
        self.head = nn.Linear(y[0].numel(), 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x).sigmoid()
        for name, options in self.moves:
            y = MOVES[name][1](self, y, **options)
        return self.head(y.flatten(1))

    # -- what is drawn ----------------------------------------------------------------------------------------------

    def axis(self, x: Tensor, least: int = 2) -> int | None:
        """An axis behind the batch."""
        axes = [a for a in range(1, x.ndim) if x.shape[a] >= least]
        return self.rng.choice(axes) if axes else None

    def own(self, *shape: int) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = nn.Parameter(torch.randn(shape))
        return name


def _one(g: Gymnast, x: Tensor) -> dict[str, Any] | None:
    axis = g.axis(x)
    return None if axis is None else {"axis": axis}


def _split(g: Gymnast, x: Tensor) -> dict[str, Any] | None:
    axis = g.axis(x, 4)
    sizes = [n for n in range(2, x.shape[axis]) if x.shape[axis] % n == 0] if axis is not None else []
    if axis is None or not sizes:
        return None
    first = g.rng.choice(sizes)
    return {"axis": axis, "sizes": (first, x.shape[axis] // first), "form": g.rng.choice(["view", "unflatten", "-1"])}


def _do_split(g: Gymnast, x: Tensor, axis: int, sizes: tuple[int, int], form: str) -> Tensor:
    if form == "unflatten":
        return x.unflatten(axis, sizes)
    shape = [x.size(a) for a in range(x.ndim)]
    middle = (-1, sizes[1]) if form == "-1" else sizes
    return x.reshape(*shape[:axis], *middle, *shape[axis + 1 :])


def _pair(g: Gymnast, x: Tensor) -> dict[str, Any] | None:
    return {"axis": g.rng.randrange(1, x.ndim - 1), "form": g.rng.choice([True, False])} if x.ndim > 2 else None


def _do_merge(g: Gymnast, x: Tensor, axis: int, form: bool) -> Tensor:
    if form:
        return x.flatten(axis, axis + 1)
    shape = [x.size(a) for a in range(x.ndim)]
    return x.reshape(*shape[:axis], shape[axis] * shape[axis + 1], *shape[axis + 2 :])


def _swap(g: Gymnast, x: Tensor) -> dict[str, Any] | None:
    return {"first": g.rng.randrange(1, x.ndim), "second": g.rng.randrange(1, x.ndim)}


def _slice(g: Gymnast, x: Tensor) -> dict[str, Any] | None:
    axis = g.axis(x, 3)
    return None if axis is None else {"axis": axis, "start": g.rng.randrange(0, 2), "stop": x.shape[axis] - g.rng.randrange(0, 2)}


def _chosen(g: Gymnast, x: Tensor) -> dict[str, Any] | None:
    axis = g.axis(x, 3)
    return None if axis is None else {"axis": axis, "index": [g.rng.randrange(x.shape[axis]) for _ in range(x.shape[axis])]}


def _scale(g: Gymnast, x: Tensor) -> dict[str, Any]:
    shape = [1 if g.rng.random() < 0.5 else n for n in x.shape[1:]]
    return {"name": g.own(*shape), "form": g.rng.choice([True, False])}


def _linear(g: Gymnast, x: Tensor) -> dict[str, Any]:
    axis = g.rng.randrange(1, x.ndim)
    out = g.rng.choice([6, 8, 12])
    return {"name": g.own(out, x.shape[axis]), "axis": axis, "form": g.rng.choice([True, False])}


def _do_linear(g: Gymnast, x: Tensor, name: str, axis: int, form: bool) -> Tensor:
    x = x.transpose(axis, -1)
    x = F.linear(x, g.weights[name]) if form else x @ g.weights[name].t()
    return x.relu().transpose(axis, -1)


def _last(g: Gymnast, x: Tensor) -> dict[str, Any] | None:
    return {} if x.ndim > 2 and x.shape[-1] > 1 else None


def _attention(g: Gymnast, x: Tensor) -> dict[str, Any] | None:
    return {} if x.ndim > 3 else None


def _halves(g: Gymnast, x: Tensor) -> dict[str, Any] | None:
    axes = [a for a in range(1, x.ndim) if x.shape[a] % 2 == 0]
    return {"axis": g.rng.choice(axes)} if axes else None


def _places(g: Gymnast, x: Tensor) -> dict[str, Any] | None:
    axis = g.axis(x)
    return None if axis is None else {"axis": axis, "place": g.rng.randrange(x.shape[axis])}


def _join(parts: list[Tensor], axis: int) -> Tensor:
    return torch.cat(parts, axis)


MOVES: dict[str, tuple[Callable[..., dict[str, Any] | None], Callable[..., Tensor]]] = {
    "split": (_split, _do_split),
    "split again": (_split, _do_split),
    "merge": (_pair, _do_merge),
    "merge again": (_pair, _do_merge),
    "swap": (_swap, lambda g, x, first, second: x.transpose(first, second)),
    "slice": (_slice, lambda g, x, axis, start, stop: x[(*[slice(None)] * axis, slice(start, stop))]),
    "stride": (_one, lambda g, x, axis: _join([x[(*[slice(None)] * axis, slice(i, None, 2))] for i in (1, 0)], axis)),
    "choose": (_chosen, lambda g, x, axis, index: x[(*[slice(None)] * axis, index)]),
    "roll": (_places, lambda g, x, axis, place: torch.roll(x, place, axis)),
    "flip": (_one, lambda g, x, axis: x.flip(axis)),
    "flip and add": (_one, lambda g, x, axis: x + x.flip(axis)),
    "roll and mul": (_places, lambda g, x, axis, place: x * torch.roll(x, place, axis)),
    "chunk": (_halves, lambda g, x, axis: _join(list(x.chunk(2, axis))[::-1], axis)),
    "glu": (_halves, lambda g, x, axis: F.glu(x, axis)),
    "twice": (_one, lambda g, x, axis: _join([x, x * 0.5], axis)),
    "stack": (_one, lambda g, x, axis: torch.stack([x, x.relu()], axis).sum(axis)),
    "stack and keep": (_one, lambda g, x, axis: torch.stack([x, x.neg()], axis)),
    "repeat": (_one, lambda g, x, axis: x.repeat_interleave(2, axis)),
    "tile": (_one, lambda g, x, axis: x.repeat(*[2 if a == axis else 1 for a in range(x.ndim)])),
    "grow": (_one, lambda g, x, axis: x.unsqueeze(axis).expand(*[2 if a == axis else -1 for a in range(x.ndim + 1)])),
    "pad": (_one, lambda g, x, axis: F.pad(x, (*[0, 0] * (x.ndim - 1 - axis), 1, 2))),
    "pick": (_places, lambda g, x, axis, place: x.select(axis, place)),
    "pick by number": (_places, lambda g, x, axis, place: x[(*[slice(None)] * axis, place)]),
    "mean": (_one, lambda g, x, axis: x.mean(axis)),
    "less the mean": (_one, lambda g, x, axis: x - x.mean(axis, keepdim=True)),
    "times the top": (_one, lambda g, x, axis: x * x.amax(axis, keepdim=True)),
    "over the sum": (_one, lambda g, x, axis: x / (1 + x.abs().sum(axis, keepdim=True))),
    "softmax": (_one, lambda g, x, axis: x.softmax(axis)),
    "normalise": (_last, lambda g, x: F.layer_norm(x, (x.shape[-1],))),
    "count": (_one, lambda g, x, axis: x / x.shape[axis] ** 0.5),
    "scale": (_scale, lambda g, x, name, form: x * g.weights[name] if form else x + g.weights[name]),
    "linear": (_linear, _do_linear),
    "linear again": (_linear, _do_linear),
    "gram": (_last, lambda g, x: torch.tanh(x @ x.transpose(-1, -2)) @ x),
    "attend": (_attention, lambda g, x: F.scaled_dot_product_attention(x, x.flip(-1), x)),
    "sigmoid": (lambda g, x: {}, lambda g, x: x.sigmoid()),
}
