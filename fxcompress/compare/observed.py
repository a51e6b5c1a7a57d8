"""Shapes and dtypes of values that cannot be known without data, from two runs."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from fxcompress.compare.fingerprint import undisturbed
from fxcompress.compare.ports import varying
from fxcompress.ir.inputs import Inputs

__all__ = ["Observed"]


class Observed:
    """What some nodes of a graph give, with tensors on the meta device.

    Only values that have the same shapes on two inputs are told; others depend on the numbers. Nothing is told of a graph that does not
    run on them.
    """

    def __init__(self, module: GraphModule, inputs: tuple[Inputs, ...], wanted: frozenset[Node]) -> None:
        self._first, self._second = (_run(module, one, wanted) for one in inputs[:2]) if wanted else ({}, {})

    def value(self, node: Node) -> Any:
        """None where it is unknown."""
        return None if self.varying(node) else self._first.get(node)

    def whole(self, node: Node) -> Any:
        """What ``node`` gave on the first inputs, known or not; None where nothing is told."""
        return self._first.get(node) if node in self._second else None

    def varying(self, node: Node) -> frozenset[str]:
        """The places in the value of ``node`` whose shapes depend on the numbers."""
        first, second = self._first.get(node), self._second.get(node)
        return varying(first, second) | varying(second, first)


def _run(module: GraphModule, inputs: Inputs, wanted: frozenset[Node]) -> dict[Node, Any]:
    runner = _Watching(module, wanted)
    try:
        with undisturbed(module, inputs):
            runner.run(*inputs.clone().bind(module.graph).values())
    except Exception:  # an engine that is not installed, numbers that the model refuses: then the shapes stay unknown
        return {}
    return runner.seen


class _Watching(fx.Interpreter):
    def __init__(self, module: GraphModule, wanted: frozenset[Node]) -> None:
        super().__init__(module)
        self.extra_traceback = False
        self.wanted = wanted
        self.seen: dict[Node, Any] = {}

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        if n in self.wanted:
            self.seen[n] = pytree.tree_map_only(Tensor, lambda t: t.detach().to("meta"), value)
        return value
