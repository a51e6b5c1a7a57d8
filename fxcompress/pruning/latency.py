"""How long a network will take after a removal: from a table of layer times, measured when they are asked for.

The time of a layer is a staircase over its widths, since kernels work in blocks of channels, and the height of the steps is
known only to the machine. A table therefore measures layers of the shapes at hand: first on a coarse grid of widths, between
which it interpolates, and near a solution at the widths themselves. What a network takes beyond its layers (activations, pools,
the calls themselves) is the rest of its own measured time.
"""

from __future__ import annotations

import bisect
import math
from pathlib import Path

import numpy as np
from torch.fx import GraphModule, Node

from fxcompress.analysis import Shapes
from fxcompress.analysis.channels import ChannelDependencyGraph, Mask
from fxcompress.ir.ops import Trait
from fxcompress.ir.view import spec_of
from fxcompress.pruning.clock import Clock
from fxcompress.pruning.counts import Counted, Counts, Products
from fxcompress.pruning.layer import Layer, Site, placed_layers
from fxcompress.targets import latency_cache

_GRID = (1, 2, 3, 4, 6, 8, 12, *(width for power in range(4, 21) for width in (1 << power, 3 << power - 1)))
_MOST = 600  # layers measured for one network, ...
_SECONDS = 2.0  # ... and the sum of their times (each is run several times); then times are guessed by multiply-adds
_BLOCK = 16  # channels; the widest block of a kernel
_PROBED = 5  # layers at which its stairs are looked for


class LatencyTable:
    """Seconds of layers by shape.

    Args:
        clock: what measures.
        cache: a file that keeps times between processes, or None. It is never needed; why one could not be used or written
            stands in ``remarks``.
        most, seconds: how many layers are measured at most, and how long one call of each takes in total.

    Attributes:
        stair: output channels in one step of the kernels, where that is known; times between steps are those of the next one.
    """

    def __init__(self, clock: Clock, *, cache: Path | None = None, most: int = _MOST, seconds: float = _SECONDS) -> None:
        self.clock, self.cache, self.most, self.most_seconds = clock, cache, most, seconds
        self.stair = 1
        self.remarks: list[str] = []
        self._sites: dict[Site, SiteTimes] = {}
        self._measured: dict[str, float] = {}
        self._known: dict[str, float] = {}
        self._seconds = 0.0  # of what was measured
        if cache is not None:
            self._known, problem = latency_cache.load(cache, clock.machine)
            self._remark(problem)

    @property
    def measurements(self) -> int:
        """How many layers were measured; what the cache knew is not among them."""
        return len(self._measured)

    @property
    def exhausted(self) -> bool:
        """Whether nothing is measured any more."""
        return self.measurements >= self.most or self._seconds >= self.most_seconds

    def site(self, site: Site) -> SiteTimes:
        """The times of one kind of layer."""
        return self._sites.setdefault(site, SiteTimes(self, site))

    def measured(self, layer: Layer, *, always: bool = False) -> float | None:
        """The time of a layer; None when it is not known and nothing is measured any more."""
        name = str(layer)
        if name not in self._known:
            if self.exhausted and not always:
                return None
            self._known[name] = self._measured[name] = self.clock.layer(layer)
            self._seconds += self._known[name]
        return self._known[name]

    def store(self) -> None:
        """Write what was measured to the cache file, if there is one."""
        if self.cache is not None and self._measured:
            self._remark(latency_cache.save(self.cache, self.clock.machine, self._measured))

    def _remark(self, text: str | None) -> None:
        if text is not None:
            self.remarks.append(text)


