r"""Folds a batch norm into the convolutions, transposed convolutions and linears that read it.

With the norm's statistics fixed, ``norm(x) = s * x + t`` per channel (see ``fold-norm``). For ``y = W norm(x) + b``
therefore ``y = (W s) x + (b + W t)``: the columns of ``W`` (the input channels) are scaled, and the shift goes into the
bias, summed over all taps of the kernel. A convolution that pads with zeros pads after the norm, so the second term
holds away from the border only; such a norm is folded only if ``t`` is zero. The other padding modes repeat values and
commute with the norm. It is computed in float64 and rounded once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn
from torch.fx import Node

from fxcompress.ir.edit import own
from fxcompress.ir.view import module_of, view
from fxcompress.passes.fold_norm import fixed_statistics, scale_and_shift
from fxcompress.passes.weights import LAYERS, is_zero, scale_inputs, shift_obstacle, unfit
from fxcompress.pipeline import Property, RulePass
from fxcompress.rewrite import Rule, Scope, reads


@dataclass(frozen=True)
class NormThenLayers:
    """``layer(norm(x))`` for every one of ``layers``."""

    norm: Node
    source: Node
    layers: tuple[Node, ...]

    @property
    def nodes(self) -> tuple[Node, ...]:
        return (self.source, self.norm, *self.layers)


def readers_that_are_layers(node: Node) -> tuple[Node, ...]:
    """The convolutions, transposed convolutions and linears among the readers of ``node``."""
    return tuple(
        user for user in node.users if type(module_of(user)) in LAYERS and view(user, "conv", "conv_transpose", "linear") is not None
    )


def find(node: Node, scope: Scope) -> NormThenLayers | None:
    norm = view(node, "batch_norm")
    if norm is None or norm.module is None:
        return None
    layers = readers_that_are_layers(node)
    return NormThenLayers(node, norm.input, layers) if layers else None


def check(match: NormThenLayers, scope: Scope) -> str | None:
    norm: Any = module_of(match.norm)
    reason = fixed_statistics(norm)
    if reason is not None:
        return reason
    others = [user for user in match.norm.users if user not in match.layers]
    if others:
        return f"'{match.norm.name}' is also read by {reads(others)}"
    return next((reason for layer in match.layers if (reason := _obstacle(match, module_of(layer), scope)) is not None), None)


def _obstacle(match: NormThenLayers, layer: Any, scope: Scope) -> str | None:
    """Why the norm cannot go into this layer, or None."""
    scale, shift = scale_and_shift(module_of(match.norm))
    shape = scope.shapes.shape(match.norm)
    rank = 2 if isinstance(layer, nn.Linear) else layer.weight.dim()
    if shape is None or len(shape) != rank:
        return f"axis 1 of '{match.norm.name}' is not known to be the input channels of the layer"
    return (None if is_zero(shift) else shift_obstacle(layer)) or unfit(layer, scale, shift, inputs=True)


def fold(match: NormThenLayers, scope: Scope) -> str:
    editor, norm = scope.editor, module_of(match.norm)
    for node in match.layers:
        scale_inputs(own(node, editor), *scale_and_shift(norm))
        editor.absorb(node, match.norm)
    editor.replace(match.norm, match.source)
    return f"{type(norm).__name__} folded into {reads(match.layers)}"


@dataclass(frozen=True)
class FoldNormBefore(RulePass):
    """Folds batch norms into the layers after them."""

    name: ClassVar[str] = "fold-norm-before"
    requires: ClassVar[frozenset[Property]] = frozenset({Property.FUNCTIONAL})

    def rules(self) -> Rule[NormThenLayers]:
        return Rule("fold-norm-before", find, fold, check)
