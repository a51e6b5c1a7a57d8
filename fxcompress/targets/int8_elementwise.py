"""Fast forms of the operations between quantized layers: :func:`fast_form`.

They give the integers of the definitions in ``fxcompress.quant``, which are made so that no order of float32 operations can
change a result. Wherever a kernel does not apply (another device, tracing, compiling, ...) the definition itself runs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Self

import torch
from torch import Tensor, nn

from fxcompress.ir.activation import Activation
from fxcompress.quant.affine import QParams
from fxcompress.quant.elementwise import QuantActivation, QuantAdd, QuantMean, QuantMul, clamp_of
from fxcompress.quant.pooling import QuantAdaptiveAvgPool, QuantAvgPool, QuantMaxPool
from fxcompress.targets.cpu_kernels import runs_native
from fxcompress.targets.inference import InferenceOnly
from fxcompress.targets.int8_bridge import Bridge, bridge, plain_uint8
from fxcompress.targets.int8_pooling import FastAdaptiveAvgPool, FastAvgPool, FastMaxPool, rounded_means
from fxcompress.targets.int8_values import dequantized, quantized

__all__ = ["FastActivation", "FastAdd", "FastMean", "FastMul", "fast_form"]

_MOST = 2.0**30
"""Kernels convert to int32 before they clamp; beyond it the definition runs."""


class FastAdd(InferenceOnly, QuantAdd):
    """:class:`QuantAdd` on torch's vectorized kernels."""

    def __init__(self, a: QParams, b: QParams | None, qparams: QParams | None, activation: Activation | None = None) -> None:
        super().__init__(a, b, qparams, activation)
        self.training = False
        fixed = self.fixed_point()
        self._scales: tuple[float, float] | None = None
        if fixed is not None and 255 * (fixed[0] + fixed[1]) * 2.0 ** -fixed[2] < _MOST:
            self._scales = fixed[0] * 2.0 ** -fixed[2], fixed[1] * 2.0 ** -fixed[2]
        self._limits = _narrower(activation, qparams)

    @classmethod
    def of(cls, module: QuantAdd) -> Self:
        return cls(module.a, module.b, module.qparams, module.activation)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        found = bridge(a) if self.b is None else bridge(a, b)
        if found is None:
            return super().forward(a, b)
        y = self._in_float(found, a, b) if self._scales is None else self._fixed(found, a, b)
        return super().forward(a, b) if y is None else y

    def _fixed(self, found: Bridge, a: Tensor, b: Tensor) -> Tensor | None:
        assert self.qparams is not None
        assert self.b is not None
        assert self._scales is not None
        first, second = (a, self._scales[0], self.a.zero_point), (b, self._scales[1], self.b.zero_point)
        if a.shape != b.shape:
            if not _widens(b, a):
                first, second = second, first
            if not _widens(second[0], first[0]):
                return None
        y = found.add(*first, *second, self.qparams.zero_point)
        return y if self._limits is None else y.clamp_(*self._limits)

    def _in_float(self, found: Bridge, a: Tensor, b: Tensor) -> Tensor | None:
        second = _operand(found, a, b, self.b, scaled=True)
        if second is None:
            return None
        return _finish(dequantized(a, self.a).add_(second), self.activation, self.qparams)


class FastMul(InferenceOnly, QuantMul):
    """:class:`QuantMul` on torch's vectorized kernels. A float32 operand must not have NaN."""

    def __init__(self, a: QParams, b: QParams | None, qparams: QParams | None, activation: Activation | None = None) -> None:
        super().__init__(a, b, qparams, activation)
        self.training = False
        self._limits = _narrower(activation, qparams)
        self._multiplier: float | None = None
        if qparams is not None and clamp_of(activation, qparams) is not None and self.is_finite():
            self._multiplier = self.multiplier()
        self._scale = self.product_scale() if self._multiplier is not None and b is not None else None
        if self._scale is not None and 255 * 255 / self._scale >= _MOST:
            self._scale = None

    @classmethod
    def of(cls, module: QuantMul) -> Self:
        return cls(module.a, module.b, module.qparams, module.activation)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        found = bridge(a) if self.b is None else bridge(a, b)
        y = None if found is None else self._on_kernels(found, a, b)
        return super().forward(a, b) if y is None else y

    def _on_kernels(self, found: Bridge, a: Tensor, b: Tensor) -> Tensor | None:
        if self._scale is not None and a.shape == b.shape:
            assert self.b is not None
            assert self.qparams is not None
            return self._clamped(found.mul(a, self.a.zero_point, b, self.b.zero_point, self._scale, self.qparams.zero_point))
        second = _operand(found, a, b, self.b, scaled=self._multiplier is None)
        if second is None:
            return None
        if self._multiplier is None or self.qparams is None:
            return _finish(dequantized(a, self.a).mul_(second), self.activation, self.qparams)
        y = found.centred(a, self.a.zero_point)
        y = y.mul_(second * self._multiplier) if self.b is None else y.mul_(second).mul_(self._multiplier)
        return self._clamped(found.rounded(y, self.qparams.zero_point))

    def _clamped(self, q: Tensor) -> Tensor:
        return q if self._limits is None else q.clamp_(*self._limits)


