"""Convolutions, linear layers, embeddings, pooling."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from prune_patterns import Pattern, Small, conv, own
from torch import nn

IMAGE = ((2, 3, 7, 5),)
ROWS = ((2, 6),)


def patterns() -> list[Pattern]:
    return [*_plain(), *_grouped(), *_transposed(), *_linear(), *_spatial()]


def _plain() -> list[Pattern]:
    return [
        Pattern("conv1d", lambda: nn.Sequential(nn.Conv1d(3, 8, 3), nn.ReLU(), nn.Conv1d(8, 4, 3, padding=1)), ((2, 3, 9),), 8),
        Pattern("conv2d", lambda: nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 4)), IMAGE, 8),
        Pattern(
            "conv3d", lambda: nn.Sequential(nn.Conv3d(2, 6, 3, padding=1), nn.BatchNorm3d(6), nn.Conv3d(6, 3, 1)), ((2, 2, 4, 5, 3),), 6
        ),
        Pattern("conv without batch", lambda: nn.Sequential(conv(3, 8), nn.Sigmoid(), conv(8, 4)), ((3, 7, 5),), 8, other=""),
        Pattern(
            "conv padding modes",
            lambda: nn.Sequential(conv(3, 8, padding_mode="reflect"), nn.Sigmoid(), conv(8, 4, padding_mode="circular")),
            IMAGE,
            8,
        ),
        Pattern("conv padding same", lambda: nn.Sequential(conv(3, 8, padding="same"), nn.Tanh(), conv(8, 4, padding="valid")), IMAGE, 8),
        Pattern("sigmoid before a padded conv", lambda: nn.Sequential(conv(3, 8), nn.Sigmoid(), conv(8, 4)), IMAGE, 8),
        Pattern("three in a row", lambda: nn.Sequential(conv(3, 8), nn.Hardswish(), conv(8, 6, 1), nn.Mish(), conv(6, 4)), IMAGE, 14),
        Pattern(
            "functional convs with own weights",
            lambda: Small(
                lambda m, x: F.conv2d(F.relu(F.conv2d(x, m.w, m.b, padding=1)), m.v, padding=1),
                w=own(8, 3, 3, 3),
                b=own(8),
                v=own(4, 8, 3, 3),
            ),
            IMAGE,
            8,
        ),
        Pattern("one output channel between", lambda: nn.Sequential(conv(3, 8), conv(8, 1), nn.ReLU(), conv(1, 6), conv(6, 2)), IMAGE, 14),
        Pattern("only one conv", lambda: conv(3, 8), IMAGE, 0, "it reaches the output"),
    ]


def _grouped() -> list[Pattern]:
    return [
        Pattern(
            "few groups", lambda: nn.Sequential(conv(3, 12), nn.ReLU(), conv(12, 12, groups=2), nn.BatchNorm2d(12), conv(12, 4)), IMAGE, 12
        ),
        Pattern(
            "many groups", lambda: nn.Sequential(conv(3, 12), nn.ReLU(), conv(12, 12, groups=6), nn.BatchNorm2d(12), conv(12, 4)), IMAGE, 6
        ),
        Pattern(
            "groups that widen", lambda: nn.Sequential(conv(3, 12), nn.ReLU(), conv(12, 24, groups=3), nn.SiLU(), conv(24, 4)), IMAGE, 12
        ),
        Pattern(
            "groups that narrow", lambda: nn.Sequential(conv(3, 12), nn.ReLU(), conv(12, 4, groups=4), nn.SiLU(), conv(4, 4)), IMAGE, 4
        ),
        Pattern(
            "grouped behind grouped",
            lambda: nn.Sequential(conv(3, 12), conv(12, 12, groups=2), nn.ReLU(), conv(12, 12, groups=3), conv(12, 4)),
            IMAGE,
            2,
        ),
        Pattern(
            "depthwise", lambda: nn.Sequential(conv(3, 8), conv(8, 8, groups=8), nn.BatchNorm2d(8), nn.ReLU6(), conv(8, 4, 1)), IMAGE, 8
        ),
        Pattern("depthwise times two", lambda: nn.Sequential(conv(3, 8), conv(8, 16, groups=8), nn.ReLU(), conv(16, 4, 1)), IMAGE, 8),
        Pattern("depthwise times three of the image", lambda: nn.Sequential(conv(3, 9, groups=3), nn.ReLU(), conv(9, 4, 1)), IMAGE, 3),
        Pattern("grouped conv of the image", lambda: nn.Sequential(conv(4, 12, groups=2), nn.ReLU(), conv(12, 4, 1)), ((2, 4, 7, 5),), 6),
        Pattern("depthwise of the image", lambda: nn.Sequential(conv(3, 3, groups=3), nn.ReLU(), conv(3, 4, 1)), IMAGE, 0, "one"),
        Pattern(
            "functional depthwise, groups from the shape",
            lambda: Small(
                lambda m, x: m.b(F.conv2d(m.a(x), m.w, padding=1, groups=m.a(x).shape[1])), a=conv(3, 8), b=conv(8, 4), w=own(8, 1, 3, 3)
            ),
            IMAGE,
            8,
        ),
        Pattern(
            "blur with an expanded kernel",
            lambda: Small(
                lambda m, x: m.b(F.conv2d(m.a(x), m.w.expand(8, -1, -1, -1), padding=1, groups=8)),
                a=conv(3, 8),
                b=conv(8, 4),
                w=torch.rand(1, 1, 3, 3),
            ),
            IMAGE,
            8,
        ),
        Pattern(
            "blur with a repeated kernel",
            lambda: Small(
                lambda m, x: m.b(F.conv2d(m.a(x), m.w.repeat(8, 1, 1, 1), padding=1, groups=8)),
                a=conv(3, 8),
                b=conv(8, 4),
                w=torch.rand(1, 1, 3, 3),
            ),
            IMAGE,
            8,
        ),
        Pattern(
            "inverted residual",
            lambda: Small(
                lambda m, x: m.h(m.s(x) + m.c(F.relu6(m.b(F.relu6(m.a(m.s(x))))))),
                s=conv(3, 6),
                a=conv(6, 18, 1),
                b=conv(18, 18, groups=18),
                c=conv(18, 6, 1),
                h=conv(6, 2),
            ),
            IMAGE,
            24,
        ),
        Pattern(
            "grouped residual",
            lambda: Small(lambda m, x: m.c(F.relu(m.b(m.a(x))) + m.a(x)), a=conv(3, 12), b=conv(12, 12, groups=4), c=conv(12, 2)),
            IMAGE,
            3,
        ),
    ]


def _transposed() -> list[Pattern]:
    up = nn.ConvTranspose2d
    return [
        Pattern(
            "transposed",
            lambda: nn.Sequential(conv(3, 8), nn.Sigmoid(), up(8, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(), up(6, 2, 2, 2)),
            IMAGE,
            14,
        ),
        Pattern(
            "transposed 1d",
            lambda: nn.Sequential(nn.Conv1d(3, 8, 1), nn.ReLU(), nn.ConvTranspose1d(8, 6, 3), nn.Conv1d(6, 2, 1)),
            ((2, 3, 9),),
            14,
        ),
        Pattern(
            "transposed 3d",
            lambda: nn.Sequential(nn.Conv3d(2, 4, 1), nn.ReLU(), nn.ConvTranspose3d(4, 6, 2), nn.Conv3d(6, 2, 1)),
            ((2, 2, 3, 4, 2),),
            10,
        ),
        Pattern("transposed depthwise", lambda: nn.Sequential(conv(3, 8), up(8, 8, 3, groups=8), nn.ReLU(), conv(8, 4, 1)), IMAGE, 8),
        Pattern(
            "transposed depthwise times two", lambda: nn.Sequential(conv(3, 8), up(8, 16, 3, groups=8), nn.ReLU(), conv(16, 4, 1)), IMAGE, 8
        ),
        Pattern("transposed few groups", lambda: nn.Sequential(conv(3, 12), up(12, 8, 3, groups=2), nn.ReLU(), conv(8, 4, 1)), IMAGE, 10),
        Pattern("transposed many groups", lambda: nn.Sequential(conv(3, 12), up(12, 12, 3, groups=6), nn.ReLU(), conv(12, 4, 1)), IMAGE, 6),
        Pattern(
            "functional transposed",
            lambda: Small(
                lambda m, x: m.b(F.conv_transpose2d(m.a(x), m.w, m.c, stride=2)), a=conv(3, 8), b=conv(6, 2), w=own(8, 6, 2, 2), c=own(6)
            ),
            IMAGE,
            14,
        ),
        Pattern(
            "transposed grouped of the image", lambda: nn.Sequential(up(4, 12, 3, groups=2), nn.ReLU(), conv(12, 4, 1)), ((2, 4, 7, 5),), 6
        ),
    ]


def _linear() -> list[Pattern]:
    return [
        Pattern(
            "mlp", lambda: nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3)), ROWS, 24, other="batch"
        ),
        Pattern("mlp on tokens", lambda: nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 3)), ((2, 5, 6),), 16),
        Pattern("linear without batch", lambda: nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)), ((6,),), 16, other=""),
        Pattern(
            "functional linear with own weights",
            lambda: Small(lambda m, x: F.linear(F.relu(F.linear(x, m.w, m.b)), m.v), w=own(9, 6), b=own(9), v=own(3, 9)),
            ROWS,
            9,
            other="batch",
        ),
        Pattern(
            "addmm with own weights",
            lambda: Small(
                lambda m, x: torch.addmm(m.c, torch.addmm(m.b, x, m.w).relu(), m.v), w=own(6, 9), b=own(9), v=own(9, 3), c=own(3)
            ),
            ROWS,
            9,
            other="batch",
        ),
        Pattern(
            "matmul with own weights",
            lambda: Small(lambda m, x: torch.relu(x @ m.w + m.b) @ m.v, w=own(6, 9), b=own(9), v=own(9, 3)),
            ((2, 5, 6),),
            9,
        ),
        Pattern(
            "matmul with a transposed weight",
            lambda: Small(lambda m, x: F.relu(x @ m.w.t()) @ m.v.T, w=own(9, 6), v=own(3, 9)),
            ROWS,
            9,
            other="batch",
            by_hand="the weights are transposed first",
        ),
        Pattern(
            "einsum with own weights",
            lambda: Small(
                lambda m, x: torch.einsum("bnh,ho->bno", torch.einsum("bni,ih->bnh", x, m.w).relu(), m.v), w=own(6, 9), v=own(9, 3)
            ),
            ((2, 5, 6),),
            9,
        ),
        Pattern(
            "einsum with an ellipsis",
            lambda: Small(
                lambda m, x: torch.einsum("...h,oh", torch.einsum("...i,hi->...h", x, m.w).relu(), m.v), w=own(9, 6), v=own(3, 9)
            ),
            ((2, 5, 6),),
            9,
        ),
        Pattern(
            "einsum over heads",
            lambda: Small(
                lambda m, x: torch.einsum("bnhd,hdo->bno", torch.einsum("bni,ihd->bnhd", x, m.w).relu(), m.v),
                w=own(6, 4, 3),
                v=own(4, 3, 5),
            ),
            ((2, 5, 6),),
            4,
        ),
        Pattern("embedding", lambda: nn.Sequential(nn.Embedding(11, 8), nn.ReLU(), nn.Linear(8, 3)), ((2, 5),), 8, words=11),
        Pattern(
            "embedding with a position",
            lambda: Small(lambda m, x: m.c(m.a(x) + m.p[:, : x.size(1)]), a=nn.Embedding(11, 8), p=own(1, 9, 8), c=nn.Linear(8, 3)),
            ((2, 5),),
            8,
            words=11,
        ),
        Pattern("tied embedding and head", lambda: Tied(), ((2, 5),), 18, words=11),
        Pattern(
            "functional embedding",
            lambda: Small(lambda m, x: m.c(F.embedding(x, m.w)), w=own(11, 8), c=nn.Linear(8, 3)),
            ((2, 5),),
            8,
            words=11,
        ),
        Pattern(
            "embedding of limited norm",
            lambda: nn.Sequential(nn.Embedding(11, 8, max_norm=0.5), nn.Linear(8, 3)),
            ((2, 5),),
            0,
            "norm",
            words=11,
        ),
        Pattern(
            "bilinear",
            lambda: Small(lambda m, x: m.c(m.b(m.a(x), m.a(x))), a=nn.Linear(6, 7), b=nn.Bilinear(7, 7, 5), c=nn.Linear(5, 3)),
            ROWS,
            0,
            "Bilinear",
            other="batch",
        ),
    ]


class Tied(nn.Module):
    """A language model whose head is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.up, self.down = nn.Linear(8, 10), nn.Linear(10, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.embed(x)
        return self.head(h + self.down(F.gelu(self.up(h))))


def _spatial() -> list[Pattern]:
    def behind(layer: nn.Module) -> nn.Module:
        return nn.Sequential(conv(3, 8), nn.ReLU(), layer, conv(8, 4, 1))

    return [
        Pattern("max pool", lambda: behind(nn.MaxPool2d(3, 2, 1)), IMAGE, 8),
        Pattern("avg pool", lambda: behind(nn.AvgPool2d(2)), IMAGE, 8),
        Pattern(
            "adaptive pools",
            lambda: Small(
                lambda m, x: m.b(F.adaptive_avg_pool2d(m.a(x), 2) + F.adaptive_max_pool2d(m.a(x), (2, 2))), a=conv(3, 8), b=conv(8, 4)
            ),
            IMAGE,
            8,
        ),
        Pattern(
            "max pool with places",
            lambda: Small(lambda m, x: m.b(F.max_pool2d(m.a(x), 2, return_indices=True)[0]), a=conv(3, 8), b=conv(8, 4)),
            IMAGE,
            0,
            "max_pool2d_with_indices",
        ),
        Pattern(
            "max unpool",
            lambda: Small(lambda m, x: m.b(F.max_unpool2d(*F.max_pool2d(m.a(x), 2, return_indices=True), 2)), a=conv(3, 8), b=conv(8, 4)),
            ((2, 3, 8, 6),),
            0,
            "max_pool2d_with_indices",
        ),
        Pattern("pool without batch", lambda: nn.Sequential(conv(3, 8), nn.MaxPool2d(2), conv(8, 4)), ((3, 7, 5),), 8, other=""),
        Pattern("interpolate", lambda: behind(nn.Upsample(scale_factor=2, mode="bilinear")), IMAGE, 8),
        Pattern(
            "interpolate to the size of another",
            lambda: Small(
                lambda m, x: m.c(F.interpolate(m.b(F.relu(m.a(x))), size=x.shape[2:], mode="nearest")),
                a=conv(3, 8, stride=2),
                b=conv(8, 6),
                c=conv(6, 2),
            ),
            IMAGE,
            14,
        ),
        Pattern(
            "unfold",
            lambda: Small(lambda m, x: m.b(F.unfold(F.relu(m.a(x)), 3, padding=1).transpose(1, 2)), a=conv(3, 8), b=nn.Linear(72, 4)),
            IMAGE,
            8,
        ),
        Pattern(
            "dropout and identity", lambda: nn.Sequential(conv(3, 8), nn.Dropout2d(), nn.Identity(), nn.Dropout(), conv(8, 4)), IMAGE, 8
        ),
    ]
