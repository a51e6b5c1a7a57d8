"""Who shares what: modules called more than once, parameters with more than one owner."""

from __future__ import annotations

from collections import Counter, defaultdict

from torch import Tensor
from torch.fx import GraphModule, Node

from fxcompress.analysis.base import Analyses, Analysis
from fxcompress.ir.inputs import Inputs


class Sharing(Analysis):
    """``calls``: the nodes that call or read each path. ``owners``: the paths under which each tensor is found."""

    def __init__(self, module: GraphModule, inputs: Inputs, analyses: Analyses) -> None:
        super().__init__(module, inputs, analyses)
        self.calls: dict[str, list[Node]] = defaultdict(list)
        for node in module.graph.nodes:
            if node.op in ("call_module", "get_attr"):
                self.calls[str(node.target)].append(node)
        self.owners: dict[int, list[str]] = defaultdict(list)
        for name, tensor in (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)):
            self.owners[id(tensor)].append(name)

    def tied(self, tensor: Tensor) -> bool:
        """Whether a parameter or buffer stands under more than one name."""
        return len(self.owners[id(tensor)]) > 1

    def shared_modules(self) -> Counter[str]:
        """Paths of modules called more than once, with the number of calls."""
        return Counter({path: len(nodes) for path, nodes in self.calls.items() if len(nodes) > 1 and nodes[0].op == "call_module"})
