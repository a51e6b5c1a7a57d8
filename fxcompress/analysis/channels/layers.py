"""Channel rules of layers, norms and attention."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn
from torch.utils import _pytree as pytree

from fxcompress.analysis.channels.labels import Array
from fxcompress.analysis.channels.run import Handler, LabelRun
from fxcompress.analysis.channels.value import Value, axes, on_axis
from fxcompress.ir.view import Op

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def linear(run: LabelRun, op: Op) -> Any:
    """y = x W^T + b over the last axis."""
    value, weight = run.need(op, "input"), run.need(op, "weight")
    outer = LETTERS[: value.rank - 1]
    out = run.contract([(op["input"], value, outer + "y"), (op.operands.get("weight"), weight, "zy")], outer + "z")
    return _with_bias(run, op, out, out.rank - 1)


def _with_bias(run: LabelRun, op: Op, out: Value, axis: int) -> Value:
    bias = run.tensor(op, "bias")
    return out if bias is None else run.merge([out, _aligned(bias, axis, out.rank)], out.shape)


def _aligned(vector: Value, axis: int, rank: int) -> Value:
    """A one-dimensional value as one of ``rank`` axes that lies along ``axis``."""
    shape = [1] * rank
    shape[axis] = vector.shape[0]
    return Value(tuple(shape), tuple(on_axis(f, axis, rank) for f in vector.factors))


def along_channels(run: LabelRun, value: Value, axis: int, why: str) -> tuple[Array | None, tuple[Array, ...]]:
    """The labels along the channel axis, and the factors of the axes before it; positions behind it cannot be removed.

    For operations that mix the positions of the axes behind the channels.
    """
    value = run.settle(value)
    channels, batch = None, []
    for factor in value.factors:
        varying = axes(factor)
        if axis in varying:
            channels = run.level(factor, [a for a in varying if a != axis]).ravel()
        elif min(varying) < axis and max(varying) < axis:
            batch.append(factor)
        else:
            run.pin(factor, why)
    return channels, tuple(batch)


def conv(run: LabelRun, op: Op) -> Any:
    value, weight = run.need(op, "input"), run.need(op, "weight")
    axis = value.rank - weight.rank + 1
    outgoing, incoming, groups = _weight_labels(run, weight, 0), _weight_labels(run, weight, 1), int(run.of(op["groups"]))
    _pin_kernel(run, weight)
    channels, batch = along_channels(run, value, axis, "a convolution mixes the positions along its axis")
    outgoing = _grouped(run, op, channels, outgoing, incoming, groups, axis)
    out = run.result([*batch, *([] if outgoing is None else [on_axis(outgoing, axis, value.rank)])])
    return _with_bias(run, op, out, axis)


def conv_transpose(run: LabelRun, op: Op) -> Any:
    """The weight is (in, out / groups, ...)."""
    value, weight = run.need(op, "input"), run.need(op, "weight")
    axis = value.rank - weight.rank + 1
    incoming, outgoing, groups = _weight_labels(run, weight, 0), _weight_labels(run, weight, 1), int(run.of(op["groups"]))
    _pin_kernel(run, weight)
    channels, batch = along_channels(run, value, axis, "a convolution mixes the positions along its axis")
    _contracted(run, op, channels, incoming, axis)
    if groups > 1:
        outgoing = _transposed_groups(run, incoming, outgoing, groups, fixed=channels is None)
    out = run.result([*batch, *([] if outgoing is None else [on_axis(outgoing, axis, value.rank)])])
    return _with_bias(run, op, out, axis)


def _contracted(run: LabelRun, op: Op, channels: Array | None, incoming: Array | None, axis: int) -> None:
    """The input's channels end in an axis of the weight; where one side has nothing to remove, the other stays."""
    if channels is not None and incoming is not None:
        run.tie(channels, incoming)
        run.read(op["input"], axis, "contract")
    elif incoming is not None:
        run.pin(incoming, "it reads fixed channels")
    elif channels is not None:
        run.pin(channels, "it is read by a weight that is fixed")


