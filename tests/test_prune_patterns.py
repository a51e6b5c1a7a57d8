"""Pruning is exact or refuses with a reason, on every small network of ``prune_patterns``.

Three oracles: the masked network (all weights there, readers ignore what is removed), the user's own model with the
weights of the consumers zeroed by hand, and what the pattern says must be found.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from prune_patterns import Pattern, Small, patterns
from rewriting import randomized
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxcompress.analysis import Analyses
from fxcompress.analysis.channels import PINNED, ChannelDependencyGraph, Mask
from fxcompress.capture import capture
from fxcompress.capture.captured import Part
from fxcompress.ir import numbers
from fxcompress.pipeline import Pipeline
from fxcompress.pruning.mask import changed_statistics, masked
from fxcompress.pruning.slicing import sliced

EXACT = 1e-12
SEEDS = (0, 1, 2)
ALL = patterns()


@dataclass(frozen=True)
class Case:
    """A pattern's model and its captured graph, which do not share tensors."""

    model: nn.Module
    part: Part
    deps: ChannelDependencyGraph

    def randomise(self, seed: int) -> None:
        randomized(self.part.graph, seed)
        self.model.load_state_dict(self.part.graph.state_dict(), strict=False)


@cache
def case(pattern: Pattern) -> Case:
    torch.manual_seed(0)
    model = pattern.build().double().eval()
    part = capture(copy.deepcopy(model), pattern.example()).parts[0]
    if pattern.passes:
        part = replace(part, graph=Pipeline.parse(pattern.passes).execute(part.graph, part.inputs, verify=False).module)
    return Case(model, part, Analyses(part.graph, part.inputs).get(ChannelDependencyGraph))


def chosen(deps: ChannelDependencyGraph, seed: int) -> Mask:
    """A random part of every group is removed: at least one class, and not all of them."""
    rng = np.random.default_rng(seed)
    keep = np.ones(deps.classes, dtype=bool)
    for group in deps.groups:
        if len(group.classes) > 1:
            keep[rng.permutation(group.classes)[: rng.integers(1, len(group.classes))]] = False
    return keep


def run(module: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    with torch.no_grad():
        return module(*(t.clone() for t in inputs))


def equal(expected: Any, found: Any, text: str) -> None:
    difference = numbers.compare(expected, found)
    assert difference.relative <= EXACT, f"{text}: {difference}"


@pytest.mark.parametrize("pattern", ALL, ids=lambda p: p.name)
def test_structure(pattern: Pattern) -> None:
    """As many classes as the pattern says, or its reason, with the line of the user's code."""
    deps = case(pattern).deps
    removable = sum(len(g.classes) for g in deps.groups if len(g.classes) > 1)
    reasons = [(p.why, p.source) for p in deps.pinned]
    assert removable >= pattern.classes, reasons
    assert all(why and "cannot follow" not in why for why, _ in reasons), reasons
    if pattern.pinned:
        assert any(pattern.pinned in why for why, _ in reasons), reasons
    if not pattern.classes and isinstance(case(pattern).model, Small):
        assert any(source and source.rpartition(":")[0].endswith(".py") for _, source in reasons), reasons


@pytest.mark.parametrize("pattern", ALL, ids=lambda p: p.name)
def test_exact(pattern: Pattern) -> None:
    found = case(pattern)
    deps, changed = found.deps, []
    for seed in SEEDS:
        found.randomise(seed)
        keep = chosen(deps, seed)
        if keep.all():
            continue
        small, mask = sliced(deps, keep), masked(deps, keep)
        inputs = pattern.example(seed)
        expected, result = run(mask, inputs), run(small, inputs)
        equal(expected, result, f"seed {seed}: sliced against masked")
        changed.append(numbers.compare(run(found.part.graph, inputs), result).relative)
        if not pattern.by_hand and not changed_statistics(deps, keep):
            equal(run(zeroed(found.model, deps, keep), inputs), result, f"seed {seed}: sliced against zeroed by hand")
        for shapes in pattern.variants() if seed == SEEDS[0] else ():
            other = pattern.example(seed, shapes)
            equal(run(mask, other), run(small, other), f"seed {seed}: on {shapes}")
        assert set(small.state_dict()) == set(mask.state_dict()) == set(found.part.graph.state_dict())
    assert not changed or min(changed) > 1e-6, f"removing changed nothing: {changed}"
    assert bool(changed) == bool(pattern.classes) or any(len(g.classes) > 1 for g in deps.groups)


def zeroed(model: nn.Module, deps: ChannelDependencyGraph, keep: Mask) -> nn.Module:
    """The user's model in which the input weights that would be cut are zero."""
    model = copy.deepcopy(model)
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    consumers = {(slot.parameter, slot.axis) for group in deps.groups for slot in group.slots if slot.role == "consumer"}
    for name, axis in consumers:
        classes = deps.slots[name, axis]
        gone = np.flatnonzero((classes != PINNED) & ~keep[classes])
        with torch.no_grad():
            tensors[name].index_fill_(axis, torch.from_numpy(gone), 0.0)
    return model


@pytest.mark.parametrize("pattern", ALL, ids=lambda p: p.name)
def test_trains(pattern: Pattern) -> None:
    """The sliced network is an ordinary module: it can be copied, and every parameter that had a gradient has one."""
    found = case(pattern)
    keep = chosen(found.deps, 3)
    small = copy.deepcopy(sliced(found.deps, keep))
    wanted = _gradients(found.part.graph, pattern)
    assert _gradients(small, pattern) == wanted
    assert all(p.is_leaf and p.requires_grad for p in small.parameters())


def _gradients(module: nn.Module, pattern: Pattern) -> set[str]:
    """The names of the parameters that receive a gradient."""
    module = copy.deepcopy(module)
    outputs = [t for t in pytree.tree_leaves(module(*pattern.example(3))) if isinstance(t, Tensor) and t.requires_grad]
    if outputs:
        torch.autograd.backward([t.sum() for t in outputs])
    return {name for name, p in module.named_parameters() if p.grad is not None}
