r"""Merges convolutions or linears that read the same value into one whose output is split: ``split([W1; W2; W3] x)``.

Queries, keys and values of attention, the 1x1 convolutions of an inception block. One large product uses a CPU better
than three small ones. The pieces are views with the strides of the whole, so readers that need other strides are
looked for first: ``view`` becomes ``reshape``, and pieces that leave the graph, or that an unknown operation reads,
are not made.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.fx import Node

from fxcompress.ir.copying import private_copy
from fxcompress.ir.effects import may_alias
from fxcompress.ir.view import module_of, spec_of, view
from fxcompress.passes.weights import CONVS, channel_axis, channels, install
from fxcompress.pipeline import Property, RulePass
from fxcompress.rewrite import Rule, Scope, reads


@dataclass(frozen=True)
class Parallel:
    """``layers`` read ``source`` and differ in their parameters only."""

    source: Node
    layers: tuple[Node, ...]

    @property
    def nodes(self) -> tuple[Node, ...]:
        return (self.source, *self.layers)


def finder(kinds: tuple[type[nn.Module], ...]) -> Any:
    """A pattern for layers of these types, rooted at the first of a group."""

    def find(node: Node, scope: Scope) -> Parallel | None:
        source = _source(node, kinds)
        if source is None or len(source.users) < 2:
            return None
        key = _settings(module_of(node))
        layers = sorted(user for user in source.users if _source(user, kinds) is source and _settings(module_of(user)) == key)
        return Parallel(source, tuple(layers)) if len(layers) > 1 and layers[0] is node else None

    return find


def _source(node: Node, kinds: tuple[type[nn.Module], ...]) -> Node | None:
    if type(module_of(node)) not in kinds:
        return None
    op = view(node, "conv", "linear")
    return None if op is None else op.input


def _settings(layer: Any) -> tuple[Any, ...]:
    """What parallel layers must agree in."""
    same = type(layer), channels(layer)[0], layer.weight.dtype, layer.weight.device
    if isinstance(layer, nn.Linear):
        return same
    return *same, layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups, layer.padding_mode


def check(match: Parallel, scope: Scope) -> str | None:
    shape = scope.shapes.shape(match.layers[0])
    layer: Any = module_of(match.layers[0])
    if shape is None or channel_axis(layer, len(shape)) is None:
        return "the axis of the channels is not known"
    if not layer.weight.is_floating_point():
        return f"the weights are {layer.weight.dtype}"
    if not isinstance(layer, nn.Linear) and layer.groups != 1:
        return "they are grouped"
    fitting = _fitting(match, scope)
    if len(fitting) < 2:
        return next(reason for node in match.layers if (reason := _obstacle(node, scope)) is not None)
    return None


def _fitting(match: Parallel, scope: Scope) -> list[Node]:
    return [node for node in match.layers if _obstacle(node, scope) is None]


def _obstacle(node: Node, scope: Scope) -> str | None:
    """Why the value of ``node`` must not become a piece of a larger tensor, or None."""
    callers = scope.editor.callers(str(node.target))
    if len(callers) > 1:
        return f"'{node.target}' is also called by {reads(sorted(callers - {node}))}; merging would copy its weights"
    for reader in _viewers(node):
        spec = spec_of(reader)
        if reader.op == "output":
            return f"'{node.name}' leaves the graph; a piece of a larger tensor has other strides"
        if spec is None:
            return f"nobody has taught what '{reader.name}' does; it may rely on strides"
        if _is_view(reader) and any(isinstance(a, torch.dtype) for a in (*reader.args, *reader.kwargs.values())):
            return f"'{reader.name}' reads the memory as another type"
    return None


def _viewers(node: Node) -> Iterator[Node]:
    """All readers of ``node`` and of what may share its memory."""
    seen: set[Node] = set()
    pending = [(node, reader) for reader in node.users]
    while pending:
        viewed, reader = pending.pop()
        if reader in seen:
            continue
        seen.add(reader)
        yield reader
        if viewed in may_alias(reader):
            pending.extend((reader, user) for user in reader.users)


def _is_view(node: Node) -> bool:
    return node.op == "call_method" and node.target == "view"


def merge(match: Parallel, scope: Scope) -> str:
    editor, nodes = scope.editor, _fitting(match, scope)
    layers: list[Any] = [module_of(node) for node in nodes]
    shape = scope.shapes.shape(nodes[0])
    assert shape is not None
    axis = channel_axis(layers[0], len(shape))
    whole = editor.call_module(_path(nodes), _concatenated(layers), (match.source,), before=nodes[0], of=nodes)
    sizes = [channels(layer)[1] for layer in layers]
    split = editor.call_function(torch.split, (whole, sizes), {"dim": axis}, before=nodes[0], of=nodes)
    pieces = [editor.call_function(operator.getitem, (split, i), before=nodes[0], of=[node]) for i, node in enumerate(nodes)]
    for node, piece in zip(nodes, pieces, strict=True):
        for reader in _viewers(node):
            if _is_view(reader):
                reader.target = "reshape"
        editor.replace(node, piece)
    return f"{len(nodes)} layers merged"


def _path(nodes: list[Node]) -> str:
    """A name for the merged module beside the first: its name, and the last parts of the others'."""
    names = [str(node.target).rpartition(".")[2] for node in nodes]
    parent = str(nodes[0].target).rpartition(".")[0]
    name = "_".join(names if len(names) <= 4 else [names[0], "to", names[-1]])
    return f"{parent}.{name}" if parent else name


def _concatenated(layers: list[Any]) -> nn.Module:
    """One layer whose output is that of ``layers`` along the channels."""
    merged: Any = private_copy(layers[0])
    if isinstance(merged, nn.Linear):
        merged.out_features = sum(channels(layer)[1] for layer in layers)
    else:
        merged.out_channels = sum(channels(layer)[1] for layer in layers)
    weight = torch.cat([layer.weight.detach() for layer in layers])
    install(merged, weight, _biases(layers), *layers)
    return merged


def _biases(layers: list[Any]) -> Tensor | None:
    if all(layer.bias is None for layer in layers):
        return None
    return torch.cat([layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias.detach() for layer in layers])


@dataclass(frozen=True)
class MergeParallel(RulePass):
    """Merges layers that read the same value.

    ``linears``: merge linears. ``convs``: merge convolutions.
    """

    name: ClassVar[str] = "merge-parallel"
    requires: ClassVar[frozenset[Property]] = frozenset({Property.FUNCTIONAL})
    linears: bool = True
    convs: bool = False

    def rules(self) -> Rule[Parallel]:
        kinds = (*(CONVS if self.convs else ()), *((nn.Linear,) if self.linears else ()))
        return Rule("merge-parallel", finder(kinds), merge, check)
