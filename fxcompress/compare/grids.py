"""How the values of a graph are quantized: the scale and zero point of each, as far as the modules say."""

from __future__ import annotations

from torch import nn
from torch.fx import GraphModule, Node

from fxcompress.ir.ops import Trait
from fxcompress.ir.view import module_of, spec_of
from fxcompress.quant.affine import QParams
from fxcompress.quant.modules import Dequantize
from fxcompress.quant.pooling import QuantMaxPool

__all__ = ["grids_of"]


def grids_of(module: GraphModule) -> dict[Node, QParams]:
    """The grid of every node whose value lies on one. What only moves values, or takes the largest, keeps their grid."""
    found: dict[Node, QParams] = {}
    for node in module.graph.nodes:
        layer = module_of(node)
        qparams = getattr(layer, "qparams", None)
        if isinstance(qparams, QParams) and not isinstance(layer, Dequantize):
            found[node] = qparams
        elif _keeps(node, layer):
            grids = {found.get(source) for source in node.all_input_nodes}
            grid = grids.pop() if len(grids) == 1 else None
            if grid is not None:
                found[node] = grid
    return found


def _keeps(node: Node, layer: nn.Module | None) -> bool:
    spec = spec_of(node)
    return isinstance(layer, QuantMaxPool) or (spec is not None and (Trait.MOVES in spec.traits or spec.kind == "max_pool"))
