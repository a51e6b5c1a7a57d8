"""Layers that will be quantized: they compute what the fused layers do, and know how many bits their weights are to have."""

from __future__ import annotations

from typing import Any

from torch import nn

from fxcompress.ir.fused import FUSED, FusedConv1d, FusedConv2d, FusedConv3d, FusedLinear

__all__ = ["OBSERVED_LAYERS", "ObservedConv1d", "ObservedConv2d", "ObservedConv3d", "ObservedLinear", "observed", "unobserved"]


class _ObservedLayer:
    """Mixin: a fused layer whose weights will have ``weight_bits`` bits, with ranges as ``weight_observer`` finds them."""

    weight_bits: int = 8
    weight_observer: str = "min-max"

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, weight_bits={self.weight_bits}, weight_observer={self.weight_observer}"  # type: ignore[misc]


class ObservedConv1d(_ObservedLayer, FusedConv1d):
    """1-d convolution that will be quantized."""


class ObservedConv2d(_ObservedLayer, FusedConv2d):
    """2-d convolution that will be quantized."""


class ObservedConv3d(_ObservedLayer, FusedConv3d):
    """3-d convolution that will be quantized."""


class ObservedLinear(_ObservedLayer, FusedLinear):
    """Linear that will be quantized."""


_FORMS: dict[type[nn.Module], Any] = dict(zip(FUSED, (ObservedConv1d, ObservedConv2d, ObservedConv3d, ObservedLinear), strict=True))

OBSERVED_LAYERS: dict[type[nn.Module], Any] = {**_FORMS, **{FUSED[plain]: form for plain, form in _FORMS.items()}}
"""Plain and fused layers, and the form that will be quantized."""


def observed(layer: nn.Module, weight_bits: int, weight_observer: str) -> nn.Module:
    """The form of a plain or fused layer that will be quantized; its parameters are shared, not copied."""
    form: Any = OBSERVED_LAYERS[type(layer)].of(layer, getattr(layer, "activation", None))
    form.weight_bits, form.weight_observer = weight_bits, weight_observer
    return form


def unobserved(layer: nn.Module) -> nn.Module:
    """The fused layer again, without what :func:`observed` noted."""
    fused = next(FUSED[plain] for plain, form in _FORMS.items() if isinstance(layer, form))
    plain: Any = fused
    found: Any = plain.of(layer, getattr(layer, "activation", None))
    del found.__dict__["weight_bits"], found.__dict__["weight_observer"]
    return found
