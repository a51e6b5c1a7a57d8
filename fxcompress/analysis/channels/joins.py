"""Channel rules of operations that join, repeat, shift and shuffle data: they are executed on the labels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fxcompress.analysis.channels.labels import FIXED, Array
from fxcompress.analysis.channels.moves import along, as_tuple, moved, source
from fxcompress.analysis.channels.run import Handler, LabelRun
from fxcompress.analysis.channels.value import Value, axes, reshaped, spread, squeezed, widened
from fxcompress.ir.view import Op


def cat(run: LabelRun, op: Op) -> Any:
    values = [v for v in run.of(op["tensors"]) if isinstance(v, Value)]
    return _joined(run, [v for v in values if v.shape != (0,)], run.of(op["dim"]) % len(run.result().shape))


def stack(run: LabelRun, op: Op) -> Any:
    rank = len(run.result().shape)
    axis = run.of(op["dim"]) % rank
    values = [moved(v, (*v.shape[:axis], 1, *v.shape[axis:]), lambda f: np.expand_dims(f, axis)) for v in run.of(op["tensors"])]
    return run.merge(values)  # every one of them stays, so they lose the same


def _joined(run: LabelRun, values: list[Value], axis: int) -> Value:
    """Concatenation along ``axis``: labels along it stand side by side, the others are tied."""
    values = [run.settle(v) for v in values]
    others = _reach(values, axis)
    beside = [_touching(v, {axis} | others) for v in values]
    if any(len(found) > 1 for found in beside):
        values, others = [run.purify(v, others) for v in values], set()
        beside = [v.along(axis) for v in values]
    shape = run.result().shape
    rest = [
        Value(tuple(1 if a == axis else s for a, s in enumerate(v.shape)), tuple(f for f in v.factors if not any(f is g for g in own)))
        for v, own in zip(values, beside, strict=True)
    ]
    factors = list(run.merge(rest, tuple(1 if a == axis else s for a, s in enumerate(shape))).factors)
    if any(beside):
        parts = [own[0] if own else np.full([1] * len(shape), FIXED) for own in beside]
        wide = [spread(spread(p, shape, others), v.shape, [axis]) for p, v in zip(parts, values, strict=True)]
        factors.append(np.concatenate(wide, axis))
    return Value(shape, tuple(factors))


def _touching(value: Value, over: set[int]) -> list[Array]:
    return [f for f in value.factors if over & set(axes(f))]


def _reach(values: list[Value], axis: int) -> set[int]:
    """The other axes on which labels depend that depend on ``axis`` in one of the values, and so on."""
    over = {axis}
    while True:
        wider = over.union(*(axes(f) for v in values for f in _touching(v, over)))
        if wider == over:
            return over - {axis}
        over = wider


# -- repeating, padding, shuffling --------------------------------------------------------------------------------------


def repeat(run: LabelRun, op: Op) -> Any:
    value, times = source(run, op), run.of(op["repeats"])
    shape = run.result().shape
    old = (1,) * (len(shape) - value.rank) + value.shape
    wide = moved(
        value, shape, lambda f: np.tile(widened(f, len(shape)), [n if size > 1 else 1 for n, size in zip(times, old, strict=True)])
    )
    return Value(shape, (*(squeezed(f) for f in wide.factors), *run.free(old, shape)))


def repeat_interleave(run: LabelRun, op: Op) -> Any:
    value, times, dim = source(run, op), run.of(op["repeats"]), run.of(op["dim"])
    if not isinstance(times, int):
        return run.barrier("a repetition by computed counts")
    if dim is None:
        value, dim = run.disjoint(reshaped(value, (math.prod(value.shape),))), 0
    axis = dim % value.rank
    return along(value, run.result().shape, axis, lambda f: np.repeat(f, times, axis))


def roll(run: LabelRun, op: Op) -> Any:
    value, shifts, dims = source(run, op), run.of(op["shifts"]), run.of(op["dims"])
    shifts, dims = as_tuple(shifts), as_tuple(dims)
    if not dims:
        return run.barrier("a roll over all axes at once") if value.factors else value
    return moved(value, value.shape, lambda f: np.roll(f, shifts, dims))


def flip(run: LabelRun, op: Op) -> Any:
    value, dims = source(run, op), as_tuple(run.of(op["dims"]))
    return moved(value, value.shape, lambda f: np.flip(f, dims))


def pad(run: LabelRun, op: Op) -> Any:
    """What is padded along the channels can be removed with the channels that it meets, so it has labels of its own."""
    value, amounts = source(run, op), tuple(run.of(op["pad"]))
    shape = run.result().shape
    pairs = {value.rank - 1 - i: amounts[2 * i : 2 * i + 2] for i in range(len(amounts) // 2)}
    for axis, (before, after) in pairs.items():
        if (before or after) and value.along(axis):
            if op["mode"] != "constant" or before < 0 or after < 0:
                return run.barrier("a padding that repeats or cuts channels")
            value = _padded(run, run.purify(value, [a for a in range(value.rank) if a != axis]), axis, before, after)
    return Value(shape, value.factors)


def _padded(run: LabelRun, value: Value, axis: int, before: int, after: int) -> Value:
    def ends(factor: Array) -> Array:
        if factor.shape[axis] == 1:
            return factor
        left, right = run.labels.fresh(before), run.labels.fresh(after)
        return np.concatenate([left, factor.ravel(), right]).reshape([-1 if a == axis else 1 for a in range(factor.ndim)])

    return moved(value, value.shape, ends)


def pad_module(run: LabelRun, op: Op) -> Any:
    """ZeroPad2d and its kin, which pad the last axes: positions behind the channels."""
    value, shape = source(run, op), run.result().shape
    if any(value.along(axis) for axis in range(value.rank) if value.shape[axis] != shape[axis]):
        return run.barrier("a padding module on the axis of the channels")
    return Value(shape, value.factors)


def pixel_shuffle(run: LabelRun, op: Op) -> Any:
    """(.., C r r, H, W) -> (.., C, H r, W r): the r x r channels of an output channel go together."""
    value, factor = source(run, op), int(run.of(op["upscale_factor"]))
    axis = value.rank - 3
    value = run.purify(value, [axis + 1, axis + 2])

    def shuffled(labels: Array) -> Array:
        if labels.shape[axis] == 1:
            return labels
        square = labels.reshape(*labels.shape[:axis], -1, factor * factor, *labels.shape[axis + 1 :])
        return run.level(square, [axis + 1]).reshape(*labels.shape[:axis], -1, *labels.shape[axis + 1 :])

    for f in value.factors:
        if max(axes(f)) > axis:
            run.pin(f, "positions are shuffled into channels")
    kept = Value(value.shape, tuple(f for f in value.factors if max(axes(f)) <= axis))
    return moved(kept, run.result().shape, shuffled)


def pixel_unshuffle(run: LabelRun, op: Op) -> Any:
    value, factor = source(run, op), int(run.of(op["downscale_factor"]))
    return _blocks_of_channels(run, value, factor * factor, value.rank - 3, value.rank)


def unfold(run: LabelRun, op: Op) -> Any:
    """(N, C, H, W) -> (N, C k k, L)."""
    value, size = source(run, op), run.of(op["kernel_size"])
    area = size * size if isinstance(size, int) else math.prod(size)
    return _blocks_of_channels(run, value, area, value.rank - 3, value.rank - 1)


def _blocks_of_channels(run: LabelRun, value: Value, times: int, axis: int, rank: int) -> Value:
    """Every channel becomes ``times`` neighbouring ones."""
    factors = []
    for factor in run.purify(value, [axis + 1, axis + 2]).factors:
        if max(axes(factor)) > axis:
            run.pin(factor, "positions become channels")
        else:
            wide = np.repeat(factor, times, axis) if factor.shape[axis] > 1 else factor
            factors.append(wide.reshape(*wide.shape[: axis + 1], *[1] * (rank - axis - 1)))
    return run.result(factors)


def channel_shuffle(run: LabelRun, op: Op) -> Any:
    """view (groups, C / groups), transpose, flatten."""
    value, groups = source(run, op), int(run.of(op["groups"]))
    n, c, *rest = value.shape
    split = reshaped(value, (n, groups, c // groups, *rest))
    swapped = moved(split, (n, c // groups, groups, *rest), lambda f: np.swapaxes(f, 1, 2))
    run.note_planes(swapped)
    return reshaped(swapped, value.shape)


def handlers() -> dict[str, Handler]:
    """The rule of every kind of operation of this file."""
    return {
        "cat": cat,
        "stack": stack,
        "repeat": repeat,
        "repeat_interleave": repeat_interleave,
        "roll": roll,
        "flip": flip,
        "pad": pad,
        "pad_module": pad_module,
        "pixel_shuffle": pixel_shuffle,
        "pixel_unshuffle": pixel_unshuffle,
        "unfold": unfold,
        "channel_shuffle": channel_shuffle,
    }
