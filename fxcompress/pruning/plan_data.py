"""What a pruning plan holds, as frozen plain data."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fxcompress.ir.snapshot import Structure
from fxcompress.pruning import ranges
from fxcompress.pruning.input_spec import InputSpec

Setting = int | tuple[int, ...]


@dataclass(frozen=True)
class Costs:
    """What a network needs: elements of parameters, multiply-adds on the example inputs, bytes of parameters and buffers,
    and seconds of one run where they are known."""

    params: int
    macs: int
    weight_bytes: int
    latency: float | None = None


@dataclass(frozen=True)
class PlanSlot:
    """One axis of a parameter or buffer, of ``size`` indices.

    ``channels``: the indices that belong to the group; ``kept``: which of these remain, counted from 0, so that most
    slots of a group have the same text. Both are ranges (:mod:`fxcompress.pruning.ranges`).
    """

    parameter: str
    axis: int
    role: str
    size: int
    channels: str
    kept: str

    def removed(self) -> NDArray[np.bool_]:
        """One flag per index of the axis: does it go?"""
        own = ranges.decode(self.channels)
        flags = np.zeros(self.size, dtype=bool)
        flags[own[~ranges.mask(self.kept, len(own))]] = True
        return flags


@dataclass(frozen=True)
class PlanGroup:
    """Channels that live in the same slots.

    Attributes:
        name: the module or parameter that produces them; unique in its part.
        channels: how many there are.
        kept: which of them remain, counted from 0 in the order of the classes of the dependency graph; ranges.
        importance: one number per channel, three digits; empty when there were no scores.
        reason: why as many remain as do, when there is something to say.
        alone: what the network would cost if only this group lost its channels.
    """

    name: str
    channels: int
    kept: str
    slots: tuple[PlanSlot, ...]
    importance: tuple[float, ...] = ()
    reason: str = ""
    alone: Costs | None = None

    @property
    def remaining(self) -> int:
        return ranges.count(self.kept)

    @property
    def producers(self) -> tuple[str, ...]:
        """The parameters that make the channels."""
        return tuple(slot.parameter for slot in self.slots if slot.role == "producer")

    @property
    def consumers(self) -> tuple[str, ...]:
        """The parameters that read them."""
        return tuple(slot.parameter for slot in self.slots if slot.role == "consumer")


@dataclass(frozen=True)
class PlanPinned:
    """``count`` indices of an axis that can never be removed, and why."""

    parameter: str
    axis: int
    count: int
    why: str
    node: str
    source: str | None = None


@dataclass(frozen=True)
class PlanStatistic:
    """A statistic that runs over fewer channels than before: there the function itself changes."""

    node: str
    axis: int
    source: str | None = None


@dataclass(frozen=True)
class PlanModule:
    """Settings of a module that follow its smaller weights: name, value before, value after."""

    path: str
    kind: str
    settings: tuple[tuple[str, Setting, Setting], ...]


@dataclass(frozen=True)
class PlanRewrite:
    """A number that stands in the graph and has to change: ``before`` and ``after`` are the operands of its node."""

    node: str
    before: str
    after: str
    source: str | None = None


@dataclass(frozen=True)
class PlanPart:
    """The plan of one graph: that of the whole network (path "") or of the submodule ``path``."""

    path: str
    nodes: tuple[str, ...]
    tensors: tuple[str, ...]
    inputs: InputSpec
    groups: tuple[PlanGroup, ...]
    pinned: tuple[PlanPinned, ...] = ()
    statistics: tuple[PlanStatistic, ...] = ()
    modules: tuple[PlanModule, ...] = ()
    rewritten: tuple[PlanRewrite, ...] = ()
    before: Costs | None = None
    after: Costs | None = None

    @cached_property
    def structure(self) -> Structure:
        """The graph for which the plan was made."""
        return Structure(self.nodes, self.tensors)

    def full_name(self, name: str) -> str:
        """The name in the whole network of something in this part."""
        return f"{self.path}.{name}" if self.path and name else self.path or name
