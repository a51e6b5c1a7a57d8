"""What is known of the channels of one tensor.

A *factor* is an array of labels of the tensor's rank, of size 1 along the axes on which the label does not depend: a
tensor (N, C, H, W) behind a convolution has one factor of shape (1, C, 1, 1). After a view that splits channels into
heads a factor varies along two axes. A tensor can have several factors, on different axes. An element of the tensor is
removed when one of its labels is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from fxcompress.analysis.channels.labels import Array


@dataclass(frozen=True)
class Value:
    """A tensor's shape on the example inputs and its factors."""

    shape: tuple[int, ...]
    factors: tuple[Array, ...] = field(default=())

    @property
    def rank(self) -> int:
        return len(self.shape)

    def along(self, axis: int) -> list[Array]:
        """The factors whose labels depend on the place along ``axis``."""
        return [f for f in self.factors if f.shape[axis] > 1]


def axes(factor: Array) -> tuple[int, ...]:
    """The axes along which the labels of ``factor`` vary."""
    return tuple(a for a, size in enumerate(factor.shape) if size > 1)


def squeezed(factor: Array) -> Array:
    """``factor`` with size 1 along every axis on which the labels do not depend."""
    for axis in axes(factor):
        first = factor.take([0], axis)
        if np.array_equal(np.broadcast_to(first, factor.shape), factor):
            factor = first
    return factor


def on_axis(labels: Array, axis: int, rank: int) -> Array:
    """One-dimensional labels as a factor of a tensor of ``rank`` axes."""
    shape = [1] * rank
    shape[axis] = len(labels)
    return labels.reshape(shape)


def widened(factor: Array, rank: int) -> Array:
    """The factor as broadcasting sees it beside a tensor of more axes."""
    return factor.reshape((1,) * (rank - factor.ndim) + factor.shape)


def spread(factor: Array, shape: Iterable[int], over: Iterable[int]) -> Array:
    """``factor`` repeated to the full size of ``shape`` along the axes ``over``."""
    full = list(factor.shape)
    wanted = tuple(shape)
    for axis in over:
        full[axis] = wanted[axis]
    return np.broadcast_to(factor, full)


def reshaped(value: Value, shape: tuple[int, ...]) -> Value:
    """The value after ``view`` or ``reshape``: only axes that really merge or split are written out."""
    blocks = list(_blocks(value.shape, shape))
    return Value(shape, tuple(squeezed(_reshape_factor(f, value.shape, shape, blocks)) for f in value.factors))


def _reshape_factor(factor: Array, old: tuple[int, ...], new: tuple[int, ...], blocks: list[tuple[range, range]]) -> Array:
    target = [1] * len(new)
    for sources, results in blocks:
        if any(factor.shape[a] > 1 for a in sources):
            factor = spread(factor, old, sources)
            for axis in results:
                target[axis] = new[axis]
    return factor.reshape(target)


def _blocks(old: tuple[int, ...], new: tuple[int, ...]) -> Iterable[tuple[range, range]]:
    """Runs of axes of ``old`` and of ``new`` that hold the same elements; both shapes have the same number of them."""
    i = j = 0
    while i < len(old) or j < len(new):
        first, second = i, j
        left = right = 1
        if i < len(old):
            left, i = old[i], i + 1
        if j < len(new):
            right, j = new[j], j + 1
        while left != right:
            if left < right:
                left, i = left * old[i], i + 1
            else:
                right, j = right * new[j], j + 1
        yield range(first, i), range(second, j)
