"""Shared modules, tied weights, recurrence, several inputs, in-place operations, operations nobody knows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from prune_patterns import Pair, Pattern, Small, conv, own
from torch import Tensor, nn

IMAGE = ((2, 3, 7, 5),)
TOKENS = ((2, 5, 6),)


def patterns() -> list[Pattern]:
    return [*_shared(), *_recurrent(), *_inputs(), *_in_place(), *_unknown()]


def _shared() -> list[Pattern]:
    return [
        Pattern(
            "shared conv",
            lambda: Small(lambda m, x: m.b(F.relu(m.s(F.relu(m.s(m.a(x)))))), a=conv(3, 8), s=conv(8, 8), b=conv(8, 3)),
            IMAGE,
            8,
        ),
        Pattern("shared module under two names", lambda: TwoNames(), IMAGE, 8 + 6),
        Pattern("tied weights", lambda: TiedConvs(), IMAGE, 8),
        Pattern(
            "tied transposed weights",
            lambda: Small(lambda m, x: F.linear(F.relu(F.linear(x, m.w)), m.w.t()), w=own(9, 6)),
            ((3, 6),),
            9,
            other="batch",
            by_hand="the weight that reads is the one that makes",
        ),
        Pattern(
            "shared norm",
            lambda: Small(lambda m, x: m.c(m.n(m.a(x)) + m.n(m.b(x))), a=conv(3, 8), b=conv(3, 8), n=nn.BatchNorm2d(8), c=conv(8, 3)),
            IMAGE,
            8,
        ),
        Pattern(
            "siamese",
            lambda: Pair(lambda m, x, y: m.h((m.b(m.a(x).relu()) - m.b(m.a(y).relu())).abs()), a=conv(3, 8), b=conv(8, 6), h=conv(6, 2)),
            (*IMAGE, *IMAGE),
            14,
        ),
        Pattern(
            "a parameter read twice",
            lambda: Small(lambda m, x: m.b(m.a(x) * m.w + m.w.sigmoid()), a=conv(3, 8), w=own(8, 1, 1), b=conv(8, 3)),
            IMAGE,
            8,
        ),
        Pattern(
            "shared conv in a loop with a residual",
            lambda: Small(_loop, a=conv(3, 8), s=conv(8, 8), n=nn.GroupNorm(2, 8), b=conv(8, 3)),
            IMAGE,
            4,
        ),
        Pattern(
            "low-rank update",
            lambda: Small(
                lambda m, x: m.h(F.relu(m.a(x) + F.linear(F.linear(x, m.u), m.v) * 0.5)),
                a=nn.Linear(6, 9),
                u=own(4, 6),
                v=own(9, 4),
                h=nn.Linear(9, 3),
            ),
            TOKENS,
            13,
        ),
        Pattern(
            "sum of two weights",
            lambda: Small(lambda m, x: m.h(F.relu(F.linear(x, m.w + m.v @ m.u))), w=own(9, 6), u=own(4, 6), v=own(9, 4), h=nn.Linear(9, 3)),
            TOKENS,
            13,
            by_hand="the rank is contracted between weights",
        ),
    ]


def _loop(m: Small, x: Tensor) -> Tensor:
    x = m.a(x)
    for _ in range(3):
        x = x + F.relu(m.n(m.s(x)))
    return m.b(x)


class TwoNames(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.head = conv(3, 8), nn.Sequential(conv(8, 6), nn.ReLU(), conv(6, 8)), conv(8, 2)
        self.second = self.first

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(self.stem(x))))


class TiedConvs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.head = conv(3, 8), conv(8, 8), conv(8, 8), conv(8, 2)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.b(F.relu(self.a(self.stem(x))))))


def _recurrent() -> list[Pattern]:
    def rows(layer: nn.Module, width: int) -> Small:
        return Small(lambda m, x: m.b(m.r(m.a(x))[0]), a=nn.Linear(6, 7), r=layer, b=nn.Linear(width, 3))

    return [
        Pattern("LSTM", lambda: rows(nn.LSTM(7, 8, batch_first=True), 8), TOKENS, 7 + 8),
        Pattern("GRU", lambda: rows(nn.GRU(7, 8, batch_first=True), 8), TOKENS, 7 + 8),
        Pattern("RNN without bias", lambda: rows(nn.RNN(7, 8, bias=False, batch_first=True), 8), TOKENS, 7 + 8),
        Pattern("LSTM of two layers", lambda: rows(nn.LSTM(7, 8, num_layers=2, batch_first=True), 8), TOKENS, 7 + 8),
        Pattern("GRU both ways", lambda: rows(nn.GRU(7, 8, bidirectional=True, batch_first=True), 16), TOKENS, 7 + 8),
        Pattern("LSTM both ways, two layers", lambda: rows(nn.LSTM(7, 8, 2, bidirectional=True, batch_first=True), 16), TOKENS, 7 + 8),
        Pattern(
            "LSTM, last state",
            lambda: Small(lambda m, x: m.b(m.r(m.a(x))[1][0][-1]), a=nn.Linear(6, 7), r=nn.LSTM(7, 8, batch_first=True), b=nn.Linear(8, 3)),
            TOKENS,
            7 + 8,
        ),
        Pattern(
            "LSTM of two layers, last state",
            lambda: Small(lambda m, x: m.b(m.r(m.a(x))[1][0][-1]), a=nn.Linear(6, 7), r=nn.LSTM(7, 8, 2), b=nn.Linear(8, 3)),
            TOKENS,
            7 + 8,
        ),
        Pattern("LSTM with a projection", lambda: rows(nn.LSTM(7, 8, proj_size=4, batch_first=True), 4), TOKENS, 0, "projection"),
        Pattern(
            "GRU with a given state",
            lambda: Small(
                lambda m, x: m.b(m.r(m.a(x), m.s(x.mean(1)).unsqueeze(0))[0]),
                a=nn.Linear(6, 7),
                s=nn.Linear(6, 8),
                r=nn.GRU(7, 8, batch_first=True),
                b=nn.Linear(8, 3),
            ),
            TOKENS,
            7 + 8,
            by_hand="hidden units read each other",
        ),
        Pattern(
            "LSTM of the input", lambda: Small(lambda m, x: m.b(m.r(x)[0]), r=nn.LSTM(6, 8, batch_first=True), b=nn.Linear(8, 3)), TOKENS, 8
        ),
        Pattern(
            "GRU without batch",
            lambda: Small(lambda m, x: m.b(m.r(m.a(x))[0]), a=nn.Linear(6, 7), r=nn.GRU(7, 8), b=nn.Linear(8, 3)),
            ((5, 6),),
            7 + 8,
            other="",
        ),
        Pattern(
            "LSTM cell",
            lambda: Small(lambda m, x: m.b(m.r(m.a(x))[0]), a=nn.Linear(6, 7), r=nn.LSTMCell(7, 8), b=nn.Linear(8, 3)),
            ((3, 6),),
            0,
            "LSTMCell",
            other="batch",
        ),
        Pattern(
            "CRNN",
            lambda: Small(
                lambda m, x: m.b(m.r(F.relu(m.a(x)).mean(2).permute(0, 2, 1))[0]),
                a=conv(3, 7),
                r=nn.GRU(7, 8, bidirectional=True, batch_first=True),
                b=nn.Linear(16, 3),
            ),
            IMAGE,
            7 + 8,
        ),
        Pattern(
            "LSTM, residual",
            lambda: Small(
                lambda m, x: m.b(m.a(x) + m.r(m.a(x))[0]), a=nn.Linear(6, 8), r=nn.LSTM(8, 8, batch_first=True), b=nn.Linear(8, 3)
            ),
            TOKENS,
            8,
        ),
    ]


def _inputs() -> list[Pattern]:
    return [
        Pattern(
            "two inputs added",
            lambda: Pair(lambda m, x, y: m.c(m.a(x) + m.b(y)), a=conv(3, 8), b=conv(3, 8), c=conv(8, 3)),
            (*IMAGE, *IMAGE),
            8,
        ),
        Pattern(
            "an input added to channels",
            lambda: Pair(lambda m, x, y: m.b(m.a(x) + y), a=conv(3, 8), b=conv(8, 3)),
            (*IMAGE, (2, 8, 7, 5)),
            0,
            "fixed",
        ),
        Pattern(
            "an input of one channel added",
            lambda: Pair(lambda m, x, y: m.b(m.a(x) * y), a=conv(3, 8), b=conv(8, 3)),
            (*IMAGE, (2, 1, 7, 5)),
            8,
        ),
        Pattern(
            "an input joined to channels",
            lambda: Pair(lambda m, x, y: m.b(torch.cat([m.a(x), y], 1)), a=conv(3, 8), b=conv(10, 3)),
            (*IMAGE, (2, 2, 7, 5)),
            8,
        ),
        Pattern(
            "an input as a weight",
            lambda: Pair(lambda m, x, y: F.conv2d(m.a(x), y), a=conv(3, 8)),
            (*IMAGE, (4, 8, 1, 1)),
            0,
            "fixed",
            other="",
        ),
        Pattern(
            "dict outputs",
            lambda: Small(lambda m, x: {"out": m.b(m.a(x).relu()), "aux": m.c(m.a(x)).mean(1)}, a=conv(3, 8), b=conv(8, 3), c=conv(8, 2)),
            IMAGE,
            8 + 2,
        ),
        Pattern("shape as an output", lambda: Small(lambda m, x: (m.b(m.a(x)), m.a(x).shape[1]), a=conv(3, 8), b=conv(8, 3)), IMAGE, 8),
        Pattern(
            "parameter as an output",
            lambda: Small(lambda m, x: (m.b(m.a(x) * m.w), m.w), a=conv(3, 8), b=conv(8, 3), w=own(8, 1, 1)),
            IMAGE,
            0,
            "it reaches the output",
        ),
        Pattern("assert on the number of channels", lambda: Small(_checked, a=conv(3, 8), b=conv(8, 3)), IMAGE, 8),
    ]


def _checked(m: Small, x: Tensor) -> Tensor:
    y = m.a(x)
    assert y.shape[1] == 8, "width"
    torch._assert(y.size(1) == 8, "width")
    return m.b(y)


def _in_place() -> list[Pattern]:
    return [
        Pattern(
            "in-place activations",
            lambda: nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(inplace=True), conv(8, 6), nn.Hardswish(inplace=True), conv(6, 3)),
            IMAGE,
            14,
        ),
        Pattern("in-place residual", lambda: Small(_added, a=conv(3, 8), b=conv(8, 8), c=conv(8, 3)), IMAGE, 8),
        Pattern(
            "in-place scale",
            lambda: Small(lambda m, x: m.b(m.a(x).mul_(m.w).add_(0.5)), a=conv(3, 8), b=conv(8, 3), w=own(8, 1, 1)),
            IMAGE,
            8,
        ),
        Pattern("write to a slice through a view", lambda: Small(_view_write, a=conv(3, 8), b=conv(8, 3)), IMAGE, 0, ""),
        Pattern("write by setitem", lambda: Small(_setitem, a=conv(3, 8), b=conv(8, 3)), IMAGE, 0, ""),
    ]


def _added(m: Small, x: Tensor) -> Tensor:
    y = m.a(x)
    z = m.b(F.relu(y))
    z += y
    return m.c(torch.relu_(z))


def _view_write(m: Small, x: Tensor) -> Tensor:
    y = m.a(x)
    y[:, :4].mul_(0.5)
    return m.b(y)


def _setitem(m: Small, x: Tensor) -> Tensor:
    y = m.a(x)
    y[:, 0] = 0.0
    return m.b(y)


def _unknown() -> list[Pattern]:
    return [
        Pattern(
            "fft over positions",
            lambda: Small(lambda m, x: m.b(torch.fft.rfft2(m.a(x)).abs()), a=conv(3, 8), b=conv(8, 3)),
            IMAGE,
            0,
            "rfft2",
        ),
        Pattern(
            "an operation nobody taught",
            lambda: Small(lambda m, x: m.b(torch.logcumsumexp(m.a(x), 1)), a=conv(3, 8), b=conv(8, 3)),
            IMAGE,
            0,
            "logcumsumexp",
        ),
        Pattern(
            "an unknown one behind a known one",
            lambda: Small(lambda m, x: m.c(m.b(torch.special.i0(m.a(x)))), a=conv(3, 8), b=conv(8, 6), c=conv(6, 3)),
            IMAGE,
            6,
            "i0",
        ),
        Pattern(
            "grid_sample",
            lambda: Small(
                lambda m, x: m.b(F.grid_sample(m.a(x), m.g.expand(x.size(0), -1, -1, -1), align_corners=False)),
                a=conv(3, 8),
                b=conv(8, 3),
                g=torch.rand(1, 4, 4, 2),
            ),
            IMAGE,
            0,
            "grid_sample",
            other="batch",
        ),
        Pattern(
            "gather over channels",
            lambda: Small(
                lambda m, x: m.b(m.a(x).gather(1, m.i.expand(x.size(0), 8, x.size(2), x.size(3)))),
                a=conv(3, 8),
                b=conv(8, 3),
                i=torch.tensor([1, 0, 3, 2, 5, 4, 7, 6]).view(1, 8, 1, 1),
            ),
            IMAGE,
            0,
            "gather",
        ),
        Pattern(
            "an own leaf with a parameter", lambda: Small(lambda m, x: m.b(m.a(x).sort(1)[0]), a=conv(3, 8), b=conv(8, 3)), IMAGE, 0, "sort"
        ),
        Pattern(
            "boolean selection",
            lambda: Small(lambda m, x: m.b(m.a(x)[:, m.k]), a=conv(3, 8), b=conv(4, 3), k=torch.tensor([True, False] * 4)),
            IMAGE,
            0,
            "not known",
        ),
    ]
