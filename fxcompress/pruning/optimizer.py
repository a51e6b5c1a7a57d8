"""Slices the state of an optimizer together with the parameters, so that training goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from fxcompress.errors import PlanError

Axes = dict[int, NDArray[np.int64]]

_NEW_ONE = "make a new optimizer for the parameters of the pruned network"


@dataclass(frozen=True)
class _Pair:
    """A parameter of before, what stands in its place (None: nothing), and the indices that remain of its axes."""

    name: str
    new: nn.Parameter | None
    axes: Axes


def slice_optimizer(optimizer: Optimizer, old: nn.Module, new: nn.Module, indices: Mapping[tuple[str, int], NDArray[np.int64]]) -> None:
    """Let an optimizer of ``old`` go on with ``new``, in place: its state is sliced, its groups hold the new parameters.

    State of the shape of its parameter (momenta, squared gradients, their maxima, averages of weights) is sliced as the
    parameter is; scalars such as the step stay; factored statistics (Adafactor) are sliced along the axes that they
    have, and remain the means over the columns and rows of before. Parameters that the new network does not have leave the groups; those
    of other networks stay. Learning-rate schedulers go on, since the optimizer stays the same object.

    Args:
        old: the network that the optimizer trains.
        new: the sliced one, with the same names.
        indices: by (parameter, axis) the indices that remain.

    Raises:
        PlanError: some state has another form (the message names it), or a trained parameter is not in ``new``. Then
            nothing has been changed.
    """
    pairs = _pairs(old, new, indices)
    if isinstance(optimizer, LBFGS) and optimizer.state:
        raise PlanError("LBFGS keeps one history of all parameters together, which cannot be sliced", hint=_NEW_ONE)
    states = {p: _sliced_state(optimizer, p, pairs[p]) for group in optimizer.param_groups for p in group["params"] if p in pairs}
    for group in optimizer.param_groups:
        _repoint(group, pairs)
    for p, state in states.items():
        had_state = optimizer.state.pop(p, None) is not None
        successor = pairs[p].new
        if successor is not None and had_state:
            optimizer.state[successor] = state
    if isinstance(optimizer, LBFGS):
        optimizer._params, optimizer._numel_cache = optimizer.param_groups[0]["params"], None


def _pairs(old: nn.Module, new: nn.Module, indices: Mapping[tuple[str, int], NDArray[np.int64]]) -> dict[Tensor, _Pair]:
    after = dict(new.named_parameters(remove_duplicate=False))
    axes: dict[str, Axes] = {}
    for (name, axis), kept in indices.items():
        axes.setdefault(name, {})[axis] = kept
    names: dict[Tensor, list[str]] = {}
    for name, parameter in old.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    pairs: dict[Tensor, _Pair] = {}
    for tensor, known in names.items():
        name = next((name for name in known if name in after), known[0])
        cut = next((axes[name] for name in known if name in axes), {})
        pairs[tensor] = _Pair(name, after.get(name), cut)
    return pairs


def _sliced_state(optimizer: Optimizer, parameter: Tensor, pair: _Pair) -> dict[str, Any]:
    state = optimizer.state.get(parameter, {})
    if pair.new is None and state:
        raise PlanError(
            f"the optimizer trains '{pair.name}', which the pruned network does not have",
            hint="a parametrization was replaced by its present value, or the forward does not use the parameter; " + _NEW_ONE,
        )
    return {key: _sliced(value, parameter, pair, f"{type(optimizer).__name__}'s {key}") for key, value in state.items()}


def _sliced(value: Any, parameter: Tensor, pair: _Pair, what: str) -> Any:
    """A value of the state, without what belongs to removed channels."""
    if isinstance(value, (list, tuple)):
        return type(value)([_sliced(item, parameter, pair, what) for item in value])
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if not isinstance(value, Tensor):
        raise PlanError(f"{what} of '{pair.name}' is a {type(value).__name__}, which cannot be sliced", hint=_NEW_ONE)
    if value.numel() == 1 and value.shape != parameter.shape:
        return value
    fits = value.ndim == parameter.ndim and all(a in (1, b) for a, b in zip(value.shape, parameter.shape, strict=True))
    if not fits and pair.axes:
        raise PlanError(f"{what} of '{pair.name}' is {list(value.shape)} for a parameter of {list(parameter.shape)}", hint=_NEW_ONE)
    result = value
    for axis, kept in pair.axes.items():
        if value.shape[axis] == parameter.shape[axis]:
            result = result.index_select(axis, torch.as_tensor(kept, device=value.device))
    if result is not value and value.ndim == 4 and value.is_contiguous(memory_format=torch.channels_last) and not value.is_contiguous():
        return result.contiguous(memory_format=torch.channels_last)
    return result


def _repoint(group: dict[str, Any], pairs: Mapping[Tensor, _Pair]) -> None:
    """Exchange the parameters of a group, and drop those that have no successor together with their names."""
    successors = [pairs[p].new if p in pairs else p for p in group["params"]]
    names = group.get("param_names")
    if names is not None:
        names[:] = [name for name, p in zip(names, successors, strict=True) if p is not None]
    group["params"][:] = [p for p in successors if p is not None]
