"""Blocks of well-known networks."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from prune_patterns import Pattern, Small, conv, own
from torch import Tensor, nn

IMAGE = ((2, 3, 7, 5),)
EVEN = ((2, 3, 8, 4),)


def patterns() -> list[Pattern]:
    return [*_gates(), *_nets()]


def gated(run: Any, **parts: Any) -> Small:
    return Small(lambda m, x: m.b(run(m, F.relu(m.a(x)))), a=conv(3, 8), b=conv(8, 4), **parts)


def _gates() -> list[Pattern]:
    return [
        Pattern("squeeze-excite", lambda: gated(_squeeze, d=conv(8, 3, 1), u=conv(3, 8, 1)), IMAGE, 8 + 3),
        Pattern("squeeze-excite with linear layers", lambda: gated(_squeeze_rows, d=nn.Linear(8, 3), u=nn.Linear(3, 8)), IMAGE, 8 + 3),
        Pattern("glu", lambda: Small(lambda m, x: m.b(F.glu(m.a(x), 1)), a=conv(3, 16), b=conv(8, 4)), IMAGE, 8),
        Pattern("glu module of tokens", lambda: nn.Sequential(nn.Linear(6, 16), nn.GLU(), nn.Linear(8, 3)), ((2, 5, 6),), 8),
        Pattern(
            "swiglu",
            lambda: Small(lambda m, x: m.c(F.silu(m.a(x)) * m.b(x)), a=nn.Linear(6, 9), b=nn.Linear(6, 9), c=nn.Linear(9, 3)),
            ((2, 5, 6),),
            9,
        ),
        Pattern(
            "swiglu packed",
            lambda: Small(lambda m, x: m.c(F.silu(m.a(x)[..., :9]) * m.a(x)[..., 9:]), a=nn.Linear(6, 18), c=nn.Linear(9, 3)),
            ((2, 5, 6),),
            9,
        ),
        Pattern("spatial attention (CBAM)", lambda: gated(_spatial, s=nn.Conv2d(2, 1, 3, padding=1)), IMAGE, 8),
        Pattern(
            "CBAM",
            lambda: gated(
                lambda m, x: _spatial(m, _channel(m, x)),
                f=nn.Sequential(conv(8, 3, 1), nn.ReLU(), conv(3, 8, 1)),
                s=nn.Conv2d(2, 1, 3, padding=1),
            ),
            IMAGE,
            8 + 3,
        ),
        Pattern("ECA", lambda: gated(_eca, e=nn.Conv1d(1, 1, 3, padding=1, bias=False)), IMAGE, 0, "convolution mixes"),
        Pattern(
            "SKNet",
            lambda: Small(
                _selective,
                s=conv(3, 6),
                a=conv(6, 8),
                b=conv(6, 8, 5),
                z=nn.Linear(8, 5),
                f=nn.Linear(5, 8),
                g=nn.Linear(5, 8),
                h=conv(8, 3),
            ),
            IMAGE,
            6 + 8 + 5,
        ),
        Pattern(
            "split attention (ResNeSt)",
            lambda: Small(_split_attention, s=conv(3, 6), a=conv(6, 16), d=conv(8, 5, 1), u=conv(5, 16, 1), h=conv(8, 3)),
            IMAGE,
            6 + 8 + 5,
        ),
        Pattern(
            "highway",
            lambda: gated(lambda m, x: x * m.t(x).sigmoid() + m.h(x) * (1 - m.t(x).sigmoid()), t=conv(8, 8), h=conv(8, 8)),
            IMAGE,
            8,
        ),
        Pattern(
            "dynamic convolution",
            lambda: Small(_dynamic, a=conv(3, 6), r=nn.Linear(6, 3), w=own(3, 8, 6, 3, 3), h=conv(8, 3)),
            IMAGE,
            6,
            other="",
            by_hand="channels and samples share an axis",
        ),
        Pattern("FiLM", lambda: Small(_film, a=conv(3, 8), c=nn.Linear(3, 16), b=conv(8, 4)), IMAGE, 8),
    ]


def _squeeze(m: Small, x: Tensor) -> Tensor:
    s = m.u(F.relu(m.d(F.adaptive_avg_pool2d(x, 1))))
    return s.sigmoid() * x


def _squeeze_rows(m: Small, x: Tensor) -> Tensor:
    b, c, _, _ = x.size()
    s = F.adaptive_avg_pool2d(x, 1).view(b, c)
    s = torch.sigmoid(m.u(F.relu(m.d(s)))).view(b, c, 1, 1)
    return x * s.expand_as(x)


def _channel(m: Small, x: Tensor) -> Tensor:
    return x * torch.sigmoid(m.f(F.adaptive_avg_pool2d(x, 1)) + m.f(F.adaptive_max_pool2d(x, 1)))


def _spatial(m: Small, x: Tensor) -> Tensor:
    mean, top = torch.mean(x, dim=1, keepdim=True), torch.max(x, dim=1, keepdim=True)[0]
    return x * torch.sigmoid(m.s(torch.cat([mean, top], dim=1)))


def _eca(m: Small, x: Tensor) -> Tensor:
    y = m.e(F.adaptive_avg_pool2d(x, 1).squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)
    return x * y.sigmoid().expand_as(x)


def _selective(m: Small, x: Tensor) -> Tensor:
    x = F.relu(m.s(x))
    branches = torch.stack([m.a(x), m.b(x)], dim=1)
    z = F.relu(m.z(branches.sum(1).mean((2, 3))))
    weights = torch.stack([m.f(z), m.g(z)], dim=1).softmax(1)
    return m.h((branches * weights[..., None, None]).sum(dim=1))


def _split_attention(m: Small, x: Tensor) -> Tensor:
    x = F.relu(m.a(F.relu(m.s(x))))
    b, c, h, w = x.shape
    x = x.reshape(b, 2, c // 2, h, w)
    gate = m.u(F.relu(m.d(x.sum(dim=1).mean((2, 3), keepdim=True))))
    gate = gate.view(b, 1, 2, -1).transpose(1, 2).softmax(1).reshape(b, -1, 1, 1)
    return m.h((x * gate.reshape(b, 2, c // 2, 1, 1)).sum(dim=1))


def _dynamic(m: Small, x: Tensor) -> Tensor:
    """A kernel for every sample: batch and channels are one axis."""
    x = F.relu(m.a(x))
    b, c, h, w = x.shape
    mix = m.r(x.mean((2, 3))).softmax(1)
    weight = torch.einsum("bk,koihw->boihw", mix, m.w).reshape(b * 8, c, 3, 3)
    return m.h(F.conv2d(x.reshape(1, b * c, h, w), weight, padding=1, groups=2).view(b, 8, h, w))


def _film(m: Small, x: Tensor) -> Tensor:
    gamma, beta = m.c(x.mean((2, 3)))[:, :, None, None].chunk(2, dim=1)
    return m.b(F.relu(m.a(x)) * (1 + gamma) + beta)


def _nets() -> list[Pattern]:
    return [
        Pattern(
            "bottleneck residual",
            lambda: Small(_bottleneck, s=conv(3, 8), a=conv(8, 4, 1), n=nn.BatchNorm2d(4), b=conv(4, 6), c=conv(6, 8, 1), h=conv(8, 3)),
            IMAGE,
            18,
        ),
        Pattern(
            "residual with a downsample",
            lambda: Small(
                lambda m, x: m.h(F.relu(m.b(F.relu(m.a(m.s(x)))) + m.d(m.s(x)))),
                s=conv(3, 6),
                a=conv(6, 8, stride=2),
                b=conv(8, 10),
                d=conv(6, 10, 1, stride=2),
                h=conv(10, 3),
            ),
            IMAGE,
            24,
        ),
        Pattern("ConvNeXt block", lambda: ConvNext(), IMAGE, 8 + 12),
        Pattern("MLP-Mixer", lambda: Mixer(), EVEN, 8 + 6 + 10, other="batch"),
        Pattern("U-Net", lambda: UNet(), EVEN, 6 + 8 + 6),
        Pattern(
            "feature pyramid",
            lambda: Small(_pyramid, a=conv(3, 6), b=conv(6, 8, stride=2), l=conv(6, 5, 1), t=conv(8, 5, 1), o=conv(5, 4)),
            EVEN,
            6 + 8 + 5,
        ),
        Pattern("C2f (YOLO)", lambda: C2f(), IMAGE, 20),
        Pattern("spatial pyramid pooling", lambda: Small(_sppf, a=conv(3, 6), b=conv(24, 8), h=conv(8, 3)), IMAGE, 6 + 8),
        Pattern(
            "inception",
            lambda: Small(
                lambda m, x: m.h(torch.cat([m.a(x), m.c(F.relu(m.b(x))), m.d(F.avg_pool2d(x, 3, 1, 1))], 1)),
                a=conv(3, 4, 1),
                b=conv(3, 5),
                c=conv(5, 6),
                d=conv(3, 2, 1),
                h=conv(12, 3),
            ),
            IMAGE,
            17,
        ),
        Pattern("ghost module", lambda: Small(_ghost, p=conv(3, 6), c=conv(6, 6, groups=6), h=conv(12, 3)), IMAGE, 6),
        Pattern("res2net", lambda: Small(_res2, s=conv(3, 12), a=conv(4, 4), b=conv(4, 4), h=conv(12, 3)), IMAGE, 8),
        Pattern("cross stage partial", lambda: Small(_csp, s=conv(3, 12), a=conv(6, 8), b=conv(8, 6), h=conv(12, 3)), IMAGE, 12 + 8),
        Pattern(
            "RepVGG block",
            lambda: Small(
                lambda m, x: m.h(F.relu(m.n(m.s(x)) + m.a(m.s(x)) + m.b(m.s(x)))),
                s=conv(3, 8),
                n=nn.BatchNorm2d(8),
                a=conv(8, 8),
                b=conv(8, 8, 1),
                h=conv(8, 3),
            ),
            IMAGE,
            8,
        ),
        Pattern("gated spatial unit (gMLP)", lambda: Gmlp(), ((2, 5, 6),), 7, other="batch"),
        Pattern(
            "layer scale and drop path",
            lambda: Small(
                lambda m, x: m.h(m.s(x) + m.g * m.b(F.gelu(m.a(m.s(x))))),
                s=nn.Linear(6, 8),
                a=nn.Linear(8, 10),
                b=nn.Linear(10, 8),
                g=own(8),
                h=nn.Linear(8, 3),
            ),
            ((2, 5, 6),),
            18,
        ),
        Pattern(
            "two heads of outputs",
            lambda: Small(lambda m, x: {"a": m.a(m.s(x)), "b": [m.b(m.s(x).relu())]}, s=conv(3, 8), a=conv(8, 4), b=conv(8, 2)),
            IMAGE,
            8,
        ),
        Pattern(
            "feature that is also an output",
            lambda: Small(lambda m, x: (m.b(m.a(x)), m.a(x)), a=conv(3, 8), b=conv(8, 4)),
            IMAGE,
            0,
            "it reaches the output",
        ),
        Pattern(
            "PointNet",
            lambda: Small(
                lambda m, x: m.c(torch.max(m.b(F.relu(m.a(x.transpose(1, 2)))), 2)[0]),
                a=nn.Conv1d(6, 8, 1),
                b=nn.Conv1d(8, 10, 1),
                c=nn.Linear(10, 3),
            ),
            ((2, 5, 6),),
            18,
        ),
        Pattern("temporal shift", lambda: Small(_temporal, a=conv(3, 8), b=conv(8, 4)), ((4, 3, 7, 5),), 8, other=""),
    ]


def _bottleneck(m: Small, x: Tensor) -> Tensor:
    y = F.relu(m.s(x))
    return m.h(F.relu_(m.c(F.relu(m.b(F.relu(m.n(m.a(y)))))).add_(y)))


class ConvNext(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise, self.norm = conv(3, 8), conv(8, 8, 7, groups=8), nn.LayerNorm(8)
        self.up, self.down, self.gamma, self.head = nn.Linear(8, 12), nn.Linear(12, 8), own(8, 1, 1), conv(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.depthwise(x).permute(0, 2, 3, 1)
        y = self.down(F.gelu(self.up(self.norm(y)))).permute(0, 3, 1, 2)
        return self.head(x + self.gamma * y)


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches, self.one, self.two = nn.Conv2d(3, 8, 2, 2), nn.LayerNorm(8), nn.LayerNorm(8)
        self.tokens = nn.Sequential(nn.Linear(8, 6), nn.GELU(), nn.Linear(6, 8))
        self.channels = nn.Sequential(nn.Linear(8, 10), nn.GELU(), nn.Linear(10, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.tokens(self.one(x).transpose(1, 2)).transpose(1, 2)
        return self.head((x + self.channels(self.two(x))).mean(1))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.up, self.c, self.head = conv(3, 6), conv(6, 8), nn.ConvTranspose2d(8, 6, 2, 2), conv(12, 6), conv(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.a(x))
        b = F.relu(self.b(F.max_pool2d(a, 2)))
        return self.head(F.relu(self.c(torch.cat([a, self.up(b)], 1))))


def _pyramid(m: Small, x: Tensor) -> tuple[Tensor, Tensor]:
    a = F.relu(m.a(x))
    top = m.t(F.relu(m.b(a)))
    low = m.l(a) + F.interpolate(top, size=a.shape[-2:], mode="nearest")
    return m.o(low), m.o(top)


class C2f(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.head = conv(3, 8, 1), conv(16, 6, 1), conv(6, 2)
        self.blocks = nn.ModuleList(nn.Sequential(conv(4, 3), nn.SiLU(), conv(3, 4), nn.SiLU()) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y = list(F.silu(self.first(x)).chunk(2, 1))
        for block in self.blocks:
            y.append(y[-1] + block(y[-1]))
        return self.head(self.last(torch.cat(y, 1)))


def _sppf(m: Small, x: Tensor) -> Tensor:
    a = m.a(x)
    b = F.max_pool2d(a, 3, 1, 1)
    c = F.max_pool2d(b, 3, 1, 1)
    return m.h(m.b(torch.cat((a, b, c, F.max_pool2d(c, 3, 1, 1)), 1)))


def _ghost(m: Small, x: Tensor) -> Tensor:
    first = F.relu(m.p(x))
    return m.h(torch.cat([first, F.relu(m.c(first))], dim=1)[:, :12, :, :])


def _res2(m: Small, x: Tensor) -> Tensor:
    first, second, third = torch.split(F.relu(m.s(x)), 4, 1)
    second = m.a(second)
    return m.h(torch.cat([first, second, m.b(third + second)], 1))


def _csp(m: Small, x: Tensor) -> Tensor:
    left, right = F.relu(m.s(x)).split([6, 6], dim=1)
    return m.h(torch.cat([left, m.b(F.relu(m.a(right)))], 1))


class Gmlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.spatial, self.down = nn.Linear(6, 14), nn.LayerNorm(7), nn.Linear(5, 5), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        u, v = F.gelu(self.up(x)).chunk(2, dim=-1)
        return self.down(u * self.spatial(self.norm(v).transpose(1, 2)).transpose(1, 2))


def _temporal(m: Small, x: Tensor) -> Tensor:
    """Frames lend channels to their neighbours."""
    x = F.relu(m.a(x))
    n, c, h, w = x.shape
    x = x.view(n // 2, 2, c, h, w)
    ahead = torch.roll(x[:, :, : c // 4], 1, dims=1)
    return m.b(torch.cat([ahead, x[:, :, c // 4 :]], dim=2).view(n, c, h, w))
