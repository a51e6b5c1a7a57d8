"""How each operation is written in ONNX: arithmetic, activations, reductions.

A writer takes the :class:`Writer` and the arguments of the torch function under torch's parameter names, and returns the
name of its result, or a list of names. Results of all points are at hand in ``w.out``. A *composite* writer takes no Writer:
it is torch code on Values, for operations that ONNX has no node for. Layers are in ``onnx_layers``, moving data is in ``onnx_moves``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from fxcompress.targets.onnx_trace import Writer
from fxcompress.targets.onnx_values import NotWritten, Value

Table = dict[str, Callable[..., Any]]


def composite(function: Callable[..., Any]) -> Callable[..., Any]:
    """Mark torch code that runs on Values."""
    function.composite = True  # type: ignore[attr-defined]
    return function


def spread(value: Any, length: int) -> list[Any]:
    """``3`` -> ``[3, 3]``, as torch reads kernel sizes and strides."""
    return list(value) * (length if len(value) == 1 else 1) if isinstance(value, list | tuple) else [value] * length


# ---- element-wise


def _unary(kind: str, **attributes: Any) -> Callable[..., str]:
    def write(w: Writer, input: Any, inplace: bool = False) -> str:
        return w.node(kind, [w.name_of(input, w.out[0].dtype)], **attributes)

    return write


def _binary(kind: str, swap: bool = False) -> Callable[..., str]:
    def write(w: Writer, input: Any, other: Any, *, alpha: float = 1) -> str:
        dtype = w.out[0].dtype
        a, b = w.name_of(input, dtype), w.name_of(other, dtype)
        if alpha != 1:
            scaled = w.node("Mul", [a if swap else b, w.constant(alpha, dtype)])
            a, b = (scaled, b) if swap else (a, scaled)
        return w.node(kind, [b, a] if swap else [a, b])

    return write


def _compare(kind: str, negate: bool = False) -> Callable[..., str]:
    def write(w: Writer, input: Any, other: Any) -> str:
        sample = [torch.empty((0,) * int(x.ndim > 0), dtype=x.dtype) if isinstance(x, Value | torch.Tensor) else x for x in (input, other)]
        dtype = torch.result_type(*sample)
        name = w.node(kind, [w.name_of(input, dtype), w.name_of(other, dtype)])
        return w.node("Not", [name]) if negate else name

    return write


def _divide(w: Writer, input: Any, other: Any, *, rounding_mode: str | None = None, swap: bool = False) -> str:
    dtype = w.out[0].dtype
    a, b = (other, input) if swap else (input, other)
    name = w.node("Div", [w.name_of(a, dtype), w.name_of(b, dtype)])
    if rounding_mode is None:
        return name
    if rounding_mode == "floor" and dtype.is_floating_point:
        return w.node("Floor", [name])
    raise NotWritten(f"div with rounding_mode={rounding_mode!r} of {dtype}")


def _power(w: Writer, input: Any, exponent: Any) -> str:
    dtype = w.out[0].dtype
    if exponent in (2, 0.5) and not isinstance(exponent, Value):
        name = w.name_of(input, dtype)
        return w.node("Mul", [name, name]) if exponent == 2 else w.node("Sqrt", [name])
    return w.node("Pow", [w.name_of(input, dtype), w.name_of(exponent, dtype)])


def _clamp(w: Writer, input: Value, min: Any = None, max: Any = None, inplace: bool = False) -> str:
    dtype = w.out[0].dtype
    names = ["" if bound is None else w.name_of(bound, dtype) for bound in (min, max)]
    return w.node("Clip", [w.name_of(input, dtype), *(names if names[1] else names[:1])])


def _hardtanh(w: Writer, input: Value, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> str:
    return _clamp(w, input, float(min_val), float(max_val))


def _silu(w: Writer, input: Value, inplace: bool = False) -> str:
    return w.node("Mul", [input.name, w.node("Sigmoid", [input.name])])


def _hardsigmoid(w: Writer, input: Value, inplace: bool = False) -> str:
    if w.dialect != "openvino":
        return w.node("HardSigmoid", [input.name], alpha=1.0 / 6.0, beta=0.5)
    # the form that OpenVINO carries inside of a layer
    shifted = w.node("Add", [input.name, w.constant(3.0, torch.float32)])
    clipped = w.node("Clip", [shifted, w.constant(0.0, torch.float32), w.constant(6.0, torch.float32)])
    return w.node("Mul", [clipped, w.constant(1.0 / 6.0, torch.float32)])


def _gelu(w: Writer, input: Value, *, approximate: str = "none") -> str:
    return w.node("Gelu", [input.name], approximate=approximate)


def _softmax(kind: str) -> Callable[..., str]:
    def write(w: Writer, input: Value, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None) -> str:
        if dim is None:
            raise NotWritten("softmax without dim")
        return w.node(kind, [w.name_of(input, dtype)], axis=dim % max(input.ndim, 1))

    return write


def _prelu(w: Writer, input: Value, weight: torch.Tensor) -> str:
    shaped = weight.detach().reshape(-1, *[1] * (input.ndim - 2)) if weight.numel() > 1 else weight
    return w.node("PRelu", [input.name, w.constant(shaped)])


def _where(w: Writer, condition: Any, input: Any, other: Any) -> str:
    dtype = w.out[0].dtype
    return w.node("Where", [w.name_of(condition, torch.bool), w.name_of(input, dtype), w.name_of(other, dtype)])


@composite
def _masked_fill(input: Value, mask: Any, value: Any) -> Any:
    filled = torch.tensor(value, dtype=input.dtype) if not isinstance(value, Value) else value
    return input.writer.call(torch.where, (mask, filled, input), {})


@composite
def _threshold(input: Any, threshold: float, value: float, inplace: bool = False) -> Any:
    return input.writer.call(torch.where, (input > threshold, input, value), {})


@composite
def _glu(input: Value, dim: int = -1) -> Any:
    a, b = input.chunk(2, dim)
    return a * b.sigmoid()


# ---- reductions


def _reduce(kind: str) -> Callable[..., str]:
    def write(
        w: Writer, input: Value, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None, axis: Any = None
    ) -> str:
        dim = axis if dim is None else dim
        axes = [] if dim is None or dim == () else [d % input.ndim for d in spread(dim, 1)]
        name = w.name_of(input, w.out[0].dtype)
        return w.node(kind, [name, *([w.constant(axes, torch.int64)] if axes else [])], keepdims=int(keepdim))

    return write


class Extreme(NamedTuple):
    """What ``x.max(dim)`` gives."""

    values: Any
    indices: Any


def _extreme(kind: str) -> Callable[..., Any]:
    def write(w: Writer, input: Value, dim: Any = None, keepdim: bool = False) -> Any:
        if isinstance(dim, Value | torch.Tensor):
            return w.node(kind, [w.name_of(input, w.out[0].dtype), w.name_of(dim, w.out[0].dtype)])
        if dim is None:
            return w.node(f"Reduce{kind}", [input.name], keepdims=0)
        axis = dim % input.ndim
        values = w.node(f"Reduce{kind}", [input.name, w.constant([axis], torch.int64)], keepdims=int(keepdim))
        return Extreme(values, w.node(f"Arg{kind}", [input.name], axis=axis, keepdims=int(keepdim)))

    return write


def _arg(kind: str) -> Callable[..., str]:
    def write(w: Writer, input: Value, dim: int | None = None, keepdim: bool = False) -> str:
        if dim is None:
            flat = w.node("Reshape", [input.name, w.constant([-1], torch.int64)])
            return w.node(kind, [flat], axis=0, keepdims=0)
        return w.node(kind, [input.name], axis=dim % input.ndim, keepdims=int(keepdim))

    return write


@composite
def _variance(input: Value, dim: Any = None, unbiased: bool = True, keepdim: bool = False, *, correction: Any = None) -> Any:
    if dim is None or isinstance(dim, bool):
        raise NotWritten("var without dim")
    centered = input - input.mean(dim, True)
    total = (centered * centered).sum(dim, keepdim)
    count = math.prod(int(input.shape[d]) for d in spread(dim, 1))
    return total / (count - (int(unbiased) if correction is None else correction))


@composite
def _deviation(input: Value, *args: Any, **kwargs: Any) -> Any:
    return _variance(input, *args, **kwargs).sqrt()


def _topk(w: Writer, input: Value, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> tuple[str, ...]:
    return tuple(w.nodes_of("TopK", [input.name, w.constant([int(k)], torch.int64)], 2, axis=dim, largest=int(largest), sorted=int(sorted)))


def _cumsum(w: Writer, input: Value, dim: int, *, dtype: torch.dtype | None = None) -> str:
    return w.node("CumSum", [w.name_of(input, w.out[0].dtype), w.constant(dim, torch.int64)])


def _leaky(w: Writer, input: Value, negative_slope: float = 0.01, inplace: bool = False) -> str:
    return w.node("LeakyRelu", [input.name], alpha=float(negative_slope))


def _elu(kind: str) -> Callable[..., str]:
    def write(w: Writer, input: Value, alpha: float = 1.0, inplace: bool = False) -> str:
        return w.node(kind, [input.name], alpha=float(alpha))

    return write


UNARY = {
    "relu": "Relu",
    "hardswish": "HardSwish",
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "mish": "Mish",
    "softsign": "Softsign",
    "selu": "Selu",
    "exp": "Exp",
    "log": "Log",
    "sqrt": "Sqrt",
    "abs": "Abs",
    "neg": "Neg",
    "reciprocal": "Reciprocal",
    "erf": "Erf",
    "sin": "Sin",
    "cos": "Cos",
    "floor": "Floor",
    "ceil": "Ceil",
    "round": "Round",
    "sign": "Sign",
    "logical_not": "Not",
    "invert": "Not",
    "bitwise_not": "Not",
}
BINARY = {
    "add": "Add",
    "sub": "Sub",
    "mul": "Mul",
    "multiply": "Mul",
    "maximum": "Max",
    "minimum": "Min",
    "logical_and": "And",
    "logical_or": "Or",
}


def operations() -> Table:
    """Writers of what computes element by element or along an axis."""
    table: Table = {name: _unary(kind) for name, kind in UNARY.items()}
    table |= {name: _binary(kind) for name, kind in BINARY.items()}
    table |= {"radd": _binary("Add"), "rmul": _binary("Mul"), "and": _binary("And"), "or": _binary("Or")}
    table |= {"rsub": _binary("Sub", swap=True), "eq": _compare("Equal"), "ne": _compare("Equal", negate=True)}
    table |= {"lt": _compare("Less"), "le": _compare("LessOrEqual"), "gt": _compare("Greater"), "ge": _compare("GreaterOrEqual")}
    table |= {
        "div": _divide,
        "truediv": _divide,
        "true_divide": _divide,
        "divide": _divide,
        "pow": _power,
        "square": lambda w, x: _power(w, x, 2),
    }
    table |= {"rtruediv": lambda w, x, y: _divide(w, x, y, swap=True), "floordiv": lambda w, x, y: _divide(w, x, y, rounding_mode="floor")}
    table |= {"rsqrt": lambda w, x: w.node("Reciprocal", [w.node("Sqrt", [x.name])]), "clamp": _clamp, "clip": _clamp, "clamp_min": _clamp}
    table |= {"clamp_max": lambda w, x, max: _clamp(w, x, None, max), "hardtanh": _hardtanh}
    table |= {
        "relu6": lambda w, input, inplace=False: _hardtanh(w, input, 0.0, 6.0),
        "hardsigmoid": _hardsigmoid,
    }
    table |= {
        "silu": _silu,
        "gelu": _gelu,
        "softmax": _softmax("Softmax"),
        "log_softmax": _softmax("LogSoftmax"),
        "prelu": _prelu,
        "where": _where,
    }
    table |= {"leaky_relu": _leaky, "elu": _elu("Elu"), "celu": _elu("Celu")}
    table |= {"masked_fill": _masked_fill, "threshold": _threshold, "glu": _glu}
    table |= {"mean": _reduce("ReduceMean"), "sum": _reduce("ReduceSum"), "amax": _reduce("ReduceMax"), "amin": _reduce("ReduceMin")}
    table |= {
        "prod": _reduce("ReduceProd"),
        "max": _extreme("Max"),
        "min": _extreme("Min"),
        "argmax": _arg("ArgMax"),
        "argmin": _arg("ArgMin"),
    }
    table |= {"var": _variance, "std": _deviation, "topk": _topk, "cumsum": _cumsum}
    return table
