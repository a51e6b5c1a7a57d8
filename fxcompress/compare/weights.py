"""The parameters, buffers and constants of a graph, each once."""

from __future__ import annotations

from torch import Tensor, nn
from torch.fx import GraphModule

from fxcompress.analysis.shapes import attribute
from fxcompress.compare.layers import tensors_of
from fxcompress.compare.ports import dtype_name
from fxcompress.compare.schema import TensorRecord
from fxcompress.compare.sketch import digest, sketch

__all__ = ["Weights"]


class Weights:
    """All tensors of ``module`` in the order of their first names; tied ones once."""

    def __init__(self, module: GraphModule) -> None:
        named = dict(tensors_of(module))
        for node in module.graph.nodes:
            if node.op == "get_attr" and isinstance(found := attribute(module, str(node.target)), Tensor):
                named.setdefault(str(node.target), found)
        self._tensors: list[tuple[str, Tensor]] = []
        self._places: dict[int, int] = {}
        for name, tensor in sorted(named.items()):
            if id(tensor) not in self._places:
                self._places[id(tensor)] = len(self._tensors)
                self._tensors.append((name, tensor))

    def place(self, tensor: Tensor) -> int:
        return self._places[id(tensor)]

    def records(self) -> tuple[TensorRecord, ...]:
        return tuple(_record(name, tensor) for name, tensor in self._tensors)


def _record(name: str, tensor: Tensor) -> TensorRecord:
    is_parameter = isinstance(tensor, nn.Parameter)
    return TensorRecord(name, dtype_name(tensor), tuple(tensor.shape), digest([tensor]), sketch(tensor), is_parameter)
