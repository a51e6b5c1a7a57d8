"""Which values of an observed or fake-quantized graph integers can hold, and which operations compute with integers.

A value is *on the grid* of a quantizer (an observer, later a FakeQuantize) when it is the quantizer's result or has been moved from
there. What is moved is only moved as integers when somebody wants integers in the end.
"""

from __future__ import annotations

from torch.fx import GraphModule, Node

from fxcompress.analysis import Aliases, Analyses, Shapes
from fxcompress.ir.view import kind_of, module_of
from fxcompress.quant.affine import QParams
from fxcompress.quant.fake import FakeQuantConv1d, FakeQuantConv2d, FakeQuantConv3d, FakeQuantize, FakeQuantLinear
from fxcompress.quant.observed import ObservedConv1d, ObservedConv2d, ObservedConv3d, ObservedLinear
from fxcompress.quant.observers_base import Observer
from fxcompress.quant.roles import Reader, Reading, Role, layer_operands

__all__ = ["QUANTIZED_LAYERS", "Regions", "is_quantizer"]

QUANTIZED_LAYERS = (
    ObservedConv1d,
    ObservedConv2d,
    ObservedConv3d,
    ObservedLinear,
    FakeQuantConv1d,
    FakeQuantConv2d,
    FakeQuantConv3d,
    FakeQuantLinear,
)


def is_quantizer(node: Node) -> bool:
    """Whether a node is the call of an observer or of a FakeQuantize."""
    return isinstance(module_of(node), (Observer, FakeQuantize))


class Regions:
    """The grids of one graph.

    Attributes:
        grid: value -> the quantizer on whose grid it is.
        wanted: values on a grid that somebody wants as integers.
        integer: operations that compute with integers or move them; quantizers are not among them.
    """

    def __init__(self, module: GraphModule, analyses: Analyses) -> None:
        self._reader = Reader(analyses.get(Shapes), Aliases(module, analyses.inputs, analyses))
        self.readings: dict[Node, Reading] = {}
        self.grid: dict[Node, Node] = {}
        self._qparams: dict[Node, QParams] = {}
        for node in module.graph.nodes:
            self.readings[node] = self._read(node)
            self._extend(node)
        self.wanted: set[Node] = set()
        self.integer: set[Node] = set()
        for node in reversed(list(module.graph.nodes)):
            self._decide(node)

    def _read(self, node: Node) -> Reading:
        if not isinstance(module_of(node), QUANTIZED_LAYERS):
            return self._reader.read(node)
        found = layer_operands(node)
        if found is None:
            return Reading(Role.FLOAT, why="it is called in an unusual way")
        return Reading(Role.LAYER, found[:1], () if found[1] is None else found[1:])  # type: ignore[arg-type]

    def _extend(self, node: Node) -> None:
        reading = self.readings[node]
        if is_quantizer(node):
            self.grid[node] = node
            quantizer = module_of(node)
            if isinstance(quantizer, FakeQuantize):
                self._qparams[node] = quantizer.qparams
        elif reading.role is Role.MOVE and all(n in self.grid for n in reading.operands):
            grids = [self.grid[n] for n in reading.operands]
            if grids and all(same_grid(grids[0], grid) for grid in grids):
                self.grid[node] = grids[0]

    def _decide(self, node: Node) -> None:
        """Of a node whose readers have all been asked."""
        reading = self.readings[node]
        on_grid = all(n in self.grid for n in reading.operands) and bool(reading.operands)
        if reading.role is Role.LAYER and isinstance(module_of(node), QUANTIZED_LAYERS):
            computes = on_grid
        elif reading.role is Role.MAP:
            computes = on_grid and self.quantizer_after(node) is not None
        elif reading.role is Role.MEAN:
            computes = on_grid
        else:
            computes = reading.role is Role.MOVE and node in self.wanted
        if computes:
            self.integer.add(node)
            self.wanted.update(reading.operands)
            self.wanted.update(n for n in reading.free if n in self.grid)
        elif is_quantizer(node):
            self.wanted.update(n for n in node.all_input_nodes if n in self.grid)

    def rank(self, value: Node) -> int:
        """The number of dimensions, -1 where it is unknown."""
        return self._reader.rank(value)

    def qparams(self, value: Node) -> QParams:
        """Of the grid of a value of a fake-quantized graph."""
        return self._qparams[self.grid[value]]

    def quantizer_after(self, node: Node) -> Node | None:
        """The quantizer that alone reads the value of ``node``, or None."""
        users = list(node.users)
        return users[0] if len(users) == 1 and is_quantizer(users[0]) else None


def same_grid(a: Node, b: Node) -> bool:
    """Whether two quantizers have the same scale and zero point; of observers it is calibration that decides."""
    first, second = module_of(a), module_of(b)
    if isinstance(first, FakeQuantize) and isinstance(second, FakeQuantize):
        return first.qparams == second.qparams
    return type(first) is type(second)


def joins(node: Node) -> bool:
    """Whether an operation puts several tensors into one."""
    return kind_of(node) in ("cat", "stack")
