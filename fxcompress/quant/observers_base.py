"""What every observer is: a module that gives its input back and, while switched on, remembers what it saw."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor, nn

from fxcompress.errors import InputError
from fxcompress.quant.affine import QParams

__all__ = ["Observer", "pieces"]

_PIECE = 2**18
"""Numbers to count at a time on a CPU: the temporaries stay in the cache of one core."""


class Observer(nn.Module):
    """Stands on a value of the graph and decides how it is quantized. Base of all observers.

    What it remembers is the least and the largest number seen and some integer sums, so two observers join exactly: the
    result depends neither on the order of the data nor on how it is spread over observers or processes. Off (``enabled``
    is False) until calibration switches it on. A value that was never seen gets scale 1.

    Subclasses set ``name`` and ``size`` and implement ``range`` and, if they keep sums, ``_count``.

    Attributes:
        bits: of the quantized value, 2 to 8.
        low, high: the least and the largest finite number seen, as float32 holds it; inf and -inf before the first.
        seen: how many numbers were seen.
        nonfinite: how many more were NaN or infinite in float32.
        inputs: how many inputs of the network the next value holds along its first axis, for observers that tell them apart.
    """

    name: ClassVar[str]
    size: ClassVar[int] = 0
    """How many integer sums it keeps, int64."""

    def __init__(self, bits: int = 8) -> None:
        super().__init__()
        if not 2 <= bits <= 8:
            raise InputError(f"{bits} bits per value", hint="activations have 2 to 8 bits")
        self.bits = bits
        self.enabled = False
        self.inputs = 1
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.low, self.high = math.inf, -math.inf
        self.seen = self.nonfinite = 0
        self._sums: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """``x`` itself."""
        if self.enabled:
            self.observe(x)
        return x

    def observe(self, x: Tensor) -> None:
        """Remember a floating-point tensor of any shape. One with NaN or infinite numbers is only counted in ``nonfinite``.

        Raises:
            InputError: it holds integers or complex numbers.
        """
        if not x.is_floating_point():
            raise InputError(f"an observer got a {x.dtype} tensor", hint="only floating-point values are quantized")
        if not x.numel():
            return
        x = _dense(x.detach().float())
        least, largest = (bound.item() for bound in torch.aminmax(x))
        if not (math.isfinite(least) and math.isfinite(largest)):
            self.nonfinite += int((~x.isfinite()).sum())
            return
        self.seen += x.numel()
        self.widen(least, largest)
        self._count(x, least, largest)

    def qparams(self) -> QParams:
        """The quantization for what was seen.

        Raises:
            InputError: NaN or infinite numbers were seen.
        """
        if self.nonfinite:
            hint = "look for the batch that makes them, or keep the operations around this value in float"
            raise InputError(f"{self.nonfinite} numbers are NaN or infinite", hint=hint)
        if not self.seen:
            return QParams(1.0, 0, self.bits)
        return QParams.of_range(*self.range(), self.bits)

    def range(self) -> tuple[float, float]:
        """The numbers to cover, lowest and highest; asked only after some were seen."""
        raise NotImplementedError

    def doubt(self) -> str | None:
        """Why the result stands on weak ground, None if it does not."""
        if not self.seen:
            return "it was never seen in calibration: scale 1 is assumed"
        if self.low == self.high:
            return f"it is {self.low:.6g} everywhere in the calibration data"
        return None

    def merge(self, other: Observer) -> None:
        """Remember also what ``other`` saw, exactly as if this one had seen it; ``other`` stays as it is.

        Raises:
            InputError: they are of different kinds.
        """
        if other.kind() != self.kind():
            raise InputError(f"{other.kind()} cannot be joined to {self.kind()}", hint="join observers of one kind and number of bits")
        self.widen(other.low, other.high)
        self.set_sums(self.sums() + other.sums_within(self.low, self.high))

    def kind(self) -> str:
        """Text that is equal for observers that can be joined."""
        return f"{self.name}({self.bits} bits)"

    # What is exchanged between processes: first the extremes by maximum, then, with equal extremes, the sums by addition.

    def extremes(self) -> Tensor:
        """float64 (2,): -low and high, to be joined by maximum."""
        return torch.tensor([-self.low, self.high], dtype=torch.float64)

    def widen(self, low: float, high: float) -> None:
        """Take numbers from ``low`` to ``high`` for seen somewhere, without counting any."""
        self.low, self.high = min(self.low, low), max(self.high, high)

    def sums(self) -> Tensor:
        """int64 (2 + size,): seen, nonfinite and the sums; of observers with equal extremes they add up."""
        counts = torch.tensor([self.seen, self.nonfinite], dtype=torch.int64)
        return torch.cat([counts, self.tallies])

    def set_sums(self, sums: Tensor) -> None:
        """Replace all sums, in the form that ``sums`` gives."""
        self.seen, self.nonfinite = int(sums[0]), int(sums[1])
        self._sums = sums[2:].clone()

    def sums_within(self, low: float, high: float) -> Tensor:
        """``sums()`` as they would be if the numbers from ``low`` to ``high`` had been seen too; nothing changes."""
        return self.sums()

    @property
    def tallies(self) -> Tensor:
        """int64 (size,): the sums of the subclass, on the CPU."""
        return torch.zeros(self.size, dtype=torch.int64) if self._sums is None else self._sums

    def _count(self, x: Tensor, least: float, largest: float) -> None:
        """Add finite float32 numbers (n,) of this range to the sums; ``low`` and ``high`` include them already."""

    def extra_repr(self) -> str:
        span = f", {self.low:.6g} to {self.high:.6g}" if self.seen else ""
        return f"{self.bits} bits{span}"


def _dense(x: Tensor) -> Tensor:
    """All numbers of ``x`` in the order in which they lie in memory: no copy where it has no gaps."""
    order = sorted(range(x.dim()), key=x.stride, reverse=True)
    return x.permute(order).reshape(-1)


def pieces(x: Tensor) -> Iterable[Tensor]:
    """``x`` (n,) in pieces that are fast to count."""
    return x.split(_PIECE) if x.device.type == "cpu" else (x,)
