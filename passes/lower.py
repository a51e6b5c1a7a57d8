"""Binds a graph to what one machine can run: the native CPU kernels, or an engine that takes the whole graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch.fx import GraphModule

from fxcompress.ir.effects import in_training
from fxcompress.pipeline import Pass, PassContext, PassResult, Property, Remark
from fxcompress.targets.registry import usable


@dataclass(frozen=True)
class Lower(Pass):
    """Lowers the graph to ``target``; the result is for inference only."""

    name: ClassVar[str] = "lower"
    requires: ClassVar[frozenset[Property]] = frozenset({Property.FUNCTIONAL})
    establishes: ClassVar[frozenset[Property]] = frozenset({Property.LOWERED})
    target: str = "cpu"

    def run(self, module: GraphModule, ctx: PassContext) -> PassResult:
        if in_training(module):
            why = "the model is in training mode; call model.eval()"
            return PassResult(module, False, remarks=(Remark(False, "graph", why),))
        lowered = usable(self.target).lower(module, ctx.inputs)
        kinds = _kinds(lowered) - _kinds(module)
        if not kinds and str(lowered.graph) == str(module.graph):
            return PassResult(module, False, remarks=(Remark(False, "graph", f"nothing in it has a kernel of '{self.target}'"),))
        counts = _count(lowered, kinds)
        return PassResult(lowered, True, remarks=tuple(Remark(True, "graph", f"{n} {kind}") for kind, n in sorted(counts.items())))


def _kinds(module: GraphModule) -> set[str]:
    return {type(child).__name__ for child in module.modules()}


def _count(module: GraphModule, kinds: set[str]) -> dict[str, int]:
    called = [type(module.get_submodule(str(n.target))).__name__ for n in module.graph.nodes if n.op == "call_module"]
    return {kind: called.count(kind) for kind in kinds if kind in called}
