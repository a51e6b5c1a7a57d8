"""Snapshots of models, and what differs between two of them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.fx import GraphModule

from fxcompress.api.batches import calibration_of
from fxcompress.api.tracing import check_model
from fxcompress.capture import capture
from fxcompress.capture.refuse import check_data
from fxcompress.compare import codec
from fxcompress.compare.diff import diff as diff_snapshots
from fxcompress.compare.schema import Snapshot
from fxcompress.compare.take import COUNT, take
from fxcompress.compare.take_parts import take_parts
from fxcompress.errors import InputError
from fxcompress.ir.inputs import Inputs
from fxcompress.report.difference import Difference
from fxcompress.result import Compressed

__all__ = ["diff", "snapshot"]

Side: TypeAlias = Snapshot | str | os.PathLike[str] | tuple[nn.Module, Any]
"""What can be compared: a snapshot, the file of one, or a model with its example inputs."""


def snapshot(
    model: nn.Module,
    example_inputs: Any,
    *,
    name: str | None = None,
    numbers: bool = True,
    data: Iterable[Any] | None = None,
    bake: bool = False,
) -> Snapshot:
    """The structure, settings, costs and numeric fingerprints of a model, without its weights. The model is left as it was.

    A graph module is taken as it is (also a compressed one); anything else is captured first, in the mode it is in.

    Args:
        example_inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments.
        name: how reports call the model; its class if not given.
        numbers: run it, too: on four seeded inputs, node by node on the first.
        data: typical inputs to run it on instead, each as ``example_inputs``, or as a pair of those and targets; four are taken.
        bake: see :func:`fxcompress.trace`.

    Raises:
        InputError: the model does not run on such inputs.
        CaptureError: the model cannot be captured.
    """
    check_model(model)
    check_data(model)
    title = name or (model.report.model if isinstance(model, Compressed) else type(model).__name__)
    given = None if data is None else calibration_of(data, None, model, example_inputs, COUNT).batches
    with torch.inference_mode(False):
        if isinstance(model, GraphModule):
            return take(model, Inputs.of(example_inputs, model.forward), model=title, numbers=numbers, data=given)
        captured = capture(model, example_inputs, bake=bake)
        if captured.step == "parts" or not isinstance(captured.module, GraphModule):
            return take_parts(captured, model=title, numbers=numbers, data=given)
        return take(captured.module, captured.inputs, model=title, capture=captured.step, numbers=numbers, data=given)


def diff(base: Side, head: Side, *, latency: bool = False) -> Difference:
    """What differs from ``base`` to ``head``; names do not count, and ``diff(head, base)`` is the inverse.

    >>> print(fxcompress.diff("before.fxs", (model, example_inputs)))  # doctest: +SKIP

    Args:
        base, head: a snapshot, the file of one, or a model with its example inputs as a pair. With two models the difference is exact:
            also which channels are gone.
        latency: time both in turns; two models are needed for that.

    Raises:
        InputError: a side is none of these, or latency is asked of a file.
        ArchiveError: a file is no sound snapshot.
    """
    return diff_snapshots(_snapshot_of(base, "base"), _snapshot_of(head, "head"), latency=latency)


def _snapshot_of(side: Side, name: str) -> Snapshot:
    if isinstance(side, Snapshot):
        return side
    if isinstance(side, (str, os.PathLike)):
        return codec.read(side)
    if isinstance(side, tuple) and len(side) == 2 and isinstance(side[0], nn.Module):
        return snapshot(*side)
    raise InputError(
        f"{name} is a {type(side).__name__}",
        hint="give a snapshot, the path of one, or a pair: (model, example_inputs)",
    )
