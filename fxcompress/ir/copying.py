"""Copies of modules that share tensors, or hold converted ones, at the cost of the structure alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def private_copy(original: M) -> M:
    """A module that shares the tensors and children of ``original`` but may be given others."""
    private = copy.copy(original)
    # Tables of tensors, children and hooks are dicts; everything else that a layer has is plain and never changed in place.
    private.__dict__ = {key: value.copy() if isinstance(value, dict) else value for key, value in original.__dict__.items()}
    return private


def copied(module: M, convert: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> M:
    """A deep copy of ``module`` in which every distinct tensor ``t`` is ``convert(t)``; shared modules stay shared.

    Much faster than ``copy.deepcopy``, which visits every number of every layer.
    """
    tensors: tuple[Tensor, ...] = (*module.parameters(), *module.buffers())
    memo: dict[int, Any] = {id(t): _converted(t, convert) for t in tensors}
    for layer in filter(_is_plain_layer, module.modules()):
        private = memo[id(layer)] = private_copy(layer)
        for table in (private._parameters, private._buffers):
            table.update({name: memo[id(t)] for name, t in table.items() if t is not None})
    return copy.deepcopy(module, memo)


def _converted(tensor: Tensor, convert: Callable[[Tensor], Tensor]) -> Tensor:
    new = convert(tensor)
    if isinstance(tensor, nn.Parameter) and not isinstance(new, nn.Parameter):
        return nn.Parameter(new, requires_grad=tensor.requires_grad)
    return new


def _is_plain_layer(module: nn.Module) -> bool:
    """A layer without children whose only tensors are its parameters and buffers, and that has no copying of its own."""
    known = type(module).__module__.startswith(("torch.nn.modules.", "fxcompress.ir."))
    return known and not module._modules and not isinstance(module, nn.RNNBase) and not hasattr(type(module), "__deepcopy__")
