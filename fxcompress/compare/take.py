"""A snapshot of a graph: everything by which two versions of a network can be compared, without the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.fx import GraphModule, Node

from fxcompress.analysis import Analyses, Shapes
from fxcompress.analysis.cost import Cost as CostAnalysis
from fxcompress.analysis.shapes import attribute
from fxcompress.compare import layers
from fxcompress.compare.fingerprint import fingerprint
from fxcompress.compare.grids import grids_of
from fxcompress.compare.observed import Observed
from fxcompress.compare.operands import operands_of
from fxcompress.compare.plain import called
from fxcompress.compare.ports import Missing, contract_of, dtype_name, leaves
from fxcompress.compare.schema import Contract, Cost, Grid, Json, Live, NodeRecord, Sketch, Snapshot, Value
from fxcompress.compare.seeded import chosen, seeded
from fxcompress.compare.sketch import digest
from fxcompress.compare.sources import portable
from fxcompress.compare.weights import Weights
from fxcompress.ir.edit import provenance
from fxcompress.ir.inputs import Inputs, signature_of
from fxcompress.ir.verify import source_line, verify
from fxcompress.ir.view import module_of
from fxcompress.quant.affine import QParams
from fxcompress.targets.engine import EngineModule

__all__ = ["COUNT", "SEED", "take"]

SEED = 0

COUNT = 4
"""Of seeded inputs."""


def take(
    module: GraphModule,
    inputs: Inputs,
    *,
    model: str,
    capture: str = "",
    numbers: bool = True,
    count: int = COUNT,
    data: Iterable[Inputs] | None = None,
) -> Snapshot:
    """A snapshot of ``module``, which is left as it was.

    Args:
        inputs: example inputs; shapes and costs are those on them.
        model: how the user names it. capture: the step of the ladder that captured it.
        numbers: run it on ``count`` seeded inputs, and note what comes out.
        data: typical inputs to run it on instead; the first ``count`` are taken.

    Raises:
        GraphError: the graph is not well formed.
        InputError: the graph does not take the inputs, or does not run on seeded ones.
    """
    verify(module)
    runs, generator = chosen(inputs, SEED, count, data)
    taken = _Taking(module, inputs, runs)
    prints, found = fingerprint(module, runs, generator, SEED, taken.grids) if numbers else ({}, None)
    return Snapshot(
        model,
        taken.records(prints),
        taken.weights.records(),
        taken.contract(),
        taken.cost(),
        found,
        capture,
        module.training,
        live=Live(module, runs[0]),
    )


class _Taking:
    """The facts of one graph, and the records that are made of them."""

    def __init__(self, module: GraphModule, inputs: Inputs, runs: tuple[Inputs, ...]) -> None:
        self.module, self.inputs = module, inputs
        analyses = Analyses(module, inputs)
        self.shapes, self.costs = analyses.get(Shapes), analyses.get(CostAnalysis)
        self.weights, self.grids = Weights(module), grids_of(module)
        unknown = frozenset(node for node in module.graph.nodes if self.shapes.value(node) is None and self.shapes.reason(node))
        self.observed = Observed(module, runs if len(runs) > 1 else seeded(inputs, SEED, 2), unknown)
        self.places = {node: place for place, node in enumerate(module.graph.nodes)}

    def records(self, prints: Mapping[Node, Sketch]) -> tuple[NodeRecord, ...]:
        return tuple(self._record(node, prints.get(node)) for node in self.module.graph.nodes)

    def contract(self) -> Contract:
        output = next(node for node in self.module.graph.nodes if node.op == "output")
        arguments = {str(node.target): value for node, value in self.inputs.bind(self.module.graph).items()}
        unknown = self.observed.varying(output)
        return contract_of(arguments, self._result(output), str(signature_of(self.module.graph)), unknown)

    def cost(self) -> Cost:
        found = self.costs
        engines = sum(len(layer.model) for layer in self.module.modules() if isinstance(layer, EngineModule))
        return Cost(found.params, found.macs, found.weight_bytes + engines, found.peak_bytes)

    def _value(self, node: Node) -> Any:
        """What ``node`` gives on the example, with tensors on the meta device; None where that is unknown."""
        known = self.shapes.value(node)
        return self.observed.value(node) if known is None else known

    def _result(self, output: Node) -> Any:
        """What the graph gives, with :class:`Missing` where nothing is known."""
        whole = self.shapes.value(output)
        whole = self.observed.whole(output) if whole is None else whole
        if whole is not None:
            return whole

        def known(node: Node) -> Any:
            value = self._value(node)
            return Missing() if value is None else value

        return _mapped(output.args[0], known)

    def _record(self, node: Node, printed: Sketch | None) -> NodeRecord:
        operands = operands_of(node, _digest)
        grids = tuple(self.grids.get(source) for source in operands.reads)
        target, path, settings, tensors = self._called(node, grids)
        return NodeRecord(
            node.name,
            layers.kind(node),
            target,
            path,
            tuple(self.places[source] for source in operands.reads),
            dict(sorted({**settings, **operands.attributes}.items())),
            tensors,
            self._values(node),
            self.costs.by_node.get(node, 0),
            portable(source_line(node)),
            provenance(node),
            printed,
        )

    def _called(self, node: Node, grids: tuple[QParams | None, ...]) -> tuple[str, str, dict[str, Json], dict[str, int]]:
        """Target, path, settings and tensors."""
        layer = module_of(node)
        if layer is not None:
            tensors = {name: self.weights.place(tensor) for name, tensor in layers.tensors_of(layer)}
            return layers.target(layer), str(node.target), layers.settings(layer, grids, _digest), tensors
        if node.op == "call_method":
            return f".{node.target}", "", {}, {}
        if node.op == "call_function":
            return called(node.target), "", {}, {}
        if node.op == "get_attr":
            read = attribute(self.module, str(node.target))
            tensors = {"value": self.weights.place(read)} if isinstance(read, Tensor) else {}
            settings = {} if tensors else {"value": f"a {type(read).__qualname__}"}
            return "", str(node.target), settings, tensors
        return "", "", {}, {}

    def _values(self, node: Node) -> tuple[Value, ...]:
        if node.op == "output":
            return ()
        grid = self.grids.get(node)
        form = None if grid is None else Grid(grid.scale, grid.zero_point, grid.bits)
        found = (leaf for _, leaf in leaves(self._value(node)))
        return tuple(Value(dtype_name(leaf), tuple(leaf.shape), form) for leaf in found if isinstance(leaf, Tensor))


def _digest(tensor: Tensor) -> str:
    return digest([tensor])


def _mapped(value: Any, known: Callable[[Node], Any]) -> Any:
    """``value`` with ``known(node)`` for every node, in the same containers."""
    if isinstance(value, Node):
        return known(value)
    if isinstance(value, dict):
        return {key: _mapped(item, known) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)([_mapped(item, known) for item in value])
    return value
