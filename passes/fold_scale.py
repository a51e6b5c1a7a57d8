r"""Folds multiplication by and addition of constants into the layer before or after.

``c * (W x + b) + d = (c W) x + (c b + d)`` scales the rows of ``W``; ``W (c * x + d) + b = (W c) x + (b + W d)`` its
columns. The constant is a number, or a parameter or buffer with one element per channel (or one in all): the layer
scale of ConvNeXt and of timm's vision transformers, the mean and deviation of an image. Between the layer and the
constant may stand operations that only reorder axes. Shifts before a convolution that pads with zeros stay, as in
``fold-norm-before``. Everything is computed in float64 and rounded once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.fx import Node

from fxcompress.analysis.shapes import attribute
from fxcompress.ir.edit import own
from fxcompress.ir.view import Op, module_of, view
from fxcompress.passes.fold_norm_before import readers_that_are_layers
from fxcompress.passes.weights import LAYERS, channel_axis, channels, is_zero, scale_inputs, scale_outputs, shift_obstacle, unfit
from fxcompress.pipeline import Property, RulePass
from fxcompress.rewrite import Rule, Rules, Scope, reads

_ARITHMETIC = ("add", "sub", "mul", "div")
_MOVES = ("permute", "transpose", "contiguous")


@dataclass(frozen=True)
class Arithmetic:
    """``node`` is add, sub, mul or div of ``operand`` and ``constant`` (the first operand if ``swapped``)."""

    node: Node
    kind: str
    operand: Node
    constant: Any
    swapped: bool
    alpha: Any = 1
    rounding: Any = None


@dataclass(frozen=True)
class Scaled:
    """Arithmetic after one layer, through ``moves`` (nearest to the arithmetic first), or before all of ``layers``."""

    arithmetic: Arithmetic
    layers: tuple[Node, ...]
    moves: tuple[Node, ...] = ()

    @property
    def nodes(self) -> tuple[Node, ...]:
        constant = (self.arithmetic.constant,) if isinstance(self.arithmetic.constant, Node) else ()
        return (self.arithmetic.node, self.arithmetic.operand, *constant, *self.moves, *self.layers)


def arithmetic(node: Node) -> Arithmetic | None:
    """Read a node as arithmetic with one constant operand that is affine in the other."""
    op = view(node, *_ARITHMETIC)
    if op is None or "other" not in op.operands:
        return None
    left, right = op["input"], op["other"]
    swapped = isinstance(right, Node) and right.op != "get_attr"
    operand, constant = (right, left) if swapped else (left, right)
    if not isinstance(operand, Node) or operand.op == "get_attr" or (isinstance(constant, Node) and constant.op != "get_attr"):
        return None
    if op.kind == "div" and swapped:
        return None
    return Arithmetic(node, op.kind, operand, constant, swapped, op.operands.get("alpha", 1), op.operands.get("rounding_mode"))


def find_after(node: Node, scope: Scope) -> Scaled | None:
    found = arithmetic(node)
    if found is None:
        return None
    moves, source = [], found.operand
    while (move := view(source, *_MOVES)) is not None:
        moves.append(source)
        source = move.input
    if type(module_of(source)) not in LAYERS or view(source) is None:
        return None
    return Scaled(found, (source,), tuple(moves))


def find_before(node: Node, scope: Scope) -> Scaled | None:
    found = arithmetic(node)
    layers = () if found is None else readers_that_are_layers(node)
    return Scaled(found, layers) if found is not None and layers else None


def check_after(match: Scaled, scope: Scope) -> str | None:
    chain = (match.arithmetic.node, *match.moves, *match.layers)
    for reader, node in pairwise(chain):
        if list(node.users) != [reader]:
            return f"'{node.name}' is also read by {reads(u for u in node.users if u is not reader)}"
    values = _after(match, scope)
    return values if isinstance(values, str) else unfit(module_of(match.layers[0]), *values)


def check_before(match: Scaled, scope: Scope) -> str | None:
    others = [user for user in match.arithmetic.node.users if user not in match.layers]
    if others:
        return f"'{match.arithmetic.node.name}' is also read by {reads(others)}"
    return next((reason for node in match.layers if (reason := _obstacle_before(match, node, scope)) is not None), None)


def _obstacle_before(match: Scaled, node: Node, scope: Scope) -> str | None:
    layer, values = module_of(node), _before(match, node, scope)
    if isinstance(values, str):
        return values
    return (None if is_zero(values[1]) else shift_obstacle(layer)) or unfit(layer, *values, inputs=True)


def _before(match: Scaled, node: Node, scope: Scope) -> tuple[Tensor, Tensor] | str:
    """Scale and shift of the input channels of the layer ``node``."""
    layer: Any = module_of(node)
    shape = scope.shapes.shape(match.arithmetic.node)
    axis = None if shape is None else channel_axis(layer, len(shape))
    return scale_and_shift(match.arithmetic, channels(layer)[0], axis, layer.weight.device, scope)


def _after(match: Scaled, scope: Scope) -> tuple[Tensor, Tensor] | str:
    """Scale and shift of the output channels of the layer, followed through the moves."""
    layer: Any = module_of(match.layers[0])
    shape = scope.shapes.shape(match.layers[0])
    axis = None if shape is None else channel_axis(layer, len(shape))
    for move in reversed(match.moves):
        op = view(move)
        assert op is not None
        axis = None if axis is None or shape is None else _moved(op, axis, len(shape))
    return scale_and_shift(match.arithmetic, channels(layer)[1], axis, layer.weight.device, scope)


def _moved(op: Op, axis: int, rank: int) -> int | None:
    """Where ``axis`` is after a permute, transpose or contiguous; None when the new order is not a constant."""
    if op.kind == "contiguous":
        return axis
    order = list(range(rank))
    if op.kind == "permute":
        if not all(isinstance(d, int) for d in op["dims"]):
            return None
        order = [d % rank for d in op["dims"]]
    else:
        a, b = op["dim0"], op["dim1"]
        if not (isinstance(a, int) and isinstance(b, int)):
            return None
        order[a % rank], order[b % rank] = order[b % rank], order[a % rank]
    return order.index(axis)


def scale_and_shift(found: Arithmetic, count: int, axis: int | None, device: torch.device, scope: Scope) -> tuple[Tensor, Tensor] | str:
    """``s`` and ``t``, both (count,) in float64 on ``device``, of the arithmetic along ``axis``, or why it has none."""
    shape, result = scope.shapes.shape(found.operand), scope.shapes.shape(found.node)
    if axis is None or shape is None or result is None:
        return "the axis of the channels is not known"
    if shape != result or scope.shapes.dtype(found.operand) != scope.shapes.dtype(found.node):
        return "the constant changes the shape or the dtype"
    if found.rounding is not None:
        return f"the division rounds ({found.rounding})"
    if isinstance(found.alpha, bool) or not isinstance(found.alpha, (int, float)):
        return f"alpha is {found.alpha}"
    constant = _value(found.constant, scope)
    constant = constant if isinstance(constant, str) else _per_channel(constant, len(shape), axis, count)
    if isinstance(constant, str):
        return constant
    scale, shift = _affine(found, constant)
    if not constant.is_meta and not bool(torch.isfinite(scale).all() and torch.isfinite(shift).all()):
        return "the constant, or one divided by it, is not finite"
    return scale.to(device), shift.to(device)


def _affine(found: Arithmetic, c: Tensor) -> tuple[Tensor, Tensor]:
    one, zero = torch.ones_like(c), torch.zeros_like(c)
    if found.kind == "mul":
        return c, zero
    if found.kind == "div":
        return 1 / c, zero
    sign = 1 if found.kind == "add" else -1
    if found.swapped:  # c + alpha * x, c - alpha * x
        return one * (sign * found.alpha), c
    return one, c * (sign * found.alpha)


def _value(constant: Any, scope: Scope) -> Tensor | str:
    """The constant as a float64 tensor, or why it is none."""
    if isinstance(constant, Node):
        constant = attribute(scope.editor.module, str(constant.target))
        return constant.detach().double() if isinstance(constant, Tensor) else f"the constant is a {type(constant).__name__}"
    if isinstance(constant, bool) or not isinstance(constant, (int, float)):
        return f"the constant is a {type(constant).__name__}"
    if isinstance(constant, int) and abs(constant) > 2**64:
        return "the constant is too large"
    return torch.tensor(float(constant), dtype=torch.float64) if math.isfinite(constant) else "the constant is not finite"


def _per_channel(value: Tensor, rank: int, axis: int, count: int) -> Tensor | str:
    """``value`` broadcast to (count,), or why it is not constant along all axes but ``axis``."""
    if value.dim() > rank:
        return "the constant has more axes than the value"
    shape = (1,) * (rank - value.dim()) + tuple(value.shape)
    varying = [i for i, size in enumerate(shape) if size != 1]
    if any(i != axis for i in varying):
        return f"the constant varies along axis {next(i for i in varying if i != axis)}, the channels are axis {axis}"
    return value.reshape(-1).expand(count)


def fold_after(match: Scaled, scope: Scope) -> str:
    (node,), values = match.layers, _after(match, scope)
    assert not isinstance(values, str)
    scale_outputs(own(node, scope.editor), *values)
    return _remove(match, scope)


def fold_before(match: Scaled, scope: Scope) -> str:
    for node in match.layers:
        values = _before(match, node, scope)
        assert not isinstance(values, str)
        scale_inputs(own(node, scope.editor), *values)
    return _remove(match, scope)


def _remove(match: Scaled, scope: Scope) -> str:
    """Take the arithmetic out of the graph."""
    for node in match.layers:
        scope.editor.absorb(node, match.arithmetic.node)
    scope.editor.replace(match.arithmetic.node, match.arithmetic.operand)
    return f"{match.arithmetic.kind} folded into {reads(match.layers)}"


@dataclass(frozen=True)
class FoldScale(RulePass):
    """Folds scales and shifts by constants into layers."""

    name: ClassVar[str] = "fold-scale"
    requires: ClassVar[frozenset[Property]] = frozenset({Property.FUNCTIONAL})

    def rules(self) -> Rules:
        return Rule("scale-after", find_after, fold_after, check_after) + Rule("scale-before", find_before, fold_before, check_before)
