"""Fake-quantized graphs by the plainest means, for tests of what corrects them: min-max ranges on what layers read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxcompress.analysis import Analyses
from fxcompress.ir.edit import Editor, share
from fxcompress.ir.fused import FUSED
from fxcompress.ir.inputs import Inputs
from fxcompress.pipeline import Calibration, Pass, PassContext, PassResult
from fxcompress.quant.affine import QParams
from fxcompress.quant.fake import FakeQuantize, fake_quantized

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, *FUSED.values())


class _Ranges(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, ranges: dict[fx.Node, tuple[float, float]]) -> None:
        super().__init__(module)
        self.ranges = ranges

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            low, high = self.ranges.get(n, (0.0, 0.0))
            self.ranges[n] = min(low, float(value.min())), max(high, float(value.max()))
        return value


def fake_quantize(module: fx.GraphModule, batches: Sequence[Tensor], *, bits: int = 8, weight_bits: int = 8) -> fx.GraphModule:
    """A copy of ``module`` whose convolutions and linears have weights on a grid and read rounded values."""
    copy = share(module)
    ranges: dict[fx.Node, tuple[float, float]] = {}
    with torch.no_grad():
        for batch in batches:
            _Ranges(copy, ranges).run(batch)
    editor = Editor(copy)
    rounded: dict[fx.Node, fx.Node] = {}
    for node in list(copy.graph.nodes):
        if node.op != "call_module" or type(copy.get_submodule(str(node.target))) not in LAYERS:
            continue
        for source in list(node.all_input_nodes):
            if source not in rounded:
                fake = FakeQuantize(QParams.of_range(*ranges[source], bits))
                rounded[source] = editor.call_module(f"fake_{source.name}", fake, (source,), before=source.next, of=(source,))
            node.replace_input_with(source, rounded[source])
        editor.set_module(node, fake_quantized(copy.get_submodule(str(node.target)), bits=weight_bits))
    editor.finish()
    return copy


def run_pass(step: Pass, module: fx.GraphModule, batches: Sequence[Tensor], example: Tensor | None = None) -> PassResult:
    """Run one pass on a copy, with calibration data."""
    copy, inputs = share(module), Inputs((batches[0] if example is None else example,))
    return step.run(copy, PassContext(inputs, Analyses(copy, inputs), Calibration(tuple(Inputs((b,)) for b in batches))))


def outputs(module: nn.Module, batches: Sequence[Tensor]) -> Tensor:
    with torch.no_grad():
        return torch.cat([module(b) for b in batches]).double()


def sqnr(wanted: Tensor, given: Tensor) -> float:
    """Signal over noise in dB."""
    return float(10 * torch.log10(wanted.square().sum() / (wanted - given).square().sum()))
