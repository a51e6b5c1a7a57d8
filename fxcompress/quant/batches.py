"""Calibration data in any form that loaders give it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from fxcompress.errors import InputError
from fxcompress.ir.inputs import Inputs

__all__ = ["BatchReader", "inputs_in"]

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_HINT = "pass a list of batches or a loader, each batch what forward takes, e.g. calibration=[images for images, _ in loader]"


def inputs_in(batch: Inputs) -> int:
    """How many inputs a batch holds, if that is the first axis of all its tensors; else 1."""
    sizes = {t.shape[0] for t in batch.tensors() if t.dim()}
    return max(1, *sizes) if len(sizes) == 1 else 1


class BatchReader:
    """Iterates over the inputs of ``module`` in ``batches``; ``remarks`` then says what was left out.

    A batch is a tensor, a tuple of positional arguments, a dict of keyword arguments, ``Inputs``, or what else
    ``Inputs.of`` takes. A list is taken as a tuple, which is what loaders mean by it, unless ``like`` has a list as its one
    argument. Items beyond those that ``forward`` takes, and keys that it does not have beside some that it has, are labels
    and left out.

    Args:
        like: example inputs, where it is known that they fit.

    Raises:
        InputError: ``batches`` is one batch or nothing iterable, or a batch does not fit ``forward``.
    """

    def __init__(self, module: nn.Module, batches: Iterable[Any], *, like: Inputs | None = None) -> None:
        if isinstance(batches, (Tensor, Mapping, Inputs, str)) or not isinstance(batches, Iterable):
            what = "None" if batches is None else f"one {type(batches).__name__}"
            raise InputError(f"calibration is {what}, not several batches", hint=_HINT)
        self.forward: Callable[..., Any] = module.forward
        parameters = inspect.signature(self.forward).parameters.values()
        self.names = [p.name for p in parameters]
        self.takes = math.inf if any(p.kind is p.VAR_POSITIONAL for p in parameters) else sum(p.kind in _POSITIONAL for p in parameters)
        self.takes_any_name = any(p.kind is p.VAR_KEYWORD for p in parameters)
        self.lists_are_tuples = like is None or len(like.args) != 1 or not isinstance(like.args[0], list)
        self.batches = batches
        self._left_out: dict[str, int] = {}

    @property
    def remarks(self) -> tuple[str, ...]:
        """One line for each kind of thing that was left out of batches."""
        return tuple(f"{what} of {times} batches are left out: forward does not take them" for what, times in self._left_out.items())

    def __iter__(self) -> Iterator[Inputs]:
        for number, batch in enumerate(self.batches, 1):
            try:
                inputs = Inputs.of(self._without_labels(batch), self.forward)
            except InputError as error:
                message = error.message.replace("example_inputs", "it")
                raise InputError(f"calibration batch {number} does not fit: {message}", hint=error.hint) from error
            yield inputs

    def _without_labels(self, batch: Any) -> Any:
        if isinstance(batch, Mapping):
            return self._known(dict(batch))
        if isinstance(batch, list) and self.lists_are_tuples:
            batch = tuple(batch)
        if not isinstance(batch, tuple) or len(batch) <= self.takes or not self.takes:
            return batch
        self._leave_out(f"items behind the first {int(self.takes)}")
        return batch[: int(self.takes)]

    def _known(self, batch: dict[Any, Any]) -> dict[Any, Any]:
        known = {key: value for key, value in batch.items() if key in self.names}
        if not known or len(known) == len(batch) or self.takes_any_name:
            return batch
        self._leave_out(", ".join(f"'{key}'" for key in batch if key not in known))
        return known

    def _leave_out(self, what: str) -> None:
        self._left_out[what] = self._left_out.get(what, 0) + 1
