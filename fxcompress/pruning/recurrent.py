"""Recurrent layers in which some hidden units are ignored: they read themselves, so the mask stands inside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


class _Masked(nn.RNNBase):
    """Multiplies the weights that read hidden units by buffers ``<name>_mask``, which are not saved, in every call."""

    def forward(self, input: Any, hx: Any = None) -> Any:
        weights = self._flat_weights
        self._flat_weights = [self._masked(name, weight) for name, weight in zip(self._flat_weights_names, weights, strict=True)]
        try:
            return super().forward(input, hx)
        finally:
            self._flat_weights = weights

    def _masked(self, name: str, weight: Any) -> Any:
        mask = getattr(self, f"{name}_mask", None)
        return weight if mask is None else weight * mask


class MaskedLSTM(_Masked, nn.LSTM):
    """An LSTM that ignores some of its hidden units."""


class MaskedGRU(_Masked, nn.GRU):
    """A GRU that ignores some of its hidden units."""


class MaskedRNN(_Masked, nn.RNN):
    """An RNN that ignores some of its hidden units."""


_MASKED: dict[type[nn.Module], type[_Masked]] = {nn.LSTM: MaskedLSTM, nn.GRU: MaskedGRU, nn.RNN: MaskedRNN}


def mask_units(module: nn.RNNBase, kept: Mapping[str, Tensor]) -> None:
    """Let ``module`` ignore columns of its weights, in place.

    Args:
        kept: for the name of a weight, one flag per column.
    """
    masked = _MASKED.get(type(module), type(module))
    module.__class__ = masked
    for name, flags in kept.items():
        weight = getattr(module, name)
        module.register_buffer(f"{name}_mask", flags.to(weight.device, weight.dtype), persistent=False)
