"""How many channels of each group remain, so that layers have widths that kernels like."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fxcompress.analysis.channels import PINNED, ChannelDependencyGraph, Slot
from fxcompress.analysis.channels.labels import Array


@dataclass(frozen=True)
class Width:
    """The channels of one axis of a weight: ``total``, of which each class of ``groups[i]`` holds ``times[i]``."""

    total: int
    groups: tuple[int, ...]
    times: tuple[int, ...]

    def times_of(self, group: int) -> int:
        """How many channels each class of a group holds."""
        return self.times[self.groups.index(group)]

    def remaining(self, sizes: Array, kept: Array) -> int:
        """What is left when ``kept[g]`` of the ``sizes[g]`` classes of each group remain."""
        return self.total - sum(int(sizes[g] - kept[g]) * t for g, t in zip(self.groups, self.times, strict=True))


@dataclass(frozen=True)
class Rule:
    """What may remain of a width."""

    multiple: int
    least: int

    def floor(self, total: int) -> int:
        """The fewest channels that may remain of ``total``, before rounding."""
        return min(total, max(self.least, 1))

    def allows(self, total: int, remaining: NDArray[np.int64]) -> NDArray[np.bool_]:
        """All, or at least the fewest; a multiple where there was one to begin with."""
        fits = remaining >= self.floor(total)
        if total >= self.multiple:
            fits &= remaining % self.multiple == 0
        return fits | (remaining == total)


@dataclass(frozen=True)
class Widths:
    """The widths that matter in a graph.

    Attributes:
        sizes: number of classes of each group.
        made: the widths that are rounded: of producers, of consumers that read one group (a concatenation's follow from its
            parts), and of all axes of a group that no producer makes.
        alone: whether a group is all there is on some axis, so that it cannot go as a whole.
        slots: the width of every (parameter or buffer, axis).
    """

    sizes: Array
    made: tuple[Width, ...]
    alone: NDArray[np.bool_]
    slots: dict[tuple[str, int], Width]

    @classmethod
    def of(cls, deps: ChannelDependencyGraph) -> Widths:
        sizes = np.array([len(group.classes) for group in deps.groups], dtype=np.int64)
        group_of = np.full(deps.classes + 1, PINNED, dtype=np.int64)  # the last belongs to PINNED
        for group in deps.groups:
            group_of[group.classes] = group.index
        alone = np.zeros(len(sizes), dtype=bool)
        found: dict[tuple[str, int], Width] = {}
        for slot, classes in deps.slots.items():
            counts = np.bincount(group_of[classes] + 1, minlength=len(sizes) + 1)
            groups = np.flatnonzero(counts[1:])
            found[slot] = Width(len(classes), tuple(groups.tolist()), tuple((counts[1:][groups] // sizes[groups]).tolist()))
            if len(groups) == 1 and not counts[0]:
                alone[groups[0]] = True
        made = dict.fromkeys(width for group in deps.groups for width in _counted(group.slots, found))
        return cls(sizes, tuple(made), alone, found)

    def nearest(self, wanted: NDArray[np.float64], rule: Rule, frozen: NDArray[np.bool_], least: int = 0) -> Array:
        """For every group, how many classes remain: what the rule allows nearest to ``wanted``; of two, the larger.

        Args:
            wanted: for every group, the number of classes that should remain.
            frozen: groups that stay whole.
            least: so many classes remain of every group.
        """
        kept = self.sizes.copy()
        for groups, widths in self.components():
            if frozen[groups].all():
                continue
            if len(groups) == 1:
                kept[groups] = self._single(groups[0], widths, float(wanted[groups[0]]), rule, least)
            else:
                _Joint(self, groups, widths, wanted, rule, frozen, least).solve(kept)
        return kept

    def components(self) -> Iterable[tuple[list[int], list[Width]]]:
        """Groups that share widths, with these."""
        parent = list(range(len(self.sizes)))

        def root(group: int) -> int:
            while parent[group] != group:
                parent[group] = group = parent[parent[group]]
            return group

        for width in self.made:
            for group in width.groups[1:]:
                parent[root(group)] = root(width.groups[0])
        members: dict[int, tuple[list[int], list[Width]]] = {}
        for group in range(len(parent)):
            members.setdefault(root(group), ([], []))[0].append(group)
        for width in self.made:
            if width.groups:
                members[root(width.groups[0])][1].append(width)
        return members.values()

    def _single(self, group: int, widths: Sequence[Width], wanted: float, rule: Rule, least: int) -> int:
        size = int(self.sizes[group])
        counts = np.arange(int(self.alone[group]) or least, size + 1)
        for strict in (True, False):
            fits = np.ones(len(counts), dtype=bool)
            for width in widths:
                asked = rule if strict or width.total % rule.multiple == 0 else Rule(1, rule.least)
                fits &= asked.allows(width.total, width.total - (size - counts) * width.times[0])
            found = counts[fits]
            if len(found) > 1:  # more than leaving all
                break
        return int(found[::-1][np.argmin(np.abs(found[::-1] - wanted))])


class _Joint:
    """Groups that share widths, such as the parts of channels that a chunk or a shuffle takes apart.

    Widths are met one after the other, those of the fewest groups first; groups that an earlier one has settled stay.
    """

    def __init__(
        self,
        every: Widths,
        groups: list[int],
        widths: list[Width],
        wanted: NDArray[np.float64],
        rule: Rule,
        frozen: NDArray[np.bool_],
        least: int,
    ) -> None:
        self.all, self.groups, self.wanted, self.rule, self.frozen, self.least = every, groups, wanted, rule, frozen, least
        self.widths = sorted(widths, key=lambda w: (len(w.groups), sum(t % rule.multiple == 0 for t in w.times), w.groups, w.times))

    def solve(self, kept: Array) -> None:
        """Write the counts of the groups into ``kept``, which holds their sizes."""
        if (np.round(self.wanted) >= self.all.sizes)[self.groups].all():
            return
        if self._try(kept, True) or self._try(kept, False):
            return
        for group in self.groups:  # each by itself, so that no width changes its remainder
            if not self.frozen[group]:
                kept[group] = self._alone(group)

    def _try(self, kept: Array, every: bool) -> bool:
        """Whether counts were found; ``every``: for all widths, not only for those that were a multiple before."""
        sizes, multiple = self.all.sizes, self.rule.multiple
        settled = {g: int(sizes[g]) for g in self.groups if self.frozen[g]}
        for width in self.widths:
            free = [(g, t) for g, t in zip(width.groups, width.times, strict=True) if g not in settled]
            if not free or not (width.total % multiple == 0 or (every and width.total >= multiple)):
                continue
            held = sum(t * (settled.get(g, 0) - int(sizes[g])) for g, t in zip(width.groups, width.times, strict=True))
            best = _fewest_changes([(t, self._options(g)) for g, t in free], -(width.total + held) % multiple, multiple)
            if best is None and all(settled.get(g, int(sizes[g])) == sizes[g] for g in width.groups):
                best = [int(sizes[g]) for g, _ in free]  # leaving all is always allowed
            if best is None:
                return False
            settled.update(zip((g for g, _ in free), best, strict=True))
        for group in self.groups:
            if group not in settled:
                settled[group] = min(self._options(group))[1]
        kept[list(settled)] = list(settled.values())
        return all(self._fits(width, kept, every) for width in self.widths)

    def _fits(self, width: Width, kept: Array, every: bool) -> bool:
        rule = self.rule if every or width.total % self.rule.multiple == 0 else Rule(1, self.rule.least)
        return bool(rule.allows(width.total, np.array([width.remaining(self.all.sizes, kept)]))[0])

    def _options(self, group: int) -> list[tuple[float, int]]:
        """Counts near the wanted one, each with its cost; of two equally near ones the larger is cheaper."""
        size, wanted = int(self.all.sizes[group]), float(self.wanted[group])
        first = max(int(self.all.alone[group]) or self.least, math.floor(wanted) - self.rule.multiple)
        counts = range(min(first, size), min(size, math.ceil(wanted) + self.rule.multiple) + 1)
        return [((n - wanted) ** 2 / size - n * 1e-9, n) for n in counts]

    def _alone(self, group: int) -> int:
        size, multiple = int(self.all.sizes[group]), self.rule.multiple
        step, floor = 1, 1
        for width in self.widths:
            if group in width.groups:
                times = width.times_of(group)
                if width.total % multiple == 0:
                    step = math.lcm(step, multiple // math.gcd(multiple, times))
                floor = max(floor, math.ceil(self.rule.floor(width.total) / times) if len(width.groups) == 1 else 1)
        counts = np.arange(size, min(floor, size) - 1, -step)
        return int(counts[np.argmin(np.abs(counts - self.wanted[group]))])


def _fewest_changes(terms: list[tuple[int, list[tuple[float, int]]]], residue: int, multiple: int) -> list[int] | None:
    """One count per term such that sum(times x count) is ``residue`` modulo ``multiple``, at the lowest total cost."""
    states: dict[int, tuple[float, list[int]]] = {0: (0.0, [])}
    for times, options in terms:
        reached: dict[int, tuple[float, list[int]]] = {}
        for rest, (cost, chosen) in states.items():
            for price, count in options:
                to = (rest + times * count) % multiple
                if to not in reached or cost + price < reached[to][0]:
                    reached[to] = (cost + price, [*chosen, count])
        states = reached
    return states[residue][1] if residue in states else None


def _counted(slots: Sequence[Slot], found: Mapping[tuple[str, int], Width]) -> list[Width]:
    """The widths of a group's axes that are rounded."""
    own = [(slot, found[slot.parameter, slot.axis]) for slot in slots]
    chosen = [width for slot, width in own if slot.role == "producer" or (slot.role == "consumer" and len(width.groups) == 1)]
    return chosen if any(slot.role == "producer" for slot in slots) else [width for _, width in own]
