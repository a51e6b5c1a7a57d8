"""Weight-only quantization: layers that keep their weights small and compute in float; see :mod:`fxcompress.quant.stored`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from fxcompress.ir.edit import Editor, share
from fxcompress.pipeline import Pass, PassContext, PassResult, Property, Remark, Semantics
from fxcompress.quant.options import Storage
from fxcompress.quant.patterns import fits
from fxcompress.quant.stored import stored, why_not_stored


@dataclass(frozen=True)
class WeightOnly(Pass):
    """Stores the weights of the layers that ``patterns`` name as int8, int4, float16 or bfloat16; they compute in float.

    The result must compute what the graph computes with these weights rounded; the frame checks that in float64.
    """

    name: ClassVar[str] = "weight-only"
    semantics: ClassVar[Semantics] = Semantics.LOSSY
    requires: ClassVar[frozenset[Property]] = frozenset({Property.FUNCTIONAL})
    patterns: tuple[str, ...] = ()
    storage: Storage = "int8"

    def run(self, module: GraphModule, ctx: PassContext) -> PassResult:
        before, editor = share(module), Editor(module)
        remarks: list[Remark] = []
        done: list[str] = []
        for path, nodes in _named(editor, self.patterns):
            layer = module.get_submodule(path)
            why = why_not_stored(layer) or _is_read(editor, path)
            if why is None:
                module.set_submodule(path, stored(layer, self.storage))
                done.append(path)
                remarks += [Remark.on(node, _what(self.storage), applied=True) for node in nodes]
            elif next(layer.parameters(), None) is not None:
                remarks += [Remark.on(node, f"float: {why}", applied=False) for node in nodes]
        editor.finish()
        return PassResult(module, bool(done), remarks=tuple(remarks), reference=lambda: _rounded(before, module, done))


def _what(storage: Storage) -> str:
    return f"{storage} weights: weight_only names it; it computes in float"


def _named(editor: Editor, patterns: tuple[str, ...]) -> Iterator[tuple[str, list[Node]]]:
    """Layers whose name fits, and the nodes that call them."""
    calls: dict[str, list[Node]] = {}
    for node in editor.graph.nodes:
        if node.op == "call_module" and fits(str(node.target), patterns):
            calls.setdefault(str(node.target), []).append(node)
    yield from calls.items()


def _is_read(editor: Editor, path: str) -> str | None:
    """Weights that the graph reads by themselves, or that another layer shares, are left alone."""
    inside = [node for node in editor.graph.nodes if node.op == "get_attr" and str(node.target).startswith(f"{path}.")]
    if inside:
        return f"'{inside[0].name}' reads its weights"
    mine = {id(parameter) for parameter in editor.module.get_submodule(path).parameters()}
    for name, parameter in editor.module.named_parameters(remove_duplicate=False):
        if id(parameter) in mine and name.rpartition(".")[0] != path:
            return f"it shares a weight with '{name.rpartition('.')[0]}'"
    return None


class _Rounded(nn.Module):
    """The plain layer on the weights of its small form."""

    def __init__(self, layer: nn.Module, small: nn.Module) -> None:
        super().__init__()
        self.layer, self.small = layer, small

    def forward(self, x: Tensor, *more: Any) -> Any:
        names = [name for name, _ in self.layer.named_parameters()]
        dtype = x.dtype if x.is_floating_point() else next(self.layer.parameters()).dtype
        return torch.func.functional_call(self.layer, {name: self._weight(name).to(dtype) for name in names}, (x, *more))

    def _weight(self, name: str) -> Tensor:
        tensor, scale = self.small._buffers[name], self.small._buffers.get(f"{name}_scale")
        assert tensor is not None
        return tensor if scale is None else tensor.double() * scale.double().reshape(-1, *[1] * (tensor.dim() - 1))


def _rounded(before: GraphModule, after: GraphModule, paths: list[str]) -> GraphModule:
    """The graph as it was, with the weights of ``paths`` as they are stored."""
    for path in paths:
        before.set_submodule(path, _Rounded(before.get_submodule(path), after.get_submodule(path)))
    return before