def _transposed_groups(run: LabelRun, incoming: Array | None, outgoing: Array | None, groups: int, *, fixed: bool) -> Array | None:
    """Labels of the outputs of a grouped transposed convolution.

    Whole groups go when there are at least as many groups as inputs in each and the inputs are not fixed; else the same
    place of every group.
    """
    if incoming is None:
        return None
    inside = incoming.reshape(groups, -1)
    if groups >= inside.shape[1] and not fixed:
        run.level(inside, [1])
        if outgoing is not None:
            run.pin(outgoing, "whole groups are removed, not channels of every group")
            return np.repeat(inside[:, 0], len(outgoing))
        return inside[:, 0].copy()
    run.level(inside, [0])
    return None if outgoing is None else np.tile(outgoing, groups)


def _weight_labels(run: LabelRun, weight: Value, axis: int) -> Array | None:
    found = run.purify(weight, [a for a in range(weight.rank) if a != axis]).along(axis)
    return found[0].ravel() if found else None


def _pin_kernel(run: LabelRun, weight: Value) -> None:
    for factor in weight.factors:
        if min(axes(factor)) > 1:
            run.pin(factor, "it is the window of a convolution")


def _grouped(
    run: LabelRun, op: Op, channels: Array | None, outgoing: Array | None, incoming: Array | None, groups: int, axis: int
) -> Array | None:
    """Tie a convolution's input and output channels with its weight; returns the labels of its outputs.

    One group: inputs end in the weight's second axis. Several groups keep their number and lose the same places, or,
    if there are at least as many groups as channels in each (depthwise is the extreme), go as a whole with all their
    inputs and outputs.
    """
    if groups == 1:
        _contracted(run, op, channels, incoming, axis)
        return outgoing
    size = 1 if incoming is None else len(incoming)
    if outgoing is None:
        if channels is not None:
            run.pin(channels, "it is read by a grouped weight that is fixed")
        return None
    outputs = outgoing.reshape(groups, -1)
    if channels is None:
        if size > 1 and incoming is not None:
            run.pin(incoming, "it reads fixed channels")
        if outputs.shape[1] == 1:
            run.pin(outgoing, "every group of fixed channels has one output")
        run.level(outputs, [0])
        return outgoing
    inputs = run.labels.find(channels).reshape(groups, size)
    if groups >= size:
        run.level(inputs, [1])
        run.tie(inputs[:, :1], outputs)
        if incoming is not None:
            run.pin(incoming, "whole groups are removed, not channels of every group")
        return outgoing
    assert incoming is not None
    run.tie(inputs, incoming[None])
    run.level(outputs, [0])
    run.read(op["input"], axis, "contract")
    return outgoing


# -- norms --------------------------------------------------------------------------------------------------------------


def batch_norm(run: LabelRun, op: Op) -> Any:
    """Each channel by itself; in training mode over all positions of the other axes."""
    value = run.need(op, "input")
    if op.kind == "batch_norm":
        mixes = bool(op["training"]) or run.tensor(op, "running_mean") is None
        by_sample = False
    else:
        mixes = by_sample = True
    axis = 1 if not by_sample or value.rank > 2 else 0
    settled = run.settle(value)
    factors = []
    for factor in settled.factors:
        varying = axes(factor)
        if axis in varying:
            factors.append(run.level(factor, [a for a in varying if a != axis]))
        else:
            if mixes and not (by_sample and max(varying) < axis):
                for a in varying:
                    run.read(op["input"], a, "statistic")
            factors.append(factor)
    out = Value(value.shape, tuple(factors))
    names = [n for n in ("weight", "bias", "running_mean", "running_var") if n in op.spec.operands]
    found = [v for v in (run.tensor(op, name) for name in names) if v is not None]
    channels = [f.ravel() for f in factors if f.shape[axis] > 1]
    if channels and all(v.factors for v in found):
        for v in found:
            run.tie(channels[0], v.factors[0])
        return out
    return run.merge([out, *(_aligned(v, axis, value.rank) for v in found)], value.shape)


