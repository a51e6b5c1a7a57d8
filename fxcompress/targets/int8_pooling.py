"""Fast forms of the pooling of uint8 tensors; the same integers as in ``fxcompress.quant.pooling``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from fxcompress.quant.affine import QParams
from fxcompress.quant.elementwise import divided, mean_step
from fxcompress.quant.pooling import QuantAdaptiveAvgPool, QuantAvgPool, QuantMaxPool
from fxcompress.targets.inference import InferenceOnly
from fxcompress.targets.int8_bridge import Bridge, bridge, plain_uint8

__all__ = ["FastAdaptiveAvgPool", "FastAvgPool", "FastMaxPool"]

_EXACT = 2**24
"""Up to it float32 holds every integer."""

_MAX_SIZES = 16  # input sizes for which divisors are kept


class FastMaxPool(InferenceOnly, QuantMaxPool):
    """:class:`QuantMaxPool` on torch's kernel for 2-d; else the maximum over shifted views, one dimension after the other."""

    def __init__(
        self, kernel_size: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], ceil_mode: bool = False
    ) -> None:
        super().__init__(kernel_size, stride, padding, dilation, ceil_mode)
        self.training = False

    @classmethod
    def of(cls, module: QuantMaxPool) -> Self:
        return cls(module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode)

    def forward(self, q: Tensor) -> Tensor:
        if not plain_uint8(q) or q.dim() != len(self.kernel_size) + 2 or not self._fits(q):
            return super().forward(q)
        found = bridge(q) if q.dim() == 4 else None
        if found is not None:
            return found.max_pool2d(q, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode)
        for axis in range(len(self.kernel_size)):
            q = self._along(q, axis)
        return q

    def _fits(self, q: Tensor) -> bool:
        """Whether torch would take it: no empty dimension, no padding beyond half of the kernel."""
        halves = all(2 * p <= k for p, k in zip(self.padding, self.kernel_size, strict=True))
        reach = zip(q.shape[2:], self.padding, self.dilation, self.kernel_size, strict=True)
        return halves and q.numel() > 0 and all(n + 2 * p >= d * (k - 1) + 1 for n, p, d, k in reach)

    def _along(self, q: Tensor, axis: int) -> Tensor:
        """Zero is the smallest number, so that padding with it changes no maximum."""
        k, s, p, d = self.kernel_size[axis], self.stride[axis], self.padding[axis], self.dilation[axis]
        dim, behind = axis - len(self.kernel_size), -1 - axis + len(self.kernel_size)
        size, reach = q.shape[dim], d * (k - 1) + 1
        steps = size + 2 * p - reach
        outputs = (-(-steps // s) if self.ceil_mode else steps // s) + 1
        if self.ceil_mode and (outputs - 1) * s >= size + p:
            outputs -= 1
        after = max(0, (outputs - 1) * s + reach - size - p)
        q = F.pad(q, [0, 0] * behind + [p, after])
        y = q.narrow(dim, 0, (outputs - 1) * s + 1)[_every(s, behind)]
        for tap in range(1, k):
            y = torch.maximum(y, q.narrow(dim, tap * d, (outputs - 1) * s + 1)[_every(s, behind)])
        return y


class FastAvgPool(InferenceOnly, QuantAvgPool):
    """:class:`QuantAvgPool` with sums in float32, which are exact for windows of up to 65,793 elements."""

    def __init__(
        self,
        source: QParams,
        qparams: QParams | None,
        kernel_size: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        *,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor: int | None = None,
    ) -> None:
        numbers = {"ceil_mode": ceil_mode, "count_include_pad": count_include_pad}
        super().__init__(source, qparams, kernel_size, stride, padding, **numbers, divisor=divisor)
        self.training = False
        self._divisors: dict[tuple[int, ...], Tensor | int] = {}

    @classmethod
    def of(cls, module: QuantAvgPool) -> Self:
        numbers = {"ceil_mode": module.ceil_mode, "count_include_pad": module.count_include_pad}
        return cls(module.source, module.qparams, module.kernel_size, module.stride, module.padding, **numbers, divisor=module.divisor)

    def forward(self, q: Tensor) -> Tensor:
        found = bridge(q)
        if found is None or 255 * torch.Size(self.kernel_size).numel() > _EXACT:
            return super().forward(q)
        total = self.sums(found.centred(q, self.source.zero_point))
        return rounded_means(found, total, self._divisor(q.shape[-len(self.kernel_size) :]), self.source, self.qparams)

    def _divisor(self, size: tuple[int, ...]) -> Tensor | int:
        known = self._divisors.get(size)
        if known is None:
            while len(self._divisors) >= _MAX_SIZES:
                del self._divisors[next(iter(self._divisors))]
            known = self._divisors[size] = self.divisors(size)
        return known


class FastAdaptiveAvgPool(InferenceOnly, QuantAdaptiveAvgPool):
    """:class:`QuantAdaptiveAvgPool`: nothing at all, a sum, or ordinary pooling where all windows have one size."""

    def __init__(self, source: QParams, qparams: QParams | None, output_size: Sequence[int | None]) -> None:
        super().__init__(source, qparams, output_size)
        self.training = False

    @classmethod
    def of(cls, module: QuantAdaptiveAvgPool) -> Self:
        return cls(module.source, module.qparams, module.output_size)

    def forward(self, q: Tensor) -> Tensor:
        found, size = bridge(q), q.shape[-len(self.output_size) :]
        wanted = [n if m is None else m for n, m in zip(size, self.output_size, strict=True)]
        if found is None or not all(wanted) or any(n % m or not n for n, m in zip(size, wanted, strict=True)):
            return super().forward(q)
        if list(size) == wanted and self.source == self.qparams:
            return q
        window = [n // m for n, m in zip(size, wanted, strict=True)]
        count = torch.Size(window).numel()
        if 255 * count > _EXACT:
            return super().forward(q)
        return rounded_means(found, self._sums(found, q, window), count, self.source, self.qparams)

    def _sums(self, found: Bridge, q: Tensor, window: list[int]) -> Tensor:
        dims = len(window)
        if list(q.shape[-dims:]) == window:
            total = q.sum([*range(-dims, 0)], keepdim=True, dtype=torch.float32)
            return total.sub_(self.source.zero_point * torch.Size(window).numel())
        plain = QuantAvgPool(self.source, None, window, window, [0] * dims)
        return plain.sums(found.centred(q, self.source.zero_point))


def rounded_means(found: Bridge, total: Tensor, count: Tensor | int, source: QParams, qparams: QParams | None) -> Tensor:
    """:func:`fxcompress.quant.elementwise.means`, with a faster conversion to uint8."""
    if qparams is None:
        return divided(total, count, source.scale)
    if isinstance(count, Tensor):
        q = found.rounded(divided(total, count, source.scale / qparams.scale), qparams.zero_point)
    else:
        q = found.rounded(total, qparams.zero_point, mean_step(count, source, qparams))
    return q if qparams.high == 255 else q.clamp_(0, qparams.high)


def _every(step: int, behind: int) -> Any:
    """The index of every ``step``-th entry of the dimension that has ``behind`` others behind it."""
    return (..., slice(None, None, step), *[slice(None)] * behind)
