r"""Which channels of a network can be given another scale without changing what it computes.

If ``f(x / s) = f(x) / s`` for everything between a layer that gives a channel and the layers that read it, the former's
output may be divided by any ``s > 0`` and the latter's inputs multiplied by it. So every channel of every value gets a label;
operations that only move data are run on the labels, additions unite the labels of their operands, and what is not
homogeneous (another activation, a norm, the network's input and output) pins them. A bounded ReLU, ``min(max(z, 0), c)``,
is homogeneous only where ``z`` never exceeds ``c``: bounds of ``z`` are computed by interval arithmetic.

The labels of one value are scaled together, as its elements share one quantization: a :class:`Group` is a set of labels that
are connected by values.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from fxcompress.analysis import Analyses, Shapes, Sharing
from fxcompress.ir.fused import FUSED
from fxcompress.ir.ops import Trait
from fxcompress.ir.view import Op, activation_of, module_of, view
from fxcompress.passes.scale_intervals import Interval, layer_interval, unbounded
from fxcompress.passes.scale_labels import Channels, Group, Labels, Reader, Writer, connected
from fxcompress.passes.scale_moves import along_one_axis, follow, padded, pooled, reduced, run_on
from fxcompress.passes.weights import LAYERS, channel_axis, channels

HOMOGENEOUS = ("relu", "leaky_relu")
_SAME = ("identity", "contiguous", "clone", "detach", "dropout", "stochastic_depth", "prelu")
_POOLS = ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "interpolate")
_REDUCTIONS = ("mean", "sum", "amax", "amin")
NORMS_OF_ROWS = ("layer_norm", "rms_norm")
"""Norms along the last axis, which are those of transformers."""
_NORMS = (*NORMS_OF_ROWS, "group_norm", "instance_norm", "batch_norm")
_MOST = 1 << 24  # elements of a value on which a move is run on labels


Known = Channels | tuple["Channels | None", ...] | None


class ScaleGroups:
    """The groups of a graph, found on creation; ``groups`` lists those in which something can be scaled."""

    def __init__(self, module: GraphModule, analyses: Analyses) -> None:
        self.module = module
        self._shapes, self._sharing = analyses.get(Shapes), analyses.get(Sharing)
        self._read = _read_paths(module)
        self._labels = Labels()
        self._known: dict[Node, Known] = {}
        self._writers: list[Writer] = []
        self._readers: list[Reader] = []
        for node in module.graph.nodes:
            self._known[node] = self._visit(node)
        self.groups = self._collect()

    # -- one node ----------------------------------------------------------------------------------------------

    def _visit(self, node: Node) -> Known:
        if node.op in ("placeholder", "get_attr"):
            return None
        module = module_of(node)
        if module is not None and type(module) in (*LAYERS, *FUSED.values()):
            return self._layer(node, module)
        op = None if node.op == "output" else view(node)
        if op is not None and Trait.META in op.spec.traits:
            return None
        found = None if op is None else self._operation(node, op)
        if found is None:
            self._pin(node.all_input_nodes)
        return found

    def _pin(self, nodes: Iterable[Node]) -> None:
        for node in nodes:
            known = self._known.get(node)
            for value in known if isinstance(known, tuple) else (known,):
                if value is not None:
                    self._labels.pin(value.labels)

    def _input(self, node: Any) -> Channels | None:
        known = self._known.get(node) if isinstance(node, Node) else None
        return known if isinstance(known, Channels) else None

    def _layer(self, node: Node, layer: Any) -> Channels | None:
        shape = self._shapes.shape(node)
        source = node.args[0] if node.args else None
        read = self._input(source)
        axis = None if shape is None else channel_axis(layer, len(shape))
        if axis is None or not isinstance(source, Node) or not self._is_private(node, layer):
            self._pin(node.all_input_nodes)
            return None
        if read is not None and read.axis == axis and len(read.labels) == channels(layer)[0]:
            self._readers.append(Reader(node, read.labels))
        else:
            self._pin([source])
            read = None
        interval = layer_interval(layer, None if read is None else read.interval)
        value = Channels(axis, self._labels.new(channels(layer)[1]), interval)
        self._writers.append(Writer(node, value.labels, "layer"))
        return self._finish_layer(node, layer, value)

    def _finish_layer(self, node: Node, layer: Any, value: Channels) -> Channels | None:
        others = [n for n in node.all_input_nodes if n is not node.args[0]]
        if len(node.all_input_nodes) < sum(isinstance(a, Node) for a in node.args):
            others = list(node.all_input_nodes)  # the residual is the input itself
        if others:
            residual = self._input(others[0])
            if residual is None or residual.axis != value.axis or len(residual.labels) != len(value.labels):
                self._pin(others)
                self._labels.pin(value.labels)
            else:
                self._labels.unite(value.labels, residual.labels)
            value = Channels(
                value.axis, value.labels, value.interval + (unbounded(len(value.labels)) if residual is None else residual.interval)
            )
        activation = getattr(layer, "activation", None)
        return value if activation is None else self._activated(value, activation.name, activation.args)

    def _activated(self, value: Channels, name: str, args: Sequence[Any]) -> Channels | None:
        if name in HOMOGENEOUS:
            slope = args[0] if name == "leaky_relu" else 0.0
            return Channels(value.axis, value.labels, value.interval.leaky(slope))
        if name == "hardtanh" and args[0] == 0 and args[1] > 0:
            bound = float(args[1])
            free = value.interval.high <= bound
            self._labels.pin(value.labels[~free])
            self._labels.bounds.append((value.labels[free], value.interval.high[free].clamp_min(0) / bound))
            return Channels(value.axis, value.labels, value.interval.clamped(0.0, bound))
        self._labels.pin(value.labels)
        return None

    def _is_private(self, node: Node, layer: nn.Module) -> bool:
        """Whether the parameters of the layer are used by this call alone."""
        path = str(node.target)
        if self._sharing.calls[path] != [node] or path in self._read:
            return False
        parameters = list(layer.parameters(recurse=False))
        return all(p.is_floating_point() and not self._sharing.tied(p) for p in parameters)

    # -- other operations --------------------------------------------------------------------------------------

    def _operation(self, node: Node, op: Op) -> Known:
        """The value of ``node``; None pins its operands."""
        if op.kind in _NORMS:
            return self._norm(node, op)
        if op.kind in ("add", "sub"):
            return self._sum(node, op)
        if op.kind in ("mul", "div"):
            return self._product(node, op)
        if op.kind == "cat":
            return self._cat(node, op)
        if not isinstance(op.operands.get(op.spec.operands[0]), Node):
            return None
        read = self._known.get(op.input)
        if isinstance(read, tuple):
            return read[op["index"]] if op.kind == "getitem" and isinstance(op["index"], int) else None
        return None if read is None else self._unary(node, op, read)

    def _unary(self, node: Node, op: Op, read: Channels) -> Known:
        activation = activation_of(node)
        if activation is not None:
            return self._activated(read, activation[0].name, activation[0].args)
        if op.kind in _SAME:
            return None if op.operands.get("training") else Channels(read.axis, read.labels, read.interval.with_zero())
        if op.kind in _POOLS:
            return pooled(node, op, read, self._shapes)
        if op.kind in _REDUCTIONS:
            return reduced(op, read, self._shapes.shape(op.input))
        if op.kind in ("pad", "pad_module"):
            return padded(op, read, self._shapes.shape(op.input))
        if Trait.MOVES in op.spec.traits and op.kind != "unfold" and len(node.all_input_nodes) == 1:
            return self._moved(node, op, read)
        return None

    def _norm(self, node: Node, op: Op) -> Channels | None:
        """The affine part of a norm is a layer; the norm itself mixes or fixes scales."""
        norm: Any = op.module
        shape = self._shapes.shape(node)
        self._pin(node.all_input_nodes)
        weight = getattr(norm, "weight", None)
        if norm is None or weight is None or weight.dim() != 1 or shape is None or not self._is_private(node, norm):
            return None
        axis = len(shape) - 1 if op.kind in NORMS_OF_ROWS else 1
        if axis >= len(shape) or shape[axis] != len(weight):
            return None
        value = Channels(axis, self._labels.new(len(weight)), unbounded(len(weight)))
        self._writers.append(Writer(node, value.labels, op.kind))
        return value

    def _sum(self, node: Node, op: Op) -> Channels | None:
        a, b = self._input(op["input"]), self._input(op["other"])
        shapes = [self._shapes.shape(n) for n in (op["input"], op["other"], node) if isinstance(n, Node)]
        if a is None or b is None or a.axis != b.axis or len(shapes) != 3 or len(set(shapes)) != 1:
            return None
        if not isinstance(op["alpha"], (int, float)):
            return None
        self._labels.unite(a.labels, b.labels)
        plain = op.kind == "add" and op["alpha"] == 1
        return Channels(a.axis, a.labels, a.interval + b.interval if plain else unbounded(len(a.labels)))

    def _product(self, node: Node, op: Op) -> Channels | None:
        """A value times something that is not scaled: a number, a gate."""
        if op.operands.get("rounding_mode") is not None:
            return None
        left, right = op["input"], op["other"]
        pairs = [(left, right)] if op.kind == "div" else [(left, right), (right, left)]
        for value, gate in pairs:
            read = self._input(value)
            if read is None or value is gate or self._shapes.shape(value) != self._shapes.shape(node):
                continue
            if isinstance(gate, Node):
                self._pin([gate])
            return Channels(read.axis, read.labels, unbounded(len(read.labels)))
        return None

    def _cat(self, node: Node, op: Op) -> Channels | None:
        parts = [self._input(n) for n in op["tensors"]] if isinstance(op["tensors"], (list, tuple)) else []
        shape = self._shapes.shape(node)
        known = [p for p in parts if p is not None]
        if not known or shape is None or not isinstance(op["dim"], int) or len({p.axis for p in known}) != 1:
            return None
        axis = known[0].axis
        if op["dim"] % len(shape) != axis:
            return self._cat_elsewhere(known, len(parts))
        labels, intervals = [], []
        for part, source in zip(parts, op["tensors"], strict=True):
            size = (self._shapes.shape(source) or (0,) * len(shape))[axis]
            labels.append(self._pinned(size) if part is None else part.labels)
            intervals.append(unbounded(size) if part is None else part.interval)
        return Channels(axis, torch.cat(labels), Interval.cat(intervals))

    def _cat_elsewhere(self, known: list[Channels], count: int) -> Channels | None:
        if len(known) != count:
            return None
        for other in known[1:]:
            self._labels.unite(known[0].labels, other.labels)
        return Channels(known[0].axis, known[0].labels, unbounded(len(known[0].labels)))

    def _pinned(self, count: int) -> Tensor:
        labels = self._labels.new(count)
        self._labels.pin(labels)
        return labels

    def _moved(self, node: Node, op: Op, read: Channels) -> Known:
        """Run the operation on the labels, as a value that varies along one axis only."""
        shape = self._shapes.shape(op.input)
        if shape is None or math.prod(shape) > _MOST or math.prod(shape) == 0:
            return None
        ones = [1] * len(shape)
        ones[read.axis] = -1
        labelled = read.labels.reshape(ones).expand(shape).contiguous()
        result = run_on(node, op, labelled)
        parts = [along_one_axis(part) for part in (result if isinstance(result, (tuple, list)) else [result])]
        if any(part is None for part in parts):
            return None
        found = tuple(Channels(axis, labels, follow(read, labels)) for axis, labels in parts if labels is not None)  # type: ignore[misc]
        return found if isinstance(result, (tuple, list)) else found[0]

    # -- all nodes ---------------------------------------------------------------------------------------------

    def _collect(self) -> tuple[Group, ...]:
        roots = self._labels.roots(torch.arange(len(self._labels.parent)))
        pinned = torch.zeros(len(roots), dtype=torch.bool)
        least = torch.zeros(len(roots), dtype=torch.float64)
        if self._labels.pinned:
            pinned[roots[torch.tensor(sorted(self._labels.pinned))]] = True
        for labels, bounds in self._labels.bounds:
            least.scatter_reduce_(0, roots[labels], bounds, "amax")
        writers = [Writer(w.node, roots[w.labels], w.kind) for w in self._writers]
        readers = [Reader(r.node, roots[r.labels]) for r in self._readers]
        found = []
        for labels in connected([*(w.labels for w in writers), *(r.labels for r in readers)], len(roots)):
            fixed = pinned[labels]
            mine = tuple(r for r in readers if bool(torch.isin(r.labels, labels).any()))
            if bool(fixed.all()) or not mine or len(labels) < 2:
                continue
            makers = tuple(w for w in writers if bool(torch.isin(w.labels, labels).any()))
            found.append(Group(labels, fixed, least[labels], makers, mine))
        return tuple(found)


def _read_paths(module: GraphModule) -> set[str]:
    """Modules of which a get_attr node reads a tensor."""
    return {str(node.target).rpartition(".")[0] for node in module.graph.nodes if node.op == "get_attr"}
