"""Joins the observers of processes that calibrated on different data."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from fxcompress.errors import FxCompressError, InputError
from fxcompress.quant.observers_base import Observer

__all__ = ["check_all", "synchronize"]


def synchronize(observers: Sequence[Observer], group: dist.ProcessGroup | None = None) -> None:
    """Let every process have the observers that one process would have that had seen the data of all.

    Three ``all_reduce``: one compares the lists, one joins the extremes by maximum, one adds the integer sums. All of them are
    exact in any order, so the scales are the same to the last bit for any number of processes.

    Args:
        observers: the same kinds in the same order in every process.
        group: of processes; None is the default group.

    Raises:
        InputError: the processes have different observers.
    """
    kinds = hashlib.sha256("\n".join(observer.kind() for observer in observers).encode()).digest()
    digest = torch.tensor(list(kinds[:16]), dtype=torch.int64)
    if not _equal_everywhere(digest, group):
        hint = "calibrate the same graph, with the same options, in every process"
        raise InputError("the processes have different observers", hint=hint)
    if not observers:
        return
    extremes = _reduced(torch.cat([observer.extremes() for observer in observers]), dist.ReduceOp.MAX, group)
    for observer, (low, high) in zip(observers, extremes.reshape(-1, 2).tolist(), strict=True):
        observer.widen(-low, high)
    sums = [observer.sums() for observer in observers]
    joined = _reduced(torch.cat(sums), dist.ReduceOp.SUM, group)
    for observer, part in zip(observers, joined.split([len(part) for part in sums]), strict=True):
        observer.set_sums(part)


def check_all(error: FxCompressError | None, batches: int, group: dist.ProcessGroup) -> int:
    """The number of batches of all processes; every process raises if one has an error, so that none waits for it."""
    failed, total = _reduced(torch.tensor([int(error is not None), batches]), dist.ReduceOp.SUM, group).tolist()
    if error is not None:
        raise error
    if failed:
        raise InputError(f"calibration failed in {failed} other processes", hint="see the error there")
    return int(total)


def _equal_everywhere(values: Tensor, group: dist.ProcessGroup | None) -> bool:
    most = _reduced(torch.cat([values, -values]), dist.ReduceOp.MAX, group)
    return bool((most[: len(values)] == -most[len(values) :]).all())


def _reduced(values: Tensor, op: dist.ReduceOp.RedOpType, group: dist.ProcessGroup | None) -> Tensor:
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend(group) == "nccl" else torch.device("cpu")
    moved = values.to(device, copy=True)
    dist.all_reduce(moved, op, group)
    return moved.cpu()
