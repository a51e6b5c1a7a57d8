"""What flows through a graph while it is written as ONNX: tensors and sizes that record what is done with them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.utils import _pytree as pytree

if TYPE_CHECKING:
    from fxcompress.targets.onnx_trace import Writer


class SizeDependent(Exception):
    """The graph takes another course, or needs another constant, for other sizes of the inputs."""


class NotWritten(Exception):
    """There is no writer for this operation or for this form of it."""


class Dim:
    """A size that depends on the sizes of the inputs: its value at every point, and how the written graph computes it.

    Args:
        writer: the graph that is written.
        values: the value at every point.
        make: writes the computation once and returns the name of an int64 tensor of shape (1,).
        source: (tensor name, axis) where the Dim is the size of a tensor.
    """

    def __init__(self, writer: Writer, values: Sequence[int], make: Callable[[], str], source: tuple[str, int] | None = None) -> None:
        self.writer, self.values, self.source = writer, tuple(values), source
        self._make, self._name = make, ""

    @property
    def name(self) -> str:
        if not self._name:
            self._name = self._make()
        return self._name

    def _combine(self, other: Any, op: Callable[[int, int], int], kind: str, swap: bool = False) -> Dim:
        if not isinstance(other, int | Dim) or isinstance(other, bool):
            raise SizeDependent(f"a size computed with {other!r}")
        left, right = (other, self) if swap else (self, other)
        writer = self.writer
        pairs = zip(writer.points_of(left), writer.points_of(right), strict=True)

        def make() -> str:
            a, b = writer.size_vector([left]), writer.size_vector([right])
            if kind == "Div":  # ONNX truncates, Python floors
                a = writer.node("Sub", [a, writer.node("Mod", [a, b])])
            return writer.node(kind, [a, b])

        return Dim(writer, [op(x, y) for x, y in pairs], make)

    def __add__(self, other: Any) -> Dim:
        return self._combine(other, operator.add, "Add")

    def __radd__(self, other: Any) -> Dim:
        return self._combine(other, operator.add, "Add", swap=True)

    def __sub__(self, other: Any) -> Dim:
        return self._combine(other, operator.sub, "Sub")

    def __rsub__(self, other: Any) -> Dim:
        return self._combine(other, operator.sub, "Sub", swap=True)

    def __mul__(self, other: Any) -> Dim:
        return self._combine(other, operator.mul, "Mul")

    def __rmul__(self, other: Any) -> Dim:
        return self._combine(other, operator.mul, "Mul", swap=True)

    def __floordiv__(self, other: Any) -> Dim:
        return self._combine(other, operator.floordiv, "Div")

    def __rfloordiv__(self, other: Any) -> Dim:
        return self._combine(other, operator.floordiv, "Div", swap=True)

    def __mod__(self, other: Any) -> Dim:
        return self._combine(other, operator.mod, "Mod")

    def __rmod__(self, other: Any) -> Dim:
        return self._combine(other, operator.mod, "Mod", swap=True)

    def __neg__(self) -> Dim:
        return 0 - self

    def _same(self, results: Sequence[Any]) -> Any:
        if any(result != results[0] for result in results):
            raise SizeDependent("a decision that depends on a size")
        return results[0]

    def _compare(self, other: Any, op: Callable[[Any, Any], bool]) -> bool:
        return bool(self._same([op(a, b) for a, b in zip(self.values, self.writer.points_of(other), strict=True)]))

    def __eq__(self, other: object) -> bool:
        return self._compare(other, operator.eq)

    def __ne__(self, other: object) -> bool:
        return self._compare(other, operator.ne)

    def __lt__(self, other: Any) -> bool:
        return self._compare(other, operator.lt)

    def __le__(self, other: Any) -> bool:
        return self._compare(other, operator.le)

    def __gt__(self, other: Any) -> bool:
        return self._compare(other, operator.gt)

    def __ge__(self, other: Any) -> bool:
        return self._compare(other, operator.ge)

    def __hash__(self) -> int:
        return id(self)

    def __bool__(self) -> bool:
        return bool(self._same([bool(v) for v in self.values]))

    def __index__(self) -> int:
        return int(self._same(self.values))

    __int__ = __index__

    def __float__(self) -> float:
        return float(int(self))

    def __truediv__(self, other: Any) -> float:
        return float(self) / float(other)

    def __rtruediv__(self, other: Any) -> float:
        return float(other) / float(self)


class Shape(tuple[Any, ...]):
    """Sizes of a Value: numbers and Dims."""

    def numel(self) -> Any:
        result: Any = 1
        for size in self:
            result = result * size
        return result


class Value:
    """A tensor of the written graph: its name and, for every point, a meta tensor of its shape and dtype."""

    def __init__(self, writer: Writer, name: str, metas: Sequence[torch.Tensor]) -> None:
        self.writer, self.name, self.metas = writer, name, tuple(metas)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        found = [leaf for leaf in pytree.tree_leaves((args, kwargs or {})) if isinstance(leaf, Value)]
        return found[0].writer.call(func, args, kwargs or {})

    @property
    def shape(self) -> Shape:
        return Shape(self.writer.size_of(self, axis) for axis in range(self.ndim))

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    @property
    def ndim(self) -> int:
        return self.metas[0].dim()

    def dim(self) -> int:
        return self.metas[0].dim()

    def numel(self) -> Any:
        return self.shape.numel()

    @property
    def dtype(self) -> torch.dtype:
        return self.metas[0].dtype

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    requires_grad = is_cuda = is_nested = is_sparse = is_quantized = is_mkldnn = is_meta = False
    grad_fn = None
    layout = torch.strided

    @property
    def T(self) -> Any:
        return self.permute(*reversed(range(self.ndim)))

    @property
    def mT(self) -> Any:
        return self.transpose(-2, -1)

    def is_floating_point(self) -> bool:
        return self.dtype.is_floating_point

    def is_contiguous(self, **_: Any) -> bool:
        return True

    def is_complex(self) -> bool:
        return False

    def get_device(self) -> int:
        return -1

    def __len__(self) -> int:
        return int(self.shape[0])

    def __iter__(self) -> Any:
        return iter(self.unbind(0))

    def __bool__(self) -> bool:
        raise NotWritten("a decision that depends on numbers of a tensor")

    def __setitem__(self, index: Any, value: Any) -> None:
        raise SizeDependent("writing into a part of a tensor")  # with fixed sizes such a tensor is often a constant

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or not callable(getattr(torch.Tensor, name, None)):
            raise AttributeError(name)
        method = getattr(torch.Tensor, name)
        return lambda *args, **kwargs: self.writer.call(method, (self, *args), kwargs)


def _operator(name: str) -> Callable[..., Any]:
    method = getattr(torch.Tensor, name)
    return lambda self, *args: self.writer.call(method, (self, *args), {})


_OPERATORS = (
    *("add", "radd", "iadd", "sub", "rsub", "isub", "mul", "rmul", "imul", "truediv", "rtruediv", "itruediv", "floordiv", "rfloordiv"),
    *("mod", "pow", "rpow", "matmul", "rmatmul", "neg", "abs", "invert", "and", "or", "eq", "ne", "lt", "le", "gt", "ge", "getitem"),
)
for _name in _OPERATORS:
    setattr(Value, f"__{_name}__", _operator(f"__{_name}__"))
Value.__hash__ = object.__hash__  # type: ignore[method-assign]  # comparison makes tensors
