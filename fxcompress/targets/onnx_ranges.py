"""Grids inside of a layer, for engines that round between a convolution and its residual or activation.

The grid in front of ``act(y + residual)`` must keep apart what the grid behind it keeps apart. What lies further down or up
may saturate: there the result is constant, or beyond the range of the grid behind, for every residual.
"""

from __future__ import annotations

from functools import cache

import torch

from fxcompress.ir.activation import Activation
from fxcompress.quant.affine import QParams

STEPS = 1 << 14  # where an activation is looked at


def clamps(activation: Activation, after: QParams) -> bool:
    """Whether rounding to ``after`` does what ``activation`` does, so that the activation need not be computed."""
    low, high = after.range
    half = after.scale / 2
    if after.bits < 8:
        return False
    if activation.name == "relu":
        return low >= 0
    if activation.name == "hardtanh":
        bottom, top = (float(bound) for bound in activation.args)
        return low >= bottom - half and high <= top + half * 0.999
    return False


def inner_grid(activation: Activation | None, after: QParams, residual: QParams | None) -> QParams:
    """The grid of ``y`` in ``act(y + residual)``, 8 bits; ``residual`` is None where there is none."""
    low, high = after.range if activation is None else _sensitive(activation, after)
    if residual is not None:
        bottom, top = residual.range
        low, high = low - top, high - bottom
    return QParams.of_range(low, high)


@cache
def _sensitive(activation: Activation, after: QParams) -> tuple[float, float]:
    """The smallest interval outside of which ``after`` sees one constant below and one above."""
    width = max(32.0, 2 * max(map(abs, after.range)))
    x = torch.linspace(-width, width, STEPS, dtype=torch.float64)
    q = after.quantize(activation.apply(x)).int()
    changes = (q[1:] != q[:-1]).nonzero().flatten()
    if changes.numel() == 0:
        return 0.0, 0.0
    return float(x[changes[0]]), float(x[changes[-1] + 1])
