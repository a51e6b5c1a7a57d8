"""Which channels remain: a ratio, a ranking and a rounding turned into one flag per class."""

from __future__ import annotations

import difflib
import fnmatch
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import nn
from torch.utils import _pytree as pytree

from fxcompress.analysis.channels import ChannelDependencyGraph, Mask
from fxcompress.analysis.channels.labels import Array
from fxcompress.errors import InputError
from fxcompress.pruning.criteria import Scores, check_scores, criterion
from fxcompress.pruning.options import Normalization, Prune
from fxcompress.pruning.rounding import Rule, Widths


def select(deps: ChannelDependencyGraph, options: Prune, scores: Scores) -> Mask:
    """The classes that remain.

    ``ratio`` is the share of the classes of a group that are removed (local), or of all groups that may lose any
    (global), or of all groups of one structure (isomorphic). What each group then should keep is rounded: the number
    of channels that remains on every axis of a producer is the multiple of ``round_to`` nearest to what was asked,
    of two equally near ones the larger, never fewer than one multiple, never fewer than ``min_channels``; leaving the
    whole width is always allowed. So a width of 20 at ratio 0.5 becomes 8, one of 24 becomes 16, one of 8 stays. A width
    below ``round_to`` is rounded to whole channels, half of one upwards. Where groups share an axis (a shuffle or a chunk
    takes its channels apart), their sum is rounded, which for widths that were no multiple to begin with is tried but not
    promised. Which channels go: those of the lowest scores; of equal ones those of the higher index.

    Args:
        deps: the channel dependencies of a graph.
        options: how to choose; ``budget`` and ``criterion`` are not looked at.
        scores: one score per class, as a criterion gave it.

    Returns: one flag per class, true where it remains.

    Raises:
        InputError: a pattern fits no parameter or module, or channels that cannot be removed; or scores are no numbers.
    """
    return Selector(deps, options, scores).keep(options.ratio)


class Selector:
    """:func:`select` for several ratios: what does not depend on the ratio is found once."""

    def __init__(self, deps: ChannelDependencyGraph, options: Prune, scores: Scores) -> None:
        check_scores(deps, scores, criterion_name(options))
        self.deps, self.options = deps, options
        self.widths = Widths.of(deps)
        self.rule = Rule(options.multiple, options.min_channels)
        self.group_of = np.zeros(deps.classes, dtype=np.int64)
        for group in deps.groups:
            self.group_of[group.classes] = group.index
        names = _Names(deps)
        self.frozen = names.fitting(options.ignore) | ~_own_a_parameter(deps)
        self.asked = names.asked(options.ratios)
        self.scores = normalized(scores, self.group_of, self.widths.sizes, options.normalize)
        order = np.lexsort((np.arange(deps.classes), -scores, self.group_of))  # best first within each group
        starts = np.cumsum(self.widths.sizes) - self.widths.sizes
        self.place = np.empty(deps.classes, dtype=np.int64)
        self.place[order] = np.arange(deps.classes) - np.repeat(starts, self.widths.sizes)
        self.rankings = self._rankings()

    def keep(self, ratio: float) -> Mask:
        """The classes that remain when ``ratio`` of them is removed."""
        share = np.where(np.isnan(self.asked), ratio, self.asked)
        wanted = self.widths.sizes * (1 - share)
        for candidates, count in self.rankings:
            removed = candidates[: round(count * ratio)]
            groups = np.unique(self.group_of[candidates])
            wanted[groups] = (self.widths.sizes - np.bincount(self.group_of[removed], minlength=len(wanted)))[groups]
        kept = self.widths.nearest(wanted, self.rule, self.frozen)
        if (kept == 0).any() and self._empties(self.place < kept[self.group_of]):
            kept = self.widths.nearest(wanted, self.rule, self.frozen, least=1)
        return self.place < kept[self.group_of]

    def _empties(self, keep: Mask) -> bool:
        """Whether nothing remains of some parameter or of some tensor of the graph."""
        flags = np.append(keep, True)  # PINNED is the last
        if not all(flags[classes].any() for classes in self.deps.slots.values()):
            return True
        masks = (mask for node in self.deps.module.graph.nodes for mask in pytree.tree_leaves(self.deps.kept(node, keep)))
        return not all(mask.any() for mask in masks if isinstance(mask, np.ndarray))

    def _rankings(self) -> list[tuple[Array, int]]:
        """For every set of groups that are ranked together: the classes that may go, worst first, and the count of all."""
        if self.options.scope == "local":
            return []
        ranked = ~self.frozen & np.isnan(self.asked)
        if self.options.scope == "global":
            kinds = np.zeros(len(ranked), dtype=np.int64)
        else:
            kinds = structures(self.deps, self.widths)
        stays = np.ceil(self.widths.sizes * (1 - self.options.max_ratio) - 1e-9)
        free = self.place >= stays[self.group_of]
        order = np.lexsort((-np.arange(self.deps.classes), self.scores))
        rankings = []
        for kind in np.unique(kinds[ranked]):
            members = (ranked & (kinds == kind))[self.group_of]
            rankings.append((order[(members & free)[order]], int(members.sum())))
        return rankings


