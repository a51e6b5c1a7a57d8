"""Running a graph node by node on several batches at once, so that layers can be changed on the way."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, fx
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from fxcompress.analysis import Shapes
from fxcompress.ir.inputs import Inputs


def last_uses(nodes: Sequence[Node]) -> dict[Node, list[Node]]:
    """For every node, the nodes whose values nobody reads after it."""
    place = {node: i for i, node in enumerate(nodes)}
    dead: dict[Node, list[Node]] = {}
    for node in nodes:
        dead.setdefault(max((*node.users, node), key=place.__getitem__), []).append(node)
    return dead


def live_bytes(module: GraphModule, shapes: Shapes) -> int:
    """Bytes of the values that a run on the example inputs holds at once at most; views count as copies."""
    nodes = list(module.graph.nodes)
    dead = last_uses(nodes)
    sizes: dict[Node, int] = {}
    most = 0
    for node in nodes:
        tensors = [t for t in pytree.tree_leaves(shapes.value(node)) if isinstance(t, Tensor)]
        sizes[node] = sum(t.numel() * t.element_size() for t in tensors) if node.op != "get_attr" else 0
        most = max(most, sum(sizes.values()))
        for gone in dead.get(node, ()):
            sizes.pop(gone, None)
    return most


class Runner:
    """One graph on several batches, stopped before one of its nodes.

    Modules are looked up when their node runs, so a change of a layer that has not run yet counts. Every node runs
    once however many layers are changed; what nobody reads any more is freed. Memory: the live values of one place of
    the graph, on all batches.
    """

    def __init__(self, module: GraphModule, batches: Iterable[Inputs]) -> None:
        self.module = module
        self.nodes: list[Node] = list(module.graph.nodes)
        self.place = {node: i for i, node in enumerate(self.nodes)}
        self.at = 0
        self.values: list[dict[Node, Any]] = [inputs.clone().bind(module.graph) for inputs in batches]
        self._interpreter = fx.Interpreter(module, garbage_collect_values=False)
        self._dead = last_uses(self.nodes)

    def fork(self, batches: Sequence[int]) -> Runner:
        """The same state on some of the batches, with values of its own, since a node may write in place."""
        other = copy.copy(self)
        tensors: tuple[Tensor, ...] = (*self.module.parameters(), *self.module.buffers())
        shared: dict[int, Any] = {id(t): t for t in tensors}
        other.values = []
        for batch in batches:
            values = self.values[batch]  # copied at once, so that views of one storage stay views of one storage
            other.values.append(dict(zip(values, copy.deepcopy(list(values.values()), dict(shared)), strict=True)))
        return other

    def run_before(self, node: Node) -> None:
        """Run everything before ``node``."""
        while self.at < self.place[node]:
            self._step(self.nodes[self.at])
            self.at += 1

    def _step(self, node: Node) -> None:
        for batch, values in enumerate(self.values):
            if node not in values:
                values[node] = self.result(batch, node)
            for gone in self._dead.get(node, ()):
                values.pop(gone, None)

    def result(self, batch: int, node: Node, *, final: bool = False) -> Any:
        """What ``node``, the next one to run, gives on one batch. ``final``: it will not change, so it need not run again."""
        self._interpreter.env = self.values[batch]
        value = self._interpreter.run_node(node)
        if final:
            self.values[batch][node] = value
        return value

    def outputs(self) -> list[list[Any]]:
        """Run the rest; for every batch, the leaves of the graph's output in order."""
        last = self.nodes[-1]
        assert last.op == "output"
        self.run_before(last)
        return [pytree.tree_leaves([values[n] for n in last.all_input_nodes]) for values in self.values]
