"""From the fake-quantized graph to the integer graph: uint8 values, integer layers, conversions only at the border."""

from __future__ import annotations

from torch import Tensor, nn
from torch.fx import GraphModule, Node

from fxcompress.analysis import Analyses
from fxcompress.analysis.shapes import attribute
from fxcompress.ir.edit import Editor
from fxcompress.ir.inputs import Inputs
from fxcompress.ir.view import module_of
from fxcompress.quant.affine import QParams
from fxcompress.quant.integer_forms import IntegerForms, pad_with, padding
from fxcompress.quant.modules import Dequantize, Quantize, Requantize
from fxcompress.quant.regions import Regions, is_quantizer
from fxcompress.quant.roles import Role

__all__ = ["to_integers"]


def to_integers(module: GraphModule, inputs: Inputs) -> None:
    """Rewrite a fake-quantized graph in place."""
    _Lowering(module, inputs).run()


class _Lowering:
    """Walks the graph in its order. A value that has been passed has integers, a float form, or both; readers take what they need."""

    def __init__(self, module: GraphModule, inputs: Inputs) -> None:
        self.module, self.editor = module, Editor(module)
        self.regions = Regions(module, Analyses(module, inputs))
        self.forms = IntegerForms(self.regions)
        self.absorbed = {n: self.regions.quantizer_after(n) for n in self.regions.integer if self._computes(n)}
        self.ints: dict[Node, Node] = {}
        self.floats: dict[Node, Node] = {}
        self.made: dict[Node, Node] = {}  # what computes integers -> the node that does so now

    def run(self) -> None:
        nodes = list(self.module.graph.nodes)
        for node in nodes:
            if is_quantizer(node):
                self._quantizer(node)
            elif node not in self.regions.integer:
                self._stay(node)
            elif self.regions.readings[node].role is Role.MOVE:
                self._move(node)
            else:
                self._compute(node)
        for node in reversed(nodes):
            replaced = self.ints.get(node) or self.made.get(node) or self.floats.get(node) or node
            if not node.users and (replaced is not node or node.op == "get_attr"):
                self.editor.erase(node)
        self.editor.finish()

    def _computes(self, node: Node) -> bool:
        return self.regions.readings[node].role is not Role.MOVE

    # -- forms of values -------------------------------------------------------------------------------------------------

    def qparams(self, value: Node) -> QParams:
        """Of the integers of a value."""
        return self.regions.qparams(value)

    def float_of(self, value: Node, reader: Node) -> Node:
        """The float form of a value, made before ``reader`` if there is none yet."""
        if value not in self.floats:
            if value not in self.ints:
                return value
            module = Dequantize(self.qparams(value)).eval()
            self.floats[value] = self.editor.call_module(f"dequantize.{value.name}", module, (self.ints[value],), before=reader, of=[value])
        return self.floats[value]

    def shape_of(self, value: Node) -> Node:
        """Any form of a value."""
        return self.ints.get(value) or self.floats.get(value, value)

    # -- nodes -----------------------------------------------------------------------------------------------------------

    def _stay(self, node: Node) -> None:
        """What computes in float reads float; what looks at shapes reads what is there."""
        meta = self.regions.readings[node].role is Role.META
        for value in list(node.all_input_nodes):
            node.replace_input_with(value, self.shape_of(value) if meta else self.float_of(value, node))

    def _quantizer(self, node: Node) -> None:
        (value,), qparams = node.all_input_nodes, self.qparams(node)
        if value in self.ints and self.qparams(value) == qparams:
            self.ints[node] = self.ints[value]
        elif value in self.ints:
            self.editor.set_module(node, Requantize(self.qparams(value), qparams).eval())
            node.replace_input_with(value, self.ints[value])
            self.ints[node] = node
        elif self.absorbed.get(value) is node:
            self.ints[node] = self.made[value]
        elif value.op == "get_attr":
            self.ints[node] = self._constant(value, node, qparams)
        else:
            self.editor.set_module(node, Quantize(qparams).eval())
            node.replace_input_with(value, self.float_of(value, node))
            self.ints[node] = node

    def _constant(self, value: Node, node: Node, qparams: QParams) -> Node:
        """Integers of a parameter or buffer, made now."""
        tensor: Tensor = attribute(self.module, str(value.target))
        return self.editor.get_attr(f"{value.target}_int8".replace(".", "_"), qparams.quantize(tensor.detach()), before=node, of=[value])

    def _move(self, node: Node) -> None:
        reading = self.regions.readings[node]
        pool = self.forms.max_pool(node)
        if pool is not None:
            self.ints[node] = self._call(node, pool, [self.ints[reading.operands[0]]])
            return
        for value in list(node.all_input_nodes):
            node.replace_input_with(value, self.ints[value] if value in reading.operands else self.shape_of(value))
        self.ints[node] = pad_with(node, self.qparams(node).zero_point, self.editor)

    def _compute(self, node: Node) -> None:
        """An integer operation in the place of a float one."""
        reading, after = self.regions.readings[node], self.absorbed[node]
        sources = {value: self.qparams(value) for value in (*reading.operands, *reading.free) if value in self.ints}
        module, operands = self.forms.computing(node, reading, sources, None if after is None else self.qparams(after))
        new = self._call(node, module, [self.ints.get(value) or self.float_of(value, node) for value in operands])
        if after is not None:
            self.made[node] = new
        elif new is not node:
            self.floats[node] = new

    def _call(self, node: Node, module: nn.Module, operands: list[Node]) -> Node:
        """Let ``module`` compute the value of ``node``; gives the node that calls it."""
        module.eval()
        source = getattr(module, "source", None)
        operands = padding(module_of(node), node, operands, 0 if source is None else source.zero_point, self.editor)
        if node.op != "call_module":
            return self.editor.call_module(node.name, module, tuple(operands), before=node, of=[node])
        self.editor.set_module(node, module)
        node.args, node.kwargs = tuple(operands), {}
        return node
