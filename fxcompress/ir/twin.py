"""The float64 twin of a graph: the same passes on the same graph in float64, where rounding cannot hide an error."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from fxcompress.ir.copying import copied
from fxcompress.ir.inputs import Inputs

_HALF = {torch.float16, torch.bfloat16}


def double_twin(module: GraphModule, inputs: Inputs) -> tuple[GraphModule, Inputs] | str:
    """A float64 copy of ``module`` and ``inputs``, or the reason why there is none.

    Casts to float32 that stand in the graph become casts to float64: they are there to compute precisely.
    """
    tensors = (*inputs.tensors(), *module.parameters(), *module.buffers())
    if any(t.is_complex() for t in tensors):
        return "complex numbers"
    if any(t.device.type == "meta" for t in tensors):
        return "tensors without data"
    narrow = next((node for node in module.graph.nodes if _halves(node)), None)
    if narrow is not None:
        return f"'{narrow.name}' computes in half precision"
    twin = copied(module, _doubled)
    for node in twin.graph.nodes:
        _widen(node)
    twin.recompile()
    return twin, inputs.map_tensors(_doubled)


def _doubled(tensor: Tensor) -> Tensor:
    return tensor.detach().double() if tensor.is_floating_point() else tensor.detach().clone()


def _halves(node: Node) -> bool:
    if node.op == "call_method" and node.target in ("half", "bfloat16"):
        return True
    return any(c in _HALF for c in pytree.tree_leaves((node.args, node.kwargs)) if isinstance(c, torch.dtype))


def _widen(node: Node) -> None:
    if node.op == "call_method" and node.target == "float":
        node.target = "double"
    node.args, node.kwargs = pytree.tree_map_only(
        torch.dtype, lambda dtype: torch.float64 if dtype == torch.float32 else dtype, (node.args, node.kwargs)
    )


def is_double(output: Any) -> bool:
    """Whether all floating-point tensors of an output are float64."""
    return all(t.dtype == torch.float64 for t in pytree.tree_leaves(output) if isinstance(t, Tensor) and t.is_floating_point())
