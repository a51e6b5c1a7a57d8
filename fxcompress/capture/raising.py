"""ATen operations written as the torch functions and tensor methods of the dialect."""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

Args = tuple[Any, ...]
Kwargs = dict[str, Any]


@dataclass(frozen=True)
class Raised:
    """An fx node to be: ``op`` is "call_function", "call_method" or "same" (the first argument itself)."""

    op: str
    target: Any
    args: Args
    kwargs: Kwargs = field(default_factory=dict)


_CHECKS = (
    "_assert_scalar", "_assert_tensor_metadata", "_assert_async", "_functional_assert_async", "sym_constrain_range",
    "sym_constrain_range_for_size", "_functional_sym_constrain_range",
)  # fmt: skip


# in-place operations whose value does not follow from their arguments in the way of the operation without the underscore
_NOT_A_FUNCTION = ("copy_", "fill_", "zero_", "set_", "resize_", "bernoulli_", "uniform_", "normal_")


def dropped(node: fx.Node) -> bool:
    """Whether the node only checks what torch.export assumed; fx drops what it computed for the check."""
    return getattr(node.target, "__name__", "").split(".")[0] in _CHECKS or node.target is torch._check


def raised(node: fx.Node, args: Args, kwargs: Kwargs) -> Raised:
    """The dialect's form of an exported node with arguments ``args`` and ``kwargs``; the node's own form if none is known."""
    target = node.target
    if target is operator.getitem and isinstance(node.args[0], fx.Node) and _name(node.args[0].target) in _FIRST:
        return Raised("same", None, args[:1])
    if not isinstance(target, torch._ops.OpOverload) or target.namespace != "aten":
        return Raised("call_function", target, args, kwargs)
    name = out_of_place(node) or _name(target)
    kwargs = {k: v for k, v in kwargs.items() if v is not None and not (k in ("pin_memory", "non_blocking") and not v)}
    rule = _RULES.get(name)
    if rule is not None:
        return rule(args, kwargs)
    if name in _FUNCTIONS:
        return Raised("call_function", _FUNCTIONS[name], args, kwargs)
    if name in _OPERATORS and not kwargs:
        return Raised("call_function", _OPERATORS[name], args)
    return _by_name(name, target, args, kwargs)


