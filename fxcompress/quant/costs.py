"""What things cost, for the decision what computes with integers: whole nanoseconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

__all__ = ["Costs", "LayerTimes"]

LayerTimes = Callable[[nn.Module, tuple[int, ...]], tuple[float, float]]
"""(layer, shape of its input) -> seconds in float32 and in int8."""

_ALWAYS = 10**12
"""Nanoseconds that no network takes."""


@dataclass(frozen=True)
class Costs:
    """Prices of layers, conversions and moves.

    The defaults were measured with one thread on a Zen 4 core, with tensors of 50,000 to 800,000 numbers. Only their ratios matter.

    Attributes:
        layers: times of layers; None says that integers are always better.
        call: nanoseconds that one more call takes.
        quantize, dequantize: nanoseconds per number.
        as_float: how much longer one number is read or written as float than as integer.
        map_float, map_integers: an addition or a product of two tensors, per number.
    """

    layers: LayerTimes | None = None
    call: int = 4000
    quantize: float = 0.1
    dequantize: float = 0.07
    as_float: float = 0.025
    map_float: float = 0.1
    map_integers: float = 0.25

    @property
    def compares(self) -> bool:
        """Whether times of layers are known."""
        return self.layers is not None

    def to_integers(self, numel: int) -> int:
        """A Quantize of so many numbers."""
        return self.call + int(self.quantize * numel)

    def to_float(self, numel: int) -> int:
        """A Dequantize of so many numbers."""
        return self.call + int(self.dequantize * numel)

    def extra_float(self, numel: int) -> int:
        """How much longer it takes to read or write so many numbers as float."""
        return int(self.as_float * numel)

    def map(self, numel: int) -> tuple[int, int]:
        """An elementwise operation with a result of so many numbers, in float and in integers."""
        return int(self.map_float * numel), int(self.map_integers * numel)

    def layer(self, layer: nn.Module, shape: tuple[int, ...]) -> tuple[int, int]:
        """In float and in integers."""
        if self.layers is None:
            return _ALWAYS, 0
        in_float, in_integers = self.layers(layer, shape)
        return round(in_float * 1e9), round(in_integers * 1e9)
