r"""Merges two layers without an activation between them into one.

``W2 (W1 x + b1) + b2 = (W2 W1) x + (W2 b1 + b2)`` for two linears; for convolutions the product runs over the channels
between them if one of the two has a 1x1 kernel. A 1x1 kernel after another kernel may have a stride, and no padding.
Before another kernel, ``b1`` must not meet padding with zeros: the second convolution pads after the first has added
``b1``. Merged only when neither parameters nor multiply-adds grow; computed in float64 and rounded once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.fx import Node

from fxcompress.ir.copying import private_copy
from fxcompress.ir.view import module_of, view
from fxcompress.passes.weights import CONVS, install, is_zero, padding_of, shift_obstacle
from fxcompress.pipeline import Property, RulePass
from fxcompress.rewrite import Rule, Scope, reads, single_reader


@dataclass(frozen=True)
class Chain:
    """``second(first(source))``."""

    source: Node
    first: Node
    second: Node

    @property
    def nodes(self) -> tuple[Node, ...]:
        return (self.source, self.first, self.second)


def find(node: Node, scope: Scope) -> Chain | None:
    second = view(node, "conv", "linear")
    if second is None or type(second.module) not in (*CONVS, nn.Linear):
        return None
    first = view(second.input, "conv", "linear")
    if first is None or type(first.module) is not type(second.module):
        return None
    return Chain(first.input, first.node, node)


def check(match: Chain, scope: Scope) -> str | None:
    first, second = _layers(match)
    if not single_reader(match.first, match.second):
        return f"'{match.first.name}' is also read by {reads(u for u in match.first.users if u is not match.second)}"
    if first.weight.dtype != second.weight.dtype or not first.weight.is_floating_point():
        return f"their weights are {first.weight.dtype} and {second.weight.dtype}"
    reason = None if isinstance(first, nn.Linear) else _conv_obstacle(first, second)
    return reason or _dearer(match, scope) or _unfit(first, second)


def _layers(match: Chain) -> tuple[Any, Any]:
    return module_of(match.first), module_of(match.second)


def _conv_obstacle(first: Any, second: Any) -> str | None:
    if first.groups != 1 or second.groups != 1:
        return "one of them is grouped"
    if _single_tap(second):
        strided = isinstance(first.padding, str) and max(second.stride) > 1
        return f"padding='{first.padding}' has no stride" if strided else None
    if not _single_tap(first):
        return "neither has a kernel of size 1 without padding"
    if max(first.stride) > 1:
        return "the first skips inputs"
    if first.bias is not None and not is_zero(first.bias.detach()) and shift_obstacle(second) is not None:
        return "the first's bias does not reach the zeros that the second pads with"
    return None


def _single_tap(conv: Any) -> bool:
    return math.prod(conv.kernel_size) == 1 and all(max(pair) == 0 for pair in padding_of(conv))


def _dearer(match: Chain, scope: Scope) -> str | None:
    """Why the merged layer would cost more, or None."""
    first, second = _layers(match)
    if 0 in (first.weight.numel(), second.weight.numel()):
        return "one of them has no weights"
    before = first.weight.numel() + second.weight.numel()
    after = first.weight.numel() // first.weight.shape[0] * second.weight.numel() // second.weight.shape[1]
    if after > before:
        return f"merged they would have {after} weights instead of {before}"
    shapes = scope.shapes.shape(match.first), scope.shapes.shape(match.second)
    if shapes[0] is None or shapes[1] is None:
        return "their output shapes are not known"
    places = [math.prod(shape) // layer.weight.shape[0] for shape, layer in zip(shapes, (first, second), strict=True) if shape is not None]
    if places[1] * after > places[0] * first.weight.numel() + places[1] * second.weight.numel():
        return "merged they would need more multiply-adds"
    return None


def _product(first: Any, second: Any) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of ``second(first(x))``, float64."""
    w1, w2 = first.weight.detach().double(), second.weight.detach().double()
    if isinstance(first, nn.Linear) or _single_tap(second):
        weight = (w2.flatten(1) @ w1.flatten(1)).reshape(w2.shape[0], *w1.shape[1:])
    else:
        weight = torch.einsum("om...,mi->oi...", w2, w1.flatten(1))
    bias = None if second.bias is None else second.bias.detach().double()
    if first.bias is not None:
        added = w2.flatten(2).sum(2) @ first.bias.detach().double() if w2.dim() > 2 else w2 @ first.bias.detach().double()
        bias = added if bias is None else bias + added
    return weight, bias


def _unfit(first: Any, second: Any) -> str | None:
    """Why the product cannot be had in the dtype of the weights, or None."""
    if first.weight.is_meta or second.weight.is_meta:
        return None
    dtype, product = first.weight.dtype, _product(first, second)
    limits = torch.finfo(dtype)
    if not all(bool((t.abs() < limits.max).all()) for t in product if t is not None):
        return f"the merged parameters would not be finite in {dtype}"
    rows = product[0].abs().flatten(1).amax(1)
    vanish = dtype == torch.float16 and bool(((rows > 0) & (rows < limits.tiny)).any())
    return "the merged weights would vanish in float16" if vanish else None


def merge(match: Chain, scope: Scope) -> str:
    first, second = _layers(match)
    weight, bias = _product(first, second)
    merged: Any = private_copy(first if isinstance(first, nn.Linear) or _single_tap(second) else second)
    if isinstance(first, nn.Linear):
        merged.in_features, merged.out_features = first.in_features, second.out_features
    else:
        if _single_tap(second):
            merged.stride = tuple(a * b for a, b in zip(first.stride, second.stride, strict=True))
        merged.in_channels, merged.out_channels = first.in_channels, second.out_channels
    install(merged, weight, bias, first, second)
    scope.editor.set_module(match.second, merged)
    match.second.args, match.second.kwargs = (match.source,), {}
    scope.editor.absorb(match.second, match.first)
    return f"{match.first.name} merged into {match.second.name}"


@dataclass(frozen=True)
class MergeChain(RulePass):
    """Merges consecutive linears and convolutions where that is not dearer."""

    name: ClassVar[str] = "merge-chain"
    requires: ClassVar[frozenset[Property]] = frozenset({Property.FUNCTIONAL})

    def rules(self) -> Rule[Chain]:
        return Rule("merge-chain", find, merge, check)