def out_of_place(node: fx.Node) -> str | None:
    """``"relu"`` for ``aten.relu_``: the ATen operation that gives the value which an in-place one writes."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.is_mutable:
        return None
    name = schema.name.split("::")[1]
    if not name.endswith("_") or name.startswith("_") or name in _NOT_A_FUNCTION:
        return None
    return name[:-1] if hasattr(torch.ops.aten, name[:-1]) else None


def _name(target: Any) -> str:
    schema = getattr(target, "_schema", None)
    return "" if schema is None else schema.name.split("::")[1]


def _by_name(name: str, target: Any, args: Args, kwargs: Kwargs) -> Raised:
    """Most ATen operations have a method or a torch function of the same name and order of arguments."""
    if name.startswith("_") or name.endswith("_"):
        return Raised("call_function", target, args, kwargs)
    if args and isinstance(args[0], fx.Node) and hasattr(torch.Tensor, name) and not kwargs:
        return Raised("call_method", name, args, kwargs)
    for library in (torch, F):
        if callable(getattr(library, name, None)):
            return Raised("call_function", getattr(library, name), args, kwargs)
    return Raised("call_function", target, args, kwargs)


def _function(fn: Callable[..., Any], *order: int | None) -> Callable[[Args, Kwargs], Raised]:
    """A rule that calls ``fn`` with the ATen arguments in another order (missing ones end the list)."""

    def rule(args: Args, kwargs: Kwargs) -> Raised:
        picked: list[Any] = []
        for index in order:
            if index is None or index >= len(args):
                break
            picked.append(args[index])
        return Raised("call_function", fn, tuple(picked), kwargs)

    return rule


def _slice(args: Args, kwargs: Kwargs) -> Raised:
    given = (*args, *(None, 0, None, None, 1)[len(args) :])
    x, dim, start, end, step = given[0], given[1], given[2], given[3], given[4]
    end = None if isinstance(end, int) and end >= sys.maxsize else end
    start = None if isinstance(start, int) and start == 0 else start
    cut = slice(start, end, None if step == 1 else step)
    if start is None and end is None and step == 1:
        return Raised("same", None, (x,))
    if isinstance(dim, int) and dim < 0:
        return Raised("call_function", torch.ops.aten.slice.Tensor, args, kwargs)
    return Raised("call_function", operator.getitem, (x, (*[slice(None)] * dim, cut)))


def _index(args: Args, kwargs: Kwargs) -> Raised:
    x, indices = args
    return Raised("call_function", operator.getitem, (x, tuple(slice(None) if i is None else i for i in indices)))


def _interpolate(mode: str, align: bool) -> Callable[[Args, Kwargs], Raised]:
    def rule(args: Args, kwargs: Kwargs) -> Raised:
        x, size, *rest = args
        align_corners = rest.pop(0) if align and rest else None
        scales = rest[0] if rest else None
        options: Kwargs = {"mode": mode}
        if align:
            options["align_corners"] = align_corners
        if size is not None:
            options["size"] = size if isinstance(size, (list, tuple)) else [size]
        else:
            options["scale_factor"] = scales
        return Raised("call_function", F.interpolate, (x,), options)

    return rule


def _interpolate_vec_only(mode: str, align: bool) -> Callable[[Args, Kwargs], Raised]:
    """``upsample_*.vec`` only: the other overload passes scales one by one."""
    vec = _interpolate(mode, align)

    def rule(args: Args, kwargs: Kwargs) -> Raised:
        if len(args) > 3 + align:
            args = args[: 2 + align]
        return vec(args, kwargs)

    return rule


def _same(args: Args, kwargs: Kwargs) -> Raised:
    return Raised("same", None, args)


def _embedding(args: Args, kwargs: Kwargs) -> Raised:
    weight, indices, *rest = args
    padding = rest[0] if rest and rest[0] != -1 else None
    return Raised("call_function", F.embedding, (indices, weight, padding))


def _to(args: Args, kwargs: Kwargs) -> Raised:
    kwargs = {k: v for k, v in kwargs.items() if k != "layout"}
    return Raised("call_method", "to", args, kwargs) if len(args) > 1 or kwargs else Raised("same", None, args)


def _sym_size(args: Args, kwargs: Kwargs) -> Raised:
    return Raised("call_method", "size", args)


def _factory(name: str) -> Callable[[Args, Kwargs], Raised]:
    def rule(args: Args, kwargs: Kwargs) -> Raised:
        return Raised("call_function", getattr(torch, name), args, {k: v for k, v in kwargs.items() if k != "layout"})

    return rule


# operations with statistics as further results, which inference never reads
_FIRST = frozenset({"_native_batch_norm_legit_no_training", "native_layer_norm", "native_group_norm"})
_OPERATORS: dict[str, Callable[..., Any]] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": operator.truediv, "matmul": operator.matmul, "pow": operator.pow,
    "neg": operator.neg, "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge,
    "bitwise_and": operator.and_, "bitwise_or": operator.or_, "bitwise_not": operator.invert,
}  # fmt: skip
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "conv1d": F.conv1d, "conv2d": F.conv2d, "conv3d": F.conv3d, "linear": F.linear, "conv_transpose1d": F.conv_transpose1d,
    "conv_transpose2d": F.conv_transpose2d, "conv_transpose3d": F.conv_transpose3d, "relu": F.relu, "relu6": F.relu6, "gelu": F.gelu,
    "silu": F.silu, "hardswish": F.hardswish, "hardsigmoid": F.hardsigmoid, "hardtanh": F.hardtanh, "leaky_relu": F.leaky_relu,
    "elu": F.elu, "mish": F.mish, "softplus": F.softplus, "glu": F.glu, "prelu": F.prelu, "log_sigmoid": F.logsigmoid, "selu": F.selu,
    "adaptive_avg_pool1d": F.adaptive_avg_pool1d, "adaptive_avg_pool2d": F.adaptive_avg_pool2d, "max_pool1d": F.max_pool1d,
    "adaptive_avg_pool3d": F.adaptive_avg_pool3d, "max_pool2d": F.max_pool2d, "max_pool3d": F.max_pool3d, "avg_pool1d": F.avg_pool1d,
    "avg_pool2d": F.avg_pool2d, "avg_pool3d": F.avg_pool3d, "pad": F.pad, "dropout": F.dropout, "feature_dropout": torch.feature_dropout,
    "alpha_dropout": F.alpha_dropout, "scaled_dot_product_attention": F.scaled_dot_product_attention, "pixel_shuffle": F.pixel_shuffle,
    "pixel_unshuffle": F.pixel_unshuffle, "one_hot": F.one_hot, "cat": torch.cat, "stack": torch.stack, "einsum": torch.einsum,
    "where": torch.where, "softmax": torch.softmax, "log_softmax": torch.log_softmax, "rms_norm": F.rms_norm,
}  # fmt: skip
_FACTORIES = (
    "arange", "zeros", "ones", "full", "empty", "rand", "randn", "linspace", "eye", "tril_indices", "scalar_tensor",
    "zeros_like", "ones_like", "full_like", "empty_like",
)  # fmt: skip
_RULES: dict[str, Callable[[Args, Kwargs], Raised]] = {
    "batch_norm": _function(F.batch_norm, 0, 3, 4, 1, 2, 5, 6, 7),
    "layer_norm": _function(F.layer_norm, 0, 1, 2, 3, 4),
    "_native_batch_norm_legit_no_training": lambda a, k: Raised(
        "call_function", F.batch_norm, (a[0], a[3], a[4], a[1], a[2], False, a[5], a[6])),
    "native_layer_norm": _function(F.layer_norm, 0, 1, 2, 3, 4),
    "native_group_norm": _function(F.group_norm, 0, 6, 1, 2, 7),
    "group_norm": _function(F.group_norm, 0, 1, 2, 3, 4),
    "instance_norm": _function(F.instance_norm, 0, 3, 4, 1, 2, 5, 6, 7),
    "embedding": _embedding, "slice": _slice, "index": _index, "to": _to, "_to_copy": _to, "sym_size": _sym_size,
    "alias": _same, "detach": _same, "detach_": _same, "lift_fresh": _same, "lift_fresh_copy": _same,
    "_unsafe_view": lambda a, k: Raised("call_method", "reshape", a, k),
    "upsample_bilinear2d": _interpolate_vec_only("bilinear", True), "upsample_bicubic2d": _interpolate_vec_only("bicubic", True),
    "upsample_nearest2d": _interpolate_vec_only("nearest", False), "upsample_linear1d": _interpolate_vec_only("linear", True),
    "upsample_nearest1d": _interpolate_vec_only("nearest", False), "upsample_nearest3d": _interpolate_vec_only("nearest", False),
    "upsample_trilinear3d": _interpolate_vec_only("trilinear", True),
    "_upsample_nearest_exact2d": _interpolate_vec_only("nearest-exact", False),
    **{name: _factory(name) for name in _FACTORIES},
}  # fmt: skip
