"""From the fake-quantized graph to integers: uint8 values, int8 weights, conversions where integers and float meet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch.fx import GraphModule

from fxcompress.ir.effects import in_training
from fxcompress.ir.view import module_of
from fxcompress.pipeline import Pass, PassContext, PassResult, Property, Remark, Semantics
from fxcompress.quant.fake import FakeQuantize
from fxcompress.quant.integers import to_integers
from fxcompress.quant.modules import Dequantize, Quantize, Requantize


@dataclass(frozen=True)
class LowerInt8(Pass):
    """Turns FakeQuantize and layers with weights on a grid into operations on uint8 tensors; the result is for inference only."""

    name: ClassVar[str] = "lower-int8"
    semantics: ClassVar[Semantics] = Semantics.LOSSY
    requires: ClassVar[frozenset[Property]] = frozenset({Property.QUANTIZED})
    establishes: ClassVar[frozenset[Property]] = frozenset({Property.INTEGER})
    forbids: ClassVar[frozenset[Property]] = frozenset({Property.INTEGER, Property.LOWERED})

    def run(self, module: GraphModule, ctx: PassContext) -> PassResult:
        if not any(isinstance(child, FakeQuantize) for child in module.modules()):
            return PassResult(module, False, remarks=(Remark(False, "graph", "nothing in it is quantized"),))
        if in_training(module):
            why = "the model is in training mode; call model.eval()"
            return PassResult(module, False, remarks=(Remark(False, "graph", why),))
        to_integers(module, ctx.inputs)
        return PassResult(module, True, remarks=_boundaries(module))


def _boundaries(module: GraphModule) -> tuple[Remark, ...]:
    """How often a value changes its form."""
    called = [type(module_of(node)) for node in module.graph.nodes]
    counts = {kind.__name__: called.count(kind) for kind in (Quantize, Dequantize, Requantize)}
    return (Remark(True, "graph", ", ".join(f"{n} {name}" for name, n in counts.items())),)
