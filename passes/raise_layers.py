"""Turns functional layers with constant parameters into modules: ``F.conv2d(x, w, b)`` -> ``nn.Conv2d``.

All later passes then meet one form of a layer. Capture does the same; what is left are layers whose parameters were
computed in the graph until ``fold-constants`` made them constant (weight standardisation), and graphs from elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import fx
from torch.fx import GraphModule

from fxcompress.analysis import Aliases, Shapes
from fxcompress.ir.functional import raise_functional, recipes
from fxcompress.pipeline import Pass, PassContext, PassResult, Property, Remark, Semantics


@dataclass(frozen=True)
class RaiseLayers(Pass):
    """Turns functional layers with constant parameters into modules."""

    name: ClassVar[str] = "raise-layers"
    semantics: ClassVar[Semantics] = Semantics.EXACT
    requires: ClassVar[frozenset[Property]] = frozenset({Property.FUNCTIONAL})

    def run(self, module: GraphModule, ctx: PassContext) -> PassResult:
        aliases, layers = ctx.analyses.get(Aliases), recipes()
        found = [node for node in module.graph.nodes if node.op == "call_function" and node.target in layers]
        ranks = {node.args[0]: _rank(node, ctx) for node in found if node.args and isinstance(node.args[0], fx.Node)}

        def written(node: fx.Node) -> bool:
            return any(aliases.is_written(used) for used in (node, *node.all_input_nodes))

        raised = raise_functional(module, ranks, written) if found else []
        if raised:
            module.recompile()
        remarks = tuple(Remark.on(node, f"it is the module '{node.target}' now", applied=True) for node in raised)
        return PassResult(module, bool(raised), frozenset({Shapes}), remarks)


def _rank(node: fx.Node, ctx: PassContext) -> int:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return len(ctx.analyses.get(Shapes).shape(source) or ())
