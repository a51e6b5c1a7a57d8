"""Calibration data as users have it: batches of inputs, with or without targets."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxcompress.errors import InputError
from fxcompress.ir.inputs import Inputs
from fxcompress.pipeline import Calibration


def calibration_of(
    batches: Iterable[Any],
    loss: Callable[[Any, Any], Tensor] | None,
    model: nn.Module,
    example_inputs: Any,
    limit: int | None = None,
) -> Calibration:
    """What the user passed as calibration data.

    Args:
        batches: each as ``example_inputs``, or a pair of those and targets, as a DataLoader gives.
        loss: ``loss(output, targets)`` is a scalar.
        limit: so many batches are taken, and no more are asked for.

    Raises:
        InputError: a batch is neither, or holds numbers that are not finite, or there are no targets for a loss.
    """
    example = Inputs.of(example_inputs, model.forward)
    pairs = [_pair(batch, place, example, model) for place, batch in enumerate(islice(_iterable(batches), limit))]
    if loss is None:
        return Calibration(tuple(inputs for inputs, _ in pairs))
    if any(target is None for _, target in pairs) or not pairs:
        raise InputError("there is a loss, but no targets for it", hint="pass calibration=[(inputs, targets), ...], or a DataLoader")
    return Calibration(tuple(inputs for inputs, _ in pairs), lambda output, i: loss(output, pairs[i][1]))


def _iterable(batches: Any) -> Iterable[Any]:
    if isinstance(batches, (Tensor, Mapping, str)) or not isinstance(batches, Iterable):
        raise InputError(
            f"calibration is a {type(batches).__name__}, not a number of batches",
            hint="pass a list of batches or a DataLoader: calibration=[x1, x2, ...]",
        )
    return _guarded(batches)


def _guarded(batches: Iterable[Any]) -> Iterator[Any]:
    try:
        yield from batches
    except Exception as error:  # the user's own code may fail in any way
        raise InputError(
            f"the calibration data raised {type(error).__name__}: {str(error)[:200]}", hint="iterate over it yourself to see where"
        ) from error


def _pair(batch: Any, place: int, example: Inputs, model: nn.Module) -> tuple[Inputs, Any]:
    """The inputs and the targets of one batch; None for no targets."""
    for given, target in _readings(batch, example, model):
        try:
            inputs = Inputs.of(given, model.forward)
        except InputError:
            continue
        if _form(inputs) == _form(example):
            _check_tensors(inputs, place, example)
            return inputs, target
    raise InputError(
        f"a calibration batch is a {type(batch).__name__} that is not of the form of example_inputs",
        hint="give every batch as example_inputs, or as a pair of those and targets; a dict may have more keys",
    )


def _readings(batch: Any, example: Inputs, model: nn.Module) -> Iterator[tuple[Any, Any]]:
    """What may be meant by a batch: inputs, or inputs and then what a loader gives besides."""
    yield _by_name(batch, example, model), None
    if isinstance(batch, (tuple, list)):
        yield tuple(batch), None
        if len(batch) > 1:
            yield _by_name(batch[0], example, model), batch[1]
        if len(batch) > len(example.args):
            yield tuple(batch[: len(example.args)]), batch[len(example.args)]


def _by_name(batch: Any, example: Inputs, model: nn.Module) -> Any:
    """A dict that has, among others, all arguments of the example: these, as the example has them. Anything else as it is."""
    names = list(inspect.signature(model.forward).parameters)[: len(example.args)]
    if not isinstance(batch, Mapping) or not all(name in batch for name in (*names, *example.kwargs)):
        return batch
    return Inputs(tuple(batch[name] for name in names), {name: batch[name] for name in example.kwargs})


def _check_tensors(inputs: Inputs, place: int, example: Inputs) -> None:
    """Raise InputError where a batch has other types, axes or devices than the example, or numbers that are not finite."""
    for given, wanted in zip(inputs.tensors(), example.tensors(), strict=True):
        if given.dtype != wanted.dtype or given.dim() != wanted.dim() or given.device != wanted.device:
            raise InputError(
                f"calibration batch {place} has {_words(given)} where example_inputs has {_words(wanted)}",
                hint="give batches like example_inputs; only sizes may differ",
            )
        if given.is_floating_point() and not bool(torch.isfinite(given).all()):
            raise InputError(f"calibration batch {place} has NaN or infinite values", hint="leave such inputs out, or clean them first")


def _words(tensor: Tensor) -> str:
    where = "" if tensor.device.type == "cpu" else f" on {tensor.device}"
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}{where}"


def _form(inputs: Inputs) -> Any:
    return pytree.tree_structure((inputs.args, dict(inputs.kwargs)))
