"""Writes a graph as ONNX by running it on values that record.

Every operation of torch that a module or function calls on a :class:`Value` goes through ``__torch_function__`` to one
table of writers (``onnx_ops``), so a module of any class (a fused layer, stochastic depth, attention) is written through
the few functions that its forward calls, and one operation keeps one node that engines know how to fuse.

Sizes are not taken from the example alone. The graph is followed for several *points* at once, the example and one or two
calls of other sizes, on meta tensors. A size that is the same at all points is a number; any other is a :class:`Dim`, which
is computed in the written graph. Code that needs a number of a Dim, or decides differently at two points, raises
:class:`SizeDependent`, and the caller writes again with fewer free sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from fxcompress.errors import TargetError
from fxcompress.quant.affine import QParams
from fxcompress.targets.onnx_movers import is_mover
from fxcompress.targets.onnx_values import Dim, NotWritten, Shape, SizeDependent, Value
from fxcompress.targets.saturation import NOWHERE, Saturation

OPSET = 20


def canonical_name(func: Any) -> str:
    """The word under which a function, method or operator stands in the table: ``F.relu``, ``torch.relu``, ``Tensor.relu_`` -> relu."""
    name = getattr(func, "__name__", str(func))
    if name.startswith("__") and name.endswith("__"):
        name = name[2:-2]
        return name[1:] if name in _IN_PLACE_OPERATORS else name
    return name.strip("_")


_IN_PLACE_OPERATORS = {"iadd", "isub", "imul", "itruediv"}


_FACTORIES = {"zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full"}


def _in_place(func: Any) -> bool:
    name = getattr(func, "__name__", "")
    return name.strip("_") in _IN_PLACE_OPERATORS or (name.endswith("_") and not name.startswith("_"))


class Writer:
    """An ONNX graph while it is written.

    Args:
        table: canonical operation name -> writer function.
        points: how many sizes are followed at once.
        dialect: the engine that will read the graph ("openvino" or "onnxruntime"); writers may use its own operations.
        machine: where products of int8 weights saturate.
    """

    def __init__(self, table: dict[str, Callable[..., Any]], points: int, dialect: str, machine: Saturation = NOWHERE) -> None:
        import onnx

        self.onnx, self._table, self.points, self.dialect, self.machine = onnx, table, points, dialect, machine
        self.proto = onnx.ModelProto()
        self.graph = self.proto.graph
        self._constants: dict[Any, str] = {}
        self._metas: dict[int, torch.Tensor] = {}
        self._alive: list[Any] = []  # ids are keys above: what they name must live
        self._sizes: dict[tuple[str, int], Dim] = {}
        self.transposed: dict[int, torch.Tensor] = {}
        self.grids: dict[str, QParams] = {}  # values that were just dequantized; see onnx_quant
        self.wants_vnni = False  # whether 8-bit products may saturate on CPUs without it
        self.moved: dict[str, QParams] = {}  # values that were moved from one grid, and still lie on it
        self._count = 0
        self.out: list[Any] = []

    # ---- writing
    def fresh(self) -> str:
        self._count += 1
        return f"t{self._count}"

    def node(self, kind: str, inputs: Sequence[str], domain: str = "", **attributes: Any) -> str:
        return self.nodes_of(kind, inputs, 1, domain, **attributes)[0]

    def nodes_of(self, kind: str, inputs: Sequence[str], outputs: int, domain: str = "", **attributes: Any) -> list[str]:
        """Write one node with several outputs; attributes that are None are left out."""
        names = [self.fresh() for _ in range(outputs)]
        given = {key: value for key, value in attributes.items() if value is not None}
        self.append(kind, inputs, names, domain, **given)
        return names

    def append(self, kind: str, inputs: Sequence[str], outputs: Sequence[str], domain: str = "", **attributes: Any) -> None:
        """Write one node whose results have these names."""
        self.graph.node.append(self.onnx.helper.make_node(kind, list(inputs), list(outputs), domain=domain, **attributes))

    def constant(self, value: Any, dtype: torch.dtype | None = None) -> str:
        """The name of a constant. A tensor is written once, however often it is used."""
        key: Any = id(value) if isinstance(value, torch.Tensor) else repr((value, dtype))
        if key not in self._constants:
            tensor = value if isinstance(value, torch.Tensor) else torch.tensor(value, dtype=dtype)
            name = f"c{len(self._constants)}"
            array = tensor.detach().contiguous().numpy()
            # filled in place: weights are the bulk of the file and should be copied once
            self.graph.initializer.add(name=name, data_type=onnx_type(tensor.dtype), dims=tensor.shape, raw_data=array.tobytes())
            self._alive.append(value)
            self._constants[key] = name
        return self._constants[key]

    def name_of(self, operand: Any, dtype: torch.dtype | None = None) -> str:
        """The name of an operand: a Value, a real tensor, a number or a size; cast to ``dtype`` where it has another."""
        if isinstance(operand, Dim):
            name = self.node("Squeeze", [operand.name])
            return name if dtype in (None, torch.int64) else self.cast(name, dtype)
        if isinstance(operand, Value):
            return operand.name if dtype in (None, operand.dtype) else self.cast(operand.name, dtype)
        if isinstance(operand, torch.Tensor):
            if dtype in (None, operand.dtype):
                return self.constant(operand)
            return self.cast(self.constant(operand), dtype)
        return self.constant(operand, dtype)

    def cast(self, name: str, dtype: torch.dtype | None) -> str:
        return self.node("Cast", [name], to=onnx_type(dtype or torch.float32))

    def knows(self, name: str) -> bool:
        return name in self._table

    def keep(self, anything: Any) -> None:
        """Hold what a table is keyed by the id of."""
        self._alive.append(anything)

    # ---- sizes
    def points_of(self, size: Any) -> Sequence[Any]:
        return size.values if isinstance(size, Dim) else (size,) * self.points

    def size_of(self, value: Value, axis: int) -> Any:
        sizes = [meta.shape[axis] for meta in value.metas]
        if all(size == sizes[0] for size in sizes):
            return sizes[0]
        axis %= value.ndim
        key = (value.name, axis)
        if key not in self._sizes:
            name = value.name
            self._sizes[key] = Dim(self, sizes, lambda: self.node("Shape", [name], start=axis, end=axis + 1), key)
        return self._sizes[key]

    def size_vector(self, sizes: Sequence[Any]) -> str:
        """An int64 vector of the sizes."""
        if not any(isinstance(size, Dim) for size in sizes):
            return self.constant([int(size) for size in sizes], torch.int64)
        parts: list[str] = []
        numbers: list[int] = []
        for size in [*sizes, None]:
            if isinstance(size, Dim) or size is None:
                if numbers:
                    parts.append(self.constant(numbers, torch.int64))
                    numbers = []
                if size is not None:
                    parts.append(size.name)
            else:
                numbers.append(int(size))
        return parts[0] if len(parts) == 1 else self.node("Concat", parts, axis=0)

    # ---- calls
    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Write one call of torch; the result is Values in the structure that ``func`` gives."""
        name = canonical_name(func)
        write = self._table.get(name)
        if write is None:
            raise NotWritten(f"operation '{name}'")
        if getattr(write, "composite", False):
            result = write(*args, **kwargs)
        else:
            metas = [self._at(point, func, args, kwargs) for point in range(self.points)]
            self.out = metas
            constant = self._constant_result(func, args, kwargs, metas) if name in _FACTORIES else None
            if constant is not None:
                return constant
            result = self._wrap(write(self, *args, **kwargs), metas)
            if is_mover(name, args, kwargs):
                self._follow_grid(result, args, kwargs)
        if args and _in_place(func):
            return self._assign(args[0], result, name)
        return result

    def _follow_grid(self, result: Any, args: Any, kwargs: Any) -> None:
        """What only moves values of one grid gives values of this grid."""
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Value | torch.Tensor)]
        found = {self.grids.get(x.name, self.moved.get(x.name)) if isinstance(x, Value) else None for x in tensors}
        grid = found.pop() if len(found) == 1 else None
        if grid is not None:
            self.moved |= {value.name: grid for value in pytree.tree_leaves(result) if isinstance(value, Value)}

    def _assign(self, target: Any, result: Value, name: str) -> Value:
        """The effect of an in-place operation, on the object that Python names hold."""
        if not isinstance(target, Value):
            raise NotWritten(f"in-place '{name}' on a constant")
        target.name, target.metas = result.name, result.metas
        return target

    def _constant_result(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], metas: list[torch.Tensor]) -> torch.Tensor | None:
        """``zeros_like(x)`` and its kin where the size is a number: a real tensor, which code may then write into."""
        if any(isinstance(leaf, Dim) for leaf in pytree.tree_leaves((args, kwargs))) or any(m.shape != metas[0].shape for m in metas):
            return None
        like = [torch.empty((), dtype=x.dtype).expand(x.metas[0].shape) if isinstance(x, Value) else x for x in args]
        return func(*like, **kwargs)

    def _wrap(self, names: Any, metas: list[Any]) -> Any:
        if isinstance(names, str):
            metas = [m[0] if isinstance(m, tuple) else m for m in metas]
            return Value(self, names, metas)
        values = [Value(self, name, [m[i] for m in metas]) for i, name in enumerate(names)]
        return names._make(values) if hasattr(names, "_make") else tuple(values)

    def _at(self, point: int, func: Any, args: Any, kwargs: Any) -> Any:
        def concrete(leaf: Any) -> Any:
            if isinstance(leaf, Value):
                return leaf.metas[point]
            if isinstance(leaf, Dim):
                return leaf.values[point]
            if isinstance(leaf, torch.Tensor):
                return self._meta(leaf)
            return torch.device("meta") if isinstance(leaf, torch.device) else leaf

        try:
            args, kwargs = _map(concrete, (args, kwargs))
            return func(*args, **kwargs)
        except (RuntimeError, ValueError, IndexError) as error:
            if point:
                raise SizeDependent(str(error)) from error
            raise NotWritten(f"operation '{canonical_name(func)}': {error}") from error

    def _meta(self, tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in self._metas:
            self._metas[id(tensor)] = tensor.detach().to("meta")
            self._alive.append(tensor)
        return self._metas[id(tensor)]


def _map(fn: Callable[[Any], Any], tree: Any) -> Any:
    """Like tree_map, and also inside slices and shapes."""

    def leaf(value: Any) -> Any:
        if isinstance(value, slice):
            return slice(fn(value.start), fn(value.stop), fn(value.step))
        return tuple(fn(size) for size in value) if isinstance(value, Shape) else fn(value)

    return pytree.tree_map(leaf, tree)


_TYPES = {
    torch.float32: 1,
    torch.uint8: 2,
    torch.int8: 3,
    torch.int16: 5,
    torch.int32: 6,
    torch.int64: 7,
    torch.bool: 9,
    torch.float16: 10,
    torch.float64: 11,
}


def onnx_type(dtype: torch.dtype) -> int:
    """The number of a dtype in ONNX.

    Raises:
        TargetError: engines do not take it.
    """
    if dtype not in _TYPES:
        raise TargetError(f"an engine cannot take {dtype}", hint="convert the model with .float(), or use target='cpu'")
    return _TYPES[dtype]
