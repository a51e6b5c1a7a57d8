"""Removes channels from a captured graph: parameters, the attributes of modules, and sizes written into the graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from fxcompress.analysis import Shapes
from fxcompress.analysis.channels import PINNED, ChannelDependencyGraph, Mask
from fxcompress.ir.edit import share
from fxcompress.ir.view import Op, view
from fxcompress.pruning.resize import remaining_groups, resize
from fxcompress.pruning.resizer import Resizer
from fxcompress.pruning.sizes import Sizes

_GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}


def sliced(deps: ChannelDependencyGraph, keep: Mask) -> GraphModule:
    """A copy of the graph without the classes that are not kept; tensors that lose nothing are shared with it.

    Args:
        deps: the channel dependencies of the graph.
        keep: one flag per class of ``deps``.

    Raises:
        GraphError: a size cannot be rewritten, or the result does not have the shapes that follow from the plan; the
            message names the node and its source line.
    """
    sizes = Sizes(deps, keep)
    module = share(deps.module)
    twin = dict(zip(deps.module.graph.nodes, module.graph.nodes, strict=True))
    slice_tensors(module, kept_indices(deps, keep))
    for node in deps.module.graph.nodes:
        op = view(node) if node.op == "call_module" else None
        if op is not None and sizes.shapes.reason(node) is None:
            _resize_module(module, op, sizes)
    resize(module, sizes, twin)
    numbers = {new for node, new in twin.items() if sizes.is_number(node) and node.users}
    for node in reversed(module.graph.nodes):
        if not node.users and node in numbers and node.op == "call_function" and sizes_only(node):
            module.graph.erase_node(node)
    module.recompile()
    _check(deps, module, sizes, twin)
    return module


def sizes_only(node: Node) -> bool:
    """Whether a node without readers can go: size arithmetic left over by a rewrite."""
    return getattr(node.target, "__module__", "") == "_operator" and not node.is_impure()


def kept_indices(deps: ChannelDependencyGraph, keep: Mask) -> dict[tuple[str, int], np.ndarray[Any, Any]]:
    """For every (parameter, axis) that loses something, the indices that remain, in order."""
    flags = np.append(keep, True)  # PINNED = -1 is the last
    assert PINNED == -1
    return {slot: np.flatnonzero(flags[classes]) for slot, classes in deps.slots.items() if not flags[classes].all()}


def slice_tensors(module: nn.Module, indices: dict[tuple[str, int], Any]) -> None:
    """Give ``module`` new parameters and buffers; tied names stay tied, ``requires_grad`` is kept."""
    by_name: dict[str, dict[int, Any]] = {}
    for (name, axis), kept in indices.items():
        by_name.setdefault(name, {})[axis] = kept
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for child in module.modules():
        for leaf, tensor in (*child._parameters.items(), *child._buffers.items()):
            if tensor is not None:
                owners.setdefault(id(tensor), []).append((child, leaf))
    found = dict((*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)))
    for name, axes in by_name.items():
        new = _cut(found[name], axes)
        for child, leaf in owners[id(found[name])]:
            setattr(child, leaf, new)


def _cut(tensor: Tensor, axes: dict[int, Any]) -> Tensor:
    new = _kept(tensor.detach(), axes)
    if not isinstance(tensor, nn.Parameter):
        return new
    result = nn.Parameter(new, requires_grad=tensor.requires_grad)
    result.grad = None if tensor.grad is None else _kept(tensor.grad, axes)
    return result


def _kept(tensor: Tensor, axes: dict[int, Any]) -> Tensor:
    """The places ``axes`` of a tensor, in its memory format."""
    new = tensor
    for axis, kept in axes.items():
        new = new.index_select(axis, torch.as_tensor(kept, device=tensor.device))
    if tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous():
        return new.contiguous(memory_format=torch.channels_last)
    return new.contiguous()


def _resize_module(root: GraphModule, op: Op, sizes: Sizes) -> None:
    """Fit the numbers that a module keeps about its channels."""
    module: Any = root.get_submodule(str(op.node.target))
    before: Any = op.module
    node = op.node
    if op.kind == "linear":
        module.out_features, module.in_features = module.weight.shape
    elif op.kind == "conv":
        module.out_channels = module.weight.shape[0]
        axis = len(sizes.old(op.input)) - module.weight.ndim + 1
        module.in_channels = sizes.new(op.input)[axis]
        module.groups = module.in_channels // module.weight.shape[1]
    elif op.kind == "conv_transpose":
        axis = len(sizes.old(op.input)) - module.weight.ndim + 1
        module.in_channels, module.out_channels = module.weight.shape[0], sizes.new(node)[axis]
        module.groups = module.out_channels // module.weight.shape[1]
    elif op.kind in ("batch_norm", "instance_norm"):
        axis = 1 if op.kind == "batch_norm" or len(sizes.old(node)) > 2 else 0
        module.num_features = sizes.new(node)[axis]
    elif op.kind in ("layer_norm", "rms_norm"):
        module.normalized_shape = tuple(sizes.new(node)[-len(before.normalized_shape) :])
    elif op.kind == "group_norm":
        module.num_channels = sizes.new(node)[1]
        module.num_groups = remaining_groups(before.num_groups, before.num_channels, sizes.axes(node).get(1), module.num_channels)
    elif op.kind == "prelu":
        module.num_parameters = module.weight.numel()
    elif op.kind == "embedding":
        module.embedding_dim = module.weight.shape[1]
    elif op.kind == "recurrent":
        module.hidden_size, module.input_size = module.weight_hh_l0.shape[0] // _GATES[module.mode], module.weight_ih_l0.shape[1]
    elif op.kind == "channel_shuffle":
        old = sizes.old(op.input)[1]
        module.groups = remaining_groups(before.groups, old, sizes.axes(op.input).get(1), sizes.new(op.input)[1])
    elif op.kind == "unflatten":
        dim = before.dim % len(sizes.old(op.input))
        wanted = sizes.new(node)[dim : dim + len(before.unflattened_size)]
        module.unflattened_size = tuple(-1 if old == -1 else new for old, new in zip(before.unflattened_size, wanted, strict=True))


def _check(deps: ChannelDependencyGraph, module: GraphModule, sizes: Sizes, twin: dict[Node, Node]) -> None:
    """Every value must have the shape that follows from the labels."""
    shapes = Shapes.of(module, deps.inputs)
    for node, new in twin.items():
        if new.graph is not module.graph or node.op == "output" or sizes.shapes.shape(node) is None:
            continue
        wanted, found = sizes.new(node), shapes.shape(new)
        if wanted != found:
            reason = shapes.reason(new) or f"its shape is {found}, not {wanted}"
            raise Resizer(module, sizes, twin).fail(node, reason)
