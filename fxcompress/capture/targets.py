"""How a call that the recorder sees is written down in the graph: operators, methods and functions of torch."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

# Tensor methods with two operands and no keywords that Python spells as an operator.
BINARY: dict[str, Callable[..., Any]] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": operator.truediv, "true_divide": operator.truediv,
    "floor_divide": operator.floordiv, "__floordiv__": operator.floordiv, "remainder": operator.mod, "pow": operator.pow,
    "matmul": operator.matmul, "__and__": operator.and_, "__or__": operator.or_, "__xor__": operator.xor,
    "__lshift__": operator.lshift, "__rshift__": operator.rshift, "__eq__": operator.eq, "__ne__": operator.ne,
    "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge,
    "__getitem__": operator.getitem,
}  # fmt: skip
REFLECTED: dict[str, Callable[..., Any]] = {
    "__rsub__": operator.sub, "__rdiv__": operator.truediv, "__rtruediv__": operator.truediv, "__rfloordiv__": operator.floordiv,
    "__rpow__": operator.pow, "__rmatmul__": operator.matmul, "__rmod__": operator.mod, "__radd__": operator.add,
    "__rmul__": operator.mul, "__rand__": operator.and_, "__ror__": operator.or_,
}  # fmt: skip
UNARY: dict[str, Callable[..., Any]] = {"neg": operator.neg, "__invert__": operator.invert}
# In-place methods and the operator that gives the same value out of place.
IN_PLACE: dict[str, Callable[..., Any]] = {
    "add_": operator.add, "sub_": operator.sub, "mul_": operator.mul, "div_": operator.truediv, "pow_": operator.pow,
    "__iadd__": operator.add, "__isub__": operator.sub, "__imul__": operator.mul, "__itruediv__": operator.truediv,
}  # fmt: skip
_DROPPED_KEYWORDS = {"_stacklevel"}

Call = tuple[str, Any, tuple[Any, ...], dict[str, Any]]


def is_method(func: Any) -> bool:
    name = getattr(func, "__name__", "")
    if getattr(func, "__module__", None) == torch._tensor.__name__:  # the operators that are written in Python
        return True
    return getattr(func, "__objclass__", None) is torch._C.TensorBase or getattr(torch.Tensor, name, None) is func


def property_name(func: Any) -> str | None:
    """``"shape"`` for the getter of ``Tensor.shape``; None when ``func`` is no getter."""
    if getattr(func, "__name__", "") != "__get__":
        return None
    owner = getattr(func, "__self__", None)
    name = getattr(owner, "__name__", None)
    return name if name is not None else getattr(getattr(owner, "fget", None), "__name__", None)


def written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """(op, target, args, kwargs) of the fx node for ``func(*args, **kwargs)``."""
    kwargs = {k: v for k, v in kwargs.items() if k not in _DROPPED_KEYWORDS}
    attribute = property_name(func)
    if attribute is not None:
        if attribute == "data":
            return "call_method", "detach", args[:1], {}
        return "call_function", getattr, (args[0], attribute), {}
    name = getattr(func, "__name__", "")
    if is_method(func):
        if not kwargs and len(args) == 2 and name in BINARY:
            return "call_function", BINARY[name], args, {}
        if len(args) == 2 and name in REFLECTED:
            return "call_function", REFLECTED[name], (args[1], args[0]), {}
        if len(args) == 1 and name in UNARY:
            return "call_function", UNARY[name], args, {}
        if name == "__setitem__":
            return "call_function", operator.setitem, args, {}
        return "call_method", name, args, kwargs
    return "call_function", PUBLIC.get(func, func), args, kwargs


def writes_in_place(node_op: str, target: Any, kwargs: dict[str, Any]) -> bool:
    """Whether the call changes its first argument (or ``out``)."""
    if kwargs.get("out") is not None or kwargs.get("inplace") is True or target is operator.setitem:
        return True
    name = target if node_op == "call_method" else getattr(target, "__name__", "")
    return name.endswith("_") and not name.endswith("__") and not name.startswith("_")


# Inner functions that torch dispatches on, and the public one of the same meaning.
PUBLIC: dict[Any, Any] = {
    torch.max_pool1d: F.max_pool1d,
    torch.max_pool2d: F.max_pool2d,
    torch.max_pool3d: F.max_pool3d,
}

# Read-only facts about a tensor that are taken as they are and never become nodes.
STATIC: frozenset[str] = frozenset({
    "dtype", "device", "layout", "ndim", "requires_grad", "is_leaf", "is_cuda", "is_cpu", "is_mps", "is_xpu", "is_xla", "is_meta",
    "is_sparse", "is_quantized", "is_mkldnn", "is_nested", "is_mtia", "is_ipu", "is_vulkan", "is_maia", "grad", "grad_fn", "_version",
    "name", "names", "itemsize", "output_nr", "retains_grad", "_backward_hooks", "_base", "_grad", "is_sparse_csr", "is_hpu",
    "dim", "ndimension", "is_floating_point", "is_complex", "is_contiguous", "stride", "storage_offset", "element_size", "get_device",
    "type_as_string", "is_signed", "is_conj", "is_neg", "is_inference", "data_ptr", "_is_view", "is_shared", "is_pinned", "has_names",
    "__hash__", "__repr__", "__format__", "__len__", "__dir__", "untyped_storage", "storage", "nbytes", "is_same_size", "is_nonzero",
    "_set_grad_enabled", "requires_grad_", "register_hook", "retain_grad", "_is_zerotensor",
})  # fmt: skip

_FUNCTIONAL_METHODS = frozenset({
    "relu_", "sigmoid_", "tanh_", "clamp_", "clamp_min_", "clamp_max_", "masked_fill_", "neg_", "exp_", "sqrt_", "rsqrt_", "abs_",
    "floor_", "ceil_", "round_", "square_", "addcmul_", "addcdiv_", "lerp_", "log_", "softmax_", "erf_", "reciprocal_", "sin_", "cos_",
})  # fmt: skip


def out_of_place(node: fx.Node) -> tuple[str, Any] | None:
    """(op, target) with which ``node`` gives the same value in new memory; None when it is not known."""
    if node.op != "call_method" or not isinstance(node.target, str):
        return None
    if node.target in IN_PLACE and len(node.args) == 2 and not node.kwargs:
        return "call_function", IN_PLACE[node.target]
    return ("call_method", node.target[:-1]) if node.target in _FUNCTIONAL_METHODS else None
