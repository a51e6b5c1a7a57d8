"""A fake-quantized graph and the float network behind it, run side by side, node by node."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from fxcompress.errors import InputError
from fxcompress.ir.edit import Editor
from fxcompress.ir.inputs import Inputs
from fxcompress.ir.view import module_of
from fxcompress.passes.scale_ranges import as_dtype_of
from fxcompress.passes.weights import channel_axis
from fxcompress.pipeline import PassContext, PassResult, Remark
from fxcompress.pruning.lockstep import Runner
from fxcompress.quant.batches import inputs_in
from fxcompress.quant.float_form import float_form, quantized_layers


def calibration_data(name: str, ctx: PassContext) -> list[Inputs]:
    """The calibration batches in the dtype of the graph, for the pass ``name``.

    Raises:
        InputError: there are none.
    """
    if not ctx.calibration.batches:
        raise InputError(f"{name} needs calibration data", hint="pass calibration=...: batches of typical inputs")
    return [as_dtype_of(batch, ctx.inputs) for batch in ctx.calibration.batches]


def few(batches: Sequence[Inputs], enough: int) -> tuple[Inputs, ...]:
    """Whole batches with ``enough`` inputs, or all that there are; evenly spaced, since data may be sorted."""
    wanted = -(-enough // inputs_in(batches[0])) if batches else 1
    return tuple(batches[:: max(1, len(batches) // wanted)][:wanted])


def layers_called_once(module: GraphModule) -> tuple[Node, ...]:
    """The quantized layers that one node calls; a change for one of several calls would change the others."""
    targets = [str(n.target) for n in module.graph.nodes if n.op == "call_module"]
    return tuple(node for node in quantized_layers(module) if targets.count(str(node.target)) == 1)


class TwinRun:
    """Stops before quantized layers, in the order of the graph. A layer that is changed there runs as changed.

    Memory: the live values of both networks at one place of the graph, on all batches.
    """

    def __init__(self, module: GraphModule, batches: Sequence[Inputs]) -> None:
        self.module, plain = module, float_form(module)
        self._twins = {node.name: node for node in plain.graph.nodes}
        self.plain, self.rounded = Runner(plain, batches), Runner(module, batches)

    def twin(self, node: Node) -> Node:
        """The node of the float network."""
        return self._twins[node.name]

    def before(self, node: Node, *, both: bool = True) -> None:
        """Run up to ``node``; ``both=False`` leaves the quantized network where it is."""
        self.plain.run_before(self.twin(node))
        if both:
            self.rounded.run_before(node)

    def float_inputs(self, node: Node) -> list[Tensor]:
        """What the float layer reads, batch by batch."""
        return operands(self.plain, self.twin(node), 0)

    def inputs(self, node: Node) -> list[Tensor]:
        """What the quantized layer reads."""
        return operands(self.rounded, node, 0)

    def residuals(self, node: Node) -> list[Tensor] | None:
        """What is added to the quantized layer's output."""
        return operands(self.rounded, node, 1) if len(node.args) > 1 else None

    def float_outputs(self, node: Node) -> list[Tensor]:
        """What the float layer gives before its activation."""
        return _outputs(self.plain, self.twin(node))

    def outputs(self, node: Node) -> list[Tensor]:
        """What the quantized layer gives before its activation."""
        return _outputs(self.rounded, node)


def layer_by_layer(
    name: str, module: GraphModule, ctx: PassContext, change: Callable[[Node, TwinRun, Editor], Remark], *, both: bool = True
) -> PassResult:
    """Let the pass ``name`` change the quantized layers one after the other, each on what the layers before it give as changed.

    Args:
        change: gives a remark, applied if it has changed the layer.
        both: run the quantized network, too.
    """
    nodes = layers_called_once(module)
    if not nodes:
        return PassResult(module, False, remarks=(Remark(False, "graph", "it has no quantized layer"),))
    batches, editor, remarks = calibration_data(name, ctx), Editor(module), []
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        run = TwinRun(module, batches)
        for node in nodes:
            run.before(node, both=both)
            remarks.append(change(node, run, editor))
    changed = any(remark.applied for remark in remarks)
    if changed:
        editor.finish()
    return PassResult(module, changed, remarks=tuple(remarks))


def operands(runner: Runner, node: Node, which: int) -> list[Tensor]:
    """An operand of the node that runs next, batch by batch."""
    operand: Any = node.args[which]
    return [values[operand] for values in runner.values]


def _outputs(runner: Runner, node: Node) -> list[Tensor]:
    layer, found = without_activation(module_of(node)), []
    for batch, x in enumerate(operands(runner, node, 0)):
        y = layer(x)
        found.append(y + operands(runner, node, 1)[batch] if len(node.args) > 1 else y)
    return found


def without_activation(layer: Any, *, bias: bool = True) -> Any:
    """The layer without its activation; ``bias=False``: without its bias, too. Parameters are shared."""
    bare = type(layer).of(layer, None)
    if not bias:
        bare.register_parameter("bias", None)
    return bare


def channel_means(pieces: Sequence[Tensor], layer: Any) -> Tensor:
    """The mean of every output channel of ``layer`` over all places of all batches, (O,) in float64."""
    total, count = layer.weight.new_zeros(layer.weight.shape[0], dtype=torch.float64), 0
    for y in pieces:
        axis = channel_axis(layer, y.dim())
        assert axis is not None
        others = [d for d in range(y.dim()) if d != axis]
        total = total + (y.sum(others, dtype=torch.float64) if others else y.double())
        count += y.numel() // max(1, y.shape[axis])
    return total / max(1, count)
