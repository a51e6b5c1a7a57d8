"""The observers by name."""

from __future__ import annotations

from fxcompress.errors import InputError
from fxcompress.quant.observers_base import Observer
from fxcompress.quant.observers_entropy import Entropy
from fxcompress.quant.observers_histogram import Histogram
from fxcompress.quant.observers_percentile import Percentile
from fxcompress.quant.observers_ranges import MinMax, MovingAverage
from fxcompress.quant.observers_sqnr import Sqnr

__all__ = ["OBSERVERS", "Entropy", "Histogram", "MinMax", "MovingAverage", "Observer", "Percentile", "Sqnr", "observer"]

OBSERVERS: dict[str, type[Observer]] = {kind.name: kind for kind in (MinMax, MovingAverage, Percentile, Histogram, Sqnr, Entropy)}
"""Every kind of observer, by the name that options use."""


def observer(name: str, bits: int = 8) -> Observer:
    """A fresh observer.

    Args:
        name: ``min-max``, ``moving-average``, ``percentile``, ``histogram``, ``sqnr`` or ``entropy``.
        bits: of the quantized value, 2 to 8.

    Raises:
        InputError: there is none of this name, or activations cannot have so many bits.
    """
    if name not in OBSERVERS:
        raise InputError(f"there is no observer '{name}'", hint=f"choose from {', '.join(OBSERVERS)}")
    return OBSERVERS[name](bits)
