"""Makes 8-bit weights exact on CPUs without VNNI, which add two products in 16 bits.

See ``fxcompress.targets.saturation`` for the rule and ``fxcompress.targets.safe_weights`` for what is changed. On other CPUs nothing
happens, unless the result shall be exact on any.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from fxcompress.ir.edit import Editor, private_copy
from fxcompress.ir.view import module_of
from fxcompress.pipeline import Pass, PassContext, PassResult, Property, Remark, Semantics
from fxcompress.quant.affine import quantize_weight
from fxcompress.quant.fake import FAKE_LAYERS, FakeQuantize
from fxcompress.targets.safe_weights import SafeWeights, safe_weights
from fxcompress.targets.saturation import ANYWHERE, Saturation, saturation


@dataclass(frozen=True)
class MakeWeightsSafe(Pass):
    """Moves the few weights of quantized layers whose products could saturate; comes after whatever else decides weights.

    Options:
        machine: ``here`` for what this CPU needs, ``any`` for a result that is exact on every CPU.
    """

    name: ClassVar[str] = "safe-weights"
    semantics: ClassVar[Semantics] = Semantics.LOSSY
    requires: ClassVar[frozenset[Property]] = frozenset({Property.QUANTIZED})
    forbids: ClassVar[frozenset[Property]] = frozenset({Property.INTEGER, Property.LOWERED})
    machine: Literal["here", "any"] = "here"

    def run(self, module: GraphModule, ctx: PassContext) -> PassResult:
        found = saturation() if self.machine == "here" else ANYWHERE
        if not (found.pairs or found.taps):
            return PassResult(module, False, remarks=(Remark(False, "graph", "this CPU adds products in 32 bits"),))
        high = max((child.qparams.high for child in module.modules() if isinstance(child, FakeQuantize)), default=255)
        editor, remarks = Editor(module), []
        for nodes in _callers(module):
            layer: Any = module_of(nodes[0])
            safe = _safe(layer, found, high)
            if safe.reason is not None:
                private = private_copy(layer)
                private.weight_scale = safe.scale
                private.set_integers(safe.integers)
                editor.set_modules(nodes, private)
                remarks += [Remark.on(node, safe.reason, applied=True) for node in nodes]
        if remarks:
            editor.finish()
        return PassResult(module, bool(remarks), remarks=tuple(remarks))


def _callers(module: GraphModule) -> list[list[Node]]:
    """The nodes that call each quantized layer."""
    kinds, found = tuple(set(FAKE_LAYERS.values())), dict[str, list[Node]]()
    for node in module.graph.nodes:
        if isinstance(module_of(node), kinds):
            found.setdefault(str(node.target), []).append(node)
    return list(found.values())


def _safe(layer: Any, found: Saturation, high: int) -> SafeWeights:
    integers, scale = layer.integers(), layer.weight_scale
    weight: Tensor | None = getattr(layer, "float_weight", None)
    if weight is not None and not torch.equal(quantize_weight(weight, scale, layer.weight_bits), integers):
        weight = None  # somebody had reasons not to take the nearest integers
    return safe_weights(integers, scale, found=found, groups=getattr(layer, "groups", 1), high=high, weight=weight)
