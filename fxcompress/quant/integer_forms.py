"""The integer module for every operation that has one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Node

from fxcompress.ir.edit import Editor
from fxcompress.ir.view import Op, activation_of, module_of, view
from fxcompress.quant.affine import QParams
from fxcompress.quant.elementwise import QuantActivation, QuantAdd, QuantMean, QuantMul
from fxcompress.quant.modules import QuantConv, QuantLinear
from fxcompress.quant.pooling import QuantAdaptiveAvgPool, QuantAvgPool, QuantMaxPool
from fxcompress.quant.regions import Regions
from fxcompress.quant.roles import MeanPlan, Reading, Role, layer_operands, max_pool_numbers, mean_plan

__all__ = ["IntegerForms", "pad_with", "padding"]

Made = tuple[nn.Module, list[Node]]
"""A module and the values that it is called with."""


class IntegerForms:
    """Makes integer modules of one graph; what shared a float weight shares the int8 one."""

    def __init__(self, regions: Regions) -> None:
        self._regions = regions
        self._weights: dict[int, tuple[Tensor, Tensor]] = {}

    def computing(self, node: Node, reading: Reading, sources: Mapping[Node, QParams], qparams: QParams | None) -> Made:
        """The module for a layer, a mean or a map.

        Args:
            sources: of the operands that are integers.
            qparams: of the result; None for float32.
        """
        if reading.role is Role.LAYER:
            return self._layer(node, sources, qparams)
        op = view(node)
        assert op is not None
        if reading.role is Role.MEAN:
            plan = mean_plan(op, self._regions.rank(op.input))
            assert plan is not None
            return _mean(plan, sources[op.input], qparams), [op.input]
        assert qparams is not None
        return _map(op, reading, sources, qparams)

    def max_pool(self, node: Node) -> nn.Module | None:
        """The module for max pooling, None if ``node`` is something else."""
        op = view(node, "max_pool")
        numbers = None if op is None else max_pool_numbers(op, self._regions.rank(op.input))
        return None if numbers is None else QuantMaxPool(**numbers)

    def _layer(self, node: Node, sources: Mapping[Node, QParams], qparams: QParams | None) -> Made:
        fake: Any = module_of(node)
        found = layer_operands(node)
        assert found is not None
        x, residual = found
        weight, scale = self._weights.setdefault(id(fake.weight), (fake.integers(), fake.weight_scale.detach()))
        bias = None if fake.bias is None else fake.bias.detach()
        common: dict[str, Any] = {
            "source": sources[x],
            "qparams": qparams,
            "residual": None if residual is None else sources.get(residual),
            "activation": fake.activation,
        }
        if isinstance(fake, nn.Linear):
            made: Any = QuantLinear(weight, scale, bias, **common)
        else:
            inside = tuple(fake.padding) if outer_padding(fake) is None else (0,) * len(fake.stride)
            made = QuantConv(weight, scale, bias, stride=fake.stride, padding=inside, dilation=fake.dilation, groups=fake.groups, **common)
        made.weight, made.weight_scale = weight, scale
        return made, [x] if residual is None else [x, residual]


def _mean(plan: MeanPlan, source: QParams, qparams: QParams | None) -> nn.Module:
    forms = {"mean": QuantMean, "avg_pool": QuantAvgPool, "adaptive_avg_pool": QuantAdaptiveAvgPool}
    return forms[plan.kind](source, qparams, **plan.arguments)


def _map(op: Op, reading: Reading, sources: Mapping[Node, QParams], qparams: QParams) -> Made:
    if op.kind in ("add", "mul"):
        a, b = reading.operands if len(reading.operands) == 2 else (reading.operands[0], reading.free[0])
        form = QuantAdd if op.kind == "add" else QuantMul
        return form(sources[a], sources.get(b), qparams), [a, b]
    found = activation_of(op.node)
    assert found is not None
    return QuantActivation(sources[found[1]], qparams, found[0]), [found[1]]


# -- padding: with the zero point, which stands for zero -------------------------------------------------------------------


def outer_padding(conv: nn.Module) -> tuple[list[int], str] | None:
    """What must be padded before a convolution, as of ``F.pad``; None where the convolution pads by itself."""
    layer: Any = conv
    around = [int(n) for n in layer._reversed_padding_repeated_twice]
    if layer.padding == "valid":
        around = [0] * len(around)
    symmetric = all(around[i] == around[i + 1] for i in range(0, len(around), 2))
    if layer.padding_mode == "zeros" and symmetric and not isinstance(layer.padding, str):
        return None
    return (around, "constant" if layer.padding_mode == "zeros" else layer.padding_mode) if any(around) else ([], "constant")


def padding(fake: nn.Module | None, node: Node, operands: list[Node], zero: int, editor: Editor) -> list[Node]:
    """The operands of a layer, the first padded if its convolution cannot do so by itself."""
    outer = outer_padding(fake) if isinstance(fake, nn.modules.conv._ConvNd) else None
    if outer is None or not outer[0]:
        return operands
    around, mode = outer
    value = {"value": zero} if mode == "constant" else {}
    padded = editor.call_function(F.pad, (operands[0], around), {"mode": mode, **value}, before=node, of=[node])
    return [padded, *operands[1:]]


def pad_with(node: Node, zero: int, editor: Editor) -> Node:
    """Let a node that pads with zeros pad with the zero point; gives the node that does so."""
    op = view(node, "pad", "pad_module")
    if op is None:
        return node
    if op.kind == "pad":
        if op["mode"] == "constant":
            node.args, node.kwargs = (op.input, op["pad"]), {"mode": "constant", "value": zero}
        return node
    layer: Any = op.module
    if not isinstance(layer, nn.modules.padding._ConstantPadNd):
        return node
    return editor.call_function(F.pad, (op.input, list(layer.padding)), {"mode": "constant", "value": zero}, before=node, of=[node])
