"""Channel rules of operations that only move data: they are executed on the labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.fx import Node

from fxcompress.analysis.channels.labels import Array
from fxcompress.analysis.channels.run import Handler, LabelRun
from fxcompress.analysis.channels.value import Value, axes, reshaped, squeezed, widened
from fxcompress.analysis.shapes import attribute
from fxcompress.ir.view import Op


def source(run: LabelRun, op: Op) -> Value:
    """The first operand, which is a tensor."""
    value = run.of(op.operands[op.spec.operands[0]])
    assert isinstance(value, Value)
    return value


def moved(value: Value, shape: Sequence[int], fn: Any) -> Value:
    """``fn`` applied to every factor."""
    return Value(tuple(shape), tuple(f for f in map(fn, value.factors) if axes(f)))


def same(run: LabelRun, op: Op) -> Any:
    return source(run, op)


def reshape(run: LabelRun, op: Op) -> Any:
    """view, reshape, flatten, unflatten: whatever was asked for, the result's shape is known."""
    return run.disjoint(reshaped(source(run, op), run.result().shape))


def permute(run: LabelRun, op: Op) -> Any:
    dims = run.of(op["dims"])
    return moved(source(run, op), run.result().shape, lambda f: f.transpose(dims))


def movedim(run: LabelRun, op: Op) -> Any:
    origin, destination = run.of(op["source"]), run.of(op["destination"])
    return moved(source(run, op), run.result().shape, lambda f: np.moveaxis(f, origin, destination))


def transpose(run: LabelRun, op: Op) -> Any:
    first, second = run.of(op["dim0"]), run.of(op["dim1"])
    return moved(source(run, op), run.result().shape, lambda f: np.swapaxes(f, first, second))


def attribute_of(run: LabelRun, op: Op) -> Any:
    """``x.shape`` gives sizes; ``x.mT`` and the like give tensors."""
    value, name = run.of(op.operands["input"]), op["name"]
    if not isinstance(value, Value):
        return getattr(value, name)
    if not isinstance(run.shapes.value(run.node), Tensor):
        return run.unlabelled(run.node)
    if name in ("T", "H"):
        return moved(value, run.result().shape, np.transpose)
    if name in ("mT", "mH"):
        return moved(value, run.result().shape, lambda f: np.swapaxes(f, -1, -2))
    return value if name == "data" else run.barrier(f"the attribute {name} of a tensor")


def t(run: LabelRun, op: Op) -> Any:
    return moved(source(run, op), run.result().shape, np.transpose)


def expand(run: LabelRun, op: Op) -> Any:
    """Axes of size 1 repeat: what is repeated can lose any position."""
    return _repeated(run, source(run, op))


def _repeated(run: LabelRun, value: Value) -> Value:
    shape = run.result().shape
    old = (1,) * (len(shape) - value.rank) + value.shape
    wide = moved(value, shape, lambda f: widened(f, len(shape)))
    return Value(shape, (*wide.factors, *run.free(old, shape)))


def expand_as(run: LabelRun, op: Op) -> Any:
    """The shape follows the other tensor, so both lose the same."""
    other = run.need(op, "other")
    return run.merge([_repeated(run, source(run, op)), other])


def view_as(run: LabelRun, op: Op) -> Any:
    other = run.need(op, "other")
    return run.merge([run.disjoint(reshaped(source(run, op), other.shape)), other])


def along(value: Value, shape: Sequence[int], axis: int, fn: Any) -> Value:
    """``fn`` applied to factors that depend on ``axis``; the others do not notice."""
    return moved(value, shape, lambda f: squeezed(fn(f)) if f.shape[axis] > 1 else f)


def _part(run: LabelRun, value: Value, shape: Sequence[int], axis: int, fn: Any) -> Value:
    """:func:`along` where something is left out: what remains must not become empty."""
    for factor in value.along(axis):
        taken = fn(factor)
        if (taken == taken.flat[0]).all():
            run.pin(taken.flat[:1], "a single one of its channels is read")
        else:
            run.parts.append(taken)
    return along(value, shape, axis, fn)


def pieces(run: LabelRun, op: Op) -> Any:
    """split, chunk, tensor_split: as many slices as the result has pieces."""
    value, dim = source(run, op), run.of(op["dim"])
    axis, start, parts = dim % value.rank, 0, []
    known = run.shapes.value(run.node)
    for piece in known:
        stop = start + piece.shape[axis]
        parts.append(_part(run, value, piece.shape, axis, lambda f, a=start, b=stop: f.take(range(a, b), axis)))
        start = stop
    return type(known)(parts)


def unbind(run: LabelRun, op: Op) -> Any:
    value, dim = source(run, op), run.of(op["dim"])
    axis = dim % value.rank
    return tuple(_pick(run, value, axis, i) for i in range(value.shape[axis]))


def _pick(run: LabelRun, value: Value, axis: int, index: int) -> Value:
    """One place of an axis, which stays: labels may not depend on it."""
    value = run.purify(value, [axis])
    for factor in value.along(axis):
        run.pin(factor.take([index], axis), "a single one of its channels is read")
    shape = value.shape[:axis] + value.shape[axis + 1 :]
    run_axis = lambda f: f.take(index if f.shape[axis] > 1 else 0, axis)  # noqa: E731
    return moved(value, shape, lambda f: squeezed(run_axis(f)))


