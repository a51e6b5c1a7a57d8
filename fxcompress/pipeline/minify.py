"""Shrinks a failing graph and pipeline to a few nodes and passes that still fail in the same way.

In order: leave out passes; end the graph earlier; let it start later, from values recorded in a run; leave out single
nodes. Start and end are found by bisection and the rest by delta debugging (Zeller and Hildebrandt 2002), so that a
graph of 500 nodes needs some dozens of runs. A step that does not fail in the same way is taken back, so the result is
right also where a failure does not depend on the graph's size in a simple way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, fx
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from fxcompress.errors import PipelineError
from fxcompress.ir import numbers
from fxcompress.ir.edit import Editor
from fxcompress.ir.inputs import Inputs
from fxcompress.pipeline.base import Pass
from fxcompress.pipeline.pipeline import Frame, Pipeline
from fxcompress.rewrite.rules import remove_dead

MAX_RUNS = 120
"""After so many runs the smallest case found so far is taken."""

T = TypeVar("T")


@dataclass(frozen=True)
class Failure:
    """How a run failed: the class of the error, that of the error behind it, and the pass (None: the check at the end)."""

    error: type[BaseException]
    cause: type[BaseException] | None
    step: Pass | None


def minify(
    module: GraphModule, inputs: Inputs, pipeline: Pipeline, *, on_run: Callable[[str], None] = lambda text: None
) -> tuple[GraphModule, Inputs, Pipeline]:
    """The smallest graph, inputs and pipeline found that fail as the given ones do. Nothing is changed.

    ``on_run`` is called before every run with what is being tried.

    Raises:
        PipelineError: the pipeline does not fail on this module.
    """
    return _Minifier(module, inputs, on_run).minify(pipeline)


def failure_of(module: GraphModule, inputs: Inputs, passes: Sequence[Pass]) -> Failure | None:
    """How the passes fail on ``module``; None when they do not."""
    step: Pass | None = None
    try:
        step = None
        frame = Frame(module, inputs, verify=True, reproduce=False)
        for step in passes:
            frame.apply(step)
        step = None
        frame.finish()
    except Exception as error:  # whatever it is, it is the failure that is looked for, or another
        return Failure(type(error), type(error.__cause__) if error.__cause__ is not None else None, step)
    return None


class _Minifier:
    def __init__(self, module: GraphModule, inputs: Inputs, on_run: Callable[[str], None]) -> None:
        self.module, self.inputs, self.on_run = module, inputs, on_run
        self.runs = 0
        self.passes: list[Pass] = []
        self.wanted: Failure | None = None

    def minify(self, pipeline: Pipeline) -> tuple[GraphModule, Inputs, Pipeline]:
        self.passes = list(pipeline.passes)
        self.wanted = failure_of(self.module, self.inputs, self.passes)
        if self.wanted is None:
            raise PipelineError(
                f"the pipeline '{pipeline}' does not fail on this model", hint="give the model, inputs and pipeline of a failing run"
            )
        self.passes = self._smaller_pipeline()
        graph, inputs = self._smaller_graph()
        return graph, inputs, Pipeline(tuple(self.passes))

    # -- runs ------------------------------------------------------------------------------------------------------

    def _fails(self, module: GraphModule, inputs: Inputs, passes: Sequence[Pass], what: str) -> bool:
        if self.runs >= MAX_RUNS:
            return False
        self.runs += 1
        self.on_run(what)
        return failure_of(module, inputs, passes) == self.wanted

    def _smaller_pipeline(self) -> list[Pass]:
        """Without the passes after the failing one, and without those before it that do not matter."""
        assert self.wanted is not None
        last = [self.wanted.step] if self.wanted.step is not None else []
        before = self.passes[: self.passes.index(last[0])] if last else self.passes

        def fails(kept: list[Pass]) -> bool:
            try:
                chosen = Pipeline((*kept, *last)).passes
            except PipelineError:  # a pass that another one requires was left out
                return False
            return self._fails(self.module, self.inputs, chosen, f"{len(chosen)} passes")

        return [*reduce(before, fails), *last]

    # -- graphs ----------------------------------------------------------------------------------------------------

    def _smaller_graph(self) -> tuple[GraphModule, Inputs]:
        values = record(self.module, self.inputs)
        nodes = [node for node in self.module.graph.nodes if node in values and node.op not in ("placeholder", "output")]
        ends = [place for place, node in enumerate(nodes) if _has_tensor(values[node])]

        def fails(kept: Sequence[Node], end: Node) -> bool:
            graph, inputs = cut(self.module, values, set(kept), end)
            return self._fails(graph, inputs, self.passes, f"{len(kept)} nodes")

        end = bisect(0, len(ends) - 1, lambda at: fails(nodes[: ends[at] + 1], nodes[ends[at]]))
        if end is None:  # the whole output is needed
            return self.module, self.inputs
        kept, last = nodes[: ends[end] + 1], nodes[ends[end]]
        drop = bisect(0, len(kept) - 1, lambda skip: fails(kept[len(kept) - 1 - skip :], last))
        kept = kept[len(kept) - 1 - drop :] if drop is not None else kept
        kept = [*reduce(kept[:-1], lambda some: fails([*some, last], last)), last]
        return cut(self.module, values, set(kept), last)


def bisect(low: int, high: int, fails: Callable[[int], bool]) -> int | None:
    """A small number for which ``fails``; the smallest one if all larger ones fail too. None if ``high`` does not fail."""
    if high < low or not fails(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fails(middle) else (middle + 1, high)
    return high


def reduce(items: Sequence[T], fails: Callable[[list[T]], bool]) -> list[T]:
    """Few of ``items``, in order, for which ``fails`` still holds: no chunk that was tried can be left out."""
    kept, chunk = list(items), len(items)
    while kept and chunk:
        at = 0
        while at < len(kept):
            without = kept[:at] + kept[at + chunk :]
            if fails(without):
                kept = without
            else:
                at += chunk
        chunk = min(chunk // 2, len(kept))
    return kept


def cut(module: GraphModule, values: dict[Node, Any], kept: set[Node], end: Node) -> tuple[GraphModule, Inputs]:
    """The graph of the nodes ``kept`` with the value of ``end`` as output, and its inputs.

    What they read of other nodes becomes a placeholder with the recorded value; numbers become constants, and
    parameters are read as before.
    """
    graph, copies, given = fx.Graph(), dict[Node, Any](), dict[Node, Any]()
    for node in _read_by(module, kept, end):
        if node.op != "get_attr" and _has_tensor(values[node]):
            copies[node] = graph.placeholder(node.name)
            given[copies[node]] = values[node]
        else:
            copies[node] = graph.node_copy(node) if node.op == "get_attr" else values[node]
    for node in module.graph.nodes:
        if node in kept and node not in copies:
            copies[node] = _copy(graph, node, copies)
    graph.output(copies[end])
    result = GraphModule(module, graph)
    remove_dead(Editor(result))
    for node in list(graph.nodes):
        if node.op == "placeholder" and not node.users:
            graph.erase_node(node)
    result.recompile()
    return result, Inputs(tuple(given[node] for node in graph.nodes if node.op == "placeholder"))


def _copy(graph: fx.Graph, node: Node, copies: dict[Node, Any]) -> Any:
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), copies.__getitem__)
    made = graph.create_node(node.op, node.target, args, kwargs, name=node.name)
    made.meta = dict(node.meta)
    return made


def _read_by(module: GraphModule, kept: set[Node], end: Node) -> list[Node]:
    """Nodes outside ``kept`` that it reads, in the order of the graph."""
    read = {source for node in kept for source in node.all_input_nodes} | {end}
    return [node for node in module.graph.nodes if node in read and node not in kept]


def _has_tensor(value: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value))


def record(module: GraphModule, inputs: Inputs) -> dict[Node, Any]:
    """The value of every node in a run, as it was when the node had run."""
    recorder = numbers.Recorder(module)
    with torch.no_grad():
        recorder.run(*inputs.clone().bind(module.graph).values())
    return recorder.values
