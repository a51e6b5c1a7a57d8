"""The copy that is made at the door, so that the user's model is never touched."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm

from fxcompress.capture.refuse import is_weight_hook
from fxcompress.errors import CaptureError


def copied(model: nn.Module, bake: bool) -> nn.Module:
    """A deep copy with its own tensors; ties between parameters stay, weight norm and parametrizations are baked in.

    Raises:
        CaptureError: the model holds something that cannot be copied.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for value in module.__dict__.values():
            if isinstance(value, Tensor) and not value.is_leaf:  # torch refuses to copy tensors with a history
                memo[id(value)] = value.detach().clone()
    try:
        root = copy.deepcopy(model, memo)
    except Exception as error:  # anything a user's __deepcopy__ or attribute can raise
        raise CaptureError(
            f"{type(model).__name__} cannot be copied: {type(error).__name__}: {error}",
            hint="the library works on copy.deepcopy(model); remove the attribute that cannot be copied",
        ) from error
    if bake:
        bake_weights(root)
    return root


def bake_weights(root: nn.Module) -> None:
    """Replace computed weights by their present values, in place."""
    for module in root.modules():
        if parametrize.is_parametrized(module):
            _own_class(module)
            for name in list(module.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)
        for hook in list(module._forward_pre_hooks.values()):
            if is_weight_hook(hook):
                _remove(module, hook)


def _own_class(module: nn.Module) -> None:
    """Give a copy a class of its own: torch removes a parametrization from the class, which the copy shares with the original."""
    shared = type(module)
    namespace = {name: value for name, value in vars(shared).items() if name not in ("__dict__", "__weakref__")}
    module.__class__ = type(shared.__name__, shared.__bases__, namespace)


def _remove(module: nn.Module, hook: Any) -> None:
    if isinstance(hook, prune.BasePruningMethod):
        prune.remove(module, hook._tensor_name)
    elif type(hook).__name__ == "WeightNorm":
        remove_weight_norm(module, hook.name)
    else:
        remove_spectral_norm(module, hook.name)
