"""Attention in the ways people write it."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from prune_patterns import Pattern, Small, own
from torch import Tensor, nn

TOKENS = ((2, 5, 6),)
EXPANDED = "functionalize,expand-attention"


def patterns() -> list[Pattern]:
    return [*_attention(), *_grouped()]


class Attention(nn.Module):
    """Self-attention with everything that can be written in different ways.

    Args:
        projection: "fused" (view and unbind), "chunk" or "separate".
        kernel: how softmax(q k^T) v is computed: "sdpa", "sqrt", "scale" or "einsum" or "bmm" (batch and heads merged).
    """

    def __init__(
        self, projection: str, kernel: str, *, heads: int = 4, size: int = 3, norm: bool = False, rotary: bool = False, bias: bool = False
    ) -> None:
        super().__init__()
        width = heads * size
        self.heads, self.size, self.kernel, self.projection, self.scale = heads, size, kernel, projection, size**-0.5
        self.stem = nn.Linear(6, 7)
        if projection == "separate":
            self.q, self.k, self.v = nn.Linear(7, width), nn.Linear(7, width, bias=False), nn.Linear(7, width)
        else:
            self.qkv = nn.Linear(7, 3 * width)
        self.proj, self.head = nn.Linear(width, 7), nn.Linear(7, 3)
        self.q_norm, self.k_norm = (nn.LayerNorm(size), nn.RMSNorm(size)) if norm else (nn.Identity(), nn.Identity())
        self.bias = own(heads, 5, 5) if bias else None
        if rotary:
            self.register_buffer("cos", torch.rand(5, size))
            self.register_buffer("sin", torch.rand(5, size))
        self.rotary = rotary

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        q, k, v = self.projected(x)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.rotary:
            q, k = _rotated(q, self.cos, self.sin), _rotated(k, self.cos, self.sin)
        y = self.attended(q, k, v)
        y = y.transpose(1, 2).reshape(x.shape[0], x.shape[1], self.heads * self.size)
        return self.head(x + self.proj(y))

    def projected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        b, n, _ = x.shape
        if self.projection == "fused":
            q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, self.size).permute(2, 0, 3, 1, 4).unbind(0)
            return q, k, v
        parts = self.qkv(x).chunk(3, dim=-1) if self.projection == "chunk" else (self.q(x), self.k(x), self.v(x))
        q, k, v = (part.view(b, n, self.heads, self.size).transpose(1, 2) for part in parts)
        return q, k, v

    def attended(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.kernel == "sdpa":
            return F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias)
        if self.kernel == "einsum":
            scores = torch.einsum("bhid,bhjd->bhij", q, k) * self.scale
            return torch.einsum("bhij,bhjd->bhid", scores.softmax(-1), v)
        if self.kernel == "bmm":
            b, h, n, d = q.shape
            q, k, v = (t.reshape(b * h, n, d) for t in (q, k, v))
            return torch.bmm(torch.bmm(q, k.transpose(1, 2)).mul(self.scale).softmax(-1), v).view(b, h, n, d)
        scores = (q / math.sqrt(q.size(-1))) @ k.transpose(-2, -1) if self.kernel == "sqrt" else q @ k.mT * self.scale
        if self.bias is not None:
            scores = scores + self.bias
        return scores.softmax(dim=-1) @ v


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def _attention() -> list[Pattern]:
    head = "heads or head sizes meet each other, not weights"
    fixed: dict[str, Any] = {"other": "batch"}
    return [
        Pattern("fused qkv, sdpa", lambda: Attention("fused", "sdpa"), TOKENS, 7 + 4, by_hand=head),
        Pattern("fused qkv, q / sqrt(d)", lambda: Attention("fused", "sqrt"), TOKENS, 7 + 4, by_hand=head),
        Pattern("fused qkv, three heads", lambda: Attention("fused", "scale", heads=3, size=4), TOKENS, 7 + 3, by_hand=head),
        Pattern("fused qkv, two heads", lambda: Attention("fused", "sdpa", heads=2, size=4), TOKENS, 7 + 2, by_hand=head),
        Pattern("fused qkv, one head", lambda: Attention("fused", "sdpa", heads=1, size=8), TOKENS, 7 + 8, by_hand=head),
        Pattern("chunked qkv, sdpa", lambda: Attention("chunk", "sdpa"), TOKENS, 7 + 4, by_hand=head),
        Pattern("separate qkv, scale", lambda: Attention("separate", "scale"), TOKENS, 7 + 4, by_hand=head),
        Pattern("separate qkv, einsum", lambda: Attention("separate", "einsum"), TOKENS, 7 + 4, by_hand=head),
        Pattern("separate qkv, sdpa, one head", lambda: Attention("separate", "sdpa", heads=1, size=8), TOKENS, 7 + 8, by_hand=head),
        Pattern("separate qkv, sqrt, one head", lambda: Attention("separate", "sqrt", heads=1, size=8), TOKENS, 7 + 8, by_hand=head),
        Pattern("batch and heads merged", lambda: Attention("separate", "bmm"), TOKENS, 7 + 4, by_hand=head),
        Pattern("fused qkv, batch and heads merged", lambda: Attention("fused", "bmm", heads=5), TOKENS, 7 + 5, by_hand=head),
        Pattern("bias per head", lambda: Attention("fused", "scale", bias=True), TOKENS, 7 + 4, by_hand=head, **fixed),
        Pattern("bias per head in sdpa", lambda: Attention("chunk", "sdpa", bias=True), TOKENS, 7 + 4, by_hand=head, **fixed),
        Pattern("norm of q and k", lambda: Attention("fused", "sdpa", norm=True), TOKENS, 7 + 4, by_hand=head),
        Pattern("rotary embedding", lambda: Attention("separate", "sdpa", size=4, rotary=True), TOKENS, 7 + 4, by_hand=head, **fixed),
        Pattern("rotary embedding, fused", lambda: Attention("fused", "scale", size=4, rotary=True), TOKENS, 7 + 4, by_hand=head, **fixed),
        Pattern(
            "rotary embedding, interleaved",
            lambda: Small(_interleaved, **_projections(), cos=torch.rand(5, 4), sin=torch.rand(5, 4)),
            TOKENS,
            4,
            by_hand=head,
            **fixed,
        ),
        Pattern("cosine attention", lambda: Small(_cosine, **_projections(), scale=own(4, 1, 1)), TOKENS, 4, by_hand=head),
        Pattern(
            "talking heads",
            lambda: Small(_talking, **_projections(), mix=nn.Linear(4, 5), back=nn.Linear(5, 4)),
            TOKENS,
            4 + 5,
            by_hand=head,
        ),
        Pattern("attention by tensordot", lambda: Small(_tensordot, **_projections()), TOKENS, 0, "tensordot"),
        Pattern(
            "cross attention",
            lambda: Small(_cross, q=own(1, 4, 8), k=nn.Linear(6, 8), v=nn.Linear(6, 10), o=nn.Linear(10, 3)),
            TOKENS,
            18,
            by_hand=head,
        ),
        Pattern("class token and positions", lambda: Token(), ((2, 3, 8, 8),), 8, other="batch"),
        Pattern(
            "linear attention",
            lambda: Small(_linear_attention, q=nn.Linear(6, 8), k=nn.Linear(6, 8), v=nn.Linear(6, 9), o=nn.Linear(9, 3)),
            TOKENS,
            17,
            by_hand=head,
        ),
        Pattern("causal sdpa", lambda: Small(_causal, qkv=nn.Linear(6, 24), o=nn.Linear(8, 3)), TOKENS, 2, by_hand=head),
        Pattern("nn.MultiheadAttention", lambda: Multihead(), TOKENS, 0, "MultiheadAttention"),
        Pattern(
            "transformer encoder layer",
            lambda: nn.Sequential(nn.Linear(6, 8), nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), nn.Linear(8, 3)),
            TOKENS,
            0,
            "MultiheadAttention",
        ),
        Pattern("nn.MultiheadAttention, expanded", lambda: Multihead(), TOKENS, 8 + 2 + 8, by_hand=head, passes=EXPANDED),
        Pattern(
            "transformer encoder layer, expanded",
            lambda: nn.Sequential(nn.Linear(6, 8), nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), nn.Linear(8, 3)),
            TOKENS,
            8 + 2 + 12,
            by_hand=head,
            passes=EXPANDED,
        ),
    ]


def _projections() -> dict[str, nn.Module]:
    return {"q": nn.Linear(6, 16), "k": nn.Linear(6, 16), "v": nn.Linear(6, 16), "o": nn.Linear(16, 3)}


def _heads(m: Small, x: Tensor) -> list[Tensor]:
    return [layer(x).unflatten(-1, (4, 4)).transpose(1, 2) for layer in (m.q, m.k, m.v)]


def _interleaved(m: Small, x: Tensor) -> Tensor:
    q, k, v = _heads(m, x)
    q, k = (t * m.cos + torch.stack([-t[..., 1::2], t[..., ::2]], -1).reshape(t.shape) * m.sin for t in (q, k))
    return m.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def _cosine(m: Small, x: Tensor) -> Tensor:
    q, k, v = _heads(m, x)
    scores = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)) * torch.clamp(m.scale, max=4.6).exp()
    return m.o((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


def _talking(m: Small, x: Tensor) -> Tensor:
    q, k, v = _heads(m, x)
    scores = m.mix((q @ k.transpose(-2, -1)).permute(0, 2, 3, 1)).softmax(-2)
    return m.o((m.back(scores).permute(0, 3, 1, 2) @ v).transpose(1, 2).flatten(2))


def _tensordot(m: Small, x: Tensor) -> Tensor:
    q, k, v = _heads(m, x)
    return m.o((torch.tensordot(q, k[0, 0], dims=([3], [1])).softmax(-1) @ v).transpose(1, 2).flatten(2))


def _cross(m: Small, x: Tensor) -> Tensor:
    q = m.q.expand(x.shape[0], -1, -1)
    k, v = m.k(x), m.v(x)
    return m.o((q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1) @ v)


def _causal(m: Small, x: Tensor) -> Tensor:
    q, k, v = (t.unflatten(-1, (2, -1)).transpose(1, 2) for t in m.qkv(x).split(8, dim=2))
    return m.o(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


def _linear_attention(m: Small, x: Tensor) -> Tensor:
    q, k, v = F.elu(m.q(x)) + 1, F.elu(m.k(x)) + 1, m.v(x)
    state = torch.einsum("bnd,bne->bde", k, v)
    return m.o(torch.einsum("bnd,bde->bne", q, state) / (q * k.sum(1, keepdim=True)).sum(-1, keepdim=True))


class Multihead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.attention, self.b = nn.Linear(6, 8), nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.b(self.attention(y, y, y, need_weights=False)[0])


class Token(nn.Module):
    """The front of a vision transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.token, self.place = own(1, 1, 8), own(1, 5, 8)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.patches(x).flatten(2).transpose(1, 2)
        y = torch.cat((self.token.expand(y.shape[0], -1, -1), y), dim=1) + self.place
        return self.head(self.norm(y)[:, 0])


