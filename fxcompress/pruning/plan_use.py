"""Carries a plan out: on a captured graph, on the user's own model, on a fresh instance of its class."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule

from fxcompress.analysis import Analyses
from fxcompress.analysis.channels import ChannelDependencyGraph
from fxcompress.capture import Captured, capture
from fxcompress.capture.captured import Part
from fxcompress.errors import PlanError
from fxcompress.ir.edit import share
from fxcompress.ir.inputs import Inputs
from fxcompress.ir.snapshot import Structure, class_name, described_tensors, different_tensor
from fxcompress.pruning.input_spec import InputSpec
from fxcompress.pruning.mask import masked
from fxcompress.pruning.optimizer import slice_optimizer
from fxcompress.pruning.plan_build import keep_of, other_graph
from fxcompress.pruning.plan_data import PlanModule, PlanPart
from fxcompress.pruning.slicing import kept_indices, slice_tensors, sliced
from fxcompress.rewrite import apply as rewrite
from fxcompress.rewrite.attention import EXPAND_ATTENTION

_UNMASKED = "fxcompress_unmasked"  # GraphModule.meta: the graph of before the masks

MASK = "channel_mask_"  # what the buffers are called that masked() adds

Indices = dict[tuple[str, int], Any]


def dependencies(
    parts: Sequence[PlanPart], spec: InputSpec, model: nn.Module, example_inputs: Any = None
) -> tuple[ChannelDependencyGraph, ...]:
    """The channel dependencies of the graphs in ``model`` for which the parts were made.

    Raises:
        PlanError: it has other parts. CaptureError, InputError: the model cannot be captured.
    """
    return tuple(map(_deps, _found(parts, spec, model, example_inputs).captured.parts))


def masked_model(parts: Sequence[PlanPart], spec: InputSpec, model: nn.Module, example_inputs: Any = None) -> nn.Module:
    """See ``PruningPlan.masked``."""
    found = _found(parts, spec, model, example_inputs)
    result = found.captured
    for part, site in zip(parts, found.captured.parts, strict=True):
        deps = _deps(site)
        new = masked(deps, keep_of(part, deps))
        new.meta[_UNMASKED] = deps.module.graph
        result = result.with_part(site.path, new)
    return found.independent(result.module)


def applied(
    parts: Sequence[PlanPart],
    spec: InputSpec,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    example_inputs: Any = None,
) -> nn.Module:
    """See ``PruningPlan.apply``."""
    found = _found(parts, spec, model, example_inputs)
    result, indices = found.captured, {}
    for part, site in zip(parts, found.captured.parts, strict=True):
        deps = _deps(site)
        keep = keep_of(part, deps)
        result = result.with_part(site.path, sliced(deps, keep))
        indices.update({(part.full_name(name), axis): kept for (name, axis), kept in kept_indices(deps, keep).items()})
    new = found.independent(result.module)
    if optimizer is not None:
        slice_optimizer(optimizer, model, new, indices)
    return new


def unmasked(module: GraphModule) -> GraphModule | None:
    """The graph of before the masks with the present tensors of ``module``; None when it has no masks of a plan."""
    graph = module.meta.get(_UNMASKED)
    if not isinstance(graph, Graph):
        return None
    result = share(module)
    result.meta = {key: value for key, value in module.meta.items() if key != _UNMASKED}
    for name in [name for name, _ in result.named_buffers(recurse=False) if name.startswith(MASK)]:
        delattr(result, name)
    result.graph = copy.deepcopy(graph)
    return result


# -- where the graphs come from -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Found:
    """The graphs of a plan's parts, in its order. Are the tensors ``shared`` with the model that was given?"""

    captured: Captured
    shared: bool

    def independent(self, result: nn.Module) -> nn.Module:
        return copy.deepcopy(result) if self.shared else result


def _found(parts: Sequence[PlanPart], spec: InputSpec, model: nn.Module, example_inputs: Any) -> _Found:
    """The graphs in ``model`` that fit the plan; where they are not all there, it is captured."""
    graphs = [_graph_at(part, model) for part in parts]
    if all(graph is not None for graph in graphs):
        device = _device(model)
        sites = tuple(Part(p.path, g, p.inputs.make(device)) for p, g in zip(parts, graphs, strict=True) if g is not None)
        root = sites[0].graph if sites[0].path == "" else model
        return _Found(Captured(root, sites, "parts", (), sites[0].inputs), shared=True)
    if any(name.rpartition(".")[2].startswith(MASK) for name, _ in model.named_buffers()):
        raise PlanError(
            "the masked network does not know its graph without masks any more, or it is that of another plan",
            hint="load its weights into the model: model.load_state_dict(masked.state_dict()), and apply the plan to that",
        )
    _check_tensors(parts, model)
    inputs = spec.make(_device(model)) if example_inputs is None else Inputs.of(example_inputs, model.forward)
    with torch.inference_mode(False):  # what is made here shall be trained
        captured = capture(model, inputs)
    known = {site.path: site for site in captured.parts}
    absent = next((part.path for part in parts if part.path not in known), None)
    if absent is not None:
        raise other_graph("", f"it was captured as {sorted(known)}, and the plan is for {[part.path for part in parts]}")
    sites = tuple(_expanded(part, known[part.path]) for part in parts)
    return _Found(Captured(captured.module, sites, captured.step, captured.notes, inputs), shared=False)


def _graph_at(part: PlanPart, model: nn.Module) -> GraphModule | None:
    """The graph for which the part was made, when it stands in the model, with or without masks."""
    try:
        found = model.get_submodule(part.path)
    except AttributeError:
        return None
    if not isinstance(found, GraphModule):
        return None
    plain = unmasked(found) or found
    return plain if Structure.of(plain) == part.structure else None


