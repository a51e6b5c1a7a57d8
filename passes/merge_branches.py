r"""Merges branches with the same input whose outputs are added into one convolution or linear.

``conv3x3(x) + conv1x1(x) + norm(x) + x`` is linear in ``x``: the kernels, aligned at their centres, can be added
(RepVGG, arXiv:2101.03697; with 1x3 and 3x1 kernels ACNet, arXiv:1908.03930; MobileOne). Identity and batch norm are
1x1 kernels with one channel per group. One of the branches, the base, must have every tap of the others, in kernel
and in groups, so the merged layer costs what the base costs. Computed in float64 and rounded once.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.fx import Node

from fxcompress.ir.edit import own
from fxcompress.ir.view import module_of, view
from fxcompress.passes.fold_norm import fixed_statistics, scale_and_shift
from fxcompress.passes.weights import CONVS, install, padding_of
from fxcompress.pipeline import Property, RulePass
from fxcompress.rewrite import Rule, Scope, reads


@dataclass(frozen=True)
class Kernel:
    """A branch as a convolution (a linear has no spatial axes): weight (C_out, C_in / groups, ...) and bias in float64."""

    weight: Tensor
    bias: Tensor | None
    groups: int
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    mode: str

    @property
    def size(self) -> tuple[int, ...]:
        return tuple(self.weight.shape[2:])

    @property
    def inputs(self) -> int:
        return self.weight.shape[1] * self.groups

    @property
    def growth(self) -> tuple[int, ...]:
        """By how much the output is longer than the input on each axis, at stride 1."""
        return tuple(sum(p) - d * (k - 1) for p, d, k in zip(self.padding, self.dilation, self.size, strict=True))


@dataclass(frozen=True)
class Branches:
    """``root`` adds ``leaves``; those of ``branches`` read ``source`` or are it. ``base`` is one of them."""

    root: Node
    adds: tuple[Node, ...]
    leaves: tuple[Node, ...]
    source: Node
    base: Node
    others: tuple[Node, ...]

    @property
    def nodes(self) -> tuple[Node, ...]:
        return (*self.adds, *self.leaves, self.source)


def find(node: Node, scope: Scope) -> Branches | None:
    if not _adds(node, scope) or any(_adds(user, scope) and len(node.users) == 1 for user in node.users):
        return None
    adds, leaves = _flatten(node, scope)
    sources = {source: None for leaf in leaves if (source := _source(leaf)) is not None}
    for source in sources:
        members = [i for i, leaf in enumerate(leaves) if leaf is source or _source(leaf) is source or _norm_of(leaf) is source]
        layers = [i for i in members if _source(leaves[i]) is source]
        if len(members) > 1:
            base = max(layers, key=lambda i: (math.prod(_layer(leaves[i]).weight.shape[1:]), -i))
            others = tuple(leaves[i] for i in members if i != base)
            return Branches(node, adds, leaves, source, leaves[base], others)
    return None


def _adds(node: Node, scope: Scope) -> bool:
    """Whether ``node`` adds two tensors of its own shape and dtype."""
    op = view(node, "add")
    if op is None or op["alpha"] != 1 or not all(isinstance(op[name], Node) for name in ("input", "other")):
        return False
    facts = {(scope.shapes.shape(n), scope.shapes.dtype(n)) for n in (node, op["input"], op["other"])}
    return len(facts) == 1 and (None, None) not in facts


def _flatten(root: Node, scope: Scope) -> tuple[tuple[Node, ...], tuple[Node, ...]]:
    """The additions below ``root`` that nobody else reads, and what they add, in order."""
    adds, leaves, pending = [], [], [root]
    while pending:
        node = pending.pop()
        if node is root or (_adds(node, scope) and len(node.users) == 1):
            op = view(node)
            assert op is not None
            adds.append(node)
            pending += [op["other"], op["input"]]
        else:
            leaves.append(node)
    return tuple(adds), tuple(leaves)


def _source(leaf: Node) -> Node | None:
    """What a convolution or linear reads; None when ``leaf`` is neither."""
    op = view(leaf, "conv", "linear")
    return None if op is None or type(op.module) not in (*CONVS, nn.Linear) else op.input


def _norm_of(leaf: Node) -> Node | None:
    op = view(leaf, "batch_norm")
    return None if op is None or op.module is None else op.input


def _layer(node: Node) -> Any:
    return module_of(node)


def check(match: Branches, scope: Scope) -> str | None:
    outside = [user for user in match.base.users if user not in match.adds]
    if outside:
        return f"'{match.base.name}' is also read by {reads(outside)}"
    fitting, reason = _fitting(match, scope)
    if not fitting:
        return reason
    return _unfit(match, fitting)


def _fitting(match: Branches, scope: Scope) -> tuple[list[Node], str | None]:
    """The other branches that the base can take in, and why the first of the rest is not one."""
    fitting, reason = [], None
    for node in match.others:
        obstacle = _obstacle(match, node, scope)
        if obstacle is None:
            fitting.append(node)
        reason = reason or obstacle
    return fitting, reason


def _obstacle(match: Branches, node: Node, scope: Scope) -> str | None:
    base = _layer(match.base)
    if node is not match.source and any(user not in match.adds for user in node.users):
        return f"'{node.name}' is also read by {reads(u for u in node.users if u not in match.adds)}"
    layer = None if node is match.source else _layer(node)
    if view(node, "batch_norm") is not None and node is not match.source:
        shape = scope.shapes.shape(match.source)
        if shape is None or len(shape) != base.weight.dim():
            return f"the channels of '{node.name}' are not those of '{match.base.name}'"
        reason = fixed_statistics(layer)
        if reason is not None:
            return reason
    elif layer is not None and type(layer) is not type(base):
        return f"{type(layer).__name__} and {type(base).__name__} have no common form"
    if layer is not None and layer.weight is not None and (layer.weight.dtype != base.weight.dtype and type(layer) is type(base)):
        return f"their weights are {layer.weight.dtype} and {base.weight.dtype}"
    if not base.weight.is_floating_point():
        return f"the weights are {base.weight.dtype}"
    why = _misfit(_kernel(match.base, match), _kernel(node, match))
    return None if why is None else f"'{node.name}' does not fit into '{match.base.name}': {why}"


def _kernel(node: Node, match: Branches) -> Kernel:
    """The branch ``node`` as a kernel."""
    layer, base = _layer(match.base) if node is match.source else _layer(node), _layer(match.base)
    if node is match.source or view(node, "batch_norm") is not None:
        return _diagonal(None if node is match.source else layer, base)
    weight = layer.weight.detach().double()
    bias = None if layer.bias is None else layer.bias.detach().double()
    if isinstance(layer, nn.Linear):
        return Kernel(weight, bias, 1, (), (), (), "zeros")
    return Kernel(weight, bias, layer.groups, layer.stride, layer.dilation, padding_of(layer), layer.padding_mode)


def _diagonal(norm: Any, base: Any) -> Kernel:
    """Identity (``norm`` is None) or a batch norm as a kernel of size 1 with one channel per group."""
    count, axes = (base.in_features, 0) if isinstance(base, nn.Linear) else (base.in_channels, base.weight.dim() - 2)
    if norm is None:
        scale, shift = torch.ones(count, dtype=torch.float64, device=base.weight.device), None
    else:
        scale, shift = scale_and_shift(norm)
    ones = (1,) * axes
    return Kernel(scale.reshape(-1, 1, *ones), shift, len(scale), ones, ones, ((0, 0),) * axes, "zeros")


def _misfit(base: Kernel, other: Kernel) -> str | None:
    """Why the taps of ``other`` are not all taps of ``base``, or None."""
    if (other.inputs, other.weight.shape[0]) != (base.inputs, base.weight.shape[0]):
        return "other numbers of channels"
    if other.groups % base.groups:
        return f"{other.groups} groups are not parts of {base.groups}"
    if other.stride != base.stride:
        return f"strides {other.stride} and {base.stride}"
    if other.growth != base.growth:
        return "their outputs are not of one size for every input"
    if other.mode != base.mode and any(max(pair) for pair in other.padding):
        return f"padding modes {other.mode} and {base.mode}"
    return "kernels with other places" if _places(base, other) is None else None


def _places(base: Kernel, other: Kernel) -> tuple[slice, ...] | None:
    """Where the taps of ``other`` lie in the kernel of ``base``, a slice for each axis."""
    found = []
    for axis, (size, wide) in enumerate(zip(other.size, base.size, strict=True)):
        offsets = [other.dilation[axis] * j - other.padding[axis][0] + base.padding[axis][0] for j in range(size)]
        if any(offset % base.dilation[axis] for offset in offsets):
            return None
        at = [offset // base.dilation[axis] for offset in offsets]
        if at[0] < 0 or at[-1] >= wide:
            return None
        step = next((b - a for a, b in pairwise(at)), 1)
        found.append(slice(at[0], at[-1] + 1, step))
    return tuple(found)


def _add_into(weight: Tensor, base: Kernel, other: Kernel) -> None:
    """Add the taps of ``other`` to ``weight``, which has the form of the weight of ``base``."""
    places = _places(base, other)
    assert places is not None
    outputs, inputs = other.weight.shape[0] // other.groups, other.weight.shape[1]
    parts = other.groups // base.groups  # groups of the other that make one group of the base
    # (groups of base, parts, outputs, parts, inputs, ...): the diagonal over the two parts is what the other has
    wide = weight.reshape(base.groups, parts, outputs, parts, inputs, *base.size)
    narrow = other.weight.reshape(base.groups, parts, outputs, inputs, *other.size)
    taps: tuple[Any, ...] = (..., *places)
    wide[taps].diagonal(dim1=1, dim2=3).add_(narrow.movedim(1, -1))


def _merged(match: Branches, fitting: list[Node]) -> tuple[Tensor, Tensor | None]:
    base = _kernel(match.base, match)
    weight, bias = base.weight.clone(memory_format=torch.contiguous_format), base.bias
    for node in fitting:
        other = _kernel(node, match)
        _add_into(weight, base, other)
        if other.bias is not None:
            bias = other.bias if bias is None else bias + other.bias
    return weight, bias


def _unfit(match: Branches, fitting: list[Node]) -> str | None:
    """Why the sum cannot be had in the dtype of the weights, or None."""
    dtype = _layer(match.base).weight.dtype
    tensors = [t for t in _merged(match, fitting) if t is not None and not t.is_meta]
    fits = all(bool((t.abs() < torch.finfo(dtype).max).all()) for t in tensors)
    return None if fits else f"the merged parameters would not be finite in {dtype}"


def merge(match: Branches, scope: Scope) -> str:
    editor, (fitting, _) = scope.editor, _fitting(match, scope)
    weight, bias = _merged(match, fitting)
    modules = [_layer(node) for node in fitting if node is not match.source]
    install(own(match.base, editor), weight, bias, *modules)
    rest = list(match.leaves)
    for node in fitting:
        rest.remove(node)
        editor.absorb(match.base, node if node is not match.source else match.root)
    total = rest[0]
    for leaf in rest[1:]:
        total = editor.call_function(operator.add, (total, leaf), before=match.root, of=[match.root])
    editor.replace(match.root, total)
    return f"{reads(fitting)} merged into {match.base.name}"


@dataclass(frozen=True)
class MergeBranches(RulePass):
    """Merges added branches with one input into one layer."""

    name: ClassVar[str] = "merge-branches"
    requires: ClassVar[frozenset[Property]] = frozenset({Property.FUNCTIONAL})

    def rules(self) -> Rule[Branches]:
        return Rule("merge-branches", find, merge, check)