def _grouped() -> list[Pattern]:
    head = "heads meet each other, not weights"

    def grouped(kernel: str) -> Small:
        return Small(lambda m, x: _gqa(m, x, kernel), q=nn.Linear(6, 24), k=nn.Linear(6, 12), v=nn.Linear(6, 12), o=nn.Linear(24, 3))

    return [
        Pattern("grouped queries, repeat_interleave", lambda: grouped("repeat"), TOKENS, 4, by_hand=head),
        Pattern("grouped queries, expand", lambda: grouped("expand"), TOKENS, 4, by_hand=head),
        Pattern("grouped queries, enable_gqa", lambda: grouped("gqa"), TOKENS, 4, by_hand=head),
        Pattern(
            "one key head for all",
            lambda: Small(_mqa, q=nn.Linear(6, 12), k=nn.Linear(6, 3), v=nn.Linear(6, 3), o=nn.Linear(12, 3)),
            TOKENS,
            3,
            by_hand=head,
        ),
    ]


def _gqa(m: Small, x: Tensor, kernel: str) -> Tensor:
    b, n, _ = x.shape
    q = m.q(x).view(b, n, 8, 3).transpose(1, 2)
    k, v = (t.view(b, n, 4, 3).transpose(1, 2) for t in (m.k(x), m.v(x)))
    if kernel == "repeat":
        k, v = (t.repeat_interleave(2, dim=1) for t in (k, v))
    if kernel == "expand":
        k, v = (t[:, :, None].expand(b, 4, 2, n, 3).reshape(b, 8, n, 3) for t in (k, v))
    y = F.scaled_dot_product_attention(q, k, v, enable_gqa=kernel == "gqa")
    return m.o(y.transpose(1, 2).reshape(b, n, -1))


def _mqa(m: Small, x: Tensor) -> Tensor:
    b, n, _ = x.shape
    q, k, v = m.q(x).view(b, n, 4, 3).transpose(1, 2), m.k(x).unsqueeze(1), m.v(x).unsqueeze(1)
    return m.o(((q @ k.mT) * 3**-0.5).softmax(-1).matmul(v).transpose(1, 2).flatten(2))
