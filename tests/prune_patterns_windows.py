"""Attention in windows, and other products of activations."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from prune_patterns import Pattern, Small, conv, own
from torch import Tensor, nn

TOKENS = ((2, 5, 6),)
MAPS = ((2, 3, 8, 4),)


def patterns() -> list[Pattern]:
    return [*_windows(), *_products()]


def _windows() -> list[Pattern]:
    head = "heads meet each other, not weights"
    return [
        Pattern("windows", lambda: Window(0), MAPS, 4 + 4, by_hand=head),
        Pattern("shifted windows", lambda: Window(1), MAPS, 4 + 4, by_hand=head),
        Pattern(
            "window partition only",
            lambda: Small(
                lambda m, x: m.b(_whole(_windowed(m.a(x).permute(0, 2, 3, 1), 2), 2, x.size(2), x.size(3))), a=conv(3, 8), b=nn.Linear(8, 3)
            ),
            MAPS,
            8,
        ),
        Pattern(
            "patch merging",
            lambda: Small(_merging, a=conv(3, 8), n=nn.LayerNorm(32), r=nn.Linear(32, 6, bias=False), h=nn.Linear(6, 3)),
            MAPS,
            14,
        ),
    ]


def _windowed(x: Tensor, size: int) -> Tensor:
    b, h, w, c = x.shape
    return x.view(b, h // size, size, w // size, size, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, size * size, c)


def _whole(windows: Tensor, size: int, h: Any, w: Any) -> Tensor:
    c = windows.shape[-1]
    x = windows.view(-1, h // size, w // size, size, size, c)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, h, w, c)


def _merging(m: Small, x: Tensor) -> Tensor:
    y = m.a(x).permute(0, 2, 3, 1)
    y = torch.cat([y[:, 0::2, 0::2], y[:, 1::2, 0::2], y[:, 0::2, 1::2], y[:, 1::2, 1::2]], -1)
    return m.h(m.r(m.n(y)))


class Window(nn.Module):
    """Attention in (shifted) windows with a relative position bias, as in Swin."""

    def __init__(self, shift: int, heads: int = 4) -> None:
        super().__init__()
        self.shift, self.heads = shift, heads
        self.stem, self.norm = nn.Conv2d(3, 8, 1), nn.LayerNorm(8)
        self.qkv, self.proj, self.head = nn.Linear(8, 24), nn.Linear(8, 8), nn.Linear(8, 3)
        self.table = own(9, heads)
        place = torch.stack(torch.meshgrid(torch.arange(2), torch.arange(2), indexing="ij")).flatten(1)
        offset = (place[:, :, None] - place[:, None, :]).permute(1, 2, 0) + 1
        self.register_buffer("index", (offset[..., 0] * 3 + offset[..., 1]).flatten())

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).permute(0, 2, 3, 1)
        _, h, w, c = x.shape
        y = torch.roll(self.norm(x), shifts=(-self.shift, -self.shift), dims=(1, 2)) if self.shift else self.norm(x)
        y = _windowed(y, 2)
        q, k, v = self.qkv(y).reshape(y.size(0), y.size(1), 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        bias = self.table[self.index].view(4, 4, -1).permute(2, 0, 1).contiguous().unsqueeze(0)
        scores = (q * (c // self.heads) ** -0.5).matmul(k.transpose(-2, -1)) + bias
        y = F.softmax(scores, dim=-1).matmul(v).transpose(1, 2).reshape(y.size(0), y.size(1), c)
        y = _whole(self.proj(y), 2, h, w)
        y = torch.roll(y, shifts=(self.shift, self.shift), dims=(1, 2)) if self.shift else y
        return self.head(x + y)


def _products() -> list[Pattern]:
    other = "two activations meet, not weights"
    return [
        Pattern("gram matrix", lambda: Small(lambda m, x: _gram(m.a(x)), a=conv(3, 8)), MAPS, 0, "it reaches the output"),
        Pattern(
            "similarity of positions",
            lambda: Small(lambda m, x: m.a(x).flatten(2).transpose(1, 2) @ m.b(x).flatten(2), a=conv(3, 8), b=conv(3, 8)),
            MAPS,
            8,
            by_hand=other,
        ),
        Pattern(
            "channel attention",
            lambda: Small(_channel_attention, q=conv(3, 8), k=conv(3, 8), v=conv(3, 8), o=conv(8, 3)),
            MAPS,
            8 + 8,
            by_hand=other,
        ),
        Pattern(
            "non-local block",
            lambda: Small(_non_local, s=conv(3, 8), q=conv(8, 4), k=conv(8, 4), v=conv(8, 6), o=conv(6, 8), h=conv(8, 3)),
            MAPS,
            18,
            by_hand=other,
        ),
        Pattern(
            "outer product flattened",
            lambda: Small(
                lambda m, x: m.c((m.a(x)[:, :, None] * m.b(x)[:, None]).flatten(1)),
                a=nn.Linear(6, 4),
                b=nn.Linear(6, 5),
                c=nn.Linear(20, 3),
            ),
            ((2, 6),),
            0,
            "axis",
            other="batch",
        ),
        Pattern(
            "product with itself",
            lambda: Small(lambda m, x: m.b((m.a(x) @ m.a(x).mT) @ m.a(x)), a=nn.Linear(6, 8), b=nn.Linear(8, 3)),
            TOKENS,
            8,
            by_hand=other,
        ),
        Pattern(
            "matrix product of batches",
            lambda: Small(
                lambda m, x: m.o(torch.baddbmm(m.v(x), m.q(x).mT, m.k(x))),
                q=nn.Linear(6, 5),
                k=nn.Linear(6, 9),
                v=nn.Linear(6, 9),
                o=nn.Linear(9, 3),
            ),
            TOKENS,
            9,
            other="batch",
        ),
    ]


def _gram(x: Tensor) -> Tensor:
    flat = x.flatten(2)
    return flat @ flat.transpose(1, 2)


def _channel_attention(m: Small, x: Tensor) -> Tensor:
    q, k, v = (layer(x).flatten(2) for layer in (m.q, m.k, m.v))
    y = (q @ k.transpose(1, 2)).softmax(-1) @ v
    return m.o(y.view(x.size(0), 8, x.size(2), x.size(3)))


def _non_local(m: Small, x: Tensor) -> Tensor:
    y = F.relu(m.s(x))
    q, k, v = m.q(y).flatten(2), m.k(y).flatten(2), m.v(y).flatten(2)
    z = v @ (q.transpose(1, 2) @ k).softmax(-1).transpose(1, 2)
    return m.h(y + m.o(z.view(z.size(0), -1, *x.shape[2:])))
