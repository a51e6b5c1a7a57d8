"""Plain uint8 tensors for torch's kernels on quantized tensors, without a copy. The only place that touches quantized tensors.

torch deprecates its quantized tensors (pytorch issue 184982). Their kernels are still the fastest for sums, products and
quantization of plain uint8, so they are used while they are there and agree with the definitions in ``fxcompress.quant``;
:func:`bridge` tells, and every caller has another way.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fxcompress.targets.cpu_kernels import ordinary_mode, recording

__all__ = ["Bridge", "as_plain", "as_quantized", "bridge", "plain_uint8"]


@dataclass(frozen=True)
class Bridge:
    """Kernels on quantized tensors: their scale and zero point are arguments, so any interpretation of the integers will do."""

    sum: Callable[[Tensor, Tensor, float, int], Tensor]
    product: Callable[[Tensor, Tensor, float, int], Tensor]
    pool: Callable[..., Tensor]

    def add(self, a: Tensor, a_scale: float, a_zero: int, b: Tensor, b_scale: float, b_zero: int, zero_point: int) -> Tensor:
        """uint8 ``clamp(round(a_scale (a - a_zero) + b_scale (b - b_zero)) + zero_point, 0, 255)``; b broadcasts to a."""
        return as_plain(self.sum(as_quantized(a, a_scale, a_zero), as_quantized(b, b_scale, b_zero), 1.0, zero_point))

    def mul(self, a: Tensor, a_zero: int, b: Tensor, b_zero: int, scale: float, zero_point: int) -> Tensor:
        """uint8 ``clamp(round((a - a_zero) (b - b_zero) * (1 / scale)) + zero_point, 0, 255)``; b broadcasts to a."""
        return as_plain(self.product(as_quantized(a, 1.0, a_zero), as_quantized(b, 1.0, b_zero), scale, zero_point))

    def max_pool2d(
        self, q: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], ceil_mode: bool
    ) -> Tensor:
        """Of uint8 (N, C, H, W)."""
        return self.pool(q, kernel, stride, padding, dilation, ceil_mode)

    def centred(self, q: Tensor, zero_point: int) -> Tensor:
        """float32 ``q - zero_point``, a new tensor in the layout of ``q``."""
        return as_quantized(q, 1.0, zero_point).dequantize()

    def rounded(self, x: Tensor, zero_point: int, step: float = 1.0) -> Tensor:
        """uint8 ``clamp(round(x * (1 / step)) + zero_point, 0, 255)`` of a float32 tensor without NaN."""
        return as_plain(torch.quantize_per_tensor(x, step, zero_point, torch.quint8))


def as_quantized(q: Tensor, scale: float, zero_point: int) -> Tensor:
    """The memory of a uint8 tensor as a quantized tensor. Few microseconds; only where :func:`bridge` gives kernels.

    A copy while calls are recorded: a recording has tensors, and no memory."""
    if recording():
        return torch._make_per_tensor_quantized_tensor(q, scale, zero_point)
    found = torch._empty_affine_quantized([0], scale=scale, zero_point=zero_point, dtype=torch.quint8)
    return found.set_(q.untyped_storage(), q.storage_offset(), q.shape, q.stride())


def as_plain(q: Tensor) -> Tensor:
    """The memory of a quantized tensor as a uint8 tensor; a copy while calls are recorded."""
    if recording():
        return q.int_repr()
    found = torch.empty(0, dtype=torch.uint8)
    return found.set_(q.untyped_storage(), q.storage_offset(), q.shape, q.stride())


def plain_uint8(*tensors: Tensor) -> bool:
    """Whether kernels may read the memory of ``tensors`` now: dense uint8 on a CPU, outside tracing and compiling."""
    for x in tensors:
        if type(x) is not Tensor or x.dtype is not torch.uint8 or not x.is_cpu or x.layout is not torch.strided:
            return False
    return ordinary_mode()


def bridge(*tensors: Tensor) -> Bridge | None:
    """The kernels for these uint8 tensors; None where they must not read them now (see :func:`plain_uint8`), where this build of
    torch has not got them, or where the user chose another engine for them."""
    return None if not plain_uint8(*tensors) or torch._C._get_qengine() == _QNNPACK else _bridge()


_QNNPACK = 2  # at::QEngine; its fixed-point arithmetic rounds halves up


@cache
def _bridge() -> Bridge | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch tells once per process that quantized tensors are deprecated
        try:
            found = Bridge(*(_kernel(name) for name in ("add", "mul", "max_pool2d")))
            works = _agrees(found)
        except (AttributeError, RuntimeError, TypeError):  # gone, or of another signature
            return None
    return found if works else None


def _kernel(name: str) -> Any:
    return getattr(torch.ops.quantized, name).default


def _agrees(found: Bridge) -> bool:
    """Whether the kernels compute what they should on a few numbers, ties included."""
    q = torch.tensor([0, 1, 2, 3, 100, 255], dtype=torch.uint8)
    one, three = q.float() - 1, q.float() - 3
    image = q.view(1, 1, 2, 3)
    ties = torch.tensor([-0.5, 0.5, 1.5, 2.5, -1e9, 1e9])
    expected = [
        (found.add(q, 0.5, 1, q, 0.25, 3, 2), one / 2 + three / 4),
        (found.mul(q, 1, q, 3, 2.0, 2), one * three / 2),
        (found.rounded(ties, 2), ties),
        (found.rounded(ties, 2, 0.5), ties * 2),
        (found.rounded(found.centred(q, 2), 2), q.float() - 2),
    ]
    pooled = found.max_pool2d(image, [2, 2], [1, 1], [1, 1], [1, 1], False)
    same = (torch.equal(got, x.round().add(2).clamp(0, 255).to(torch.uint8)) for got, x in expected)
    return all(same) and torch.equal(pooled.float(), F.max_pool2d(image.float(), 2, 1, 1))
