"""Finds how much to prune so that the network costs what it may."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fxcompress.analysis.channels import ChannelDependencyGraph, ChannelGroup, Mask
from fxcompress.errors import InputError
from fxcompress.pruning.clock import Clock, MachineClock
from fxcompress.pruning.criteria import Scores
from fxcompress.pruning.latency import LatencyModel, LatencyTable
from fxcompress.pruning.options import Prune
from fxcompress.pruning.predict import predicted
from fxcompress.pruning.rounding import Width
from fxcompress.pruning.search import Search, shown
from fxcompress.pruning.slicing import sliced
from fxcompress.targets.latency_cache import cache_path

_STEP = 0.01  # of the ratio
_STAIR = 16  # channels; the widest block of a kernel
_FREE = 1.002  # what costs no more than this much does not count
_MARGIN = 1.01  # how much slower than measured a network counts that was too slow, so that the next one is faster
_FEW = 12  # layers that may read one group for it to be widened
_TRIES, _MOST_TRIES = 3, 5  # networks that are sliced and measured for a latency; the more as long as none fits
_NEAR = 0.95  # a measured latency between this share of the limit and the limit is as good as it gets


@dataclass(frozen=True)
class Fitted:
    """A choice of channels that fits a budget.

    Attributes:
        keep: one flag per class.
        latency: measured seconds before and after, where the budget limits them.
        remarks: what should be known about the measurements.
    """

    keep: Mask
    latency: tuple[float, float] | None = None
    remarks: tuple[str, ...] = ()


def fit(deps: ChannelDependencyGraph, options: Prune, scores: Scores, measure: Clock | None = None) -> Mask:
    """The channels to keep so that all limits of ``options.budget`` hold; see :func:`fitted`."""
    return fitted(deps, options, scores, measure).keep


def fitted(
    deps: ChannelDependencyGraph,
    options: Prune,
    scores: Scores,
    measure: Clock | None = None,
    cache: Path | None = None,
) -> Fitted:
    """Bisects the ratio of :func:`~fxcompress.pruning.select.select` until all limits of ``options.budget`` hold.

    The ratio is the smallest with which they hold; of the groups that lose a rounding step just there, those keep it that can.
    A latency is found on the predictions of :class:`~fxcompress.pruning.latency.LatencyModel`; then the sliced network is
    measured, the prediction corrected, and the search repeated until the measured latency fits.

    Args:
        scores: one per class of ``deps``.
        measure: what times layers and networks; None for this machine.
        cache: a file that keeps layer times. Without ``measure`` it is by default the user's own.

    Raises:
        InputError: there is no budget, or it cannot be reached; the message says how far one can go.
    """
    if options.budget is None:
        raise InputError("there is no budget to fit", hint='write Prune(budget=Budget(macs="-40%"))')
    if options.budget.latency is None:
        return Fitted(Search(deps, options, scores).run())
    clock = MachineClock.of(deps.module) if measure is None else measure
    model = LatencyModel(deps, LatencyTable(clock, cache=cache_path() if measure is None and cache is None else cache))
    return _measured(LatencySearch(deps, options, scores, model), model)


class LatencySearch(Search):
    """The search with a predicted latency among the costs.

    It first goes by the grid of the latency table, and then around what it found by layers that are measured at their
    own widths.
    """

    def __init__(self, deps: ChannelDependencyGraph, options: Prune, scores: Scores, model: LatencyModel) -> None:
        self.model, self._exact = model, False
        self._costs: dict[bytes, dict[str, float]] = {}
        super().__init__(deps, options, scores)

    def costs(self, keep: Mask) -> dict[str, float]:
        key = keep.tobytes()
        if key not in self._costs:
            self._costs[key] = {**super().costs(keep), "latency": self.model.seconds(keep, exact=self._exact)}
        return self._costs[key]

    def _go(self, exact: bool) -> None:
        """From now on by layers at their own widths, or by the grid."""
        self._exact, self._costs = exact, {}

    def run(self) -> Mask:
        """See :meth:`Search.run`; then groups are wider by a stair of the kernels where that takes no time, and where it fits."""
        self._go(exact=False)
        if self.holds(self.at(0.0)):
            return self.at(0.0)
        if not self.holds(self.at(self.top)):
            raise self.unreachable(self.costs(self.at(self.top)))
        low, high = self.narrowed(0.0, self.top)
        self._go(exact=True)
        keep = self._widened(self.refined(*self.narrowed(*self._around(low, high))), (_STAIR // 2, _STAIR), self._is_free)
        stair = self.model.stair
        if stair > self.options.multiple:
            keep = self._narrower(keep, stair)
        return self._widened(keep, (stair,), lambda wider, _: self.holds(wider))

    def _around(self, low: float, high: float) -> tuple[float, float]:
        """Two ratios near the given ones of which only the larger fits by the layers' own times."""
        step = _STEP
        if self.holds(self.at(high)):
            while low > 0 and self.holds(self.at(low)):
                low, high, step = max(0.0, low - step), low, 2 * step
            return low, high
        while not self.holds(self.at(high)):
            if high == self.top:
                raise self.unreachable(self.costs(self.at(high)))
            low, high, step = high, min(self.top, high + step), 2 * step
        return low, high

    def _widened(self, keep: Mask, stairs: Sequence[int], accepts: Callable[[Mask, Mask], bool]) -> Mask:
        """Widen groups to the next stairs of the kernels where ``accepts(wider, keep)``, the most important ones first."""
        open_ = [(group, widths) for group, widths in self._alone() if not keep[group.classes].all()]
        for group, widths in sorted(open_, key=lambda item: -float(self.selector.scores[self._removed(item[0], keep)[0]])):
            for stair in stairs:
                wider = keep.copy()
                wider[self._step(group, widths, keep, stair)] = True
                if self._is_worth_a_look(wider, keep) and accepts(wider, keep):
                    keep = wider
        return keep

    def _narrower(self, keep: Mask, stair: int) -> Mask:
        """Let groups that stand in the middle of a stair go down to its foot: what they lose there, others gain where it counts."""
        for group, widths in self._alone():
            kept = group.classes[keep[group.classes]]
            least = kept[np.argsort(-self.selector.place[kept])]
            narrower = keep.copy()
            for count in range(min(stair, len(kept) // 4 + 1)):
                narrower[least[:count]] = False
                left = self._left(group, widths, narrower)
                if left and left[0][1] % stair == 0 and self._is_round(left):
                    if self._is_worth_a_look(narrower, keep) and self.costs(narrower)["latency"] < self.costs(keep)["latency"]:
                        keep = narrower
                    break
        return keep

    def _alone(self) -> list[tuple[ChannelGroup, Sequence[Width]]]:
        """Groups that may change and share no width with others, with their widths."""
        components = [(groups[0], widths) for groups, widths in self.selector.widths.components() if len(groups) == 1]
        return [(self.deps.groups[g], widths) for g, widths in components if not self.selector.frozen[g]]

    def _is_worth_a_look(self, other: Mask, keep: Mask) -> bool:
        """Whether there is a change, and not too much to measure: in a dense block every later layer would be measured anew."""
        affected = self.model.affected(keep, other)
        return affected > 0 and (affected <= _FEW or self.model.table.exhausted)

    def _is_free(self, wider: Mask, keep: Mask) -> bool:
        before, after = self.costs(keep)["latency"], self.costs(wider)
        within = all(after[what] <= cap for what, cap in self.caps.items() if what != "latency")
        return within and after["latency"] <= _FREE * min(before, self.caps["latency"])

    def _removed(self, group: ChannelGroup, keep: Mask) -> NDArray[np.int64]:
        """The classes of a group that go, the most important first."""
        removed = group.classes[~keep[group.classes]]
        return removed[np.argsort(self.selector.place[removed])]

    def _step(self, group: ChannelGroup, widths: Sequence[Width], keep: Mask, stair: int) -> NDArray[np.int64]:
        """The most important removed classes that bring the group to the next multiple of ``stair`` and keep its widths round."""
        removed = self._removed(group, keep)
        wider = keep.copy()
        for count in range(1, min(len(removed), stair) + 1):
            wider[removed[:count]] = True
            left = self._left(group, widths, wider)
            if left and left[0][1] % stair == 0 and self._is_round(left):
                return removed[:count]
        return removed[:0]

    def _left(self, group: ChannelGroup, widths: Sequence[Width], keep: Mask) -> list[tuple[int, int]]:
        """For every width of the group, all its channels and those that remain."""
        lost = int((~keep[group.classes]).sum())
        return [(width.total, width.total - lost * width.times[0]) for width in widths]

    def _is_round(self, left: Sequence[tuple[int, int]]) -> bool:
        return all(self.selector.rule.allows(total, np.array([n]))[0] for total, n in left)


def _measured(search: LatencySearch, model: LatencyModel) -> Fitted:
    """Search, slice, measure, and correct the prediction by what was measured."""
    cap, table = search.caps["latency"], model.table
    tried: list[tuple[float, Mask]] = []
    for attempt in range(_MOST_TRIES):
        found = any(seconds <= cap for seconds, _ in tried)
        if found and attempt >= _TRIES:
            break
        try:
            keep = search.run()
        except InputError:
            if found:
                break
            table.store()
            raise
        if any(np.array_equal(keep, known) for _, known in tried):
            break
        module = search.deps.module if keep.all() else sliced(search.deps, keep)
        seconds = model.unpruned if keep.all() else model.measure(module)
        tried.append((seconds, keep))
        if _NEAR * cap <= seconds <= cap or (keep.all() and seconds <= cap):
            break
        model.correct(keep, seconds if seconds <= cap else _MARGIN * seconds)
    table.store()
    return _best(tried, cap, search, model)


def _best(tried: list[tuple[float, Mask]], cap: float, search: LatencySearch, model: LatencyModel) -> Fitted:
    """The least pruned of the networks that fit as measured, else the fastest."""
    fitting = [item for item in tried if item[0] <= cap]
    if fitting:
        seconds, keep = max(fitting, key=lambda item: predicted(search.deps, item[1]).macs)
    else:
        seconds, keep = min(tried, key=lambda item: item[0])
    remarks = list(model.table.remarks)
    if not fitting:
        remarks.append(f"the latency was measured at {shown('latency', seconds)}, over the {shown('latency', cap)} asked for")
    return Fitted(keep, (model.unpruned, seconds), tuple(remarks))
