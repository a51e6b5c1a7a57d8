"""How many channels remain along chosen axes, for many choices quickly."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import Node

from fxcompress.analysis import Shapes
from fxcompress.analysis.channels import PINNED, ChannelDependencyGraph, Mask
from fxcompress.analysis.channels.labels import Array
from fxcompress.ir.view import Op

Counted = NDArray[np.int64]


@dataclass(frozen=True)
class Axis:
    """An axis of ``size`` positions; ``row`` is its place in the result of :class:`Counts`, 0 for one that loses nothing."""

    size: int
    row: int = 0

    def left(self, counted: Counted) -> int:
        return int(counted[self.row]) if self.row else self.size


class Counts:
    """Counts what remains along all registered axes at once.

    Axes with the same classes share a row. ``counts(keep)`` gives one number per row; row 0 is always 1, so that
    products over any number of axes can be padded with it.
    """

    def __init__(self, deps: ChannelDependencyGraph) -> None:
        self.deps, self.shapes = deps, deps.analyses.get(Shapes)
        self._rows: dict[bytes, int] = {}
        self._classes: list[Array] = [np.array([PINNED])]
        self._times: list[Array] = [np.array([1])]
        self._joint: list[tuple[int, tuple[Array, ...]]] = []  # rows whose positions remain when several classes do
        self._flat: tuple[Array, Array, Array] | None = None

    def __call__(self, keep: Mask) -> Counted:
        """What remains along every row when the classes with ``keep`` do."""
        if self._flat is None:
            starts = np.cumsum([0, *(len(c) for c in self._classes[:-1])])
            self._flat = np.concatenate(self._classes), np.concatenate(self._times), starts
        classes, times, starts = self._flat
        flags = np.append(keep, True)
        counted: Counted = np.add.reduceat(flags[classes] * times, starts)
        for row, arrays in self._joint:
            counted[row] = np.logical_and.reduce([flags[a] for a in arrays]).sum()
        return counted

    # -- axes -----------------------------------------------------------------------------------------------------------

    def node(self, node: Node) -> tuple[Axis, ...]:
        """The axes of the tensor that ``node`` gives."""
        along = self.deps.along(node)
        return tuple(self._axis(size, along.get(a, ())) for a, size in enumerate(self.shapes.shape(node) or ()))

    def parameter(self, path: str, tensor: Tensor) -> tuple[Axis, ...]:
        """The axes of the parameter or buffer at ``path``."""
        along = self.deps.along_parameter(path)
        return tuple(self._axis(size, (along[a],) if a in along else ()) for a, size in enumerate(tensor.shape))

    def operand(self, op: Op, name: str) -> tuple[Axis, ...]:
        """The axes of an operand, whether it comes from the graph or is a parameter of the module."""
        if op.module is not None and name in op.spec.parameters:
            return self.parameter(f"{op.node.target}.{name}", getattr(op.module, name))
        return self.node(op[name])

    def _axis(self, size: int, arrays: Sequence[Array]) -> Axis:
        arrays = [a for a in arrays if (a != PINNED).any()]
        if not arrays:
            return Axis(size)
        key = b"|".join(a.tobytes() for a in arrays)
        if key not in self._rows:
            self._rows[key] = len(self._classes)
            found, times = np.unique(arrays[0], return_counts=True)
            if len(arrays) > 1:
                self._joint.append((self._rows[key], tuple(arrays)))
            self._classes.append(found)
            self._times.append(times)
            self._flat = None
        return Axis(size, self._rows[key])


class Products:
    """A list of products of axis sizes, evaluated together."""

    def __init__(self) -> None:
        self._factors: list[int] = []
        self._rows: list[tuple[int, ...]] = []
        self._packed: tuple[Counted, NDArray[np.int64]] | None = None

    def add(self, axes: Iterable[Axis], times: int = 1) -> None:
        axes = list(axes)
        self._factors.append(times * math.prod(a.size for a in axes if not a.row))
        self._rows.append(tuple(a.row for a in axes if a.row))
        self._packed = None

    def __call__(self, counted: Counted) -> Counted:
        """Every product when ``counted`` is what :class:`Counts` gives."""
        if self._packed is None:
            longest = max((len(r) for r in self._rows), default=0)
            padded = [(*r, *(0,) * (longest - len(r))) for r in self._rows]
            self._packed = np.array(self._factors, dtype=np.int64), np.array(padded, dtype=np.int64).reshape(len(padded), longest)
        factors, rows = self._packed
        products: Counted = factors * counted[rows].prod(axis=1)
        return products
