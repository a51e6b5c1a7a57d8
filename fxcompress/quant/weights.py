"""How finely the weights of each output channel are quantized."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fxcompress.errors import InputError
from fxcompress.quant.affine import weight_limit, weight_scale

__all__ = ["WEIGHT_SCALES", "least_error_scale", "weight_scales"]

_FIRST, _NEXT = 12, 4
_ZOOMS = 2
_LEAST = 0.1
"""Of the largest weight: less than that is never best, but for two bits with extremely heavy tails."""
_BLOCK = 2**17
"""Weights to round at a time: few enough for the cache of one core, many enough to hide the cost of the calls."""


def weight_scales(weight: Tensor, bits: int = 8, method: str = "min-max") -> Tensor:
    """float32 scale of each output channel (axis 0), shape (O,), for ``quantize_weight``; 1 for a channel of zeros.

    Args:
        weight: (O, ...), floating-point.
        bits: of a weight, 2 to 8.
        method: ``min-max``, the largest weight becomes the largest integer, or ``mse``, see ``least_error_scale``.

    Raises:
        InputError: there is no such method, or a weight is NaN or infinite.
    """
    if method not in WEIGHT_SCALES:
        raise InputError(f"there is no weight range '{method}'", hint=f"choose from {', '.join(WEIGHT_SCALES)}")
    bad = weight.numel() - int(weight.isfinite().sum())
    if bad:
        raise InputError(f"{bad} of {weight.numel()} weights are NaN or infinite", hint="mend the weights, or keep the layer in float")
    return WEIGHT_SCALES[method](weight, bits)


def least_error_scale(weight: Tensor, bits: int = 8) -> Tensor:
    """float32 (O,): the scale with which the squared error of a channel's rounded weights is least, of those that are tried.

    They are shares of the min-max scale: 12 evenly spaced ones, then twice four more around the best. Min-max is among
    them, so the error is never larger. Where min-max has the error E, a share f of the largest weight M cuts off
    ``(1 - f) M`` of that weight alone, so none below ``1 - sqrt(E) / M`` is better and none is tried. Squared error as
    the criterion: Sung et al., arXiv:1511.06488, section 3.
    """
    largest = weight_scale(weight, bits)
    if not weight.numel():
        return largest
    rows = weight.detach().float().flatten(1)
    block = max(1, _BLOCK // rows.shape[1])
    limit = weight_limit(bits)
    shares = [_best_share(part / scale[:, None], limit) for part, scale in zip(rows.split(block), largest.split(block), strict=True)]
    return largest * torch.cat(shares)


def _best_share(ratio: Tensor, limit: int) -> Tensor:
    """(O,) from the weights over the min-max scale, (O, n): of the shares that are tried, the one with the least error."""
    best = torch.ones_like(ratio[:, 0])
    error = _error(ratio, best, limit)
    least = (1 - error / limit).clamp_min(_LEAST)
    step = (1 - least) / _FIRST
    places = list(range(-_FIRST, 0))
    for _ in range(1 + _ZOOMS):
        middle = best
        for place in places:
            share = torch.addcmul(middle, step, torch.tensor(float(place))).clamp_max(1)
            found = _error(ratio, share, limit)
            better = found < error
            best, error = torch.where(better, share, best), torch.where(better, found, error)
        step = step / (_NEXT // 2 + 1)
        places = [place for place in range(-(_NEXT // 2), _NEXT // 2 + 1) if place]
    return best


def _error(ratio: Tensor, share: Tensor, limit: int) -> Tensor:
    """(O,): root of the summed squared errors, in units of the min-max scale."""
    scaled = ratio / share[:, None]
    return torch.linalg.vector_norm(scaled.round().clamp_(-limit, limit).sub_(scaled), dim=1) * share


WEIGHT_SCALES: dict[str, Callable[[Tensor, int], Tensor]] = {"min-max": weight_scale, "mse": least_error_scale}
"""Every way to choose the scale, by the name that options use."""
