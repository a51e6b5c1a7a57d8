"""The unsliced network that must compute what the sliced one does: every reader ignores the removed channels.

The mask stands on the consumers, where channels are contracted: zeroing what *produces* a channel is not the same,
because a batch norm or a sigmoid behind it makes it nonzero again. Statistics over channels (LayerNorm, GroupNorm,
softmax, a mean over channels) run over the kept ones; there the function changes, and ``changed_statistics`` says so.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from fxcompress.analysis import Shapes
from fxcompress.analysis.channels import ChannelDependencyGraph, Mask, Read
from fxcompress.ir.edit import share
from fxcompress.ir.view import Op, view
from fxcompress.pruning.recurrent import mask_units


def masked(deps: ChannelDependencyGraph, keep: Mask) -> GraphModule:
    """A copy of the graph, with all its parameters, in which the classes that are not kept are ignored.

    It can be trained: the keys of its state_dict are those of the graph, and the masks are buffers that are not saved.
    """
    return _Masker(deps, keep).run()


def changed_statistics(deps: ChannelDependencyGraph, keep: Mask) -> list[Read]:
    """The places where a statistic runs over fewer channels than before, so that the function itself changes."""
    return [read for read in deps.reads if read.how == "statistic" and _mask_of(deps, keep, read) is not None]


def _mask_of(deps: ChannelDependencyGraph, keep: Mask, read: Read) -> Mask | None:
    kept = deps.kept(read.operand, keep)
    return kept.get(read.axis) if isinstance(kept, dict) else None


class _Masker:
    def __init__(self, deps: ChannelDependencyGraph, keep: Mask) -> None:
        self.deps, self.keep = deps, keep
        self.module = share(deps.module)
        self.first = dict(zip(deps.module.graph.nodes, self.module.graph.nodes, strict=True))
        self.shapes = deps.analyses.get(Shapes)
        self.twin = dict(self.first)  # what computes a node by now
        self.value = dict(self.twin)  # what later readers of a node read
        self.fed: dict[tuple[Node, Node], Node] = {}  # what a reader reads in place of an operand by now
        self.count = 0

    def run(self) -> GraphModule:
        for read in self.deps.reads:
            mask = _mask_of(self.deps, self.keep, read)
            if mask is None:
                continue
            kept = torch.from_numpy(mask)
            if read.how == "contract":
                self._ignore(read, kept)
            else:
                self._over_kept(read, kept)
        for node in self.deps.module.graph.nodes:
            if node.op == "call_module" and (op := view(node, "recurrent")) is not None:
                self._inside(op)
        self.module.recompile()
        return self.module

    def _inside(self, op: Op) -> None:
        """The hidden units that a recurrent layer reads itself."""
        path = str(op.node.target)
        module, kept = self.module.get_submodule(path), {}
        assert isinstance(module, nn.RNNBase)
        for name in module._flat_weights_names:
            inner = name.startswith("weight_hh") or (name.startswith("weight_ih") and not name.startswith("weight_ih_l0"))
            classes = self.deps.along_parameter(f"{path}.{name}").get(1) if inner else None
            flags = None if classes is None else np.append(self.keep, True)[classes]
            if flags is not None and not flags.all():
                kept[name] = torch.from_numpy(flags)
        if kept:
            mask_units(module, kept)

    def _buffer(self, value: Tensor) -> Node:
        self.count += 1
        name = f"channel_mask_{self.count}"
        self.module.register_buffer(name, value, persistent=False)
        return self.module.graph.get_attr(name)

    def _device(self) -> torch.device:
        tensor = next((t for t in (*self.module.parameters(), *self.module.buffers())), None)
        return tensor.device if tensor is not None else torch.device("cpu")

    def _ignore(self, read: Read, kept: Tensor) -> None:
        """reader(x) -> reader(x * mask)"""
        rank = len(self.shapes.shape(read.operand) or ())
        shape = [1] * rank
        shape[read.axis] = len(kept)
        reader, operand = self.twin[read.node], self._operand(read)
        with self.module.graph.inserting_before(reader):
            mask = self._buffer(kept.reshape(shape).to(self._device(), self.shapes.dtype(read.operand)))
            product = self.module.graph.call_function(torch.mul, (operand, mask))
        self._replace(read, operand, product)

    def _operand(self, read: Read) -> Node:
        fed = self.fed.get((read.node, read.operand))
        return self.value[read.operand] if fed is None else fed

    def _replace(self, read: Read, old: Node, new: Node) -> None:
        """Let the reader read ``new``; a reader that has been replaced by functions before is looked up again."""
        self.twin[read.node].replace_input_with(old, new)
        self.fed[read.node, read.operand] = new

    def _over_kept(self, read: Read, kept: Tensor) -> None:
        """statistic(x) -> the kept places of x, the statistic, and zeros in place of the removed ones"""
        op = view(read.node)
        assert op is not None
        reader, operand, graph = self.twin[read.node], self._operand(read), self.module.graph
        rank = len(self.shapes.shape(read.operand) or ())
        with graph.inserting_before(reader):
            index = self._buffer(kept.nonzero().ravel().to(self._device()))
            part = graph.call_function(torch.index_select, (operand, read.axis, index))
        self._replace(read, operand, part)
        if op.kind in ("layer_norm", "rms_norm", "group_norm"):
            reader = self._functional_norm(op, reader, index, read.axis - rank if op.kind != "group_norm" else 0, int(kept.sum()))
            if self.value[read.node] is self.twin[read.node]:
                self.value[read.node] = reader
            self.twin[read.node] = reader
        result = self.shapes.shape(read.node)
        if result is None or len(result) < rank or result[read.axis] != len(kept):
            return  # the axis is gone
        with graph.inserting_after(reader):
            back = graph.call_function(scattered, (reader, index, read.axis, len(kept)))
        for user in list(reader.users):
            if user is not back:
                user.replace_input_with(reader, back)
        if self.value[read.node] is reader:
            self.value[read.node] = back

    def _functional_norm(self, op: Op, reader: Node, index: Node, axis: int, left: int) -> Node:
        """The norm as a function of its kept parameters. ``axis`` is the parameters' own, counted from the right."""
        graph = self.module.graph
        names = ["weight", "bias"] if op.kind != "rms_norm" else ["weight"]
        with graph.inserting_before(reader):
            tensors: list[Any] = []
            for name in names:
                node = self._norm_tensor(op, reader, name)
                tensors.append(None if node is None else graph.call_function(torch.index_select, (node, axis, index)))
            source = reader.args[0] if reader.args else reader.kwargs["input"]
            if op.kind == "group_norm":
                new = graph.call_function(F.group_norm, (source, op["num_groups"], *tensors, op["eps"]))
            else:
                shape = self._shape_of(op, reader)
                shape[axis] = left
                fn = F.layer_norm if op.kind == "layer_norm" else F.rms_norm
                new = graph.call_function(fn, (source, shape, *tensors, op["eps"]))
        new.meta = dict(reader.meta)
        reader.replace_all_uses_with(new)
        graph.erase_node(reader)
        return new

    def _shape_of(self, op: Op, reader: Node) -> list[Any]:
        """The normalized shape as it stands: an earlier mask of the same norm may have cut another of its axes."""
        if reader.target in (F.layer_norm, F.rms_norm) and reader is not self.first[op.node]:
            return list(reader.args[1])  # type: ignore[arg-type]
        known: Any = op["normalized_shape"]
        if isinstance(known, Node):
            count = len(self.shapes.value(known))
            return [self.module.graph.call_function(operator.getitem, (self.first[known], i)) for i in range(count)]
        items = [known] if isinstance(known, int) else known
        return [self.first[i] if isinstance(i, Node) else i for i in items]

    def _norm_tensor(self, op: Op, reader: Node, name: str) -> Node | None:
        if reader.op == "call_module":
            return self.module.graph.get_attr(f"{reader.target}.{name}") if getattr(op.module, name, None) is not None else None
        place = {"weight": 2, "bias": 3}[name]
        found = reader.args[place] if len(reader.args) > place else reader.kwargs.get(name)
        return found if isinstance(found, Node) else None


def scattered(part: Tensor, index: Tensor, axis: int, size: int) -> Tensor:
    """``part`` at the places ``index`` of an axis of ``size``, zeros elsewhere."""
    shape = list(part.shape)
    shape[axis] = size
    return part.new_zeros(shape).index_copy(axis, index, part)
