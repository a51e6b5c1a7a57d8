"""What the calls take for pruning, as the passes that do it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from glob import escape
from typing import Any

from torch import nn

from fxcompress.capture import Captured, Part
from fxcompress.errors import InputError
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