class FastMean(InferenceOnly, QuantMean):
    """:class:`QuantMean` with sums in float32, which are exact for up to 65,793 elements."""

    @classmethod
    def of(cls, module: QuantMean) -> Self:
        fast = cls(module.source, module.qparams, module.dims, module.keepdim)
        fast.training = False
        return fast

    def forward(self, q: Tensor) -> Tensor:
        count = self.count(q)
        found = bridge(q)
        if count * 255 > 2**24 or found is None:
            return super().forward(q)
        total = q.sum(self.dims, keepdim=self.keepdim, dtype=torch.float32).sub_(count * self.source.zero_point)
        return rounded_means(found, total, count, self.source, self.qparams)


class FastActivation(InferenceOnly, QuantActivation):
    """:class:`QuantActivation` by clamping, in float where that gives the table's values for all 256 numbers, or by a table of pairs."""

    def __init__(self, source: QParams, qparams: QParams, activation: Activation) -> None:
        super().__init__(source, qparams, activation)
        self.training = False
        self._limits = clamp_of(activation, qparams) if source == qparams else None
        self._pairs: Tensor | None = None
        self._in_float: bool | None = None  # unknown until the first call

    @classmethod
    def of(cls, module: QuantActivation) -> Self:
        return cls(module.source, module.qparams, module.activation)

    def forward(self, q: Tensor) -> Tensor:
        if not plain_uint8(q):
            return super().forward(q)
        if self._limits is not None:
            return q.clamp(*self._limits)
        if self.activation.name in _CHEAP and bridge(q) is not None and self._agrees():
            return self._computed(q)
        return self._looked_up(q)

    def _agrees(self) -> bool:
        """Whether float arithmetic gives the table, in vectors and in what is left over after them."""
        if self._in_float is None:
            every = torch.arange(256, dtype=torch.uint8)
            scattered = torch.stack([every, every], 1)[:, 0]
            self._in_float = all(torch.equal(self._computed(q), self.table) for q in (every, scattered))
        return self._in_float

    def _computed(self, q: Tensor) -> Tensor:
        y = dequantized(q, self.source)
        limits = clamp_of(self.activation, self.qparams)
        return quantized(self.activation.apply(y), self.qparams) if limits is None else quantized(y, self.qparams).clamp_(*limits)

    def _looked_up(self, q: Tensor) -> Tensor:
        order = _dense_order(q)
        if order is None or q.numel() % 2 or q.storage_offset() % 2:
            return self.table.index_select(0, q.reshape(-1).int()).view(q.shape)
        if self._pairs is None:
            self._pairs = _pairs(bytes(self.table.tolist()))
        flat = q.permute(order).reshape(-1).view(torch.int16).int().add_(2**15)
        y = self._pairs.index_select(0, flat).view(torch.uint8)
        return y.view([q.shape[i] for i in order]).permute([order.index(i) for i in range(len(order))])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pairs": None}


_CHEAP = frozenset({"relu", "hardtanh", "hardswish", "hardsigmoid", "leaky_relu"})
"""Activations that take less time in float than a look-up in a table."""


@lru_cache(maxsize=64)
def _pairs(table: bytes) -> Tensor:
    """int16 (65536,): a table of bytes as a table of pairs of bytes, by the pair as a signed number plus 2**15."""
    single = torch.tensor(list(table), dtype=torch.uint8)
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.uint8)
    return single[every.int()].view(torch.int16)


def _dense_order(q: Tensor) -> list[int] | None:
    """The dimensions from the outermost to the innermost in memory; None where the memory has gaps or overlaps."""
    order = sorted(range(q.dim()), key=lambda i: (-q.stride()[i], i))
    return order if q.permute(order).is_contiguous() else None


def _widens(x: Tensor, y: Tensor) -> bool:
    """Whether ``x`` broadcasts to the shape of ``y``."""
    return x.dim() <= y.dim() and all(m in (1, n) for m, n in zip(reversed(x.shape), reversed(y.shape), strict=False))


def _narrower(activation: Activation | None, qparams: QParams | None) -> tuple[int, int] | None:
    """What is left to clamp after a conversion to uint8."""
    limits = None if qparams is None else clamp_of(activation, qparams)
    return None if limits == (0, 255) else limits


def _operand(found: Bridge, a: Tensor, b: Tensor, qparams: QParams | None, *, scaled: bool) -> Tensor | None:
    """The second operand as float32 integers (or numbers, if ``scaled``); None where a kernel cannot take the second."""
    if a.shape != b.shape and not _widens(b, a):
        return None
    if qparams is None:
        return b if runs_native(b) and not b.requires_grad else None
    return dequantized(b, qparams) if scaled else found.centred(b, qparams.zero_point)


def _finish(y: Tensor, activation: Activation | None, qparams: QParams | None) -> Tensor:
    """The activation, and quantization if wanted, of a tensor that nobody else has."""
    if activation is not None:
        y = activation.apply(y)
    if qparams is None:
        return y
    return quantized(y, qparams)


_FAST: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    QuantAdaptiveAvgPool: FastAdaptiveAvgPool.of,
    QuantAvgPool: FastAvgPool.of,
    QuantMaxPool: FastMaxPool.of,
    QuantAdd: FastAdd.of,
    QuantMul: FastMul.of,
    QuantMean: FastMean.of,
    QuantActivation: FastActivation.of,
}


def fast_form(module: nn.Module) -> nn.Module | None:
    """The fast form of a reference module; None where there is none."""
    make = _FAST.get(type(module))
    return None if make is None else make(module)
