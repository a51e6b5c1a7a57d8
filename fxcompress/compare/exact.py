"""How far the outputs of two graphs are apart that are both at hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fxcompress.compare.prints import outputs
from fxcompress.compare.schema import Live, Snapshot
from fxcompress.ir.numbers import evaluate, leaves
from fxcompress.report.difference import OutputNumbers


def exact_outputs(base: Snapshot, head: Snapshot, names: Sequence[str], estimates: Sequence[OutputNumbers]) -> list[OutputNumbers]:
    """``estimates`` with the numbers of the graphs themselves on their first seeded input, where both are at hand.

    ``names``: of all outputs. The agreement of classes stays that of all seeded inputs.
    """
    wanted = [one for one in estimates if one.estimated]
    if not wanted or base.live is None or head.live is None or not _same_inputs(base.live, head.live):
        return list(estimates)
    was, now = (_tensors(live) for live in (base.live, head.live))
    if len(was) != len(names) or len(now) != len(names):
        return list(estimates)
    found = {name: _measured(name, a, b) for name, a, b in zip(names, was, now, strict=True)}
    return [_exact(one, found.get(one.name)) for one in estimates]


def _exact(estimate: OutputNumbers, found: OutputNumbers | None) -> OutputNumbers:
    return replace(found, top1=estimate.top1) if estimate.estimated and found is not None else estimate


def _tensors(live: Live) -> list[Tensor]:
    return [leaf for leaf in leaves(evaluate(live.module, live.inputs)) if isinstance(leaf, Tensor)]


def _same_inputs(base: Live, head: Live) -> bool:
    was, now = base.inputs.tensors(), head.inputs.tensors()
    return len(was) == len(now) and all(_equal(a, b) for a, b in zip(was, now, strict=True))


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device and not a.is_meta and bool(torch.equal(a, b))


def _measured(name: str, base: Tensor, head: Tensor) -> OutputNumbers | None:
    """None where a difference says nothing: other shapes, or values that are not finite."""
    if base.shape != head.shape or base.is_complex() or head.is_complex():
        return None
    a, b = base.detach().to("cpu", torch.float64), head.detach().to("cpu", torch.float64)
    apart = a - b
    power = float(apart.square().sum())
    if not math.isfinite(power):
        return None
    largest = float(apart.abs().max()) if apart.numel() else 0.0
    return outputs(name, float(a.square().sum()), float(b.square().sum()), power, largest, None, estimated=False)
