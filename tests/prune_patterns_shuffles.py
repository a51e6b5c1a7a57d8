"""Operations that shuffle, repeat, fill and pad."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from prune_patterns import Pattern, Small, conv, own, through
from torch import Tensor, nn

IMAGE = ((2, 3, 7, 5),)
EVEN = ((2, 3, 8, 4),)


def patterns() -> list[Pattern]:
    return [*_shuffled(), *_repeated(), *_padded()]


def _shuffled() -> list[Pattern]:
    def shuffle(x: Tensor, groups: int) -> Tensor:
        n, c, h, w = x.shape
        return x.view(n, groups, c // groups, h, w).transpose(1, 2).contiguous().view(n, c, h, w)

    return [
        Pattern("channel shuffle by views", lambda: through(lambda m, x: shuffle(m.g(x), 2), g=conv(8, 8, groups=2)), IMAGE, 4),
        Pattern(
            "channel shuffle by views, -1",
            lambda: through(
                lambda m, x: x.view(x.size(0), 4, 2, x.size(2), x.size(3)).transpose(1, 2).reshape(x.size(0), -1, x.size(2), x.size(3))
            ),
            IMAGE,
            2,
        ),
        Pattern("channel shuffle op", lambda: through(lambda m, x: F.channel_shuffle(m.g(x), 4), g=conv(8, 8, groups=4)), IMAGE, 2),
        Pattern("channel shuffle module", lambda: through(lambda m, x: m.s(x), 12, 12, s=nn.ChannelShuffle(3)), IMAGE, 4),
        Pattern(
            "shufflenet unit",
            lambda: Small(
                lambda m, x: m.h(_unit(m, F.relu(m.s(x)), shuffle)),
                s=conv(3, 16),
                a=conv(8, 8, 1),
                b=conv(8, 8, groups=8),
                c=conv(8, 8, 1),
                h=conv(16, 2),
            ),
            IMAGE,
            8,
        ),
        Pattern("two shuffles", lambda: through(lambda m, x: shuffle(F.relu(shuffle(x, 2)), 3), 12, 12), IMAGE, 1),
        Pattern("pixel shuffle", lambda: through(lambda m, x: F.pixel_shuffle(x, 2), 16, 4), IMAGE, 4),
        Pattern("pixel unshuffle", lambda: through(lambda m, x: m.p(x), 4, 16, p=nn.PixelUnshuffle(2)), EVEN, 4),
        Pattern("pixel shuffle by views", lambda: through(_pixels, 16, 4), IMAGE, 4),
        Pattern("space to depth by views", lambda: through(_depth, 4, 16), EVEN, 4),
        Pattern(
            "superresolution",
            lambda: nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 12), nn.PixelShuffle(2)),
            IMAGE,
            8,
            "it reaches the output",
        ),
    ]


def _unit(m: Small, x: Tensor, shuffle: Any) -> Tensor:
    left, right = x.chunk(2, dim=1)
    return shuffle(torch.cat([left, F.relu(m.c(m.b(F.relu(m.a(right)))))], 1), 2)


def _pixels(m: Small, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, c // 4, h * 2, w * 2)


def _depth(m: Small, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).reshape(n, c * 4, h // 2, w // 2)


def _repeated() -> list[Pattern]:
    return [
        Pattern("repeat channels", lambda: through(lambda m, x: x.repeat(1, 2, 1, 1), 8, 16), IMAGE, 8),
        Pattern("repeat_interleave channels", lambda: through(lambda m, x: x.repeat_interleave(2, dim=1), 8, 16), IMAGE, 8),
        Pattern("torch.repeat_interleave", lambda: through(lambda m, x: torch.repeat_interleave(x, 3, 1), 4, 12), IMAGE, 4),
        Pattern("repeat positions", lambda: through(lambda m, x: x.repeat(1, 1, 2, 1)), IMAGE, 8),
        Pattern(
            "expand over positions",
            lambda: through(lambda m, x: x * x.mean((2, 3), keepdim=True).expand(-1, 8, x.size(2), x.size(3))),
            IMAGE,
            8,
        ),
        Pattern("expand_as", lambda: through(lambda m, x: x * x.mean((2, 3), keepdim=True).sigmoid().expand_as(x)), IMAGE, 8),
        Pattern(
            "expand one channel to all", lambda: through(lambda m, x: x * m.s(x).sigmoid().expand(-1, 8, -1, -1), s=conv(8, 1)), IMAGE, 8
        ),
        Pattern(
            "expand one channel to the size", lambda: through(lambda m, x: x * m.s(x).sigmoid().expand(x.shape), s=conv(8, 1)), IMAGE, 8
        ),
        Pattern(
            "repeat one channel to all",
            lambda: through(lambda m, x: x * m.s(x).sigmoid().repeat(1, x.size(1), 1, 1), s=conv(8, 1)),
            IMAGE,
            8,
        ),
        Pattern(
            "tile of the image",
            lambda: Small(lambda m, x: m.b(m.a(x) + x.repeat(1, 3, 1, 1)), a=conv(3, 9), b=conv(9, 4)),
            IMAGE,
            0,
            "fixed",
        ),
        Pattern("zeros like", lambda: through(lambda m, x: torch.maximum(x, torch.zeros_like(x)) + torch.ones_like(x)), IMAGE, 8),
        Pattern(
            "zeros of a shape",
            lambda: through(lambda m, x: torch.cat([x, torch.zeros(x.size(0), 8, x.size(2), x.size(3), dtype=x.dtype)], 1), 8, 16),
            IMAGE,
            8,
        ),
        Pattern(
            "zeros of a shape, joined to fixed channels",
            lambda: through(
                lambda m, x: torch.zeros(x.shape, dtype=x.dtype)[:, :3] + m.k + m.d(x),
                out=3,
                k=torch.randn(3, 1, 1).float().double(),
                d=conv(8, 3),
            ),
            IMAGE,
            8,
        ),
        Pattern("full of a size", lambda: through(lambda m, x: x + torch.full((x.shape[2], 1), x.shape[1], dtype=x.dtype)), IMAGE, 8),
        Pattern("new_zeros of the shape", lambda: through(lambda m, x: x + x.new_zeros(x.shape)), IMAGE, 8),
    ]


def _padded() -> list[Pattern]:
    return [
        Pattern("pad positions", lambda: through(lambda m, x: F.pad(x, (1, 2, 0, 1))), IMAGE, 8),
        Pattern("reflect positions", lambda: through(lambda m, x: F.pad(x, (1, 1, 1, 1), mode="reflect")), IMAGE, 8),
        Pattern("pad module", lambda: through(lambda m, x: m.p(x), p=nn.ZeroPad2d((1, 0, 1, 0))), IMAGE, 8),
        Pattern("reflection pad module", lambda: through(lambda m, x: m.p(x), p=nn.ReflectionPad2d(1)), IMAGE, 8),
        Pattern("pad channels", lambda: through(lambda m, x: F.pad(x, (0, 0, 0, 0, 2, 3), value=0.5), 8, 13), IMAGE, 13 - 5),
        Pattern(
            "pad module on channels",
            lambda: Small(lambda m, x: m.b(m.p(m.a(x))), a=nn.Linear(6, 8), p=nn.ConstantPad1d(1, 0.5), b=nn.Linear(10, 3)),
            ((2, 5, 6),),
            0,
            "padding module",
        ),
        Pattern("resnet option A", lambda: OptionA(), IMAGE, 12),
        Pattern(
            "pad channels to a size",
            lambda: Small(
                lambda m, x: m.c(m.b(x) + F.pad(m.a(x), (0, 0, 0, 0, 0, 12 - m.a(x).size(1)))), a=conv(3, 8), b=conv(3, 12), c=conv(12, 2)
            ),
            IMAGE,
            12,
        ),
        Pattern("pad to even positions", lambda: through(lambda m, x: F.pad(x, (0, x.size(3) % 2, 0, x.size(2) % 2))), IMAGE, 8),
        Pattern(
            "pad channels by their own",
            lambda: through(lambda m, x: F.pad(x.transpose(1, 3), (2, 2, 0, 0), mode="reflect").transpose(1, 3), 8, 12),
            IMAGE,
            0,
            "padding",
        ),
        Pattern("crop channels", lambda: through(lambda m, x: F.pad(x, (0, 0, 0, 0, -1, -2)), 8, 5), IMAGE, 0, "padding"),
        Pattern(
            "pad by a parameter",
            lambda: through(lambda m, x: torch.cat([m.p.expand(x.size(0), -1, x.size(2), x.size(3)), x], 1), 8, 10, p=own(1, 2, 1, 1)),
            IMAGE,
            10,
        ),
    ]


class OptionA(nn.Module):
    """The parameterless shortcut of the CIFAR resnets."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.head = conv(3, 8), conv(8, 16, stride=2), conv(16, 16), conv(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = self.b(F.relu(self.a(x)))
        return self.head(F.relu(y + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4), "constant", 0)))
