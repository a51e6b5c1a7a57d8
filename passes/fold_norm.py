r"""Folds a batch norm into the convolution, transposed convolution or linear before it.

With the norm's statistics fixed, ``norm(y) = s * y + t`` per channel, where ``s = gamma / sqrt(var + eps)`` and
``t = beta - mean * s``. For ``y = W x + b`` therefore ``norm(y) = (s W) x + (s b + t)``: the rows of ``W`` (the output
channels) are scaled. This is Jacob et al. 2018, section 3.2. It is computed in float64 and rounded once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.fx import Node

from fxcompress.ir.edit import own
from fxcompress.ir.view import view
from fxcompress.passes.weights import LAYERS, scale_outputs, unfit
from fxcompress.pipeline import Property, RulePass
from fxcompress.rewrite import Rule, Scope, reads, single_reader


@dataclass(frozen=True)
class LayerThenNorm:
    """``norm(layer(x))``."""

    layer: Node
    norm: Node

    @property
    def nodes(self) -> tuple[Node, ...]:
        return (self.layer, self.norm)


def find(node: Node, scope: Scope) -> LayerThenNorm | None:
    norm = view(node, "batch_norm")
    if norm is None or norm.module is None:
        return None
    layer = view(norm.input, "conv", "conv_transpose", "linear")
    return None if layer is None or type(layer.module) not in LAYERS else LayerThenNorm(norm.input, node)


def check(match: LayerThenNorm, scope: Scope) -> str | None:
    norm: Any = scope.editor.module.get_submodule(str(match.norm.target))
    layer = scope.editor.module.get_submodule(str(match.layer.target))
    reason = fixed_statistics(norm)
    if reason is not None:
        return reason
    if not single_reader(match.layer, match.norm):
        return f"'{match.layer.name}' is also read by {reads(u for u in match.layer.users if u is not match.norm)}"
    shape = scope.shapes.shape(match.layer)
    rank = 2 if isinstance(layer, nn.Linear) else len(layer.weight.shape)  # type: ignore[arg-type]
    if shape is None or len(shape) != rank:
        return f"axis 1 of '{match.layer.name}' is not known to be the output channels of the layer"
    return unfit(layer, *scale_and_shift(norm))


def fixed_statistics(norm: Any) -> str | None:
    """Why a batch norm is not a fixed scale and shift, or None when it is."""
    if norm.running_mean is None or norm.running_var is None:
        return "the norm keeps no running statistics, so it depends on the batch"
    return "the norm is in training mode; call model.eval()" if norm.training else None


def scale_and_shift(norm: Any) -> tuple[Tensor, Tensor]:
    """``s`` and ``t`` of a norm with fixed statistics, shape (C,), float64."""
    mean, var = norm.running_mean.double(), norm.running_var.double()
    scale = torch.rsqrt(var + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias.detach().double()


def fold(match: LayerThenNorm, scope: Scope) -> str:
    editor = scope.editor
    norm = editor.module.get_submodule(str(match.norm.target))
    layer = own(match.layer, editor)
    scale_outputs(layer, *scale_and_shift(norm))
    editor.absorb(match.layer, match.norm)
    editor.replace(match.norm, match.layer)
    return f"{type(norm).__name__} folded into {type(layer).__name__}"


@dataclass(frozen=True)
class FoldNorm(RulePass):
    """Folds batch norms into the layers before them."""

    name: ClassVar[str] = "fold-norm"
    requires: ClassVar[frozenset[Property]] = frozenset({Property.FUNCTIONAL})

    def rules(self) -> Rule[LayerThenNorm]:
        return Rule("fold-norm", find, fold, check)
