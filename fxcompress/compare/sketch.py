"""Count sketches: a few numbers from which two tensors of one shape can be compared later, without either.

Element ``i`` is multiplied with a fixed random sign and added to bucket ``i mod B``. For two tensors of one shape the expected squared
length of the difference of their bucket vectors is the squared length of the difference of the tensors; with B buckets its standard
deviation is ``sqrt(2 / B)`` of that. Source: Charikar, Chen and Farach-Colton (2002), "Finding frequent items in data streams".

The sign of element ``i`` is ``a[i mod P] * b[i div P]`` with P = 2**20. Products of two different signs are still zero in the mean, which
is all that the expectation needs, and the tables stay small. Sums are made in float64 and rounded once to float32, so that the order in
which a machine adds does not show.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fxcompress.compare.schema import Sketch

__all__ = ["BUCKETS", "digest", "distance", "sketch"]

BUCKETS = 8
"""A tensor of fewer elements has a bucket for each, and then differences are exact."""

_PERIOD = 2**20
_PERIODS = 2**12  # signs of periods; they repeat after 4 * 10**9 elements
_BLOCK = 2**16  # elements that are looked at together: they stay in the cache


def sketch(*tensors: Tensor, buckets: int = BUCKETS) -> Sketch:
    """Of the elements of all ``tensors``, one after the other, in float64; complex numbers count as pairs.

    NaN and infinities add nothing to ``norm`` and ``buckets``; they show in ``max_abs``. Tensors on the meta device count as zeros.

    Args:
        buckets: a power of two up to 2**16.
    """
    flat = [_flat(t) for t in tensors]
    count = sum(t.numel() for t in flat)
    if not count or any(t.is_meta for t in flat):
        return Sketch(0.0, 0.0, count, (0.0,) * min(buckets, count))
    return _of_flat(flat[0] if len(flat) == 1 else torch.cat([t.double() for t in flat]), min(buckets, count))


def _flat(tensor: Tensor) -> Tensor:
    plain = dense(tensor)
    return (plain if plain.is_meta else plain.cpu()).reshape(-1)


def dense(tensor: Tensor) -> Tensor:
    """Without a history, strides of its own kind, or complex numbers, which become pairs."""
    plain = tensor.detach()
    if plain.layout is not torch.strided:
        plain = plain.to_dense()
    return torch.view_as_real(plain.resolve_conj()) if plain.is_complex() else plain


def _of_flat(whole: Tensor, width: int) -> Sketch:
    signs, periods = _signs()
    square, tops, sums = 0.0, [], torch.zeros(width, dtype=torch.float64)
    for start, part in zip(range(0, whole.numel(), _BLOCK), whole.split(_BLOCK), strict=True):
        values = part.double()
        tops.append(values.abs().max())
        if not math.isfinite(tops[-1]):
            values = values.nan_to_num(0.0, 0.0, 0.0)
        square += float(values.dot(values))
        signed = values * signs[start % _PERIOD :][: len(values)]
        padded = F.pad(signed, (0, -len(signed) % width))
        sums.add_(padded.view(-1, width).sum(0), alpha=periods[start // _PERIOD % _PERIODS])
    largest = float(torch.stack(tops).max())  # NaN is larger than all
    return Sketch(_rounded(math.sqrt(square)), _rounded(largest), whole.numel(), tuple(map(_rounded, sums.tolist())))


def _rounded(value: float) -> float:
    """As float32 holds it, which is how files store it."""
    with np.errstate(over="ignore"):
        return float(np.float32(value))


@cache
def _signs() -> tuple[Tensor, list[float]]:
    """Signs of the elements of a period (float64), and of periods. From a hash, so they are the same everywhere and forever."""
    return torch.from_numpy(_random_signs("elements", _PERIOD)), _random_signs("periods", _PERIODS).tolist()


def _random_signs(what: str, count: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    bits = np.unpackbits(np.frombuffer(hashlib.shake_256(f"fxcompress sketch {what}".encode()).digest(count // 8), dtype=np.uint8))
    return bits.astype(np.float64) * 2 - 1


def distance(a: Sketch, b: Sketch) -> float:
    """The estimated L2 norm of the difference of two tensors of one shape; exact up to :data:`BUCKETS` elements.

    Raises:
        ValueError: the sketches are of tensors of different sizes.
    """
    if a.count != b.count or len(a.buckets) != len(b.buckets):
        raise ValueError(f"tensors of {a.count} and {b.count} elements have no difference")
    return math.sqrt(sum((x - y) ** 2 for x, y in zip(a.buckets, b.buckets, strict=True)))


def digest(tensors: Iterable[Tensor]) -> str:
    """16 hex digits over dtype, shape and bits of ``tensors``, the same in every process; 0.0 and -0.0 differ."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}".encode())
        plain = dense(tensor)
        if not plain.is_meta:
            found.update(plain.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()[:16]
