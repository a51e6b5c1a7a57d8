"""What a label run asks about nodes and modules."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from fxcompress.analysis.channels.value import Value, axes


def creates(node: Node) -> int | None:
    """For a call that makes a tensor of equal values: the place of its first size among the arguments."""
    if node.op == "call_function":
        return 0 if node.target in (torch.zeros, torch.ones, torch.full, torch.empty) else None
    return 1 if node.op == "call_method" and node.target in ("new_zeros", "new_ones", "new_full", "new_empty") else None


def shapes_of(values: Any) -> list[tuple[int, ...]]:
    """The shapes of all tensors, or values, of a nest."""
    return [tuple(leaf.shape) for leaf in pytree.tree_leaves(values) if isinstance(leaf, (Value, Tensor))]


def is_sound(value: Any) -> bool:
    """Whether the factors of a value have its shape, and no two of them share an axis."""
    if not isinstance(value, Value):
        return True
    fits = all(f.ndim == value.rank and all(n in (1, size) for n, size in zip(f.shape, value.shape, strict=True)) for f in value.factors)
    varying = [axis for f in value.factors for axis in axes(f)]
    return fits and len(set(varying)) == len(varying)


def canonical_names(module: nn.Module) -> dict[int, str]:
    """The first name of every parameter and buffer, by identity."""
    names: dict[int, str] = {}
    for name, tensor in (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)):
        names.setdefault(id(tensor), name)
    return names


def called(node: Node, module: GraphModule) -> str:
    """The name of what a node calls."""
    if node.op == "call_module":
        return type(module.get_submodule(str(node.target))).__name__
    return str(getattr(node.target, "__name__", node.target))
