"""The search for the least pruned choice of channels whose cost stays within given limits."""

from __future__ import annotations

import numpy as np

from fxcompress.analysis.channels import ChannelDependencyGraph, Mask
from fxcompress.errors import InputError
from fxcompress.pruning.criteria import Scores
from fxcompress.pruning.options import Prune
from fxcompress.pruning.predict import predicted
from fxcompress.pruning.select import Selector

FINEST = 2.0**-16  # ratios closer than this choose the same channels


class Search:
    """The search on predicted costs. ``caps`` holds the limits as numbers, in the units of :meth:`costs`."""

    def __init__(self, deps: ChannelDependencyGraph, options: Prune, scores: Scores) -> None:
        assert options.budget is not None
        self.deps, self.options = deps, options
        self.budget, self.limits = options.budget, options.budget.limits()
        self.selector = Selector(deps, options, scores)
        self._known: dict[float, Mask] = {}
        self.unpruned = self.costs(np.ones(deps.classes, dtype=bool))
        self.caps = {limit.what: limit.absolute(self.unpruned[limit.what]) for limit in self.limits}

    def costs(self, keep: Mask) -> dict[str, float]:
        """What the network costs after a removal, of what is limited: MACs, parameters, bytes of weights."""
        if all(limit.what == "latency" for limit in self.limits):
            return {}
        cost = predicted(self.deps, keep)
        return {"macs": cost.macs, "params": cost.params, "bytes": cost.weight_bytes}

    def holds(self, keep: Mask) -> bool:
        """Whether all limits hold."""
        costs = self.costs(keep)
        return all(costs[what] <= cap for what, cap in self.caps.items())

    def at(self, ratio: float) -> Mask:
        if ratio not in self._known:
            self._known[ratio] = self.selector.keep(ratio)
        return self._known[ratio]

    @property
    def top(self) -> float:
        """The largest ratio tried."""
        largest = 1 - FINEST
        return min(self.options.max_ratio, largest) if self.options.scope == "local" else largest

    def run(self) -> Mask:
        """The least pruned choice that fits.

        Raises:
            InputError: not even the most pruned one does.
        """
        if self.holds(self.at(0.0)):
            return self.at(0.0)
        if not self.holds(self.at(self.top)):
            raise self.unreachable(self.costs(self.at(self.top)))
        return self.refined(*self.narrowed(0.0, self.top))

    def narrowed(self, low: float, high: float) -> tuple[float, float]:
        """Two close ratios of which only ``high`` fits, between two that are further apart."""
        while high - low > FINEST:
            middle = (low + high) / 2
            low, high = (low, middle) if self.holds(self.at(middle)) else (middle, high)
        return low, high

    def refined(self, low: float, high: float) -> Mask:
        """The choice of the ratio ``high``, but groups in which ``low`` keeps more do so where that fits, the most important first.

        Groups whose widths are rounded together stay together.
        """
        keep = self.at(high)
        more = self.at(low) & ~keep
        members = [np.concatenate([self.deps.groups[g].classes for g in groups]) for groups, _ in self.selector.widths.components()]
        steps = [found for found in (classes[more[classes]] for classes in members) if found.size]
        for classes in sorted(steps, key=lambda c: -float(self.selector.scores[c].mean())):
            tried = keep.copy()
            tried[classes] = True
            if self.holds(tried):
                keep = tried
        return keep

    def unreachable(self, least: dict[str, float]) -> InputError:
        """The error for a budget that ``least``, the cost of the most pruned network, does not meet."""
        missed = [limit.what for limit in self.limits if least[limit.what] > self.caps[limit.what]]
        texts = [
            f"{what}={getattr(self.budget, what)!r} allows {shown(what, self.caps[what])} of {shown(what, self.unpruned[what])}, "
            f"and pruning as far as the options allow leaves {shown(what, least[what])}"
            for what in missed
        ]
        return InputError(f"the budget cannot be reached: {'; '.join(texts)}", hint=self._way_out(missed, least))

    def _way_out(self, missed: list[str], least: dict[str, float]) -> str:
        if self.at(self.top).all():
            return "no channel of this graph can be removed with these options; the plan says why channels stay"
        cuts = {what: int(100 * (1 - least[what] / self.unpruned[what])) for what in missed}
        possible = ", ".join(f'{what}="-{cut}%"' for what, cut in cuts.items() if cut > 0)
        return (
            f"{f'ask for at most {possible}, or ' if possible else ''}let more go: a larger max_ratio (now {self.options.max_ratio:g}), "
            f"a smaller min_channels ({self.options.min_channels}) or round_to ({self.options.multiple}), less in ignore and ratios"
        )


def shown(what: str, value: float) -> str:
    """1.2 G, 3.5 MB, 12 ms."""
    if what == "latency":
        return f"{value * 1e3:.3g} ms"
    power = next((p for p in (12, 9, 6, 3) if value >= 10**p), 0)
    return f"{value / 10**power:.3g} { {12: 'T', 9: 'G', 6: 'M', 3: 'k', 0: ''}[power] }{'B' if what == 'bytes' else ''}".rstrip()
