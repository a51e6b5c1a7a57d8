"""A fake-quantized graph that is kept for inspection at the size of its integers."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn
from torch.fx import GraphModule

from fxcompress.ir.copying import copied, private_copy
from fxcompress.quant.fake import FAKE_LAYERS

__all__ = ["Compact"]

_FAKE = tuple(set(FAKE_LAYERS.values()))
_DROPPED = ("float_weight", "float_bias")


class Compact:
    """Holds the graph with int8 weights in place of the float ones on their grid; not a module, so that it is no state of one."""

    def __init__(self, fake: GraphModule) -> None:
        self._weights: dict[str, Tensor] = {}
        self._graph = copied(fake)
        for path, layer in list(self._graph.named_modules()):
            if isinstance(layer, _FAKE):
                self._weights[path] = cast(Any, layer).integers()
                self._graph.set_submodule(path, _emptied(layer))

    def expanded(self) -> GraphModule:
        """The fake-quantized graph; a new one in every call. Its layers no longer know the float weights they came from."""
        graph = copied(self._graph)
        for path, integers in self._weights.items():
            layer: Any = graph.get_submodule(path)
            layer.set_integers(integers)
        return graph


def _emptied(layer: Any) -> nn.Module:
    """The layer with an empty weight of the same dtype, and without its float parameters."""
    empty = private_copy(layer)
    empty.weight = nn.Parameter(layer.weight.detach().new_empty(0), requires_grad=layer.weight.requires_grad)
    for name in _DROPPED:
        empty._buffers.pop(name, None)
    empty._non_persistent_buffers_set = empty._non_persistent_buffers_set - set(_DROPPED)
    return empty
