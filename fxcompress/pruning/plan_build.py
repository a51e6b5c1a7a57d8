"""Makes the plan of one graph, and finds the mask of channels in a plan again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from fxcompress.analysis.channels import ChannelDependencyGraph, ChannelGroup, Mask
from fxcompress.errors import PlanError
from fxcompress.ir.snapshot import Structure, class_name, settings, target_name
from fxcompress.ir.verify import source_line
from fxcompress.pruning import ranges
from fxcompress.pruning.input_spec import InputSpec
from fxcompress.pruning.mask import changed_statistics
from fxcompress.pruning.plan_data import Costs, PlanGroup, PlanModule, PlanPart, PlanPinned, PlanRewrite, PlanSlot, PlanStatistic
from fxcompress.pruning.predict import PredictedCost, predicted
from fxcompress.pruning.slicing import sliced

Scores = NDArray[np.float64]

_EMPTIED = "remove fewer channels: at least one must remain in every axis"


def build_part(
    deps: ChannelDependencyGraph,
    keep: Mask,
    scores: Scores | None = None,
    *,
    reasons: Mapping[int, str] | None = None,
    latency: tuple[float, float] | None = None,
    each: bool = True,
    result: GraphModule | None = None,
) -> PlanPart:
    """The plan that keeps the classes ``keep`` of a graph.

    Args:
        keep: one flag per class of ``deps``.
        scores: one number per class.
        reasons: for some groups, by index, why as many of their channels remain as do.
        latency: seconds before and after.
        each: find the cost of every group alone.
        result: the graph sliced so, if it is there already.

    Raises:
        PlanError: an axis would lose all its channels, or there is not one flag (or score) per class.
        GraphError: the graph cannot be sliced so; the message names the node.
    """
    _check_flags(deps, keep, scores)
    groups = _groups(deps, keep, scores, reasons or {})
    if each:
        groups = tuple(replace(g, alone=_alone(deps, keep, known)) for g, known in zip(groups, deps.groups, strict=True))
    structure = Structure.of(deps.module)
    result = sliced(deps, keep) if result is None else result
    return PlanPart(
        path="",
        nodes=structure.nodes,
        tensors=structure.tensors,
        inputs=InputSpec.of(deps.inputs),
        groups=groups,
        pinned=tuple(PlanPinned(p.parameter, p.axis, p.count, p.why, p.node, p.source) for p in deps.pinned),
        statistics=_statistics(deps, keep),
        modules=_modules(deps.module, result),
        rewritten=_rewritten(deps.module, result),
        before=_costs(predicted(deps, np.ones_like(keep)), latency[0] if latency else None),
        after=_costs(predicted(deps, keep), latency[1] if latency else None),
    )


def keep_of(part: PlanPart, deps: ChannelDependencyGraph, structure: Structure | None = None) -> Mask:
    """The flags of the classes of ``deps`` that the plan keeps.

    Args:
        structure: that of the graph of ``deps``, if it is known.

    Raises:
        PlanError: the plan was made for another graph (it says what differs), or a group contradicts the graph.
    """
    difference = part.structure.difference(structure or Structure.of(deps.module))
    if difference is not None:
        raise other_graph(part.path, difference)
    if len(part.groups) != len(deps.groups):
        raise PlanError(f"the plan has {len(part.groups)} groups of channels; the graph has {len(deps.groups)}", hint="make the plan again")
    keep = np.ones(deps.classes, dtype=bool)
    for group, known in zip(part.groups, deps.groups, strict=True):
        keep[known.classes] = _flags_of(group, known)
    for group, wanted in zip(part.groups, _groups(deps, keep, None, {}), strict=True):
        _check_group(group, wanted)
    return keep


def other_graph(path: str, difference: str) -> PlanError:
    """The error for a graph for which a plan was not made."""
    where = f" of '{path}'" if path else ""
    return PlanError(
        f"the plan was made for another network: {difference}{where}",
        hint="apply it to the network for which it was made (weights may differ, structure and dtypes not), or make a new plan",
    )


def _costs(cost: PredictedCost, latency: float | None = None) -> Costs:
    return Costs(cost.params, cost.macs, cost.weight_bytes, latency)


def _alone(deps: ChannelDependencyGraph, keep: Mask, group: ChannelGroup) -> Costs | None:
    """The cost when only this group loses its channels; None when it loses none."""
    if keep[group.classes].all():
        return None
    only = np.ones_like(keep)
    only[group.classes] = keep[group.classes]
    return _costs(predicted(deps, only))


# -- groups -------------------------------------------------------------------------------------------------------------


def _check_flags(deps: ChannelDependencyGraph, keep: Mask, scores: Scores | None) -> None:
    for what, given in (("flags", keep), ("scores", scores)):
        if given is not None and given.shape != (deps.classes,):
            raise PlanError(f"there are {what} of the shape {given.shape} for {deps.classes} classes of channels")
    if keep.dtype != np.bool_:
        raise PlanError(f"the flags are {keep.dtype}, not bool")


def _groups(deps: ChannelDependencyGraph, keep: Mask, scores: Scores | None, reasons: Mapping[int, str]) -> tuple[PlanGroup, ...]:
    tables = _slots(deps, keep)
    names = _names(deps.groups)
    made = []
    for group, name, slots in zip(deps.groups, names, tables, strict=True):
        kept = ranges.encode(np.flatnonzero(keep[group.classes]))
        importance = () if scores is None else tuple(float(f"{x:.3g}") for x in scores[group.classes].tolist())
        made.append(PlanGroup(name, len(group.classes), kept, slots, importance, reasons.get(group.index, "")))
    return tuple(made)


def _slots(deps: ChannelDependencyGraph, keep: Mask) -> list[tuple[PlanSlot, ...]]:
    """The slots of every group with the indices that are the group's own."""
    group_of = np.full(deps.classes + 1, -1)  # PINNED = -1 is the last
    for group in deps.groups:
        group_of[group.classes] = group.index
    roles = {(slot.parameter, slot.axis): slot.role for group in deps.groups for slot in group.slots}
    flags, texts = np.append(keep, True), _Texts()
    table: list[list[PlanSlot]] = [[] for _ in deps.groups]
    for (name, axis), classes in deps.slots.items():
        owners, kept = group_of[classes], flags[classes]
        if not kept.any():
            owner = _names(deps.groups)[owners[0]]
            raise PlanError(f"group '{owner}': axis {axis} of '{name}' would lose all its channels", hint=_EMPTIED)
        order = np.argsort(owners, kind="stable")
        found, starts = np.unique(owners[order], return_index=True)
        for owner, own in zip(found.tolist(), np.split(order, starts[1:]), strict=True):
            if owner >= 0:
                slot = PlanSlot(name, axis, roles[name, axis], len(classes), ranges.encode(own), texts.of(kept[own]))
                table[owner].append(slot)
    return [tuple(slots) for slots in table]


