"""A graph module made from a recorded graph and the layers of the copy."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, fx, nn

from fxcompress.ir.functional import raise_functional


def assemble(root: nn.Module, graph: fx.Graph, constants: Mapping[str, Tensor], ranks: Mapping[fx.Node, int]) -> fx.GraphModule:
    """The graph module over ``root``'s own layers; parameters keep their names, and every module its training flag."""
    for name, value in constants.items():
        root.register_buffer(name, value, persistent=True)
    graph_module = fx.GraphModule(root, graph, class_name=type(root).__name__)
    for path, module in graph_module.named_modules():
        module.training = _training(root, path)
    raise_functional(graph_module, ranks)
    graph_module.graph.lint()
    graph_module.recompile()
    return graph_module


def _training(root: nn.Module, path: str) -> bool:
    try:
        return root.get_submodule(path).training
    except AttributeError:
        return root.training