def criterion_name(options: Prune) -> str:
    return options.criterion if isinstance(options.criterion, str) else criterion(options.criterion).name


def normalized(scores: Scores, group_of: Array, sizes: Array, how: Normalization) -> Scores:
    """Scores of which those of each group have been divided by their mean, largest or sum, or stretched to 0..1."""
    if how == "none" or not len(scores):
        return scores
    low, high = np.full(len(sizes), np.inf), np.full(len(sizes), -np.inf)
    np.minimum.at(low, group_of, scores)
    np.maximum.at(high, group_of, scores)
    total = np.bincount(group_of, scores, minlength=len(sizes))
    by = {"mean": total / np.maximum(sizes, 1), "max": high, "sum": total, "standardization": high - low}[how]
    shifted = scores - low[group_of] if how == "standardization" else scores
    return shifted / np.where(np.abs(by) > 0, by, 1.0)[group_of]


def structures(deps: ChannelDependencyGraph, widths: Widths) -> Array:
    """A number per group that is equal for groups of the same structure.

    Fang et al., "Isomorphic Pruning for Vision Models", ECCV 2024: only parts of one architecture are ranked against each
    other. Two groups are isomorphic when their axes agree in kind of module, name of the parameter, role, axis, size of
    the window and number of indices per class; widths may differ.
    """
    tensors = dict((*deps.module.named_parameters(remove_duplicate=False), *deps.module.named_buffers(remove_duplicate=False)))
    parts: dict[str, tuple[object, ...]] = {}
    for name, _ in deps.slots:
        path, _, leaf = name.rpartition(".")
        module = deps.module.get_submodule(path) if path else deps.module
        known = type(module).__module__.startswith("torch.nn")
        parts[name] = (type(module).__name__, leaf) if known else ("", ""), tuple(tensors[name].shape[2:])
    numbers: dict[object, int] = {}
    found = []
    for group in deps.groups:
        key = Counter((parts[s.parameter], s.axis, s.role, widths.slots[s.parameter, s.axis].times_of(group.index)) for s in group.slots)
        found.append(numbers.setdefault(frozenset(key.items()), len(numbers)))
    return np.array(found, dtype=np.int64)


def _own_a_parameter(deps: ChannelDependencyGraph) -> NDArray[np.bool_]:
    """Groups that live in buffers alone hold no channels that anybody learned, and stay."""
    parameters = {name for name, _ in deps.module.named_parameters(remove_duplicate=False)}
    return np.array([any(slot.parameter in parameters for slot in group.slots) for group in deps.groups], dtype=bool)


class _Names:
    """What name patterns fit."""

    def __init__(self, deps: ChannelDependencyGraph) -> None:
        self.deps = deps
        self.known = _all_names(deps.module)
        owners: dict[str, set[int]] = {}
        for group in deps.groups:
            made = [slot for slot in group.slots if slot.role != "consumer"] or group.slots
            for slot in made:
                owners.setdefault(slot.parameter, set()).add(group.index)
        self.owners = {name: sorted(groups) for name, groups in owners.items()}

    def fitting(self, patterns: Sequence[str]) -> NDArray[np.bool_]:
        """Groups of which some channel is made by, or goes along with, a parameter that fits one of the patterns."""
        found = np.zeros(len(self.deps.groups), dtype=bool)
        for pattern in patterns:
            found[self._groups(pattern)] = True
        return found

    def asked(self, ratios: Sequence[tuple[str, float]]) -> NDArray[np.float64]:
        """The ratio of each group by the first pattern that fits it; NaN where none does."""
        found = np.full(len(self.deps.groups), np.nan)
        for pattern, ratio in reversed(ratios):
            groups = self._groups(pattern)
            if not groups:
                raise InputError(f"ratios: '{pattern}' has no channels that can be removed{self._why(pattern)}", hint="leave it out")
            found[groups] = ratio
        return found

    def _groups(self, pattern: str) -> list[int]:
        fitting = [name for name, paths in self.known.items() if any(fnmatch.fnmatchcase(path, pattern) for path in paths)]
        if not fitting:
            everything = list(dict.fromkeys(path for paths in self.known.values() for path in paths))
            near = difflib.get_close_matches(pattern, everything, n=1, cutoff=0.0)
            raise InputError(
                f"no parameter or module is called '{pattern}'",
                hint=f"did you mean '{near[0]}'?" if near else "the graph has no parameters",
            )
        return sorted({group for name in fitting for group in self.owners.get(name, ())})

    def _why(self, pattern: str) -> str:
        for pinned in self.deps.pinned:
            if any(fnmatch.fnmatchcase(path, pattern) for path in self.known.get(pinned.parameter, ())):
                return f": {pinned.why}{f' ({pinned.source})' if pinned.source else ''}"
        return ""


def _all_names(module: nn.Module) -> dict[str, list[str]]:
    """For every parameter and buffer by its first name: all its names and the paths of the modules that hold it."""
    first: dict[int, str] = {}
    known: dict[str, list[str]] = {}
    for name, tensor in (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)):
        known.setdefault(first.setdefault(id(tensor), name), []).extend(_path_and_above(name))
    return known


def _path_and_above(name: str) -> Iterable[str]:
    while name:
        yield name
        name = name.rpartition(".")[0]
