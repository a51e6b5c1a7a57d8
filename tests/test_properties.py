"""Every registered pass, and random pipelines of them, keep the function of random networks; see ``oracle.check``.

A counterexample is kept by adding its ``Net`` to ``counterexamples.KNOWN``: it then runs under every pass.
"""

from __future__ import annotations

import pytest
from counterexamples import KNOWN
from drawing import Feed, feeds, networks
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Net
from oracle import check, establishing, make
from pool import Draw

from fxcompress.pipeline import Pass, Pipeline, Property, registry

PASSES = registry.names()


def pipeline(name: str) -> Pipeline:
    """``name`` with default options, after the passes it requires."""
    return Pipeline(tuple(make(n) for n in establishing(name)))


@st.composite
def pipelines(draw: Draw) -> Pipeline:
    """Two to five passes in an order that fulfils their requirements; what a pass requires is put before it."""
    steps: list[Pass] = []
    for name in draw(st.lists(st.sampled_from(PASSES), min_size=2, max_size=5)):
        have = {p for step in steps for p in step.establishes}
        prefix = [make(n) for n in establishing(name)]
        known = have - {Property.PLANNED}  # a plan is used right where it was made
        prefix = [p for p in prefix[:-1] if not p.establishes <= known or p.requires - known] + prefix[-1:]
        if not any(p.forbids & have for p in prefix):
            steps += prefix
    return Pipeline(tuple(steps))


@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("known", KNOWN)
def test_known_counterexamples(name: str, known: str) -> None:
    for feed in (Feed(), Feed("zeros", batch=1)):
        check(pipeline(name), KNOWN[known], feed)


@pytest.mark.parametrize("known", KNOWN)
def test_known_counterexamples_verified(known: str) -> None:
    """The pipeline's own checks raise no false alarm."""
    for name in PASSES:
        check(pipeline(name), KNOWN[known], verify=True)


@pytest.mark.parametrize("name", PASSES)
@settings(max_examples=40)
@given(net=networks(), feed=feeds())
def test_pass(name: str, net: Net, feed: Feed) -> None:
    check(pipeline(name), net, feed)


@settings(max_examples=150)
@given(steps=pipelines(), net=networks(), feed=feeds(), verify=st.booleans())
def test_pipeline(steps: Pipeline, net: Net, feed: Feed, verify: bool) -> None:
    check(steps, net, feed, verify=verify)


@pytest.mark.slow
@settings(max_examples=2000)
@given(steps=pipelines(), net=networks(most=9), feed=feeds(), verify=st.booleans())
def test_pipeline_deep(steps: Pipeline, net: Net, feed: Feed, verify: bool) -> None:
    check(steps, net, feed, verify=verify)


@pytest.mark.slow
@pytest.mark.parametrize("name", PASSES)
@settings(max_examples=300)
@given(net=networks(most=7), feed=feeds())
def test_pass_deep(name: str, net: Net, feed: Feed) -> None:
    check(pipeline(name), net, feed)
