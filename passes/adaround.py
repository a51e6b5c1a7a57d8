r"""Learns for every weight whether to round it up or down.

AdaRound (Nagel, Amjad, van Baalen, Louizos, Blankevoort, "Up or down? Adaptive rounding for post-training quantization", ICML
2020, arXiv:2004.10568). Layer by layer, with x' the layer's input in the network quantized so far and f its activation:

    min over V of  E |f(W x + b) - f(W~ x' + b)|^2 + lambda sum_ij (1 - |2 h(V_ij) - 1|^beta),
    W~ = s clip(floor(W / s) + h(V)),    h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1)                  (equations 21 to 25)

by Adam on places of the layer's output drawn at random; beta falls from 20 to 2, so that h is free at first and 0 or 1 at the
end. The first term is divided by what rounding to nearest gives and the second by the number of weights, so that lambda does
not depend on the layer. What was learned is taken if it is better than rounding to nearest on places that were held out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from fxcompress.errors import InputError
from fxcompress.ir.edit import Editor, own
from fxcompress.ir.view import module_of
from fxcompress.passes.twin_run import TwinRun, layer_by_layer
from fxcompress.pipeline import Pass, PassContext, PassResult, Property, Remark, Semantics
from fxcompress.pruning.layer_rows import as_weight, layer_rows, regressors, weight_matrix
from fxcompress.quant.affine import weight_limit
from fxcompress.quant.rounding import Problem, Rounding, descended

HELD_OUT = 4  # every how many-th place decides


@dataclass(frozen=True)
class AdaRound(Pass):
    """Rounds the weights of quantized layers for the least error of the layer's output.

    Options:
        iterations: steps of Adam per layer.
        rows: places of a layer's output that are used at most, over all batches.
        batch: places per step.
        regularization: lambda.
        seed: of the places that are drawn.
    """

    name: ClassVar[str] = "adaround"
    semantics: ClassVar[Semantics] = Semantics.LOSSY
    requires: ClassVar[frozenset[Property]] = frozenset({Property.QUANTIZED})
    forbids: ClassVar[frozenset[Property]] = frozenset({Property.INTEGER, Property.LOWERED})
    iterations: int = 500
    rows: int = 4096
    batch: int = 256
    regularization: float = 1.0
    learning_rate: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("iterations", "rows", "batch"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}", hint="write a whole number of at least 1")

    def run(self, module: GraphModule, ctx: PassContext) -> PassResult:
        return layer_by_layer(self.name, module, ctx, self._round)

    def _round(self, node: Node, run: TwinRun, editor: Editor) -> Remark:
        layer: Any = module_of(node)
        fit, held = self._problems(node, layer, run)
        if held.rows == 0 or not (fit.finite and held.finite):
            return Remark.on(node, "there are no finite numbers to learn from", applied=False)
        rounding = Rounding(self.iterations, self.batch, self.regularization, self.learning_rate, self.seed)
        now = weight_matrix_of(layer, layer.integers())
        learned = rounding.learn(fit)
        integers = min((learned, descended(fit, learned), descended(fit, fit.nearest)), key=held.error)
        before, after = held.error(now), held.error(integers)
        if not after < before:
            return Remark.on(node, f"rounding as it was is as good (error {before:.3g}, learned {after:.3g})", applied=False)
        private: Any = own(node, editor)
        private.set_integers(as_weight(private, integers).to(torch.int8))
        share = float((integers != now).double().mean())
        return Remark.on(node, f"error of the output {after / before:.2g} of what it was; {share:.1%} of the weights moved", applied=True)

    def _problems(self, node: Node, layer: Any, run: TwinRun) -> tuple[Problem, Problem]:
        """The layer at places to learn from and at others to decide by."""
        wanted, residuals = run.float_outputs(node), run.residuals(node)
        inputs, places = run.inputs(node), self._places(layer, len(wanted))
        xs, ys, rs = [], [], []
        for i, (x, y) in enumerate(zip(inputs, wanted, strict=True)):
            pieces = list(layer_rows(layer, x, y, places, self.seed + i))
            xs += [p[0].float() for p in pieces]
            ys += [p[1].float() for p in pieces]
            if residuals is not None:
                rs += [p[1].float() for p in layer_rows(layer, x, residuals[i], places, self.seed + i)]
        x, y = torch.cat(xs, 1), torch.cat(ys, 1)
        groups, outputs = y.shape[0], y.shape[2]
        added = torch.zeros(groups, 1, outputs) if layer.bias is None else layer.bias.detach().float().reshape(groups, 1, outputs)
        offset = (added + torch.cat(rs, 1) if rs else added).expand_as(y)
        low, high, scale = grid(layer)
        held = torch.arange(x.shape[1], device=x.device) % HELD_OUT == HELD_OUT - 1
        fit, rest = (
            Problem(x[:, at], y[:, at], offset[:, at], low, high, scale, layer.activation, weight_matrix_of(layer, layer.float_weight))
            for at in (~held, held)
        )
        return fit, rest

    def _places(self, layer: Any, batches: int) -> int:
        """Places per batch."""
        most = (1 << 25) // max(1, regressors(layer) * getattr(layer, "groups", 1))
        return max(2 * HELD_OUT, min(self.rows, most) // batches)


def grid(layer: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The integers below and above each weight, and the scale of its row; the first two (groups, outputs, regressors)."""
    limit = weight_limit(layer.weight_bits)
    exact = layer.float_weight.detach().double() / layer.weight_scale.double().reshape(-1, *[1] * (layer.weight.dim() - 1))
    low, high = (weight_matrix_of(layer, t.clamp(-limit, limit)).float() for t in (exact.floor(), exact.ceil()))
    return low, high, layer.weight_scale.float().reshape(low.shape[0], low.shape[1], 1)


def weight_matrix_of(layer: Any, weight: Tensor) -> Tensor:
    """Any tensor of the shape of the layer's weight as (groups, outputs, regressors), in float32."""
    holder = type(layer).of(layer, None)
    del holder.weight
    holder.weight = weight
    return weight_matrix(holder).detach().float()
