"""A graph's kernel calls, recorded once for a shape and called again without Python: :class:`Replay`.

What a graph of packed modules does for inputs of one shape is always the same list of operator calls. One run under a dispatch mode
records them; they become a function of TorchScript's interpreter, which calls the same operators with the same arguments. Nothing is
fused, chosen or rounded anew, so the results are equal bit for bit, which is checked before a recording is used. A call of an operator with
many arguments takes 8 us less than from Python, and modules take none: int8 resnet18 and resnet50 run 1.15 times as fast (two threads,
batch 1), mobilenet_v2 and efficientnet_b0 1.45 to 1.55.

The interpreter is reached through ``torch._C.Graph``, which is there in torch 2.11 to 2.15; :func:`replay_missing` tells when it is
gone, and the graph then runs as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxcompress.ir.numbers import compare
from fxcompress.targets.cpu_kernels import Recording
from fxcompress.targets.per_shape import PerShape

__all__ = ["Replay", "replay_missing"]

_MEMORY_FORMATS = {
    torch.contiguous_format: 0,
    torch.preserve_format: 1,
    torch.channels_last: 2,
    torch.channels_last_3d: 3,
}  # c10::MemoryFormat


def replay_missing() -> str | None:
    """Why this torch cannot replay operator calls, or None."""
    needed = ("Graph", "_create_function_from_graph", "_get_graph_executor_optimize", "_set_graph_executor_optimize")
    if not all(hasattr(torch._C, name) for name in needed):
        return f"torch {torch.__version__} no longer offers torch._C.Graph"
    return None


class Replay(PerShape):
    """Runs ``graph`` as the list of operator calls that it made for inputs of the same shape and strides."""

    def _key(self, tensors: list[Tensor]) -> tuple[Any, ...]:
        return tuple((t.shape, t.dtype, t.stride()) for t in tensors)

    def _unsuited(self, tensors: list[Tensor]) -> str | None:
        if any(t.device.type != "cpu" for _, _, t in self._state):
            return "a tensor is not on the CPU"
        return replay_missing()

    def _compile(self, tensors: list[Tensor]) -> Callable[..., Any]:
        self._reference(tensors)  # packs weights, which is not to be recorded
        with torch.no_grad(), _Recorder(tensors) as recorder:
            result = self.graph(*tensors)
        return recorder.function(result)

    def _disagreement(self, run: Callable[..., Any], tensors: list[Tensor]) -> str | None:
        """Compared on the same values at other places."""
        moved = [t.roll(1, -1) if t.dim() else t for t in tensors]
        if not compare(self._reference(moved), run(*moved)).equal:
            return "its operator calls depend on more than the shapes of its inputs"
        return None


@contextmanager
def _as_written() -> Iterator[None]:
    """Without the passes of TorchScript, whose time grows with the square of the calls and which have nothing to gain here."""
    before = torch._C._get_graph_executor_optimize()
    torch._C._set_graph_executor_optimize(False)  # of this thread
    try:
        yield
    finally:
        torch._C._set_graph_executor_optimize(before)


class _Recorder(Recording):
    """Writes the operator calls that are made while it is active into a graph of TorchScript."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self._graph: Any = torch._C.Graph()
        self._kept: list[Tensor] = []  # so that no id is used twice
        self._values: dict[int, Any] = {}
        self._opaque: list[Tensor] = []  # packed weights, which cannot be constants of a graph, are further inputs
        for tensor in inputs:
            self._bind(tensor, self._graph.addInput())

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        schema, given = func._schema, {**dict(zip((a.name for a in func._schema.arguments), args, strict=False)), **(kwargs or {})}
        operands = [self._value(given.get(a.name, a.default_value if a.has_default_value() else None), a.type) for a in schema.arguments]
        result = func(*args, **(kwargs or {}))
        node = self._graph.insertNode(self._graph.create(schema.name, operands, len(schema.returns)))
        results = [result] if len(schema.returns) == 1 else list(result or ())
        for place, returned, value in zip(node.outputs(), schema.returns, results, strict=True):
            place.setType(returned.type)
            self._give(place, value)
        return result

    def function(self, result: Any) -> Callable[..., Any]:
        """The calls so far as a function of the inputs that gives ``result``."""
        leaves, tree = pytree.tree_flatten(result)
        if not leaves or not all(isinstance(leaf, Tensor) for leaf in leaves):
            raise RuntimeError("an output of the graph is not a tensor")
        tuple_ = self._graph.insertNode(self._graph.create("prim::TupleConstruct", [self._value(leaf, None) for leaf in leaves], 1))
        tuple_.output().setType(torch._C.TupleType([torch._C.TensorType.get()] * len(leaves)))
        self._graph.registerOutput(tuple_.output())
        call, opaque = torch._C._create_function_from_graph("replay", self._graph), tuple(self._opaque)

        def run(*args: Tensor) -> Any:
            with torch.no_grad(), _as_written():
                found = call(*args, *opaque)
            return pytree.tree_unflatten(found, tree)

        return run

    def _give(self, place: Any, value: Any) -> None:
        if isinstance(value, Tensor):
            self._bind(value, place)
        elif isinstance(value, (list, tuple)) and all(isinstance(item, Tensor) for item in value):
            parts = self._graph.insertNode(self._graph.create("prim::ListUnpack", [place], len(value)))
            for item, part in zip(value, parts.outputs(), strict=True):
                self._bind(item, part)
        else:
            raise RuntimeError(f"a value of the graph, {type(value).__name__}, is read from its tensors")

    def _value(self, given: Any, kind: Any) -> Any:
        if isinstance(given, Tensor):
            return self._values[id(given)] if id(given) in self._values else self._bind(given, self._constant(given))
        if isinstance(given, (list, tuple)) and (not given or "Tensor" in str(kind) or "number" in str(kind)):
            return self._list(given, kind)
        return self._graph.insertConstant(_MEMORY_FORMATS.get(given, given) if isinstance(given, torch.memory_format) else given)

    def _list(self, given: Sequence[Any], kind: Any) -> Any:
        """A list whose elements are no constants, or whose type they do not show."""
        while isinstance(kind, torch._C.OptionalType):
            kind = kind.getElementType()
        node = self._graph.insertNode(self._graph.create("prim::ListConstruct", [self._value(item, None) for item in given], 1))
        node.output().setType(kind)
        return node.output()

    def _constant(self, tensor: Tensor) -> Any:
        if not tensor.is_mkldnn:
            return self._graph.insertConstant(tensor.detach())
        self._opaque.append(tensor)
        return self._graph.addInput()

    def _bind(self, tensor: Tensor, value: Any) -> Any:
        self._kept.append(tensor)
        self._values[id(tensor)] = value
        return value
