"""Which values lie in memory that some node writes in place."""

from __future__ import annotations

from torch.fx import GraphModule, Node

from fxcompress.analysis.base import Analyses, Analysis
from fxcompress.ir.effects import may_alias, written_operand, written_statistics
from fxcompress.ir.inputs import Inputs


class Aliases(Analysis):
    """Union-find over values that may share memory; unknown operations may share with all of their operands."""

    def __init__(self, module: GraphModule, inputs: Inputs, analyses: Analyses) -> None:
        super().__init__(module, inputs, analyses)
        self._parent: dict[Node, Node] = {}
        attributes: dict[str, Node] = {}
        written = []
        for node in module.graph.nodes:
            if node.op == "get_attr":  # two reads of one attribute are the same memory
                self._unite(node, attributes.setdefault(str(node.target), node))
            for other in may_alias(node):
                self._unite(node, other)
            target = written_operand(node)
            if target is not None:
                written.append(target)
            written += written_statistics(node)
        self._written = {self._find(node) for node in written}

    def is_written(self, node: Node) -> bool:
        """Whether somebody writes, at some time, to memory that the value of ``node`` may share."""
        return bool(self._written) and self._find(node) in self._written

    def together(self, a: Node, b: Node) -> bool:
        """Whether two values may share memory."""
        return self._find(a) is self._find(b)

    def _find(self, node: Node) -> Node:
        root = node
        while self._parent.get(root, root) is not root:
            root = self._parent[root]
        while self._parent.get(node, node) is not root:
            self._parent[node], node = root, self._parent.get(node, node)
        return root

    def _unite(self, a: Node, b: Node) -> None:
        self._parent[self._find(a)] = self._find(b)