class _Texts:
    """The texts of flags; the same ones come many times."""

    def __init__(self) -> None:
        self._known: dict[bytes, str] = {}

    def of(self, flags: Mask) -> str:
        key = flags.tobytes()
        if key not in self._known:
            self._known[key] = ranges.encode(np.flatnonzero(flags))
        return self._known[key]


def _names(groups: tuple[ChannelGroup, ...]) -> list[str]:
    """The module of the first producer, with a number where several groups come from the same one."""
    seen: dict[str, int] = {}
    names = []
    for group in groups:
        first = next((slot for slot in group.slots if slot.role == "producer"), group.slots[0])
        base = first.parameter.removesuffix(".weight")
        seen[base] = seen.get(base, 0) + 1
        names.append(base if seen[base] == 1 else f"{base}#{seen[base]}")
    return names


def _flags_of(group: PlanGroup, known: ChannelGroup) -> Mask:
    if group.channels != len(known.classes):
        raise PlanError(f"group '{group.name}' has {group.channels} channels in the plan and {len(known.classes)} in the graph")
    return ranges.mask(group.kept, group.channels)


def _check_group(group: PlanGroup, wanted: PlanGroup) -> None:
    """Whether the slots of a group say what follows from the channels that it keeps."""
    if group.name != wanted.name:
        raise PlanError(f"group '{group.name}' stands where the graph has group '{wanted.name}'", hint=_EDITED)
    found = {(slot.parameter, slot.axis): slot for slot in group.slots}
    for slot in wanted.slots:
        place = f"axis {slot.axis} of '{slot.parameter}'"
        mine = found.pop((slot.parameter, slot.axis), None)
        if mine is None:
            raise PlanError(f"group '{group.name}' lacks {place}, which loses the same channels", hint=_EDITED)
        for what in ("role", "size", "channels"):
            if getattr(mine, what) != getattr(slot, what):
                raise PlanError(
                    f"group '{group.name}': {what} of {place} is {getattr(mine, what)!r}, not {getattr(slot, what)!r}", hint=_EDITED
                )
        if mine.kept != slot.kept:
            raise PlanError(f"group '{group.name}' contradicts itself: {place} {_differing(mine, slot)}", hint=_EDITED)
    if found:
        name, axis = next(iter(found))
        raise PlanError(f"group '{group.name}' has axis {axis} of '{name}', which does not belong to it", hint=_EDITED)


