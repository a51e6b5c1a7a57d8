"""Checks in the graph for sizes that the graph cannot follow."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, fx

from fxcompress.capture.step import StepFailed
from fxcompress.ir.guards import expect_constant
from fxcompress.ir.inputs import Inputs


def fix_sizes(graph_module: fx.GraphModule, inputs: Inputs, dims: Iterable[int]) -> None:
    """Let the graph refuse inputs whose dimensions ``dims`` differ from the example's.

    Raises:
        StepFailed: the tensors of a nested input cannot be told apart.
    """
    graph = graph_module.graph
    values = _by_placeholder(graph, inputs)
    last = [n for n in graph.nodes if n.op == "placeholder"][-1]
    with graph.inserting_after(last):
        anchor = last
        for node, tensor in values:
            for dim in (d for d in dims if d < tensor.dim()):
                with graph.inserting_after(anchor):
                    size = graph.call_method("size", (node, dim))
                with graph.inserting_after(size):
                    anchor = graph.call_function(expect_constant, (size, tensor.size(dim), f"{node.target}.shape[{dim}]"))
    graph_module.recompile()


def _by_placeholder(graph: fx.Graph, inputs: Inputs) -> list[tuple[fx.Node, Tensor]]:
    """The top-level tensor inputs with their placeholders; nested ones cannot be resized by a caller unnoticed."""
    nodes = [n for n in graph.nodes if n.op == "placeholder"]
    found = [(n, v) for n, v in zip(nodes, inputs.args, strict=False) if isinstance(v, Tensor) and not str(n.target).startswith("*")]
    found += [(n, inputs.kwargs[str(n.target)]) for n in nodes if isinstance(inputs.kwargs.get(str(n.target)), Tensor)]
    if not found:
        raise StepFailed("the sizes of nested inputs cannot be checked in the graph")
    return found
