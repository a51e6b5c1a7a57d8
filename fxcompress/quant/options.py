"""What a user can ask of quantization, as frozen fields that are checked when they are written."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import nn

from fxcompress.errors import InputError

ObserverName = Literal["min-max", "moving-average", "percentile", "histogram", "sqnr", "entropy"]
WeightObserverName = Literal["min-max", "mse"]
Speed = Literal["table", "measure", "none"]
BiasCorrection = Literal["none", "analytic", "empirical"]
Storage = Literal["int8", "int4", "float16", "bfloat16"]


@dataclass(frozen=True)
class Int8:
    """How a network is quantized. Static int8 is the default: integer kernels, with ranges found on calibration data.

    Patterns are those of ``fnmatch`` on the names of layers (``"layer4.*"``); the name of a module stands for all that is in it.

    Attributes:
        bits: of activations, 2 to 8.
        weight_bits: of weights, 2 to 8.
        observer: how the range of an activation is chosen: ``"min-max"``, ``"moving-average"``, ``"percentile"``, ``"histogram"``
            (smallest squared error), ``"sqnr"`` (the same in dB, with every input counting the same) or ``"entropy"``.
        weight_observer: how the range of each output channel of a weight is chosen: ``"min-max"`` or ``"mse"``.
        ignore: patterns of layers that stay in float.
        only: patterns of layers that may be quantized; empty for all.
        static: False leaves out static int8; then only ``weight_only`` and ``dynamic`` act, and no calibration data is needed.
        weight_only: patterns of layers whose weights alone are stored small, and which compute in float.
        storage: of these weights: ``"int8"``, ``"int4"`` (4-bit values, kept in int8), ``"float16"`` or ``"bfloat16"``.
        dynamic: patterns of linears that compute in integers and find the range of their input in every call, row by row; recurrent
            layers (LSTM, GRU, RNN) among them keep int8 weights and compute in float.
        equalize: equalize the ranges of channels across layers first (Nagel et al. 2019, arXiv:1906.04721).
        smooth: how much of the range of activations moves into the weights of linears, 0 to 1 (SmoothQuant, arXiv:2211.10438, uses
            0.5); None leaves it.
        bias_correction: takes the mean error of each layer out of its bias: ``"analytic"``, that of its rounded weights, which takes
            a moment, or ``"empirical"``, also that of its inputs; ``"none"`` does not.
        adaround: learn for every weight whether to round it up or down (arXiv:2004.10568); takes minutes.
        evaluate: ``evaluate(module)`` gives a score, higher is better, of a module with the signature of the model.
        max_drop: how much of that score may be lost; the most sensitive layers stay in float until it holds.
        min_sqnr: without ``evaluate``: the least signal-to-quantization-noise ratio of the outputs in dB, kept in the same way.
        batches: how many batches of the calibration data are used; None for all.
        speed: what decides whether a layer gains from int8: ``"table"``, ``"measure"`` (on this machine, kept in a cache), or
            ``"none"``: every layer that can be int8 is, and the int8 form is kept also where it is slower than float.

    Raises:
        InputError: a value makes no sense; the message says what to write.
    """

    bits: int = 8
    weight_bits: int = 8
    observer: ObserverName = "sqnr"
    weight_observer: WeightObserverName = "min-max"
    ignore: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    static: bool = True
    weight_only: tuple[str, ...] = ()
    storage: Storage = "int8"
    dynamic: tuple[str, ...] = ()
    equalize: bool = False
    smooth: float | None = None
    bias_correction: BiasCorrection = "analytic"
    adaround: bool = False
    evaluate: Callable[[nn.Module], float] | None = None
    max_drop: float | None = None
    min_sqnr: float | None = None
    batches: int | None = None
    speed: Speed = "table"

    def __post_init__(self) -> None:
        for name in ("bits", "weight_bits"):
            _check_bits(name, getattr(self, name))
        for name, known in _CHOICES.items():
            _check_choice(name, getattr(self, name), known)
        for name in ("ignore", "only", "weight_only", "dynamic"):
            _check_patterns(name, getattr(self, name))
        for name in ("static", "equalize", "adaround"):
            _check_flag(name, getattr(self, name))
        self._check_smooth()
        self._check_budget()
        if self.batches is not None and not _is_count(self.batches):
            raise InputError(f"batches={self.batches!r} is not a count", hint="write a whole number of at least 1, or None for all")
        if not self.static and not self.weight_only and not self.dynamic:
            raise InputError("Int8(static=False) quantizes nothing", hint='name layers: weight_only=("*",) or dynamic=("*",)')

    @property
    def has_budget(self) -> bool:
        """Whether layers go back to float until the numbers are good enough."""
        return self.max_drop is not None or self.min_sqnr is not None

    def _check_smooth(self) -> None:
        if self.smooth is not None and not (_is_number(self.smooth) and 0 <= self.smooth <= 1):
            raise InputError(f"smooth={self.smooth!r} is not a share", hint="write a number from 0 to 1, e.g. 0.5, or None")

    def _check_budget(self) -> None:
        if self.max_drop is not None and not (_is_number(self.max_drop) and self.max_drop >= 0):
            raise InputError(f"max_drop={self.max_drop!r} is no loss", hint="write how much of the score may be lost, e.g. 0.01")
        if self.min_sqnr is not None and not _is_number(self.min_sqnr):
            raise InputError(f"min_sqnr={self.min_sqnr!r} is no number", hint="write decibels, e.g. 20")
        if self.evaluate is not None and not callable(self.evaluate):
            raise InputError(
                f"evaluate is a {type(self.evaluate).__name__}",
                hint="pass a function that takes a module and gives its score, higher is better",
            )
        if self.max_drop is not None and self.evaluate is None:
            raise InputError("max_drop without evaluate", hint="pass evaluate=function of a module, or ask for min_sqnr instead")
        if self.evaluate is not None and self.max_drop is None:
            raise InputError("evaluate without max_drop", hint="write how much of the score may be lost, e.g. max_drop=0.01")
        if self.max_drop is not None and self.min_sqnr is not None:
            raise InputError("both max_drop and min_sqnr are given", hint="choose one of them")
        if self.has_budget and not self.static:
            raise InputError("a budget without static int8", hint="leave out static=False, or max_drop and min_sqnr")


_CHOICES: dict[str, tuple[str, ...]] = {
    "observer": get_args(ObserverName),
    "weight_observer": get_args(WeightObserverName),
    "storage": get_args(Storage),
    "bias_correction": get_args(BiasCorrection),
    "speed": get_args(Speed),
}


def as_int8(asked: object) -> Int8:
    """The options that ``"int8"``, True or options stand for.

    Raises:
        InputError: it is none of these.
    """
    if isinstance(asked, Int8):
        return asked
    if asked is True or (isinstance(asked, str) and asked.strip().lower() == "int8"):
        return Int8()
    raise InputError(f"cannot quantize by {asked!r}", hint='write quantize="int8" or quantize=fxcompress.Int8(...)')


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _check_bits(name: str, value: Any) -> None:
    if not _is_count(value) or not 2 <= value <= 8:
        raise InputError(f"{name}={value!r} is no width of integers", hint="write 2 to 8; the kernels compute with 8")


def _check_flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise InputError(f"{name}={value!r} is neither True nor False", hint=f"write {name}=True")


def _check_choice(name: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        near = difflib.get_close_matches(str(value), known, n=1)
        first = f"did you mean '{near[0]}'? " if near else ""
        raise InputError(f"{name}={value!r} is unknown", hint=f"{first}write one of {', '.join(known)}")


def _check_patterns(name: str, value: object) -> None:
    if not (isinstance(value, tuple) and all(isinstance(pattern, str) and pattern for pattern in value)):
        raise InputError(f"{name}={value!r} is not a tuple of patterns", hint=f'write {name}=("head.*",)')