def layer_norm(run: LabelRun, op: Op) -> Any:
    """LayerNorm and RMSNorm: a statistic over the last axes."""
    value = run.need(op, "input")
    count = len(_tuple(run.of(op["normalized_shape"])))
    last = range(value.rank - count, value.rank)
    value = run.purify(value, last)
    for axis in last:
        if value.along(axis):
            run.read(op["input"], axis, "statistic")
    parameters = [run.tensor(op, name) for name in ("weight", "bias") if name in op.spec.operands]
    return run.merge([value, *(p for p in parameters if p is not None)], value.shape)


def group_norm(run: LabelRun, op: Op) -> Any:
    """Whole groups go if there are at least as many as channels in each, which changes no statistic; else the same
    places of every group."""
    value = run.need(op, "input")
    groups = int(run.of(op["num_groups"]))
    channels, batch = along_channels(run, value, 1, "group norm mixes the positions along its axis")
    factors = [*batch]
    if channels is not None:
        inside = channels.reshape(groups, -1)
        whole = groups >= inside.shape[1]
        run.level(inside, [1] if whole else [0])
        if not whole:
            run.read(op["input"], 1, "statistic")
        factors.append(on_axis(channels, 1, value.rank))
    parameters = [v for v in (run.tensor(op, "weight"), run.tensor(op, "bias")) if v is not None]
    return run.merge([Value(value.shape, tuple(factors)), *(_aligned(p, 1, value.rank) for p in parameters)], value.shape)


def local_response_norm(run: LabelRun, op: Op) -> Any:
    value = run.need(op, "input")
    channels, batch = along_channels(run, value, 1, "it is normalised with its neighbours")
    if channels is not None:
        run.pin(channels, "it is normalised with neighbouring channels")
    return run.result(batch)


def softmax(run: LabelRun, op: Op) -> Any:
    """softmax, log_softmax and normalize: a statistic over one axis; the values keep their places."""
    value, dim = run.need(op, "input"), run.of(op["dim"])
    if not isinstance(dim, int):
        return run.barrier(f"{op.kind} without a dim")
    return _statistic(run, op, value, dim % value.rank)


def _statistic(run: LabelRun, op: Op, value: Value, axis: int) -> Value:
    value = run.purify(value, [axis])
    if value.along(axis):
        run.read(op["input"], axis, "statistic")
    return value


def prelu(run: LabelRun, op: Op) -> Any:
    value, weight = run.need(op, "input"), run.need(op, "weight")
    if weight.shape == (1,) or weight.rank == 0:
        return value
    return run.merge([value, _aligned(weight, min(1, value.rank - 1), value.rank)], value.shape)


# -- attention, embeddings, recurrence ----------------------------------------------------------------------------------


def attention(run: LabelRun, op: Op) -> Any:
    """softmax(q k^T scale + mask) v over (..., tokens, channels)."""
    query, key, value = (run.need(op, name) for name in ("query", "key", "value"))
    if run.of(op["enable_gqa"]):
        times = query.shape[-3] // key.shape[-3]
        key, value = repeated(run, key, times, key.rank - 3), repeated(run, value, times, value.rank - 3)
    outer = LETTERS[: query.rank - 2]
    scores = run.contract([(op["query"], query, outer + "xz"), (op["key"], key, outer + "yz")], outer + "xy")
    mask = run.of(op["attn_mask"])
    if isinstance(mask, Value):
        scores = run.merge([scores, mask], scores.shape)
    if scores.along(scores.rank - 1):
        for factor in scores.along(scores.rank - 1):
            run.pin(factor, "it is attended to")
        scores = Value(scores.shape, tuple(f for f in scores.factors if f.shape[-1] == 1))
    return run.contract([(None, scores, outer + "xy"), (op["value"], value, outer + "yz")], outer + "xz")


def repeated(run: LabelRun, value: Value, times: int, axis: int) -> Value:
    shape = tuple(s * times if a == axis else s for a, s in enumerate(value.shape))
    return Value(shape, tuple(np.repeat(f, times, axis) if f.shape[axis] > 1 else f for f in value.factors))


