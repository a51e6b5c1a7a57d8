"""The order of float32 operations in which oneDNN finishes an integer layer, in plain torch, bit for bit.

Found by comparing the kernels of torch 2.15 on AVX-512 with VNNI, AVX-512 and AVX2 with what follows (``tests/test_target_int8.py``
does it on the machine where it runs). All of them do the same as long as the scale of the input is multiplied into the scales of
the weights beforehand: where the kernel does it, some multiply the sum by one and then by the other, some by their product.

    y = float32(sum) * scale + bias                 two roundings
    y = fma(q_r - zero_point_r, scale_r, y)         a uint8 residual: one rounding
    y = y + r                                       a float32 residual
    y = act(y)                                      :func:`activate`
    q = clamp(round(y * (1 / scale_out) + zero_point_out), 0, 255)

The formulas of the activations are those of oneDNN's ``jit_uni_eltwise_injector`` (Apache-2.0). A few kernels have others (AVX2 with
3 channels per group computes SiLU otherwise); a plan compares before it lets a kernel apply one.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fxcompress.ir.activation import Activation

__all__ = ["CONV_ACTIVATIONS", "LINEAR_ACTIVATIONS", "activate", "fused_multiply_add"]

CONV_ACTIVATIONS = frozenset({"relu", "hardtanh", "hardswish", "silu"})
"""Activations inside a 1-d or 2-d convolution: oneDNN takes them, and their arithmetic is the same on every CPU."""

LINEAR_ACTIVATIONS = CONV_ACTIVATIONS | {"leaky_relu"}
"""Activations inside a linear. GELU is not among them: oneDNN computes it by another formula on every instruction set, and torch's
own takes hardly longer."""

_LOG2E, _LN2 = 1.4426950216293335, 0.6931471824645996
_SMALLEST = -87.3365478515625  # exp below it is 0
_EXP = (0.008289290592074394, 0.04189782217144966, 0.16667652130126953, 0.4999915063381195, 0.9999997019767761)
_SIXTH = 0.1666666716337204


def activate(activation: Activation | None, y: Tensor) -> Tensor:
    """An activation of :data:`LINEAR_ACTIVATIONS`, or None, of a float32 tensor."""
    if activation is None:
        return y
    if activation.name == "silu":
        return _logistic(y) * y
    if activation.name == "hardswish":
        return (y * _SIXTH + 0.5).clamp(0.0, 1.0) * y
    if activation.name == "leaky_relu":
        return torch.where(y > 0, y, y * float(activation.args[0]))
    return F.relu(y) if activation.name == "relu" else activation.apply(y)


def _logistic(x: Tensor) -> Tensor:
    below = _exp(-x.abs())
    below = below / (below + 1)
    return torch.where(torch.signbit(x), below, 1 - below)


def _exp(x: Tensor) -> Tensor:
    """``2**n * p(x - n ln 2)`` with a polynomial p of degree 5, for x <= 0."""
    n = (x.clamp_min(_SMALLEST) * _LOG2E + 0.5).floor()
    rest = fused_multiply_add(n, -_LN2, x.clamp_min(_SMALLEST))
    p = torch.full_like(x, _EXP[0])
    for coefficient in (*_EXP[1:], 1.0):
        p = fused_multiply_add(p, rest, coefficient)
    # 2**(n - 1) from its exponent's bits; those of 2**-127 stand for zero, in the kernel too
    half_power = ((n + 126).int() << 23).view(torch.float32)
    return p * half_power.masked_fill(x < _SMALLEST, 0.0) * 2


def fused_multiply_add(a: Tensor, b: Tensor | float, c: Tensor | float) -> Tensor:
    """float32 ``a * b + c`` with a single rounding, for float32 operands (numbers must be float32 numbers).

    The product is exact in float64. The sum is rounded there to odd, so that the rounding to float32 that follows is that
    of the exact sum (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", IEEE Transactions on Computers, 2008).
    """
    product = a.double() * (b.double() if isinstance(b, Tensor) else b)
    addend = c.double() if isinstance(c, Tensor) else torch.tensor(c, dtype=torch.float64, device=a.device)
    total = product + addend
    shifted = total - product
    error = (product - (total - shifted)) + (addend - shifted)
    bits = total.view(torch.int64)
    inexact_even = (error != 0) & (bits & 1 == 0) & total.isfinite()
    towards = torch.full_like(total, math.inf).copysign_(error)
    return torch.where(inexact_even, torch.nextafter(total, towards), total).float()