_EDITED = "the plan was changed by hand or damaged; make it again with the ratios or ignore patterns that you want"


def _differing(found: PlanSlot, wanted: PlanSlot) -> str:
    more, less = found.removed(), wanted.removed()
    places = np.flatnonzero(more != less)
    if not places.size:
        return f"writes its indices as '{found.kept[:40]}' instead of '{wanted.kept[:40]}'"
    what = ("removes", "keep") if more[places[0]] else ("keeps", "remove")
    return f"{what[0]} index {places[0]}, which the group's kept channels {what[1]}"


# -- what else follows ----------------------------------------------------------------------------------------------------


def _statistics(deps: ChannelDependencyGraph, keep: Mask) -> tuple[PlanStatistic, ...]:
    return tuple(PlanStatistic(read.node.name, read.axis, source_line(read.node)) for read in changed_statistics(deps, keep))


def _modules(before: GraphModule, after: GraphModule) -> tuple[PlanModule, ...]:
    """The settings in which the modules of the sliced graph differ."""
    paths = dict.fromkeys(str(node.target) for node in before.graph.nodes if node.op == "call_module")
    found = []
    for path in paths:
        old, new = before.get_submodule(path), after.get_submodule(path)
        known = settings(old)
        changed = tuple(sorted((key, known[key], value) for key, value in settings(new).items() if known[key] != value))
        if changed:
            found.append(PlanModule(path, class_name(old), changed))
    return tuple(found)


def _rewritten(before: GraphModule, after: GraphModule) -> tuple[PlanRewrite, ...]:
    """The nodes whose operands are not what they were."""
    twins = {node.name: node for node in after.graph.nodes}
    found = []
    for node in before.graph.nodes:
        twin = twins.get(node.name)
        if twin is not None and _operands(node) != _operands(twin):
            found.append(PlanRewrite(node.name, _text(node), _text(twin), source_line(node)))
    return tuple(found)


def _operands(node: Node) -> list[str]:
    """The target and the operands as texts; sizes may stand one by one or in a tuple."""
    return [target_name(node), *map(str, pytree.tree_leaves((node.args, dict(sorted(node.kwargs.items())))))]


def _text(node: Node) -> str:
    operands = [*map(str, node.args), *(f"{key}={value}" for key, value in sorted(node.kwargs.items()))]
    return f"{target_name(node).rpartition('.')[2]}({', '.join(operands)})"
