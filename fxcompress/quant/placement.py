"""Which nodes of a graph compute with integers, and on which values observers stand.

Every node that can compute with integers gets one of two labels, and every value is made as integers or as float. Where a reader
wants the other form a conversion stands between. All of this has a price in time, and the cheapest labelling of the whole graph is
found at once as a minimum cut (``mincut.py``). Of a node n there are up to four things to label:

    op(n)        n computes with integers
    made(n)      its value leaves it as integers; a layer that computes with integers can give float, too, for nothing
    ints(n)      somebody reads its value as integers         ints and not made: a Quantize is paid
    made_f(n)    nobody reads its value as float              made and not made_f: a Dequantize is paid
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.fx import GraphModule, Node

from fxcompress.analysis import Aliases, Analyses, Shapes
from fxcompress.ir.ops import Trait
from fxcompress.ir.view import module_of, spec_of
from fxcompress.quant.costs import Costs
from fxcompress.quant.mincut import NEVER, Labelling
from fxcompress.quant.roles import Reader, Reading, Role

__all__ = ["Placement", "place"]


@dataclass(frozen=True)
class Placement:
    """What was decided.

    Attributes:
        integer: nodes that compute with integers, or move them.
        observe: nodes whose value is quantized; those also in ``made`` for all of its readers, else for those in ``integer``.
        made: nodes whose value leaves them as integers.
        why: for every node that could have been either, and every layer: the reason, in the order of the graph.
    """

    integer: frozenset[Node]
    observe: tuple[Node, ...]
    made: frozenset[Node]
    readings: dict[Node, Reading]
    why: dict[Node, str]


def place(module: GraphModule, analyses: Analyses, costs: Costs, excluded: Callable[[Node], str | None] = lambda node: None) -> Placement:
    """Decide; ``excluded`` gives the reason why a layer must stay in float, or None."""
    return _Placer(module, analyses, costs, excluded).result()


class _Placer:
    """Builds the labelling problem of one graph."""

    def __init__(self, module: GraphModule, analyses: Analyses, costs: Costs, excluded: Callable[[Node], str | None]) -> None:
        self.shapes, self.costs = analyses.get(Shapes), costs
        reader = Reader(self.shapes, Aliases(module, analyses.inputs, analyses))
        self.why: dict[Node, str] = {}
        self.readings = {node: self._with_exclusions(node, reader.read(node), excluded) for node in module.graph.nodes}
        self.cut = Labelling()
        for node, reading in self.readings.items():
            self._value(node, reading)
            self._operation(node, reading)
        self.first = self.cut.solve()

    def _with_exclusions(self, node: Node, reading: Reading, excluded: Callable[[Node], str | None]) -> Reading:
        why = excluded(node) if reading.role is Role.LAYER else None
        return reading if why is None else Reading(Role.FLOAT, why=why)

    # -- the problem -----------------------------------------------------------------------------------------------------

    def _value(self, node: Node, reading: Reading) -> None:
        """Where and how the value of a node is made, and what it costs to turn it into the other form."""
        numel = self._numel(node)
        made = self._made(node)
        if numel is None:  # several tensors at once are converted one by one, after they are taken apart
            self.cut.if_differ(("ints", node), made)
            self.cut.if_differ(made, ("made_f", node))
        else:
            self.cut.if_differ(("ints", node), made, self.costs.to_integers(numel))
            self.cut.if_differ(made, ("made_f", node), self.costs.to_float(numel))
        if reading.role in (Role.FLOAT, Role.META):
            self.cut.if_first(made, NEVER)
        elif made == ("made", node):
            self.cut.if_differ(made, ("op", node))
            self.cut.if_differ(("op", node), made, self.costs.extra_float(numel or 0))

    def _operation(self, node: Node, reading: Reading) -> None:
        op = ("op", node)
        if reading.role is Role.META:
            return
        if reading.role is Role.FLOAT:
            self.cut.if_first(op, NEVER)
            for operand in node.all_input_nodes:
                self.cut.if_differ(("made_f", operand), op)
            return
        in_float, in_integers = self._times(node, reading)
        self.cut.if_second(op, in_float)
        self.cut.if_first(op, in_integers)
        for operand in reading.operands:
            self.cut.if_differ(op, ("ints", operand))
            self.cut.if_differ(("made_f", operand), op)
        for operand in reading.free:
            self.cut.if_second(self._made(operand), self.costs.extra_float(self._numel(operand) or 0))

    def _made(self, node: Node) -> tuple[str, Node]:
        """What stands for "the value leaves as integers": movers and maps give what they take."""
        return ("op" if self.readings[node].role in (Role.MOVE, Role.MAP) else "made", node)

    def _times(self, node: Node, reading: Reading) -> tuple[int, int]:
        """What the operation costs in float and in integers."""
        if reading.role is Role.LAYER:
            layer, x = module_of(node), self.shapes.shape(reading.operands[0])
            assert layer is not None
            assert x is not None
            return self.costs.layer(layer, x)
        spec = spec_of(node)
        if reading.role is Role.MAP:
            return self.costs.map(self._numel(node) or 0)
        if spec is not None and Trait.VIEW in spec.traits:
            return 0, 0
        return self.costs.extra_float(sum(self._numel(n) or 0 for n in {*reading.operands, node})), 0

    def _numel(self, node: Node) -> int | None:
        value = self.shapes.value(node)
        return value.numel() if isinstance(value, Tensor) else None

    # -- the answer ------------------------------------------------------------------------------------------------------

    def result(self) -> Placement:
        integer = frozenset(n for n, r in self.readings.items() if ("op", n) in self.first and r.role not in (Role.FLOAT, Role.META))
        made = frozenset(n for n in self.readings if self._made(n) in self.first)
        read = {operand for node in integer for operand in self.readings[node].operands}
        observe = tuple(n for n in self.readings if (n in made or n in read) and not (n in integer and self.readings[n].role is Role.MOVE))
        return Placement(integer, observe, made, self.readings, {n: self._why(n, integer) for n in self.readings})

    def _why(self, node: Node, integer: frozenset[Node]) -> str:
        reading = self.readings[node]
        if reading.why or reading.role is Role.META:
            return reading.why or reading.role.value
        if reading.role is not Role.LAYER:
            return "between quantized layers" if node in integer else "its readers and operands are in float"
        in_float, in_integers = self._times(node, reading)
        gain = f"{in_integers / 1000:.0f} us in int8, {in_float / 1000:.0f} us in float"
        if not self.costs.compares:
            return "it can be int8" if node in integer else "turning its values into integers would cost more than it saves"
        if node in integer:
            return gain
        return f"float is faster: {gain}" if in_float <= in_integers else f"the conversions around it would cost more than it saves: {gain}"
