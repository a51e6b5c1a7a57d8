"""Norms in every form, per-channel parameters and buffers of any shape, statistics over channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from prune_patterns import Pattern, Small, conv, own
from torch import Tensor, nn

IMAGE = ((2, 3, 7, 5),)
TOKENS = ((2, 5, 6),)


def patterns() -> list[Pattern]:
    return [*_modules(), *_functional(), *_scales(), *_statistics()]


def between(layer: nn.Module, width: int = 8) -> nn.Module:
    return nn.Sequential(conv(3, width), layer, nn.ReLU(), conv(width, 4))


def among(layer: nn.Module, width: int = 8) -> nn.Module:
    return nn.Sequential(nn.Linear(6, width), layer, nn.GELU(), nn.Linear(width, 4))


class LayerNorm2d(nn.LayerNorm):
    """As in torchvision's ConvNeXt."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class ChannelsFirstNorm(nn.Module):
    """A layer norm over channels written by hand."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = own(width), own(width)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        var = (x - mean).pow(2).mean(1, keepdim=True)
        return self.weight[:, None, None] * ((x - mean) / torch.sqrt(var + 1e-6)) + self.bias[:, None, None]


class FrozenNorm(nn.Module):
    """Batch norm with everything kept in buffers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean"):
            self.register_buffer(name, torch.randn(width))
        self.register_buffer("running_var", torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.reshape(1, -1, 1, 1) + shift.reshape(1, -1, 1, 1)


class FrozenView(FrozenNorm):
    """The same with the number of channels written out."""

    def forward(self, x: Tensor) -> Tensor:
        width = self.weight.shape[0]
        scale = (self.weight / (self.running_var + 1e-5).sqrt()).view(1, width, 1, 1)
        return (x - self.running_mean.view(1, 8, 1, 1)) * scale + self.bias.view(1, width, 1, 1).expand_as(scale)


class RootMeanSquare(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = own(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x.float().double() * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class GlobalResponse(nn.Module):
    """As in ConvNeXt V2, on (N, H, W, C)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma, self.beta = own(1, 1, 1, width), own(1, 1, 1, width)

    def forward(self, x: Tensor) -> Tensor:
        size = x.pow(2).sum((1, 2), keepdim=True).sqrt()
        return self.gamma * (x * (size / (size.mean(dim=-1, keepdim=True) + 1e-6))) + self.beta + x


def _modules() -> list[Pattern]:
    return [
        Pattern("batch norm", lambda: between(nn.BatchNorm2d(8)), IMAGE, 8),
        Pattern("batch norm without affine", lambda: between(nn.BatchNorm2d(8, affine=False)), IMAGE, 8),
        Pattern("batch norm without statistics", lambda: between(nn.BatchNorm2d(8, track_running_stats=False)), IMAGE, 8),
        Pattern(
            "batch norm 1d of rows",
            lambda: nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 4)),
            ((3, 6),),
            8,
            other="batch",
        ),
        Pattern(
            "batch norm 1d of positions", lambda: nn.Sequential(nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), nn.Conv1d(8, 4, 1)), ((2, 3, 9),), 8
        ),
        Pattern("sync batch norm", lambda: between(nn.SyncBatchNorm(8)), IMAGE, 8),
        Pattern("instance norm", lambda: between(nn.InstanceNorm2d(8, affine=True)), IMAGE, 8),
        Pattern("instance norm with statistics", lambda: between(nn.InstanceNorm2d(8, affine=True, track_running_stats=True)), IMAGE, 8),
        Pattern("group norm of few groups", lambda: between(nn.GroupNorm(2, 12), 12), IMAGE, 6),
        Pattern("group norm of many groups", lambda: between(nn.GroupNorm(6, 12), 12), IMAGE, 6),
        Pattern("group norm of one group", lambda: between(nn.GroupNorm(1, 8)), IMAGE, 8),
        Pattern("group norm of single channels", lambda: between(nn.GroupNorm(8, 8)), IMAGE, 8),
        Pattern(
            "group norm of rows", lambda: nn.Sequential(nn.Linear(6, 8), nn.GroupNorm(2, 8), nn.Linear(8, 4)), ((3, 6),), 4, other="batch"
        ),
        Pattern(
            "group norm after a grouped conv",
            lambda: nn.Sequential(conv(3, 12), conv(12, 12, groups=3), nn.GroupNorm(4, 12), conv(12, 4)),
            IMAGE,
            1,
        ),
        Pattern("layer norm", lambda: among(nn.LayerNorm(8)), TOKENS, 8),
        Pattern("layer norm without affine", lambda: among(nn.LayerNorm(8, elementwise_affine=False)), TOKENS, 8),
        Pattern("layer norm without bias", lambda: among(nn.LayerNorm(8, bias=False)), TOKENS, 8),
        Pattern("layer norm of images", lambda: between(nn.LayerNorm((8, 7, 5))), IMAGE, 8, other="batch"),
        Pattern("layer norm behind the channels", lambda: between(nn.LayerNorm((7, 5))), IMAGE, 8, other="batch"),
        Pattern("rms norm", lambda: among(nn.RMSNorm(8)), TOKENS, 8),
        Pattern("rms norm with an eps", lambda: among(nn.RMSNorm(8, eps=1e-3)), TOKENS, 8),
        Pattern("local response norm", lambda: between(nn.LocalResponseNorm(3)), IMAGE, 0, "neighbouring channels"),
    ]


def _functional() -> list[Pattern]:
    return [
        Pattern(
            "functional batch norm",
            lambda: Small(
                lambda m, x: m.b(F.batch_norm(m.a(x), m.mean, m.running_var, m.w, m.c)),
                a=conv(3, 8),
                b=conv(8, 4),
                mean=torch.randn(8),
                running_var=torch.rand(8),
                w=own(8),
                c=own(8),
            ),
            IMAGE,
            8,
        ),
        Pattern(
            "functional instance norm",
            lambda: Small(lambda m, x: m.b(F.instance_norm(m.a(x), weight=m.w, bias=m.c)), a=conv(3, 8), b=conv(8, 4), w=own(8), c=own(8)),
            IMAGE,
            8,
        ),
        Pattern(
            "functional layer norm",
            lambda: Small(lambda m, x: m.b(F.layer_norm(m.a(x), (8,), m.w, m.c)), a=nn.Linear(6, 8), b=nn.Linear(8, 4), w=own(8), c=own(8)),
            TOKENS,
            8,
        ),
        Pattern(
            "functional layer norm by name",
            lambda: Small(
                lambda m, x: m.b(F.layer_norm(input=m.a(x), normalized_shape=(8,), bias=m.c, weight=m.w)),
                a=nn.Linear(6, 8),
                b=nn.Linear(8, 4),
                w=own(8),
                c=own(8),
            ),
            TOKENS,
            8,
        ),
        Pattern(
            "functional layer norm of the shape",
            lambda: Small(lambda m, x: m.b(F.layer_norm(m.a(x), m.a(x).shape[1:])), a=conv(3, 8), b=conv(8, 4)),
            IMAGE,
            8,
        ),
        Pattern(
            "functional group norm",
            lambda: Small(lambda m, x: m.b(F.group_norm(m.a(x), 2, m.w, m.c)), a=conv(3, 8), b=conv(8, 4), w=own(8), c=own(8)),
            IMAGE,
            4,
        ),
        Pattern(
            "functional rms norm",
            lambda: Small(lambda m, x: m.b(F.rms_norm(m.a(x), (8,), m.w)), a=nn.Linear(6, 8), b=nn.Linear(8, 4), w=own(8)),
            TOKENS,
            8,
        ),
        Pattern("LayerNorm2d by permute", lambda: between(LayerNorm2d(8)), IMAGE, 8),
        Pattern("layer norm over channels by hand", lambda: between(ChannelsFirstNorm(8)), IMAGE, 8),
        Pattern("rms norm by hand", lambda: among(RootMeanSquare(8)), TOKENS, 8),
        Pattern("frozen norm in buffers", lambda: between(FrozenNorm(8)), IMAGE, 8),
        Pattern("frozen norm with written-out views", lambda: between(FrozenView(8)), IMAGE, 8),
        Pattern(
            "global response norm",
            lambda: Small(lambda m, x: m.b(m.n(m.a(x).permute(0, 2, 3, 1))), a=conv(3, 8), n=GlobalResponse(8), b=nn.Linear(8, 4)),
            IMAGE,
            8,
        ),
        Pattern(
            "weight standardisation",
            lambda: Small(
                lambda m, x: m.c(F.relu(_standardised(m, F.relu(m.a(x))))), a=conv(3, 8), w=own(6, 8, 3, 3), b=own(6), c=conv(6, 4)
            ),
            IMAGE,
            14,
        ),
        Pattern(
            "weight standardisation by batch norm",
            lambda: Small(_by_batch_norm, a=conv(3, 8), w=own(6, 8, 3, 3), b=own(6), g=own(6), c=conv(6, 4)),
            IMAGE,
            14,
        ),
        Pattern(
            "normalised weight",
            lambda: Small(
                lambda m, x: m.c(F.linear(m.a(x), F.normalize(m.w, dim=1)).relu()), a=nn.Linear(6, 8), w=own(7, 8), c=nn.Linear(7, 3)
            ),
            TOKENS,
            15,
        ),
    ]


def _standardised(m: Small, x: Tensor) -> Tensor:
    mean = m.w.mean(dim=(1, 2, 3), keepdim=True)
    spread = (m.w - mean).pow(2).mean(dim=(1, 2, 3), keepdim=True)
    return F.conv2d(x, (m.w - mean) / torch.sqrt(spread + 1e-5), m.b, padding=1)


def _by_batch_norm(m: Small, x: Tensor) -> Tensor:
    """As in timm's standardised convolutions."""
    weight = F.batch_norm(m.w.reshape(1, 6, -1), None, None, weight=m.g, training=True, momentum=0.0, eps=1e-6).reshape_as(m.w)
    return m.c(F.relu(F.conv2d(F.relu(m.a(x)), weight, m.b, padding=1)))


def _scales() -> list[Pattern]:
    def scaled(run, **parts):  # type: ignore[no-untyped-def]
        return Small(lambda m, x: m.b(run(m, m.a(x))), a=conv(3, 8), b=conv(8, 4), **parts)

    return [
        Pattern("prelu", lambda: between(nn.PReLU(8)), IMAGE, 8),
        Pattern("prelu of one", lambda: between(nn.PReLU()), IMAGE, 8),
        Pattern("functional prelu", lambda: scaled(lambda m, x: F.prelu(x, m.w), w=own(8)), IMAGE, 8),
        Pattern("prelu of rows", lambda: nn.Sequential(nn.Linear(6, 8), nn.PReLU(8), nn.Linear(8, 4)), ((3, 6),), 8, other="batch"),
        Pattern("scale (C, 1, 1)", lambda: scaled(lambda m, x: x * m.s, s=own(8, 1, 1)), IMAGE, 8),
        Pattern(
            "scale (1, C, 1, 1) and shift (C, 1, 1) in a buffer",
            lambda: scaled(lambda m, x: m.t + x * m.s, s=own(1, 8, 1, 1), t=torch.randn(8, 1, 1)),
            IMAGE,
            8,
        ),
        Pattern("scale (C, H, W)", lambda: scaled(lambda m, x: x * m.s, s=own(8, 7, 5)), IMAGE, 8, other="batch"),
        Pattern(
            "scale (C,) reshaped",
            lambda: scaled(lambda m, x: x * m.s.view(-1, 1, 1) + m.t[None, :, None, None], s=own(8), t=own(8)),
            IMAGE,
            8,
        ),
        Pattern(
            "addcmul and lerp",
            lambda: scaled(lambda m, x: torch.lerp(x, torch.addcmul(m.t, m.s, x), 0.3), s=own(8, 1, 1), t=own(8, 1, 1)),
            IMAGE,
            8,
        ),
        Pattern("scalar parameter", lambda: scaled(lambda m, x: x * m.s + m.t, s=own(), t=own(1)), IMAGE, 8),
        Pattern(
            "scale that is computed", lambda: scaled(lambda m, x: x * torch.exp(m.s).clamp(max=3.0)[:, None, None], s=own(8)), IMAGE, 8
        ),
        Pattern("mask in a buffer", lambda: scaled(lambda m, x: x.masked_fill(m.s > 0, 0.25), s=torch.randn(8, 1, 1)), IMAGE, 8),
        Pattern(
            "torch.where per channel",
            lambda: scaled(lambda m, x: torch.where(m.s > 0.1, x, x.neg() + m.t), s=own(8, 1, 1), t=own(8, 1, 1)),
            IMAGE,
            8,
        ),
        Pattern("scale of the full shape", lambda: scaled(lambda m, x: x * m.s, s=own(2, 8, 7, 5)), IMAGE, 8, other=""),
        Pattern(
            "constant made per call",
            lambda: scaled(
                lambda m, x: x + torch.full((8, 1, 1), 0.5),
            ),
            IMAGE,
            8,
        ),
        Pattern("constant ramp made per call", lambda: scaled(lambda m, x: x + torch.arange(8).view(8, 1, 1)), IMAGE, 0, "fixed"),
    ]


def _statistics() -> list[Pattern]:
    sums = "channels are summed without weights"
    return [
        Pattern("softmax over channels", lambda: Small(lambda m, x: m.b(F.softmax(m.a(x), 1)), a=conv(3, 8), b=conv(8, 4)), IMAGE, 8),
        Pattern(
            "log_softmax over tokens",
            lambda: Small(lambda m, x: m.b(F.log_softmax(m.a(x), -1)), a=nn.Linear(6, 8), b=nn.Linear(8, 4)),
            TOKENS,
            8,
        ),
        Pattern(
            "normalize over channels", lambda: Small(lambda m, x: m.b(F.normalize(m.a(x), dim=1)), a=conv(3, 8), b=conv(8, 4)), IMAGE, 8
        ),
        Pattern("mean over channels", lambda: Small(lambda m, x: m.b(m.a(x).mean(1, keepdim=True)), a=conv(3, 8), b=conv(1, 4)), IMAGE, 8),
        Pattern("max over channels", lambda: Small(lambda m, x: m.a(x).max(1)[0], a=conv(3, 8)), IMAGE, 8),
        Pattern("amax and amin over channels", lambda: Small(lambda m, x: m.a(x).amax(dim=1) - m.a(x).amin(dim=1), a=conv(3, 8)), IMAGE, 8),
        Pattern("sum over channels", lambda: Small(lambda m, x: m.a(x).relu().sum(1), a=conv(3, 8)), IMAGE, 8, by_hand=sums),
        Pattern(
            "sum by einsum", lambda: Small(lambda m, x: torch.einsum("bchw->bhw", m.a(x).relu()), a=conv(3, 8)), IMAGE, 8, by_hand=sums
        ),
        Pattern(
            "sum divided by the number of channels",
            lambda: Small(lambda m, x: m.a(x).sum(1) / m.a(x).size(1), a=conv(3, 8)),
            IMAGE,
            8,
            by_hand=sums,
        ),
        Pattern(
            "sum of everything over its number",
            lambda: Small(lambda m, x: m.b(m.a(x)) + m.a(x).relu().sum() / m.a(x).numel(), a=conv(3, 8), b=conv(8, 4)),
            IMAGE,
            8,
            by_hand=sums,
        ),
        Pattern(
            "root of the number of elements",
            lambda: Small(lambda m, x: m.b(m.a(x) / (m.a(x).shape[1] * m.a(x).shape[2]) ** 0.5), a=conv(3, 8), b=conv(8, 4)),
            IMAGE,
            8,
        ),
        Pattern(
            "variance over channels",
            lambda: Small(lambda m, x: m.b(m.a(x) / (1 + torch.var(m.a(x), 1, keepdim=True, correction=0))), a=conv(3, 8), b=conv(8, 4)),
            IMAGE,
            8,
        ),
        Pattern("mean over everything", lambda: Small(lambda m, x: m.b(m.a(x) - m.a(x).mean()), a=conv(3, 8), b=conv(8, 4)), IMAGE, 8),
        Pattern("global average by mean", lambda: Small(lambda m, x: m.b(m.a(x).mean((2, 3))), a=conv(3, 8), b=nn.Linear(8, 4)), IMAGE, 8),
        Pattern("cumsum over channels", lambda: Small(lambda m, x: m.b(m.a(x).cumsum(1)), a=conv(3, 8), b=conv(8, 4)), IMAGE, 0, "places"),
        Pattern("cumsum over positions", lambda: Small(lambda m, x: m.b(m.a(x).cumsum(2)), a=conv(3, 8), b=conv(8, 4)), IMAGE, 8),
        Pattern("argmax over channels", lambda: Small(lambda m, x: m.a(x).argmax(1), a=conv(3, 8)), IMAGE, 0, "places"),
        Pattern("topk over channels", lambda: Small(lambda m, x: m.a(x).topk(3, 1)[0], a=conv(3, 8)), IMAGE, 0, "places"),
    ]
