"""Shrinking a failing graph and pipeline."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
import torchvision
from torch import nn
from torch.fx import GraphModule

from fxcompress.capture import capture
from fxcompress.errors import EquivalenceError, PassError, PipelineError
from fxcompress.ir.inputs import Inputs
from fxcompress.ir.view import kind_of
from fxcompress.pipeline import Pass, PassContext, PassResult, Pipeline
from fxcompress.pipeline.minify import bisect, failure_of, minify, reduce


@dataclass(frozen=True)
class DoubleRelu(Pass):
    """A broken pass: doubles what a relu gives, if it reads a convolution or norm."""

    name: ClassVar[str] = "double-relu"

    def run(self, module: GraphModule, ctx: PassContext) -> PassResult:
        found = [n for n in module.graph.nodes if kind_of(n) == "relu"]
        for node in found:
            with module.graph.inserting_after(node):
                double = module.graph.call_function(operator.mul, (node, 2))
            node.replace_all_uses_with(double, delete_user_cb=lambda user, double=double: user is not double)
        module.recompile()
        return PassResult(module, bool(found))


@dataclass(frozen=True)
class ChokesOnAdd(Pass):
    """A broken pass: raises when an addition of two different layers is followed by a relu."""

    name: ClassVar[str] = "chokes-on-add"

    def run(self, module: GraphModule, ctx: PassContext) -> PassResult:
        for node in module.graph.nodes:
            if kind_of(node) == "relu" and kind_of(node.args[0]) == "add":
                raise KeyError(node.name)
        return PassResult(module, False)


@dataclass(frozen=True)
class Idle(Pass):
    name: ClassVar[str] = "idle"
    mark: int = 0

    def run(self, module: GraphModule, ctx: PassContext) -> PassResult:
        return PassResult(module, False)


@pytest.fixture(scope="module")
def resnet() -> tuple[GraphModule, Inputs]:
    torch.manual_seed(0)
    part = capture(torchvision.models.resnet18().eval(), torch.randn(1, 3, 32, 32)).parts[0]
    return part.graph, part.inputs


def sizes(module: GraphModule) -> list[str]:
    return [node.op for node in module.graph.nodes]


def test_a_pass_that_lies_about_numbers(resnet: tuple[GraphModule, Inputs]) -> None:
    module, inputs = resnet
    runs: list[str] = []
    before = str(module.graph)
    broken = Pipeline((Idle(1), DoubleRelu(), Idle(2)))
    with pytest.raises(EquivalenceError):
        broken.execute(module, inputs)
    small, given, pipeline = minify(module, inputs, broken, on_run=runs.append)
    assert len(small.graph.nodes) <= 4
    assert str(pipeline) == "double-relu"
    assert len(runs) < 60
    assert str(module.graph) == before
    with pytest.raises(EquivalenceError):
        pipeline.execute(small, given)


def test_a_pass_that_raises_at_one_pattern(resnet: tuple[GraphModule, Inputs]) -> None:
    module, inputs = resnet
    small, given, pipeline = minify(module, inputs, Pipeline((Idle(1), Idle(2), ChokesOnAdd())))
    assert sizes(small) == ["placeholder", "placeholder", "call_function", "call_module", "output"]
    with pytest.raises(PassError, match="KeyError"):
        pipeline.execute(small, given)


def test_a_long_graph_needs_few_runs() -> None:
    class Long(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for at in range(500):
                x = torch.relu(x) + 1 if at == 311 else torch.tanh(x)
            return x

    part = capture(Long(), torch.randn(2, 3)).parts[0]
    runs: list[str] = []
    small, _, _ = minify(part.graph, part.inputs, Pipeline((DoubleRelu(),)), on_run=runs.append)
    assert sizes(small) == ["placeholder", "call_function", "output"]
    assert len(runs) < 60


def test_what_does_not_fail_is_refused(resnet: tuple[GraphModule, Inputs]) -> None:
    with pytest.raises(PipelineError, match="does not fail"):
        minify(*resnet, Pipeline((Idle(),)))


def test_failure_is_the_error_and_the_pass(resnet: tuple[GraphModule, Inputs]) -> None:
    failure = failure_of(*resnet, [Idle(), ChokesOnAdd()])
    assert failure is not None
    assert (failure.error, failure.cause, failure.step) == (PassError, KeyError, ChokesOnAdd())


def test_keyword_inputs_and_containers() -> None:
    class Pair(nn.Module):
        def forward(self, x: torch.Tensor, *, y: torch.Tensor, scale: float = 2.0) -> dict[str, torch.Tensor]:
            a, b = torch.chunk(x * scale, 2)
            return {"sum": torch.relu(a + b) + y.shape[0], "y": y}

    part = capture(Pair(), {"x": torch.randn(4, 3), "y": torch.randn(5)}).parts[0]
    small, given, pipeline = minify(part.graph, part.inputs, Pipeline((DoubleRelu(),)))
    assert len(small.graph.nodes) <= 4
    with pytest.raises(EquivalenceError):
        pipeline.execute(small, given)


def test_bisect_and_reduce() -> None:
    assert [bisect(0, 9, lambda at, wall=wall: at >= wall) for wall in range(11)] == [*range(10), None]
    assert reduce(list(range(20)), lambda some: {3, 17} <= set(some)) == [3, 17]
    assert reduce([1, 2], lambda some: True) == []
