"""Random networks: pruning a random part is exact, or the analysis has pinned what cannot be followed.

A counterexample is kept by adding its ``Net`` to ``counterexamples.KNOWN`` or as a pattern of ``prune_patterns``.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from counterexamples import KNOWN
from drawing import Feed, networks
from gymnast import Gymnast
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Net, trace
from rewriting import randomized
from torch import Tensor, nn
from torch.fx import GraphModule

from fxcompress.analysis import Analyses
from fxcompress.analysis.channels import ChannelDependencyGraph, Mask
from fxcompress.capture import capture
from fxcompress.ir import numbers
from fxcompress.ir.inputs import Inputs
from fxcompress.pruning.mask import masked
from fxcompress.pruning.slicing import sliced

CLOSE = 1e-9  # norms of single values and products of large ones leave less than float64 has
ROUNDING = 1e-12  # the mean of what an instance norm gives is zero but for rounding


def removed(deps: ChannelDependencyGraph, seed: int) -> Mask:
    """A random part of every group, never all of it."""
    rng = np.random.default_rng(seed)
    keep = np.ones(deps.classes, dtype=bool)
    for group in deps.groups:
        if len(group.classes) > 1:
            keep[rng.permutation(group.classes)[: rng.integers(0, len(group.classes))]] = False
    return keep


def values(module: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    """The outputs of a copy: some networks change their own state."""
    with torch.no_grad():
        return copy.deepcopy(module)(*(t.clone() for t in inputs))


def check_net(net: Net, seed: int) -> None:
    check(trace(net.build()), [Feed().inputs(net, batch) for batch in (2, 3)], seed)


def check(graph: GraphModule, feeds: Sequence[tuple[Tensor, ...]], seed: int) -> None:
    """Slice and mask the same random part and compare on all ``feeds``, of which the first is the example."""
    deps = Analyses(graph, Inputs(feeds[0])).get(ChannelDependencyGraph)
    keep = removed(deps, seed)
    small, mask = sliced(deps, keep), masked(deps, keep)
    assert set(small.state_dict()) == set(mask.state_dict()) == set(graph.state_dict())
    for feed in feeds:
        difference = numbers.compare(values(mask, feed), values(small, feed))
        assert difference.relative <= CLOSE or difference.absolute <= ROUNDING, f"batch {len(feed[0])}: {difference}"
    assert not [p for p in deps.pinned if "cannot follow" in p.why]


@pytest.mark.parametrize("known", KNOWN)
def test_known_counterexamples(known: str) -> None:
    if not KNOWN[known].train:
        for seed in range(3):
            check_net(KNOWN[known], seed)


@settings(max_examples=120)
@given(net=networks(train=False), seed=st.integers(0, 1000))
def test_random_networks(net: Net, seed: int) -> None:
    check_net(net, seed)


@pytest.mark.slow
@settings(max_examples=3000)
@given(net=networks(most=9, train=False), seed=st.integers(0, 1000))
def test_random_networks_deep(net: Net, seed: int) -> None:
    check_net(net, seed)


def check_moves(seed: int, length: int) -> None:
    """A chain of moves, captured as users' models are."""
    model = randomized(Gymnast(seed, length), seed).double()
    generator = torch.Generator().manual_seed(seed)
    feeds = [(torch.randn(batch, 3, 2, 4, generator=generator, dtype=torch.float64),) for batch in (2, 3)]
    check(capture(model, feeds[0]).parts[0].graph, feeds, seed)


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), length=st.integers(1, 12))
def test_random_moves(seed: int, length: int) -> None:
    check_moves(seed, length)


@pytest.mark.slow
@settings(max_examples=2000)
@given(seed=st.integers(0, 10**6), length=st.integers(1, 16))
def test_random_moves_deep(seed: int, length: int) -> None:
    check_moves(seed, length)
