"""The tensors of a sliced graph at their old places in the unsliced one."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from fxcompress.analysis.channels import ChannelDependencyGraph, Mask
from fxcompress.pruning.slicing import kept_indices


def with_tensors_of(result: GraphModule, reference: GraphModule, deps: ChannelDependencyGraph, keep: Mask) -> GraphModule:
    """``reference`` (the masked graph) with the values of ``result`` (the sliced one) wherever a channel is kept.

    What compensation has changed, or added (a bias), is then in both. Where a channel is gone the old value stays,
    which nobody reads. ``reference`` is changed and returned.
    """
    indices: dict[str, dict[int, np.ndarray]] = {}
    for (name, axis), kept in kept_indices(deps, keep).items():
        indices.setdefault(name, {})[axis] = kept
    old = dict((*reference.named_parameters(remove_duplicate=False), *reference.named_buffers(remove_duplicate=False)))
    for name, tensor in (*result.named_parameters(remove_duplicate=False), *result.named_buffers(remove_duplicate=False)):
        if name in old and old[name].shape == tensor.shape and torch.equal(old[name], tensor):
            continue
        _set(reference, name, _scattered(old[name], tensor, indices.get(name, {})) if name in old else tensor)
    return reference


def _scattered(full: Tensor, part: Tensor, kept: dict[int, np.ndarray]) -> Tensor:
    where = np.ix_(*(kept.get(axis, np.arange(size)) for axis, size in enumerate(full.shape)))
    new = full.detach().clone()
    new[tuple(torch.from_numpy(index).to(full.device) for index in where)] = part.detach()
    return new


def _set(module: GraphModule, name: str, value: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    if leaf in owner._buffers:
        owner.register_buffer(leaf, value, persistent=leaf not in owner._non_persistent_buffers_set)
    else:
        owner.register_parameter(leaf, nn.Parameter(value.detach(), requires_grad=False))
