r"""Corrects the mean error that rounding makes in every layer, in its bias.

Nagel et al., "Data-free quantization through weight equalization and bias correction", ICCV 2019, arXiv:1906.04721,
section 4.2. Rounding the weights, W' = W + E, shifts the mean of output channel o by a constant that the bias can take back:

- ``analytic``: ``b'_o = b_o - mean (E x)_o`` over all places of the calibration data, with x as the float network has it.
  (The paper takes the mean of x from the batch norm before; norms are folded by now, and data are at hand.) Since E x is
  linear, the mean over inputs goes first: each layer runs once. A mean settles soon, so a few inputs are enough.
- ``empirical`` (appendix D): ``b'_o = b_o + mean (y_o - y'_o)``, with y before the activation in the float network and y' in
  the quantized one, in which the layers before have been corrected. It also takes back what the rounding of activations and
  the errors of earlier layers shift.

Where a few inputs hold huge values that the ranges cut off, ``empirical`` lets all others pay for the mean of these; ``analytic``
knows only the weights. Each network runs once, node by node, on all batches together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from fxcompress.errors import InputError
from fxcompress.ir.edit import Editor, own
from fxcompress.ir.view import module_of
from fxcompress.passes.twin_run import TwinRun, channel_means, few, layer_by_layer, without_activation
from fxcompress.passes.weights import channel_axis
from fxcompress.pipeline import Calibration, Pass, PassContext, PassResult, Property, Remark, Semantics

SMALLEST = 1e-5  # relative to the largest mean or bias of the layer: less is rounding


@dataclass(frozen=True)
class CorrectBias(Pass):
    """Gives quantized layers biases under which the means of their outputs are those of the float network.

    Options:
        mode: see above.
        enough: how many inputs ``analytic`` looks at, in whole batches.
    """

    name: ClassVar[str] = "correct-bias"
    semantics: ClassVar[Semantics] = Semantics.LOSSY
    requires: ClassVar[frozenset[Property]] = frozenset({Property.QUANTIZED})
    forbids: ClassVar[frozenset[Property]] = frozenset({Property.INTEGER, Property.LOWERED})
    mode: Literal["analytic", "empirical"] = "empirical"
    enough: int = 16

    def __post_init__(self) -> None:
        if self.enough < 1:
            raise InputError(f"enough={self.enough} inputs", hint="write a whole number of at least 1")

    def run(self, module: GraphModule, ctx: PassContext) -> PassResult:
        if self.mode == "empirical":
            return layer_by_layer(self.name, module, ctx, self._correct)
        data = Calibration(few(ctx.calibration.batches, self.enough))
        return layer_by_layer(self.name, module, replace(ctx, calibration=data), self._correct, both=False)

    def _correct(self, node: Node, run: TwinRun, editor: Editor) -> Remark:
        layer: Any = module_of(node)
        shift, level = _analytic(node, layer, run) if self.mode == "analytic" else _empirical(node, layer, run)
        if not bool(torch.isfinite(shift).all()):
            return Remark.on(node, "a mean of its outputs is not finite", applied=False)
        largest = float(shift.abs().max())
        if largest <= SMALLEST * level:
            return Remark.on(node, "nothing to correct", applied=False)
        private: Any = own(node, editor)
        bias = _bias(private) + shift
        private.bias = nn.Parameter(bias.to(private.weight.dtype), requires_grad=private.weight.requires_grad)
        return Remark.on(node, f"bias moved by up to {largest:.2g}", applied=True)


def _bias(layer: Any, name: str = "bias") -> Tensor:
    bias = getattr(layer, name)
    return layer.weight.new_zeros(layer.weight.shape[0], dtype=torch.float64) if bias is None else bias.detach().double()


def _analytic(node: Node, layer: Any, run: TwinRun) -> tuple[Tensor, float]:
    """What to add to the present bias (O,), and the size of the numbers that it is made of."""
    error = without_activation(module_of(run.twin(node)), bias=False)
    error.weight = nn.Parameter((layer.weight.double() - layer.float_weight.double()).to(layer.weight.dtype), requires_grad=False)
    wanted = _bias(layer, "float_bias") - _mean_of(error, run.float_inputs(node))
    return wanted - _bias(layer), float(wanted.abs().max())


def _mean_of(linear: Any, pieces: Sequence[Tensor]) -> Tensor:
    """``channel_means`` of what a layer without bias and activation makes of ``pieces``; it runs once for each shape."""
    total, places = linear.weight.new_zeros(linear.weight.shape[0], dtype=torch.float64), 0
    for x, inputs in _summed(pieces, linear):
        y = linear(x)
        at_once = y.numel() // len(total)
        total, places = total + at_once * channel_means([y], linear), places + at_once * inputs
    return total / max(1, places)


def _summed(pieces: Sequence[Tensor], layer: Any) -> Iterable[tuple[Tensor, int]]:
    """The sum over the batch axis, and over pieces of one shape, with the number of inputs in it."""
    sums: dict[torch.Size, tuple[Tensor, int]] = {}
    for x in pieces:
        batch = x[None] if channel_axis(layer, x.dim()) == 0 else x
        total, count = sums.get(batch.shape[1:], (batch.new_zeros(()), 0))
        sums[batch.shape[1:]] = total + batch.sum(0, keepdim=x is batch), count + len(batch)
    return sums.values()


def _empirical(node: Node, layer: Any, run: TwinRun) -> tuple[Tensor, float]:
    wanted = channel_means(run.float_outputs(node), layer)
    return wanted - channel_means(run.outputs(node), layer), float(wanted.abs().max() + _bias(layer).abs().max())
