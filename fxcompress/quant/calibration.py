"""Runs a graph on typical inputs with its observers switched on, in one process or in many."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from tqdm import tqdm

from fxcompress.errors import FxCompressError, InputError
from fxcompress.ir.inputs import Inputs
from fxcompress.quant.batches import BatchReader, inputs_in
from fxcompress.quant.nonfinite import observed_nodes, why_not_finite
from fxcompress.quant.observers_base import Observer
from fxcompress.quant.synchronize import check_all, synchronize

__all__ = ["CalibrationRecord", "calibrate", "observers_of", "synchronize"]


@dataclass(frozen=True)
class CalibrationRecord:
    """What a calibration did.

    Attributes:
        batches: how many were run, in all processes together.
        seconds: of this process, from the first batch to the end.
        remarks: (node, why) for each observed value whose range stands on weak ground, and ("calibration", why) about the data.
    """

    batches: int
    seconds: float
    remarks: tuple[tuple[str, str], ...] = ()


def calibrate(
    module: nn.Module,
    batches: Iterable[Any],
    *,
    limit: int | None = None,
    progress: bool = False,
    group: dist.ProcessGroup | None = None,
) -> CalibrationRecord:
    """Let every observer in ``module`` see the values on ``batches``; what they had seen before is forgotten.

    Nothing is random, so the same data gives the same observers. With ``torch.distributed`` each process runs its share
    of the data and all end with the observers that one process would have on all of it, in any order, bit for bit where
    the values are (batches of another size may be computed with other rounding).

    Args:
        module: a graph with observers. It is run as it is, without gradients; its observers are off at the end.
        batches: any iterable of what ``forward`` takes, or of ``Inputs``; see ``BatchReader``.
        limit: the number of batches to run at most, in this process.
        progress: show a bar on stderr, if that is a terminal.
        group: the processes that calibrate together; all must call this, also one that has no batches.

    Raises:
        InputError: there are no batches, the module cannot run on one, or an observed value is NaN or infinite.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit={limit} batches", hint="calibration needs one batch or more")
    started = time.perf_counter()
    observers = observers_of(module)
    reader = BatchReader(module, batches)
    error: FxCompressError | None = None
    count = 0
    try:
        count = _run(module, observers, tqdm(islice(reader, limit), total=_length(batches, limit), disable=None if progress else True))
    except FxCompressError as problem:
        if group is None:
            raise
        error = problem
    if group is not None:
        count = check_all(error, count, group)
        synchronize(list(observers.values()), group)
    if not count:
        raise InputError("calibration has no batches", hint="pass a list of batches or a loader, and if it is an iterator, a fresh one")
    names = {name: nodes[0] for name, nodes in observed_nodes(module).items()}
    doubts = [(names.get(name, name), doubt) for name, observer in observers.items() if (doubt := observer.doubt())]
    about_data = [("calibration", remark) for remark in reader.remarks]
    return CalibrationRecord(count, time.perf_counter() - started, (*doubts, *about_data))


def observers_of(module: nn.Module) -> dict[str, Observer]:
    """The observers in ``module`` by their first name; one that stands in several places comes once."""
    return {name: child for name, child in module.named_modules() if isinstance(child, Observer)}


def _run(module: nn.Module, observers: dict[str, Observer], batches: Iterable[Inputs]) -> int:
    count = 0
    with torch.inference_mode(False), torch.no_grad(), _switched_on(observers.values()):
        for count, inputs in enumerate(batches, 1):
            for observer in observers.values():
                observer.inputs = inputs_in(inputs)
            with _running(count):
                inputs.clone().call(module)  # should its first operation write to memory
            if any(observer.nonfinite for observer in observers.values()):
                raise why_not_finite(module, observers, inputs, count)
    return count


@contextmanager
def _switched_on(observers: Iterable[Observer]) -> Iterator[None]:
    chosen = list(observers)
    for observer in chosen:
        observer.reset()
        observer.enabled = True
    try:
        yield
    finally:
        for observer in chosen:
            observer.enabled = False


@contextmanager
def _running(number: int) -> Iterator[None]:
    try:
        yield
    except FxCompressError:
        raise
    except Exception as error:  # an operation may refuse its operands in any way
        hint = "give batches of the same kind, dtype and device as the example inputs"
        raise InputError(f"the graph cannot run on calibration batch {number}: {type(error).__name__}: {error}", hint=hint) from error


def _length(batches: Iterable[Any], limit: int | None) -> int | None:
    length = len(batches) if isinstance(batches, Sized) else None
    return min((bound for bound in (length, limit) if bound is not None), default=None)
