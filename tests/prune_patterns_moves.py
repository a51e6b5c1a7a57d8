"""Operations that move data: joining, cutting, views."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from prune_patterns import Pattern, Small, conv, through
from torch import Tensor, nn

IMAGE = ((2, 3, 7, 5),)
EVEN = ((2, 3, 8, 4),)


def patterns() -> list[Pattern]:
    return [*_joined(), *_cut(), *_views()]


def two(run: Any, **rest: Any) -> Small:
    """What ``run`` does with the results of two convs, then a conv of ``out`` channels."""
    out, widths = rest.pop("out", 16), rest.pop("widths", (8, 8))
    return Small(lambda m, x: m.c(run(m, m.a(x), F.relu(m.b(x)), x)), a=conv(3, widths[0]), b=conv(3, widths[1]), c=conv(out, 4), **rest)


def _joined() -> list[Pattern]:
    return [
        Pattern("add", lambda: two(lambda m, a, b, x: a + b, out=8), IMAGE, 8),
        Pattern("cat", lambda: two(lambda m, a, b, x: torch.cat([a, b], 1)), IMAGE, 16),
        Pattern("cat of the same twice", lambda: two(lambda m, a, b, x: torch.cat([a, b, a], 1), out=24), IMAGE, 16),
        Pattern("cat with the input", lambda: two(lambda m, a, b, x: torch.cat([a, x, b], -3), out=19), IMAGE, 16),
        Pattern(
            "cat with a constant",
            lambda: two(
                lambda m, a, b, x: torch.cat([a, m.k.expand(x.size(0), -1, x.size(2), x.size(3)), b], 1), out=18, k=torch.randn(1, 2, 1, 1)
            ),
            IMAGE,
            16,
        ),
        Pattern("cat over positions", lambda: two(lambda m, a, b, x: torch.cat([a, b], 2), out=8), IMAGE, 8),
        Pattern("cat over the batch", lambda: two(lambda m, a, b, x: torch.cat([a, b], 0), out=8), IMAGE, 8),
        Pattern("cat then norm", lambda: two(lambda m, a, b, x: m.n(torch.cat([a, b], 1)), n=nn.BatchNorm2d(16)), IMAGE, 16),
        Pattern("cat then depthwise", lambda: two(lambda m, a, b, x: m.n(torch.cat([a, b], 1)), n=conv(16, 16, groups=16)), IMAGE, 16),
        Pattern("cat then group norm", lambda: two(lambda m, a, b, x: m.n(torch.cat([a, b], 1)), n=nn.GroupNorm(2, 16)), IMAGE, 8),
        Pattern("cat added to cat", lambda: two(lambda m, a, b, x: torch.cat([a, b], 1) + torch.cat([b, a], 1)), IMAGE, 8),
        Pattern("cat added to one conv", lambda: two(lambda m, a, b, x: torch.cat([a, b], 1) + m.d(x), d=conv(3, 16)), IMAGE, 16),
        Pattern("stack, then sum", lambda: two(lambda m, a, b, x: torch.stack([a, b], 1).sum(1), out=8), IMAGE, 8),
        Pattern(
            "stack of many, then max",
            lambda: two(lambda m, a, b, x: torch.stack([a, b, a + b, a * b, a - b], 0).amax(0), out=4, widths=(4, 4)),
            IMAGE,
            4,
        ),
        Pattern("stack, then flatten", lambda: two(lambda m, a, b, x: torch.stack([a, b], 2).flatten(1, 2)), IMAGE, 8),
        Pattern("densenet", lambda: Dense(), IMAGE, 16),
    ]


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 4)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4 + 4 * i) for i in range(3))
        self.convs = nn.ModuleList(conv(4 + 4 * i, 4) for i in range(3))
        self.head = conv(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for norm, layer in zip(self.norms, self.convs, strict=True):
            features.append(layer(F.relu(norm(torch.cat(features, 1)))))
        return self.head(torch.cat(features, 1))


def _cut() -> list[Pattern]:
    return [
        Pattern(
            "chunk, both halves used",
            lambda: Small(lambda m, x: m.b(m.a(x).chunk(2, 1)[0]) + m.c(m.a(x).chunk(2, 1)[1]), a=conv(3, 16), b=conv(8, 4), c=conv(8, 4)),
            IMAGE,
            16,
        ),
        Pattern("chunk, product of halves", lambda: through(lambda m, x: x.chunk(2, 1)[0] * x.chunk(2, 1)[1].sigmoid(), 16), IMAGE, 8),
        Pattern("uneven chunk", lambda: through(lambda m, x: torch.cat(x.chunk(3, dim=1)[::-1], 1)), IMAGE, 8),
        Pattern("split of one size", lambda: through(lambda m, x: sum(x.split(4, 1)), 12, 4), IMAGE, 4),
        Pattern(
            "split of many sizes",
            lambda: Small(
                lambda m, x: _branches(m, torch.split(m.a(x), [2, 6, 4], dim=1)), a=conv(3, 12), b=conv(2, 4), c=conv(6, 4), d=conv(4, 4)
            ),
            IMAGE,
            12,
        ),
        Pattern("split by half of the size", lambda: through(lambda m, x: _half(x)), IMAGE, 8),
        Pattern("tensor_split", lambda: through(lambda m, x: torch.cat(list(torch.tensor_split(x, 3, 1))[1:], 1), 8, 5), IMAGE, 5),
        Pattern("slice", lambda: through(lambda m, x: x[:, 2:6], 8, 4), IMAGE, 4),
        Pattern(
            "slices of both ends",
            lambda: Small(lambda m, x: m.b(m.a(x)[:, :3]) + m.c(m.a(x)[:, -5:]), a=conv(3, 8), b=conv(3, 4), c=conv(5, 4)),
            IMAGE,
            8,
        ),
        Pattern("strided slice of channels", lambda: through(lambda m, x: torch.cat([x[:, ::2], x[:, 1::2]], 1)), IMAGE, 8),
        Pattern("slice with an ellipsis", lambda: through(lambda m, x: x[..., 1:, :-1][:, 1:7], 8, 6), IMAGE, 6),
        Pattern("slices of positions", lambda: through(lambda m, x: x[:, :, ::2, 1:]), IMAGE, 8),
        Pattern(
            "slice to half of the size",
            lambda: Small(lambda m, x: _half_slices(m, m.a(x)), a=conv(3, 8), b=conv(4, 4), c=conv(4, 4)),
            IMAGE,
            8,
        ),
        Pattern("narrow", lambda: through(lambda m, x: x.narrow(1, 2, 5), 8, 5), IMAGE, 5),
        Pattern("one channel beside all", lambda: through(lambda m, x: x * x[:, 3:4].sigmoid()), IMAGE, 7),
        Pattern("one channel by number beside all", lambda: through(lambda m, x: x * x[:, 3].sigmoid().unsqueeze(1)), IMAGE, 7),
        Pattern(
            "select of channels and movedim",
            lambda: Small(lambda m, x: m.b(m.a(x).movedim(1, -1) * m.a(x).select(1, 2).unsqueeze(-1)), a=conv(3, 8), b=nn.Linear(8, 4)),
            IMAGE,
            7,
        ),
        Pattern("unbind channels", lambda: Small(lambda m, x: m.a(x).unbind(1)[0] + m.a(x).unbind(1)[5], a=conv(3, 8)), IMAGE, 0, "one"),
        Pattern("unbind a view", lambda: through(lambda m, x: sum(x.view(x.size(0), 3, 6, *x.shape[2:]).unbind(1)), 18, 6), IMAGE, 6),
        Pattern(
            "unbind a view of more parts than channels",
            lambda: through(lambda m, x: sum(x.view(x.size(0), 6, 3, *x.shape[2:]).unbind(1)), 18, 3),
            IMAGE,
            3,
        ),
        Pattern(
            "index_select by a constant",
            lambda: through(lambda m, x: x.index_select(1, m.i), 8, 6, i=torch.tensor([7, 0, 3, 3, 5, 1])),
            IMAGE,
            5,
        ),
        Pattern("getitem by a constant", lambda: through(lambda m, x: x[:, m.i], 8, 6, i=torch.tensor([7, 0, 3, 2, 5, 1])), IMAGE, 6),
        Pattern(
            "permutation of channels",
            lambda: through(lambda m, x: x + torch.index_select(x, 1, m.i), i=torch.tensor([1, 0, 3, 2, 5, 4, 7, 6])),
            IMAGE,
            4,
        ),
        Pattern("getitem by a list", lambda: through(lambda m, x: x[:, [6, 0, -1]], 8, 3), IMAGE, 3),
        Pattern("roll over everything", lambda: through(lambda m, x: torch.roll(x, 5)), IMAGE, 0, "all axes"),
        Pattern(
            "a sample and some channels", lambda: through(lambda m, x: x[0, m.i].unsqueeze(0), 8, 3, i=torch.tensor([6, 0, 1])), IMAGE, 3
        ),
        Pattern("flip channels", lambda: through(lambda m, x: x + x.flip(1)), IMAGE, 4),
        Pattern("flip channels, then conv", lambda: through(lambda m, x: torch.flip(x, [1, 3])), IMAGE, 8),
        Pattern("roll positions", lambda: through(lambda m, x: torch.roll(x, (1, -2), (2, 3))), IMAGE, 8),
        Pattern("roll channels", lambda: through(lambda m, x: torch.roll(x, 3, 1)), IMAGE, 8),
        Pattern("roll channels back", lambda: through(lambda m, x: torch.roll(x, (-2, 1), (1, 2))), IMAGE, 8),
        Pattern(
            "focus",
            lambda: through(lambda m, x: torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1), 4, 16),
            EVEN,
            4,
        ),
        Pattern(
            "table of channels",
            lambda: Small(
                lambda m, x: m.b(m.a(x)[:, m.i].flatten(1, 2)), a=conv(3, 8), b=conv(6, 4), i=torch.tensor([[0, 1, 2], [5, 6, 7]])
            ),
            IMAGE,
            0,
            "table",
        ),
    ]


def _branches(m: Small, parts: Any) -> Tensor:
    first, second, third = parts
    return m.b(first) + m.c(second) + m.d(third)


def _half(x: Tensor) -> Tensor:
    left, right = x.split(x.size(1) // 2, dim=1)
    return torch.cat([right, left.sigmoid()], 1)


def _half_slices(m: Small, x: Tensor) -> Tensor:
    half = x.shape[1] // 2
    return m.b(x[:, :half]) * m.c(x[:, half:])


def _views() -> list[Pattern]:
    def flat(run: Any, width: int = 8) -> Small:
        return Small(lambda m, x: m.b(run(F.relu(m.a(x)))), a=conv(3, width), b=nn.Linear(width * 35, 4))

    return [
        Pattern("flatten", lambda: flat(lambda x: x.flatten(1)), IMAGE, 8, other="batch"),
        Pattern("flatten module", lambda: nn.Sequential(conv(3, 8), nn.Flatten(), nn.Linear(280, 4)), IMAGE, 8, other="batch"),
        Pattern("view(-1, number)", lambda: flat(lambda x: x.view(-1, 280)), IMAGE, 8, other="batch"),
        Pattern("view(size(0), -1)", lambda: flat(lambda x: x.view(x.size(0), -1)), IMAGE, 8, other="batch"),
        Pattern(
            "reshape with sizes computed",
            lambda: flat(lambda x: x.reshape(x.shape[0], x.shape[1] * x.shape[2] * x.shape[3])),
            IMAGE,
            8,
            other="batch",
        ),
        Pattern(
            "view from mixed numbers",
            lambda: Small(
                lambda m, x: m.b(m.a(x).view(x.size(0), 8, x.size(2) * x.size(3)).transpose(1, 2)), a=conv(3, 8), b=nn.Linear(8, 4)
            ),
            IMAGE,
            8,
        ),
        Pattern(
            "view to a written-out product",
            lambda: Small(
                lambda m, x: m.b(m.a(x).mean(3).reshape(x.size(0), x.size(2) * 8).view(x.size(0), 8, x.size(2))),
                a=conv(3, 8),
                b=nn.Conv1d(8, 4, 1),
            ),
            IMAGE,
            8,
        ),
        Pattern("view and back by the shape", lambda: through(lambda m, x: (x.flatten(2) * 2).view(x.shape)), IMAGE, 8),
        Pattern(
            "view and back by parts of the shape", lambda: through(lambda m, x: x.flatten(2).view(*x.shape[:2], *x.shape[2:])), IMAGE, 8
        ),
        Pattern("view_as", lambda: through(lambda m, x: x.flatten(2).view_as(x)), IMAGE, 8),
        Pattern("unflatten", lambda: through(lambda m, x: x.unflatten(1, (2, 4)).sum(1), 8, 4), IMAGE, 4),
        Pattern(
            "unflatten module",
            lambda: Small(lambda m, x: m.b(m.u(m.a(x)).amax(2)), a=conv(3, 8), u=nn.Unflatten(1, (4, 2)), b=conv(4, 4)),
            IMAGE,
            4,
        ),
        Pattern(
            "view to groups and back",
            lambda: through(lambda m, x: x.view(x.size(0), 2, 4, x.size(2), x.size(3)).reshape(x.size(0), 8, x.size(2), x.size(3))),
            IMAGE,
            4,
        ),
        Pattern(
            "view to groups, statistic",
            lambda: through(lambda m, x: (x.view(x.size(0), 4, 2, -1) - x.view(x.size(0), 4, 2, -1).mean(2, keepdim=True)).view_as(x)),
            IMAGE,
            4,
        ),
        Pattern(
            "permute to the back",
            lambda: Small(lambda m, x: m.b(m.a(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2), a=conv(3, 8), b=nn.Linear(8, 4)),
            IMAGE,
            8,
        ),
        Pattern(
            "transpose of tokens",
            lambda: Small(lambda m, x: m.b(m.a(x).flatten(2).transpose(1, 2)), a=conv(3, 8), b=nn.Linear(8, 4)),
            IMAGE,
            8,
        ),
        Pattern(
            "swapaxes and mT",
            lambda: Small(lambda m, x: m.b(m.a(x).flatten(2).mT) + m.b(m.a(x).flatten(2).swapaxes(1, 2)), a=conv(3, 8), b=nn.Linear(8, 4)),
            IMAGE,
            8,
        ),
        Pattern(
            "squeeze everything",
            lambda: Small(lambda m, x: m.b(F.adaptive_avg_pool2d(m.a(x), 1).squeeze()), a=conv(3, 8), b=nn.Linear(8, 4)),
            IMAGE,
            8,
        ),
        Pattern(
            "squeeze and unsqueeze",
            lambda: Small(lambda m, x: m.b(m.a(x).mean(3, keepdim=True).squeeze(-1).unsqueeze(2)), a=conv(3, 8), b=conv(8, 4)),
            IMAGE,
            8,
        ),
        Pattern(
            "None in an index", lambda: Small(lambda m, x: m.b(m.a(x).mean((2, 3))[:, :, None, None]), a=conv(3, 8), b=conv(8, 4)), IMAGE, 8
        ),
        Pattern(
            "merge with the batch",
            lambda: Small(
                lambda m, x: m.b(m.a(x).view(x.size(0) * 8, 1, x.size(2), x.size(3))).view(x.size(0), 8, 2, x.size(2), x.size(3)).sum(1),
                a=conv(3, 8),
                b=conv(1, 2),
            ),
            IMAGE,
            8,
            by_hand="channels are summed without weights",
        ),
        Pattern("flatten to one axis", lambda: through(lambda m, x: x.flatten().view(x.shape)), IMAGE, 8),
        Pattern(
            "generator",
            lambda: Small(
                lambda m, x: m.c(m.b(m.a(x).view(-1, 6, 4, 4)).relu()),
                a=nn.Linear(5, 96),
                b=nn.ConvTranspose2d(6, 8, 4, 2, 1),
                c=conv(8, 3),
            ),
            ((2, 5),),
            14,
            other="batch",
        ),
        Pattern(
            "generator with unflatten and norm",
            lambda: nn.Sequential(nn.Linear(5, 96), nn.BatchNorm1d(96), nn.Unflatten(1, (6, 4, 4)), nn.ReLU(), conv(6, 8), conv(8, 3)),
            ((3, 5),),
            14,
            other="batch",
        ),
    ]
