"""What operations that keep or move channels do to their labels; None where they do something else.

See :mod:`~fxcompress.passes.scale_groups`.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from fxcompress.analysis import Shapes
from fxcompress.ir.view import Op
from fxcompress.passes.scale_intervals import Interval, unbounded
from fxcompress.passes.scale_labels import Channels

_PADS = (nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.ZeroPad1d)


def follow(read: Channels, labels: Tensor) -> Interval:
    """The bounds of moved channels: those of the channel from which they came, and zero."""
    order = read.labels.argsort()
    places = order[torch.searchsorted(read.labels[order], labels).clamp_max(len(order) - 1)]
    same = len(read.labels.unique()) == len(read.labels)
    return read.interval.at(places).with_zero() if same else unbounded(len(labels))


def pooled(node: Node, op: Op, read: Channels, shapes: Shapes) -> Channels | None:
    """Pooling and resizing act on the last axes; they keep the others and the scale."""
    rank = len(shapes.shape(op.input) or ())
    written = re.search(r"(\d)d", type(op.module).__name__ if op.module is not None else getattr(node.target, "__name__", ""))
    axes = int(written.group(1)) if written else rank - 2
    if read.axis >= rank - axes or op.operands.get("return_indices"):
        return None
    return Channels(read.axis, read.labels, unbounded(len(read.labels)) if op.kind == "interpolate" else read.interval.with_zero())


def reduced(op: Op, read: Channels, shape: tuple[int, ...] | None) -> Channels | None:
    dims = op["dim"]
    dims = (dims,) if isinstance(dims, int) else dims
    if shape is None or not isinstance(dims, (tuple, list)) or not dims or not all(isinstance(d, int) for d in dims):
        return None
    gone = {d % len(shape) for d in dims}
    if read.axis in gone or not isinstance(op["keepdim"], bool):
        return None
    axis = read.axis if op["keepdim"] else read.axis - sum(d < read.axis for d in gone)
    return Channels(axis, read.labels, unbounded(len(read.labels)) if op.kind == "sum" else read.interval)


def padded(op: Op, read: Channels, shape: tuple[int, ...] | None) -> Channels | None:
    """Padding with zeros or with other elements, of axes that are not the channels."""
    if shape is None:
        return None
    if op.kind == "pad_module":
        fits = isinstance(op.module, _PADS) and read.axis < len(shape) - (1 if isinstance(op.module, nn.ZeroPad1d) else 2)
        return Channels(read.axis, read.labels, read.interval.with_zero()) if fits else None
    amounts = op["pad"]
    if not isinstance(amounts, (tuple, list)) or (op["mode"] == "constant" and op["value"] not in (None, 0, 0.0)):
        return None
    if read.axis >= len(shape) - len(amounts) // 2:
        return None
    return Channels(read.axis, read.labels, read.interval.with_zero())


def run_on(node: Node, op: Op, value: Tensor) -> Any:
    """What ``node``, which moves the data of its one operand, gives for ``value``; None if it cannot take it."""
    args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: value if n is op.input else n)
    try:
        if op.module is not None:
            return op.module(value)
        return getattr(value, str(node.target))(*args[1:], **kwargs) if node.op == "call_method" else node.target(*args, **kwargs)  # type: ignore[operator]
    except (RuntimeError, TypeError, IndexError, NotImplementedError):
        return None  # an operation that does not take integers: the channels are pinned


def along_one_axis(labels: Any) -> tuple[int, Tensor] | None:
    """The only axis along which labels vary, and the labels along it; None where there is no such axis."""
    if not isinstance(labels, Tensor) or labels.numel() == 0 or labels.dtype != torch.int64:
        return None
    for axis in range(labels.dim()):
        line = labels.movedim(axis, 0).flatten(1)
        if line.shape[0] > 1 and bool((line == line[:, :1]).all()):
            return axis, line[:, 0].clone()
    return None
