"""Layers as what decides how long they take: their kind and sizes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from torch.fx import Node

from fxcompress.analysis import Shapes
from fxcompress.analysis.channels import ChannelDependencyGraph
from fxcompress.ir.view import Op, view
from fxcompress.pruning.counts import Axis, Counted, Counts


@dataclass(frozen=True)
class Layer:
    """A convolution (``size`` is that of its input plane) or a linear (``batch`` counts its rows) without its weights."""

    kind: Literal["conv", "linear"]
    inputs: int
    outputs: int
    groups: int = 1
    batch: int = 1
    size: tuple[int, ...] = ()
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] | str = ()
    dilation: tuple[int, ...] = ()

    def __str__(self) -> str:
        text = f"{self.kind} {self.inputs}->{self.outputs} n{self.batch}"
        if self.kind == "conv":
            padding = self.padding if isinstance(self.padding, str) else _joined(self.padding)
            text += (
                f" g{self.groups} {_joined(self.size)} k{_joined(self.kernel)} s{_joined(self.stride)} p{padding} d{_joined(self.dilation)}"
            )
        return text

    @property
    def macs(self) -> int:
        """Multiply-adds, up to what the border of the plane changes."""
        places = math.prod(self.size) // max(1, math.prod(self.stride))
        return max(1, self.batch * places * math.prod(self.kernel) * self.inputs * self.outputs // self.groups)


def _joined(numbers: tuple[int, ...]) -> str:
    return "x".join(map(str, numbers))


@dataclass(frozen=True)
class Site:
    """A layer up to its two widths.

    Attributes:
        unit: the layer at width 1: one channel of every group, or one group.
        whole: whole groups go, so that there is only one width.
    """

    unit: Layer
    whole: bool = False

    def layer(self, first: int, second: int) -> Layer:
        """``first`` inputs and ``second`` outputs per group; for ``whole``, ``first`` groups."""
        if self.whole:
            return replace(self.unit, inputs=self.unit.inputs * first, outputs=self.unit.outputs * first, groups=first)
        return replace(self.unit, inputs=self.unit.inputs * first, outputs=self.unit.outputs * second)


@dataclass(frozen=True)
class Placed:
    """A layer of a graph: where its widths come from."""

    node: Node
    site: Site
    first: Axis
    second: Axis
    first_share: int = 1  # positions of the axis that make up one step of the width
    second_share: int = 1
    outer: tuple[Axis, ...] = ()  # axes before the channels, whose positions are samples or rows of the layer

    def widths(self, counted: Counted) -> tuple[int, int]:
        """The widths of :meth:`Site.layer` that remain."""
        return self.first.left(counted) // self.first_share, self.second.left(counted) // self.second_share

    def share(self, counted: Counted) -> float:
        """The share of the samples or rows that remain; less than 1 where they are channels of another layer."""
        return math.prod(axis.left(counted) / axis.size for axis in self.outer if axis.row)


def placed_layers(deps: ChannelDependencyGraph, counts: Counts) -> list[Placed]:
    """Every convolution and linear of the graph, once per call."""
    shapes = deps.analyses.get(Shapes)
    found: list[Placed] = []
    for node in deps.module.graph.nodes:
        op = view(node, "conv", "linear") if node.op.startswith("call_") else None
        if op is None or shapes.shape(node) is None:
            continue
        weight = counts.operand(op, "weight")
        if len(weight) >= 2:
            source = counts.node(op.input)
            found.append(_linear(op, weight, source) if op.kind == "linear" else _conv(op, weight, source))
    return found


def _linear(op: Op, weight: tuple[Axis, ...], source: tuple[Axis, ...]) -> Placed:
    rows = math.prod(axis.size for axis in source[:-1])
    return Placed(op.node, Site(Layer("linear", 1, 1, batch=rows)), weight[1], weight[0], outer=source[:-1])


def _conv(op: Op, weight: tuple[Axis, ...], source: tuple[Axis, ...]) -> Placed:
    dims = len(weight) - 2
    outer, size = source[: -dims - 1], tuple(axis.size for axis in source[-dims:])
    batch = math.prod(axis.size for axis in outer)
    numbers = [_each(op[name], dims) for name in ("stride", "dilation")]
    padding = op["padding"] if isinstance(op["padding"], str) else _each(op["padding"], dims)
    kernel, groups = tuple(axis.size for axis in weight[2:]), int(op["groups"])
    rest = (groups, batch, size, kernel, numbers[0], padding, numbers[1])
    outputs = weight[0].size // groups
    if groups > 1 and groups >= weight[1].size:
        unit = Layer("conv", weight[1].size, outputs, 1, *rest[1:])
        return Placed(op.node, Site(unit, whole=True), weight[0], Axis(1), outputs, outer=outer)
    unit = Layer("conv", groups, groups, *rest)
    return Placed(op.node, Site(unit), weight[1], weight[0], 1, groups, outer)


def _each(value: object, dims: int) -> tuple[int, ...]:
    """A number per dimension, or one for all of them."""
    if isinstance(value, int):
        return (value,) * dims
    assert isinstance(value, (tuple, list))
    return tuple(value) if len(value) == dims else tuple(value) * dims
