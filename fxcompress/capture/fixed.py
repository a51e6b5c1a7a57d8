"""Dimensions that no other input can change: channels, features, heads.

``x.shape[1]`` of a convolution's output is its number of channels whatever the image; taking it as a plain number
keeps head counts and feature sizes readable in the graph. A dimension is only called fixed where a rule proves it;
operations without a rule have none, and their sizes stay symbolic.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxcompress.capture.sizes import is_traced

Look = Callable[[Tensor], frozenset[int]]
NONE: frozenset[int] = frozenset()

_ELEMENTWISE_FUNCTIONS = frozenset({
    operator.add, operator.sub, operator.mul, operator.truediv, operator.pow, operator.neg, operator.floordiv, operator.mod,
    torch.add, torch.sub, torch.mul, torch.div, torch.relu, torch.sigmoid, torch.tanh, torch.clamp, torch.exp, torch.where,
    F.relu, F.relu6, F.gelu, F.silu, F.hardswish, F.hardsigmoid, F.hardtanh, F.leaky_relu, F.elu, F.mish, F.sigmoid, F.tanh,
    F.softmax, torch.softmax, F.log_softmax, F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.normalize, F.softplus,
})  # fmt: skip
_ELEMENTWISE_METHODS = frozenset({
    "add_", "sub_", "mul_", "div_", "relu", "relu_", "sigmoid", "tanh", "clamp", "exp", "softmax", "contiguous", "clone", "to", "type_as",
    "float", "half", "bfloat16", "double", "masked_fill", "add", "sub", "mul", "div", "pow", "sqrt", "rsqrt", "abs", "type", "detach",
})  # fmt: skip
_SAME_CHANNELS = (nn.modules.pooling, nn.modules.padding, nn.modules.upsampling, nn.modules.pixelshuffle)


def of_module(module: nn.Module, args: tuple[Any, ...], result: Any, look: Look) -> frozenset[int]:
    """The fixed dimensions of what a leaf module returned."""
    if not isinstance(result, Tensor) or not args or not isinstance(args[0], Tensor):
        return NONE
    rank, home = result.dim(), type(module).__module__
    if isinstance(module, (nn.Linear, nn.Embedding)):
        return _last(rank, 1) | _common(look(args[0]), range(rank - 1))
    if isinstance(module, nn.modules.conv._ConvNd):
        return frozenset({1}) if rank == module.weight.dim() else NONE
    if isinstance(module, (nn.modules.batchnorm._NormBase, nn.GroupNorm)):
        return look(args[0]) | {1}
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        return look(args[0]) | _last(rank, len(module.normalized_shape))
    if isinstance(module, (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)) and rank == 4:
        return _adaptive(module.output_size) | _common(look(args[0]), (1,))
    if any(home == space.__name__ for space in _SAME_CHANNELS[:3]) and rank >= 3:
        return _common(look(args[0]), (1,)) if result.size(1) == args[0].size(1) else NONE
    if home in (nn.modules.activation.__name__, nn.modules.dropout.__name__) or isinstance(module, nn.Identity):
        return look(args[0]) if result.shape == args[0].shape else NONE
    return NONE


def of_call(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, look: Look) -> frozenset[int] | list[frozenset[int]]:
    """The fixed dimensions of what a function or method returned; a list for a sequence of tensors."""
    if target in _ELEMENTWISE_FUNCTIONS or (isinstance(target, str) and target in _ELEMENTWISE_METHODS):
        return _broadcast([a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)], result, look)
    rule = _RULES.get(target if isinstance(target, str) else getattr(target, "__name__", ""))
    if rule is None or not args:
        return NONE
    return rule(args, kwargs, result, look)


def _broadcast(operands: Sequence[Tensor], result: Any, look: Look) -> frozenset[int]:
    if not isinstance(result, Tensor):
        return NONE
    fixed = set()
    for dim in range(result.dim()):
        facts = []
        for tensor in operands:
            own = dim - (result.dim() - tensor.dim())
            facts.append((1, True) if own < 0 else (tensor.size(own), own in look(tensor)))
        if any(size > 1 and known for size, known in facts) or all(known for _, known in facts):
            fixed.add(dim)
    return frozenset(fixed)


def _last(rank: int, count: int) -> frozenset[int]:
    return frozenset(range(rank - count, rank))


def _common(fixed: frozenset[int], dims: Any) -> frozenset[int]:
    return fixed & frozenset(dims)


def _adaptive(output_size: Any) -> frozenset[int]:
    pair = output_size if isinstance(output_size, (tuple, list)) else (output_size, output_size)
    return frozenset(i + 2 for i, size in enumerate(pair) if size is not None)


def _linear(args: Any, kwargs: Any, result: Any, look: Look) -> frozenset[int]:
    return _last(result.dim(), 1) | _common(look(args[0]), range(result.dim() - 1))


def _conv(args: Any, kwargs: Any, result: Any, look: Look) -> frozenset[int]:
    weight = args[1] if len(args) > 1 else kwargs.get("weight")
    return frozenset({1}) if isinstance(weight, Tensor) and 0 in look(weight) and result.dim() == weight.dim() else NONE


def _layer_norm(args: Any, kwargs: Any, result: Any, look: Look) -> frozenset[int]:
    return look(args[0])


def _batch_norm(args: Any, kwargs: Any, result: Any, look: Look) -> frozenset[int]:
    return look(args[0]) | {1}


def _reshape(args: Any, kwargs: Any, result: Any, look: Look) -> frozenset[int]:
    shape = args[1] if len(args) == 2 and isinstance(args[1], (tuple, list)) else args[1:]
    if not isinstance(result, Tensor) or len(shape) != result.dim():
        return NONE
    fixed = {i for i, size in enumerate(shape) if isinstance(size, int) and not is_traced(size) and size >= 0}
    if len(look(args[0])) == args[0].dim() and not any(map(is_traced, shape)):
        return frozenset(range(result.dim()))
    return frozenset(fixed)


def _permute(args: Any, kwargs: Any, result: Any, look: Look) -> frozenset[int]:
    dims = kwargs.get("dims", args[1] if len(args) == 2 and isinstance(args[1], (tuple, list)) else args[1:])
    fixed, rank = look(args[0]), args[0].dim()
    return frozenset(i for i, d in enumerate(dims) if d % rank in fixed)


def _transpose(args: Any, kwargs: Any, result: Any, look: Look) -> frozenset[int]:
    if len(args) != 3:
        return NONE
    rank = args[0].dim()
    a, b = args[1] % rank, args[2] % rank
    return frozenset({a: b, b: a}.get(d, d) for d in look(args[0]))


def _getitem(args: Any, kwargs: Any, result: Any, look: Look) -> frozenset[int]:
    source, index = args
    if not isinstance(source, Tensor) or not isinstance(result, Tensor):
        return NONE
    if type(index) is int:
        return frozenset(d - 1 for d in look(source) if d > 0)
    return NONE


def _unbind(args: Any, kwargs: Any, result: Any, look: Look) -> list[frozenset[int]]:
    dim = kwargs.get("dim", args[1] if len(args) > 1 else 0) % args[0].dim()
    each = frozenset(d - (d > dim) for d in look(args[0]) if d != dim)
    return [each] * len(result)


def _pieces(args: Any, kwargs: Any, result: Any, look: Look) -> list[frozenset[int]]:
    dim = kwargs.get("dim", args[2] if len(args) > 2 else 0) % args[0].dim()
    fixed = look(args[0])
    return [fixed] * len(result) if dim in fixed else [fixed - {dim}] * len(result)


def _matmul(args: Any, kwargs: Any, result: Any, look: Look) -> frozenset[int]:
    a, b, rank = args[0], args[1], result.dim()
    if a.dim() < 2 or b.dim() < 2:
        return NONE
    fixed = {rank - 1} if b.dim() - 1 in look(b) else set()
    fixed |= {rank - 2} if a.dim() - 2 in look(a) else set()
    if a.dim() == b.dim() == rank:
        fixed |= {d for d in range(rank - 2) if d in look(a) and d in look(b)}
    return frozenset(fixed)


def _attention(args: Any, kwargs: Any, result: Any, look: Look) -> frozenset[int]:
    rank = result.dim()
    if len(args) < 3:
        return NONE
    return _common(look(args[0]), range(rank - 1)) | _common(look(args[2]), (rank - 1,))


def _cat(args: Any, kwargs: Any, result: Any, look: Look) -> frozenset[int]:
    parts = args[0]
    dim = kwargs.get("dim", args[1] if len(args) > 1 else 0) % result.dim()
    each = [look(p) for p in parts]
    if any(p.dim() != result.dim() for p in parts):
        return NONE
    fixed = {d for d in range(result.dim()) if d != dim and any(d in f for f in each)}
    return frozenset(fixed | ({dim} if all(dim in f for f in each) else set()))


_RULES: dict[str, Callable[..., Any]] = {
    "linear": _linear, "conv1d": _conv, "conv2d": _conv, "conv3d": _conv, "layer_norm": _layer_norm, "rms_norm": _layer_norm,
    "group_norm": _layer_norm, "reshape": _reshape, "view": _reshape, "permute": _permute, "transpose": _transpose, "getitem": _getitem,
    "unbind": _unbind, "chunk": _pieces, "split": _pieces, "matmul": _matmul, "bmm": _matmul, "cat": _cat, "concat": _cat,
    "batch_norm": _batch_norm, "scaled_dot_product_attention": _attention,
}  # fmt: skip