def embedding(run: LabelRun, op: Op) -> Any:
    """The rows are looked up by number; the columns are channels."""
    weight, index = run.need(op, "weight"), run.need(op, "input")
    run.pin_value(index, "it is an index")
    if run.of(op["max_norm"]) is not None:
        return run.barrier("an embedding whose rows are renormalised")
    columns = []
    for factor in weight.factors:
        if factor.shape[0] > 1:
            run.pin(factor, "it is looked up by number")
        else:
            columns.append(on_axis(factor.ravel(), index.rank, index.rank + 1))
    return run.result(columns)


def recurrent(run: LabelRun, op: Op) -> Any:
    """LSTM, GRU and RNN: a hidden unit goes with its rows of every gate and its column of the recurrent weight."""
    module, value = op.module, run.need(op, "input")
    assert isinstance(module, nn.RNNBase)
    if module.proj_size:
        return run.barrier("a recurrent layer with a projection")
    directions = ("", "_reverse") if module.bidirectional else ("",)
    value = run.purify(value, [value.rank - 1])
    for factor in value.factors:
        if factor.shape[-1] == 1:
            run.pin(factor, "it is a step or a sample of a recurrent layer")
    before: Array | None = value.along(value.rank - 1)[0].ravel() if value.along(value.rank - 1) else None
    ends: list[Array] = []
    for layer in range(module.num_layers):
        outputs = [_hidden(run, op, module, f"l{layer}{direction}", before) for direction in directions]
        ends += outputs
        for other in outputs:
            run.tie(ends[0], other)  # the module has one hidden size
        before = np.concatenate(outputs)
    assert before is not None
    for end in ends:
        run.tie(ends[0], end)  # torch has one hidden size for all layers and directions
    if value.along(value.rank - 1):
        run.read(op["input"], value.rank - 1, "contract")
    sequence = Value((*value.shape[:-1], len(before)), (on_axis(before, value.rank - 1, value.rank),))
    return _states(run, op, sequence, ends[0])


def _hidden(run: LabelRun, op: Op, module: nn.RNNBase, name: str, before: Array | None) -> Array:
    """Tie one layer and direction; returns the labels of its hidden units."""

    def labels(parameter: str, axis: int) -> Array:
        tensor = getattr(module, parameter)
        value = run.parameter(f"{op.node.target}.{parameter}", tensor)
        found = value.along(axis)
        return found[0].ravel() if found else np.zeros(tensor.shape[axis], dtype=np.int64)

    incoming = labels(f"weight_ih_{name}", 1)
    if before is None:
        run.pin(incoming, "it reads fixed channels")
    else:
        run.tie(before, incoming)
    hidden = labels(f"weight_hh_{name}", 1)
    for parameter in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        if hasattr(module, f"{parameter}_{name}"):
            run.tie(labels(f"{parameter}_{name}", 0).reshape(-1, len(hidden)), hidden[None])
    return hidden


def _states(run: LabelRun, op: Op, sequence: Value, hidden: Array) -> Any:
    """The output and the last state (layers and directions, ..., hidden), which goes with a given first state."""
    shapes, given = run.shapes.value(run.node), run.of(op["hx"])
    state = shapes[1][0] if isinstance(op.module, nn.LSTM) else shapes[1]
    rank = len(state.shape)
    last = Value(tuple(state.shape), (on_axis(hidden, rank - 1, rank),))
    for first in pytree.tree_leaves(given):
        if isinstance(first, Value):
            last = run.merge([last, first], last.shape)
    return (sequence, (last, last)) if isinstance(op.module, nn.LSTM) else (sequence, last)


def _tuple(value: Any) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else tuple(value)


def handlers() -> dict[str, Handler]:
    return {
        "linear": linear,
        "conv": conv,
        "conv_transpose": conv_transpose,
        "batch_norm": batch_norm,
        "instance_norm": batch_norm,
        "layer_norm": layer_norm,
        "rms_norm": layer_norm,
        "group_norm": group_norm,
        "local_response_norm": local_response_norm,
        "softmax": softmax,
        "log_softmax": softmax,
        "normalize": softmax,
        "prelu": prelu,
        "attention": attention,
        "embedding": embedding,
        "recurrent": recurrent,
    }
