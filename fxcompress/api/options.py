"""What the calls take for pruning, as the passes that do it."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from glob import escape
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxcompress.capture import Captured, Part
from fxcompress.errors import InputError
from fxcompress.ir.inputs import Inputs
from fxcompress.passes.prune_apply import PruneApply
from fxcompress.passes.prune_select import PruneSelect
from fxcompress.pipeline import Calibration, Pass, Pipeline, Property
from fxcompress.pruning.options import Prune
from fxcompress.pruning.plan import PruningPlan

Asked = float | Prune | PruningPlan
"""The share of channels to remove, all the options, or a plan that was made before."""


@dataclass(frozen=True)
class Pruning:
    """The passes that prune, and what they need; without passes when nothing is pruned.

    Attributes:
        before: passes that bring the graph into a form of which more can be pruned.
        options: how to choose; None when nothing is chosen.
        plan: what was chosen before.
    """

    calibration: Calibration
    before: tuple[Pass, ...] = ()
    options: Prune | None = None
    plan: PruningPlan | None = None

    @classmethod
    def of(cls, asked: Any, data: Calibration, model: nn.Module) -> Pruning:
        """Read what the user passed.

        Raises:
            InputError: it is nothing of the kind.
        """
        if asked is None:
            return cls(data)
        if isinstance(asked, PruningPlan):
            return cls(data, _expanding(model), plan=asked)
        options = as_options(asked)
        PruneSelect.of(options)  # what is wrong with them is said before the model is looked at
        return cls(data, _expanding(model), options)

    def check(self, captured: Captured) -> None:
        """Raise InputError for what only a look at the captured parts shows to be wrong."""
        if self.options is not None:
            check_patterns(self.options, captured.parts)

    def select(self, part: Part) -> Pipeline:
        """The passes that leave a plan in the graph of ``part``."""
        chosen = () if self.options is None else (PruneSelect.of(for_part(self.options, part)),)
        return Pipeline((*self.before, *chosen), frozenset({Property.PLANNED} if self.plan is not None else ()))

    def steps(self, part: Part, then: Iterable[Pass] = ()) -> Pipeline:
        """All passes of pruning, then others."""
        select = self.select(part)
        if self.options is None and self.plan is None:
            return Pipeline((*select.passes, *then))
        apply = PruneApply(self.options is not None and self.options.compensate)
        return Pipeline((*select.passes, apply, *then), select.given)


def for_part(options: Prune, part: Part) -> Prune:
    """The options with patterns for the names inside a captured part; what fits nothing there is left out."""
    if not part.path:
        return options
    ignore = tuple(inner for pattern in options.ignore for inner in inside(pattern, part))
    return replace(
        options, ignore=ignore, ratios=tuple((inner, ratio) for pattern, ratio in options.ratios for inner in inside(pattern, part))
    )


def check_patterns(options: Prune, parts: Iterable[Part]) -> None:
    """Raise InputError when a pattern fits nothing in any of several captured parts; of a single one the choice itself does."""
    if all(part.path for part in parts):
        check_patterns_of((*options.ignore, *(pattern for pattern, _ in options.ratios)), parts)


def check_patterns_of(patterns: Iterable[str], parts: Iterable[Part]) -> None:
    """Raise InputError when one of ``patterns`` fits nothing in any of the captured parts."""
    parts = tuple(parts)
    for pattern in patterns:
        if not any(inside(pattern, part) for part in parts):
            raise InputError(f"no parameter or module is called '{pattern}'", hint=_known(pattern, parts))


def _known(pattern: str, parts: tuple[Part, ...]) -> str:
    if all(part.path for part in parts):
        return f"only these parts could be captured: {', '.join(part.path for part in parts)}"
    names = [name for part in parts for name in _names(part)]
    near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.4) or names[:4]
    return f"names are {', '.join(near)}, ..."


def _names(part: Part) -> list[str]:
    graph = part.graph
    return [name for name, _ in (*graph.named_parameters(remove_duplicate=False), *graph.named_modules()) if name]


def inside(pattern: str, part: Part) -> list[str]:
    """Patterns that fit, by their names inside the part, what ``pattern`` fits by the names of the whole."""
    names = _names(part)
    above = part.path.split(".")
    if any(fnmatchcase(".".join(above[: n + 1]), pattern) for n in range(len(above)) if part.path):
        return ["*"]  # the name of a module stands for all that is in it
    fitting = [name for name in names if fnmatchcase(f"{part.path}.{name}" if part.path else name, pattern)]
    if not fitting:
        return []
    if pattern.startswith(f"{part.path}."):
        return [pattern[len(part.path) + 1 :]]
    if len(fitting) == len(names):
        return ["*"]
    rest = [escape(name) for name in fitting if not fnmatchcase(name, pattern)]
    return [*([pattern] if len(rest) < len(fitting) else []), *rest]


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
    if isinstance(batches, (Tensor, dict, str)) or not isinstance(batches, Iterable):
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
    choices: list[tuple[Any, Any]] = [(batch, None)]
    if isinstance(batch, (tuple, list)):
        choices.append((tuple(batch), None))
        choices += [(batch[0], batch[1])] if len(batch) == 2 else []
    for given, target in choices:
        try:
            inputs = Inputs.of(given, model.forward)
        except InputError:
            continue
        if _form(inputs) == _form(example):
            _check_tensors(inputs, place, example)
            return inputs, target
    raise InputError(
        f"a calibration batch is a {type(batch).__name__} that is not of the form of example_inputs",
        hint="give every batch as example_inputs, or as a pair of those and targets",
    )


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


def _expanding(model: nn.Module) -> tuple[Pass, ...]:
    """Attention of torch.nn is one node of the graph; its heads can be pruned once it is several."""
    if not any(isinstance(module, nn.MultiheadAttention) for module in model.modules()):
        return ()
    return Pipeline.parse("functionalize,expand-attention").passes


def as_options(asked: Any) -> Prune:
    """The options that a number, or options, stand for.

    Raises:
        InputError: it is neither.
    """
    if isinstance(asked, Prune):
        return asked
    if isinstance(asked, (int, float)) and not isinstance(asked, bool):
        return Prune(ratio=float(asked))
    raise InputError(
        f"cannot prune by {asked!r}", hint="write the share of channels to remove (0.5), fxcompress.Prune(...), or give a plan made before"
    )