def _expanded(part: PlanPart, site: Part) -> Part:
    """The site with attention written out, if that is the graph for which the plan was made."""
    if Structure.of(site.graph) == part.structure or not any(isinstance(m, nn.MultiheadAttention) for m in site.graph.modules()):
        return site
    graph = share(site.graph)
    training = {path: module.training for path, module in graph.named_modules()}
    graph.eval()  # a layer in training mode may drop weights, which cannot be written out
    rewrite(EXPAND_ATTENTION, graph, Analyses(graph, site.inputs))
    for path, module in graph.named_modules():
        module.training = training.get(path, training[""])
    return replace(site, graph=graph)


def _check_tensors(parts: Sequence[PlanPart], model: nn.Module) -> None:
    """A clear message before the capture where a parameter of the model has another shape or dtype than the plan's."""
    have = dict(line.rpartition(": ")[::2] for line in described_tensors(model))
    for part in parts:
        expected = [f"{part.full_name(name)}: {text}" for name, _, text in (line.rpartition(": ") for line in part.tensors)]
        expected = [line for line in expected if not line.rpartition(": ")[2].startswith("=")]
        found = [f"{name}: {have[name]}" for name in (line.rpartition(": ")[0] for line in expected) if name in have]
        there = [line for line in expected if line.rpartition(": ")[0] in have]
        difference = different_tensor(there, found)
        if difference is not None:
            raise other_graph("", difference)


def _device(model: nn.Module) -> torch.device:
    tensor = next((t for t in (*model.parameters(), *model.buffers())), None)
    return tensor.device if tensor is not None else torch.device("cpu")


def _deps(site: Part) -> ChannelDependencyGraph:
    return Analyses(site.graph, site.inputs).get(ChannelDependencyGraph)


# -- the user's class -----------------------------------------------------------------------------------------------------


def slice_in_place(parts: Iterable[PlanPart], module: nn.Module) -> None:
    """See ``PruningPlan.apply_to``; nothing is changed when something does not fit."""
    parts = tuple(parts)
    number = next((number for part in parts for number in part.rewritten), None)
    if number is not None:
        where = f" at {number.source}" if number.source else ""
        raise PlanError(
            f"the forward of {type(module).__name__} has a number that has to change{where}: "
            f"{number.before} -> {number.after} (node '{number.node}')",
            hint=f"{_ITS_GRAPH}, or compute the number from shapes, e.g. x.flatten(1) or x.shape[1]",
        )
    indices = _indices(parts, module)
    changes = [(_owner(part, change, module), change) for part in parts for change in part.modules]
    _check_owners(indices, module, {id(owner) for owner, _ in changes})
    slice_tensors(module, indices)
    for owner, change in changes:
        for name, _, after in change.settings:
            setattr(owner, name, after)


_ITS_GRAPH = "use plan.apply(model), whose graph is rewritten"
_FRESH = "give an instance made with the arguments of the network for which the plan was made"


def _indices(parts: Sequence[PlanPart], module: nn.Module) -> Indices:
    """For every (parameter, axis) the indices that remain."""
    tensors = _tensors(module)
    flags: Indices = {}
    for part in parts:
        for group in part.groups:
            for slot in group.slots:
                name = part.full_name(slot.parameter)
                _check_slot(group.name, name, slot.axis, slot.size, tensors)
                if group.remaining < group.channels:
                    before = flags.get((name, slot.axis), np.True_)
                    flags[name, slot.axis] = before & ~slot.removed()
    return {slot: kept.nonzero()[0] for slot, kept in flags.items() if not kept.all()}


def _check_slot(group: str, name: str, axis: int, size: int, tensors: dict[str, Tensor]) -> None:
    tensor = tensors.get(name)
    if tensor is None:
        raise PlanError(f"group '{group}': the module has no parameter or buffer '{name}'", hint=_FRESH)
    if axis >= tensor.ndim or tensor.shape[axis] != size:
        raise PlanError(f"group '{group}': '{name}' is {list(tensor.shape)}; the plan was made for {size} at axis {axis}", hint=_FRESH)


def _owner(part: PlanPart, change: PlanModule, module: nn.Module) -> nn.Module:
    """The module whose settings change: of the class that the graph has, or derived from it."""
    path = part.full_name(change.path)
    try:
        found = module.get_submodule(path)
    except AttributeError:
        raise PlanError(f"the module has no '{path}', which is a {change.kind} in the plan", hint=_ITS_GRAPH) from None
    if change.kind not in [f"{kind.__module__}.{kind.__qualname__}" for kind in type(found).__mro__]:
        raise PlanError(f"module '{path}' is a {class_name(found)}; the plan is for a {change.kind}", hint=_ITS_GRAPH)
    for name, before, _ in change.settings:
        now = getattr(found, name, None)
        if now != before:
            raise PlanError(f"{name} of '{path}' is {now}; the plan was made for {before}", hint=_FRESH)
    return found


def _check_owners(indices: Indices, module: nn.Module, known: set[int]) -> None:
    """A layer of torch.nn whose weights are cut needs new settings; without them its own forward would be wrong."""
    for name, _ in indices:
        path = name.rpartition(".")[0]
        owner = module.get_submodule(path)
        if class_name(owner).startswith("torch.nn.modules.") and id(owner) not in known and not isinstance(owner, _CONTAINERS):
            raise PlanError(
                f"'{name}' belongs to a {class_name(owner)}, which the graph computes by other operations; its own forward does not fit",
                hint=_ITS_GRAPH,
            )


_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return dict((*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)))