class SiteTimes:
    """Seconds of one kind of layer by its widths."""

    def __init__(self, table: LatencyTable, site: Site) -> None:
        self.table, self.site = table, site
        self._times: dict[tuple[int, int], float] = {}
        self._learned: set[tuple[int, int]] = set()
        self._corners: dict[tuple[int, int], float] = {}  # what was measured

    def seconds(self, first: int, second: int) -> float:
        """The time at these widths: measured if :meth:`learn` was called for them, else interpolated on the grid."""
        key = (first, second)
        if key not in self._times:
            self._times[key] = self._interpolated(first, second)
        return self._times[key]

    def learn(self, first: int, second: int) -> None:
        """Measure at exactly these widths, if anything is measured still."""
        key = (first, second)
        if key not in self._learned:
            found = self.table.measured(self.site.layer(first, second))
            if found is not None:
                self._learned.add(key)
                self._times[key] = self._corners[key] = found

    def _interpolated(self, first: int, second: int) -> float:
        """On the grid, at the end of the stair that ``second`` stands on."""
        stair = self.table.stair
        if self.site.unit.outputs == 1 and not self.site.whole and second > stair:
            second = -(-second // stair) * stair
        return sum(share_a * share_b * self._corner(a, b) for a, share_a in _around(first) for b, share_b in _around(second))

    def _corner(self, first: int, second: int) -> float:
        """Measured; or when nothing is measured any more, that of the nearest known widths, in proportion to the multiply-adds."""
        key, layer = (first, second), self.site.layer(first, second)
        if key not in self._corners:
            found = self.table.measured(layer, always=not self._corners)
            if found is None:
                a, b = min(sorted(self._corners), key=lambda w: abs(math.log(w[0] / first)) + abs(math.log(w[1] / second)))
                return self._corners[a, b] * layer.macs / self.site.layer(a, b).macs
            self._corners[key] = found
        return self._corners[key]


def _around(width: int) -> list[tuple[int, float]]:
    """The grid widths around ``width`` and the share of each."""
    place = bisect.bisect_left(_GRID, width)
    if place == len(_GRID) or width <= 0 or _GRID[place] == width:
        return [(width, 1.0)]
    below, above = _GRID[place - 1], _GRID[place]
    share = (width - below) / (above - below)
    return [(below, 1 - share), (above, share)]


class LatencyModel:
    """Predicts the latency of one graph for any choice of channels.

    The layers' times add up; the rest of the measured time goes with the number of elements that the other operations
    give. Where the layers alone take longer than the network, all of them are scaled.

    Attributes:
        unpruned: measured seconds of the network as it is.
        stair: output channels in one step of the kernels: 16 where 8 fewer than a multiple of 16 save next to nothing, else 8.
    """

    def __init__(self, deps: ChannelDependencyGraph, table: LatencyTable) -> None:
        self.deps, self.table = deps, table
        self.counts = Counts(deps)
        self.layers = placed_layers(deps, self.counts)
        self._others = _other_work(deps, self.counts, {layer.node for layer in self.layers})
        self._times = [table.site(layer.site) for layer in self.layers]
        self._form = table.clock.deployed(deps.module, deps.inputs)
        (self.unpruned,) = table.clock.race([self._form])
        everything = self.counts(np.ones(deps.classes, dtype=bool))
        self._learn(everything)
        self.stair = self._stair(everything)
        table.stair = self.stair if self.stair == _BLOCK else 1
        layers, self._work = self._layers(everything), self._other(everything)
        self._rest = max(0.0, self.unpruned - layers)
        self._factor = min(1.0, self.unpruned / layers) if layers else 1.0

    def seconds(self, keep: Mask, *, exact: bool = False) -> float:
        """Predicted seconds of one run; for the unpruned network, what was measured.

        Args:
            exact: measure the layers that are new at their own widths, instead of interpolating.
        """
        counted = self.counts(keep)
        if exact:
            self._learn(counted)
        rest = self._rest * self._other(counted) / self._work if self._work else self._rest
        return self._factor * (self._layers(counted) + rest)

    def _learn(self, counted: Counted) -> None:
        for layer, times in zip(self.layers, self._times, strict=True):
            times.learn(*layer.widths(counted))

    def _stair(self, everything: Counted) -> int:
        """The step is looked for at the layers that take longest."""
        dense = [i for i, layer in enumerate(self.layers) if layer.site.unit.outputs == 1 and not layer.site.whole]
        wide = {(self._times[i], *self.layers[i].widths(everything)) for i in dense}
        costly = sorted((w for w in wide if w[2] >= 3 * _BLOCK), key=lambda w: (-w[0].seconds(*w[1:]), str(w[0].site)))[:_PROBED]
        flat = 0
        for times, first, second in costly:
            top = second // _BLOCK * _BLOCK
            steps = (top - _BLOCK, top - _BLOCK // 2, top)
            for width in steps:
                times.learn(first, width)
            low, middle, high = (times.seconds(first, width) for width in steps)
            flat += high - middle < 0.25 * (high - low)
        return _BLOCK if 2 * flat > len(costly) else _BLOCK // 2

    def affected(self, keep: Mask, other: Mask) -> int:
        """How many layers have other widths in one choice than in the other."""
        one, two = self.counts(keep), self.counts(other)
        return sum(layer.widths(one) != layer.widths(two) for layer in self.layers)

    def measure(self, module: GraphModule) -> float:
        """Seconds of a pruned form of the graph, measured beside the unpruned one: machines drift, ratios hold."""
        before, after = self.table.clock.race([self._form, self.table.clock.deployed(module, self.deps.inputs)])
        return self.unpruned * after / before

    def correct(self, keep: Mask, measured: float) -> None:
        """Make the prediction right for this choice, whose network took ``measured`` seconds."""
        self._factor *= measured / self.seconds(keep)

    def _layers(self, counted: Counted) -> float:
        placed = zip(self.layers, self._times, strict=True)
        return sum(layer.share(counted) * times.seconds(*layer.widths(counted)) for layer, times in placed)

    def _other(self, counted: Counted) -> int:
        return int(self._others(counted).sum())


def _other_work(deps: ChannelDependencyGraph, counts: Counts, layers: set[Node]) -> Products:
    """The elements that operations give which are not in the table and do more than look at their input."""
    shapes = deps.analyses.get(Shapes)
    work = Products()
    for node in deps.module.graph.nodes:
        spec = spec_of(node)
        free = node in layers or not node.op.startswith("call_") or (spec is not None and spec.traits & {Trait.VIEW, Trait.META})
        if not free and shapes.shape(node) is not None:
            work.add(counts.node(node))
    return work
