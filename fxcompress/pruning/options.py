"""What a user can ask of pruning, as frozen fields that are checked when they are written."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from typing import Literal, get_args

from fxcompress.errors import InputError
from fxcompress.pruning.criteria import Criterion, Reduction

Normalization = Literal["none", "mean", "max", "sum", "standardization"]
Scope = Literal["local", "global", "isomorphic"]

ROUND_TO = 8  # where neither the user nor the target says otherwise

_AMOUNT = re.compile(r"(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*(?P<unit>[A-Za-zµ%]*)")
_METRIC = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
UNITS: dict[str, dict[str, float]] = {
    "macs": {**_METRIC, **{f"{prefix}mac{s}": size for prefix, size in _METRIC.items() for s in ("", "s")}},
    "params": {**_METRIC, "b": 1e9},
    "bytes": {"": 1.0, "b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30},
    "latency": {"": 1.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9},
}
"""Size of every unit, by its name in lower case: in MACs, parameters, bytes or seconds."""
_EXAMPLES = {
    "macs": '"-40%", "1.2 G" or 1.2e9',
    "params": '"-40%", "3.5 M" or 3.5e6',
    "bytes": '"-40%", "3.5 MB", "3.5 MiB" or a number of bytes',
    "latency": '"-40%", "12 ms" or a number of seconds',
}


@dataclass(frozen=True)
class Limit:
    """One bound of a budget: at most ``value``, or at most (1 - ``cut``) times what the unpruned network needs."""

    what: str
    value: float | None = None
    cut: float | None = None

    def absolute(self, unpruned: float) -> float:
        """The bound as a number, in the unit of ``unpruned`` (MACs, parameters, bytes or seconds)."""
        if self.cut is not None:
            return unpruned * (1 - self.cut)
        assert self.value is not None
        return self.value


@dataclass(frozen=True)
class Budget:
    """What the pruned network may cost at most; where several are given, all of them hold.

    Each is relative to the unpruned network (``"-40%"``: at most 60 % of it), or absolute: text with a unit, or a plain
    number. Units do not depend on upper or lower case.

    Attributes:
        macs: multiply-accumulates of one run on the example inputs: ``"1.2 G"``, ``1.2e9``.
        params: number of parameters: ``"3.5 M"``.
        bytes: of the weights: ``"3.5 MB"`` (10^6), ``"3.5 MiB"`` (2^20).
        latency: measured on this machine: ``"12 ms"``, or a number of seconds.

    Raises:
        InputError: nothing is given, or a value cannot be read; the message says what to write.
    """

    macs: str | float | None = None
    params: str | float | None = None
    bytes: str | float | None = None
    latency: str | float | None = None

    def __post_init__(self) -> None:
        if not self.limits():
            raise InputError("a budget without a limit", hint='write for example Budget(macs="-40%")')

    def limits(self) -> tuple[Limit, ...]:
        """What is asked, in the order of the fields."""
        given = ((f.name, getattr(self, f.name)) for f in fields(self))
        return tuple(_limit(what, asked) for what, asked in given if asked is not None)


def _limit(what: str, asked: str | float) -> Limit:
    wrong = InputError(f"Budget({what}={asked!r}) cannot be read", hint=f"write {_EXAMPLES[what]}")
    if isinstance(asked, bool) or not isinstance(asked, (str, int, float)):
        raise wrong
    found = _AMOUNT.fullmatch(asked.strip()) if isinstance(asked, str) else None
    if isinstance(asked, str) and found is None:
        raise wrong
    number, unit = (float(found["number"]), found["unit"]) if found else (float(asked), "")
    if unit == "%":
        if not -100 < number < 0:
            left = abs(number) if 0 < abs(number) < 100 else 60
            hint = f'write what is taken away: "-{100 - left:g}%" leaves {left:g}% of the unpruned network'
            raise InputError(f"Budget({what}={asked!r}) is not a reduction", hint=hint)
        return Limit(what, cut=-number / 100)
    if unit.lower() not in UNITS[what] or not math.isfinite(number) or number <= 0:
        raise wrong
    return Limit(what, value=number * UNITS[what][unit.lower()])


@dataclass(frozen=True)
class Prune:
    """How channels are chosen.

    Attributes:
        ratio: share of the channels to remove, 0 <= ratio < 1. How rounding changes it: :func:`fxcompress.pruning.select.select`.
            With a budget the ratio is found and this one is not used.
        criterion: name of a criterion (``"l2"``, ``"taylor"``, ...) or a :class:`~fxcompress.pruning.criteria.Criterion`.
        reduction: how the scores of the indices that go together become one.
        normalize: what the scores of a group are divided by, so that groups can be compared; ``"standardization"`` is
            (score - smallest) / (largest - smallest).
        scope: ``"local"`` removes ``ratio`` of every group; ``"global"`` the least important of all groups;
            ``"isomorphic"`` the least important of all groups of the same structure (Fang et al. 2024).
        budget: what the result may cost, instead of a ratio.
        ratios: ``(pattern, ratio)`` for parameters or modules by name (``fnmatch``: ``"layer4.*"``; the name of a module
            stands for all that is in it). It goes for the channels that these make or go along with, not for those that
            they read; the first that fits counts, and such channels take no part in a ranking across groups.
        ignore: patterns, as in ``ratios``, of parameters or modules that keep all channels they make.
        round_to: what remains in a layer is a multiple of this; 1 leaves widths odd, None takes the target's (8).
        min_channels: at least so many channels remain of every layer.
        max_ratio: at most this share of a group is removed by a ranking across groups, so that no layer starves.
        compensate: fold what was removed into what remains; needs calibration data.

    Raises:
        InputError: a value makes no sense; the message says what to write.
    """

    ratio: float = 0.5
    criterion: str | Criterion = "l2"
    reduction: Reduction = "mean"
    normalize: Normalization = "mean"
    scope: Scope = "local"
    budget: Budget | None = None
    ratios: tuple[tuple[str, float], ...] = ()
    ignore: tuple[str, ...] = ()
    round_to: int | None = None
    min_channels: int = 1
    max_ratio: float = 0.9
    compensate: bool = False

    def __post_init__(self) -> None:
        _check_share("ratio", self.ratio)
        if not 0 < self.max_ratio <= 1:
            raise InputError(f"max_ratio={self.max_ratio!r} is not a share", hint="write a number over 0 and at most 1, e.g. 0.9")
        _check_choice("reduction", self.reduction, get_args(Reduction))
        _check_choice("normalize", self.normalize, get_args(Normalization))
        _check_choice("scope", self.scope, get_args(Scope))
        _check_count("min_channels", self.min_channels)
        if self.round_to is not None:
            _check_count("round_to", self.round_to)
        if not (isinstance(self.ignore, tuple) and all(isinstance(p, str) for p in self.ignore)):
            raise InputError(f"ignore={self.ignore!r} is not a tuple of patterns", hint='write ignore=("head.*",)')
        self._check_ratios()
        if self.budget is not None and not isinstance(self.budget, Budget):
            raise InputError(f"budget={self.budget!r} is no Budget", hint='write budget=Budget(macs="-40%")')

    @property
    def multiple(self) -> int:
        """``round_to``, or 8 where it is not given."""
        return ROUND_TO if self.round_to is None else self.round_to

    def _check_ratios(self) -> None:
        for item in self.ratios if isinstance(self.ratios, tuple) else (self.ratios,):
            if not (isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str)):
                raise InputError(f"ratios={self.ratios!r} is not made of (pattern, ratio) pairs", hint='write ratios=(("layer4.*", 0.7),)')
            _check_share(f"ratios of '{item[0]}'", item[1])


def _check_share(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise InputError(f"{name}={value!r} is not a share of channels", hint="write what is removed, from 0 to below 1, e.g. 0.5 for half")


def _check_choice(name: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InputError(f"{name}={value!r} is unknown", hint=f"write one of {', '.join(known)}")


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name}={value!r} is not a count", hint="write a whole number of at least 1")