def select(run: LabelRun, op: Op) -> Any:
    value, dim, index = source(run, op), run.of(op["dim"]), run.of(op["index"])
    if not isinstance(index, int):
        return run.barrier("a selection by a computed index")
    return _pick(run, value, dim % value.rank, index % value.shape[dim])


def narrow(run: LabelRun, op: Op) -> Any:
    value, dim, start, length = source(run, op), run.of(op["dim"]), run.of(op["start"]), run.of(op["length"])
    if not isinstance(start, int):
        return run.barrier("a slice whose start is computed")
    axis = dim % value.rank
    start %= value.shape[axis]
    return _part(run, value, run.result().shape, axis, lambda f: f.take(range(start, start + length), axis))


def index_select(run: LabelRun, op: Op) -> Any:
    value, dim = source(run, op), run.of(op["dim"])
    index = _constant(run, op["index"])
    if index is None:
        return run.barrier("a selection by a computed index")
    axis = dim % value.rank
    return _part(run, value, run.result().shape, axis, lambda f: f.take(index, axis))


def _constant(run: LabelRun, operand: Any) -> Array | None:
    """A tensor operand whose data is a buffer or a number of the graph."""
    if isinstance(operand, Node):
        if operand.op != "get_attr":
            return None
        run.pin_value(run.values[operand], "it is an index")
        operand = attribute(run.module, str(operand.target))
    if not isinstance(operand, Tensor):
        return np.asarray(operand, dtype=np.int64)
    return None if operand.device.type == "meta" else operand.detach().cpu().numpy()


def getitem(run: LabelRun, op: Op) -> Any:
    """Slices, numbers, None and Ellipsis; one constant index tensor."""
    container, index = run.of(op.operands["input"]), op["index"]
    if not isinstance(container, Value):
        return container[run.of(index)]
    items = list(index) if isinstance(index, tuple) else [index]
    used = sum(item is not None and item is not Ellipsis for item in items)
    if any(item is Ellipsis for item in items):
        at = next(i for i, item in enumerate(items) if item is Ellipsis)
        items[at : at + 1] = [slice(None)] * (container.rank - used)
    return _indexed(run, container, items)


def _indexed(run: LabelRun, value: Value, items: list[Any]) -> Any:
    axis = 0
    tensors = 0
    for item in items:
        if item is None:
            shape = (*value.shape[:axis], 1, *value.shape[axis:])
            value = moved(value, shape, lambda f, a=axis: np.expand_dims(f, a))
            axis += 1
            continue
        known = run.of(item)
        if isinstance(known, slice):
            chosen = range(value.shape[axis])[known]
            shape = (*value.shape[:axis], len(chosen), *value.shape[axis + 1 :])
            if len(chosen) < value.shape[axis]:
                value = _part(run, value, shape, axis, lambda f, c=chosen, a=axis: f.take(c, a))
            axis += 1
        elif isinstance(known, int) and not isinstance(known, bool):
            value = _pick(run, value, axis, known % value.shape[axis])
        else:
            tensors += 1
            picked = _constant(run, item)
            if tensors > 1 or picked is None or picked.dtype == bool:
                return run.barrier("a selection by a computed index, a mask or several tensors")
            shape = (*value.shape[:axis], *picked.shape, *value.shape[axis + 1 :])
            if picked.ndim > 1:
                for factor in value.along(axis):
                    run.pin(factor, "it is chosen by a table of places")
            value = _taken(value, shape, axis, picked)
            axis += picked.ndim
    return value


def _taken(value: Value, shape: tuple[int, ...], axis: int, index: Array) -> Value:
    def pick(factor: Array) -> Array:
        if factor.shape[axis] > 1:
            return squeezed(factor.take(index, axis))
        return factor.reshape((*factor.shape[:axis], *[1] * index.ndim, *factor.shape[axis + 1 :]))

    return moved(value, shape, pick)


def as_tuple(value: Any) -> tuple[int, ...]:
    """Numbers that may be written as one."""
    return (value,) if isinstance(value, int) else tuple(value)


def handlers() -> dict[str, Handler]:
    """The rule of every kind of operation of this file."""
    keep = ("identity", "contiguous", "clone", "detach", "cast", "dropout", "stochastic_depth", "zeros_like", "ones_like", "full_like")
    shape = ("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze")
    return {
        **dict.fromkeys(keep, same),
        **dict.fromkeys(shape, reshape),
        **dict.fromkeys(("chunk", "split", "tensor_split"), pieces),
        "expand": expand,
        "expand_as": expand_as,
        "view_as": view_as,
        "getattr": attribute_of,
        "permute": permute,
        "transpose": transpose,
        "t": t,
        "unbind": unbind,
        "narrow": narrow,
        "select": select,
        "movedim": movedim,
        "index_select": index_select,
        "getitem": getitem,
    }
