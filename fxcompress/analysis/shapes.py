"""Shapes and dtypes of every value, by running the graph on the meta device."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from fxcompress.analysis.base import Analyses, Analysis
from fxcompress.ir.copying import copied
from fxcompress.ir.inputs import Inputs
from fxcompress.ir.layer_shapes import quick_result

_META = torch.device("meta")


class Shapes(Analysis):
    """Meta values of nodes, computed node by node when asked for, so an edit of the graph costs only what it adds.

    Every rewrite keeps the value of the nodes that survive it, so what is known of them stays true. A value that
    cannot be had without data (``nonzero``, ``item``) is unknown, and so is what follows from it: None.
    """

    def __init__(self, module: GraphModule, inputs: Inputs, analyses: Analyses) -> None:
        super().__init__(module, inputs, analyses)
        self._values: dict[Node, Any] = {}
        self._reasons: dict[Node, str] = {}
        self._bind_inputs()

    def carried(self, analyses: Analyses) -> Shapes:
        """The same values for the nodes of a copy."""
        new = Shapes(analyses.module, self.inputs, analyses)
        for ours, theirs in zip(self.module.graph.nodes, analyses.module.graph.nodes, strict=True):
            if ours in self._values:
                new._values[theirs] = self._values[ours]
            if ours in self._reasons:
                new._reasons[theirs] = self._reasons[ours]
        return new

    def value(self, node: Node) -> Any:
        """What ``node`` gives on the example inputs, with tensors on the meta device; None when unknown."""
        if node not in self._values:
            self._compute(node)
        return self._values[node]

    def shape(self, node: Node) -> tuple[int, ...] | None:
        """The shape of the tensor that ``node`` gives on the example inputs; None when it is no tensor or unknown."""
        value = self.value(node)
        return tuple(value.shape) if isinstance(value, Tensor) else None

    def dtype(self, node: Node) -> torch.dtype | None:
        value = self.value(node)
        return value.dtype if isinstance(value, Tensor) else None

    def reason(self, node: Node) -> str | None:
        """Why the value of ``node`` is unknown."""
        return self._reasons.get(node)

    def run(self, node: Node) -> Any:
        """Run ``node`` once more on the meta values of its operands.

        Raises:
            Exception: whatever the operation raises on the meta device.
        """
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), self.value)
        return self._run(node, *pytree.tree_map_only(torch.device, lambda _: _META, (args, kwargs)))

    def _bind_inputs(self) -> None:
        for node, value in self.inputs.bind(self.module.graph).items():
            self._values[node] = pytree.tree_map_only(Tensor, _to_meta, value)

    def _compute(self, node: Node) -> None:
        pending = [node]
        while pending:  # depth first without recursion: graphs are deep
            current = pending[-1]
            missing = [n for n in current.all_input_nodes if n not in self._values]
            if missing:
                pending.extend(missing)
                continue
            pending.pop()
            if current not in self._values:
                self._values[current] = self._try(current)

    def _try(self, node: Node) -> Any:
        unknown = next((n for n in node.all_input_nodes if n in self._reasons), None)
        if unknown is not None:
            self._reasons[node] = self._reasons[unknown]
            return None
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the model's own warnings are shown when the user runs it
                return pytree.tree_map_only(Tensor, lambda t: t if t.is_meta else _to_meta(t), self.run(node))
        except Exception as error:  # any operation may refuse the meta device in its own way
            self._reasons[node] = f"{node.name} needs data: {type(error).__name__}: {error}"
            return None

    def _run(self, node: Node, args: Any, kwargs: Any) -> Any:
        if node.op == "output":
            return args[0]
        if node.op == "get_attr":
            return pytree.tree_map_only(Tensor, _to_meta, attribute(self.module, str(node.target)))
        if node.op == "call_module":
            layer = self.module.get_submodule(str(node.target))
            quick = quick_result(layer, args[0]) if len(args) == 1 and not kwargs and isinstance(args[0], Tensor) else None
            if quick is not None:
                return quick
            return meta_twin(layer)(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)


def attribute(module: nn.Module, path: str) -> Any:
    """What a get_attr node with target ``path`` reads."""
    found: Any = module
    for part in path.split("."):
        found = getattr(found, part)
    return found


def meta_twin(module: nn.Module) -> nn.Module:
    """A copy of ``module`` whose parameters and buffers are on the meta device; no data is copied."""
    return copied(module, _to_meta)


def _to_meta(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=_META)
