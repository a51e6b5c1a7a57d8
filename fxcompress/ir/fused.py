"""Convolutions and linears that carry a residual and an activation: ``y = act(op(x) + residual)``.

They are what the fuse pass makes and the reference of what a target lowers. Parameters keep the names of the
plain layer (``weight``, ``bias``), so the keys of the state_dict do not change.
"""

from __future__ import annotations

from typing import Any, Self

from torch import Tensor, nn

from fxcompress.ir.activation import Activation


class _Fused:
    """Mixin: the plain layer's forward, then the residual, then the activation."""

    activation: Activation | None = None

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        y: Tensor = super().forward(x)  # type: ignore[misc]
        if residual is not None:
            y = y + residual
        return y if self.activation is None else self.activation.apply(y)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, activation={self.activation}"  # type: ignore[misc]

    @classmethod
    def of(cls, layer: nn.Module, activation: Activation | None) -> Self:
        """The fused form of ``layer``; the parameters are shared with it, not copied."""
        fused: Any = cls.__new__(cls)
        fused.__dict__ = dict(layer.__dict__)
        for table in ("_parameters", "_buffers", "_modules"):
            fused.__dict__[table] = dict(layer.__dict__[table])
        fused.activation = activation
        return fused


class FusedConv1d(_Fused, nn.Conv1d):
    """1-d convolution with residual and activation; input (N, C, L)."""


class FusedConv2d(_Fused, nn.Conv2d):
    """2-d convolution with residual and activation; input (N, C, H, W)."""


class FusedConv3d(_Fused, nn.Conv3d):
    """3-d convolution with residual and activation; input (N, C, D, H, W)."""


class FusedLinear(_Fused, nn.Linear):
    """Linear with residual and activation; input (..., in_features)."""


FUSED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: FusedConv1d,
    nn.Conv2d: FusedConv2d,
    nn.Conv3d: FusedConv3d,
    nn.Linear: FusedLinear,
}


def fuse(layer: nn.Module, activation: Activation | None = None) -> nn.Module:
    """The fused form of a plain Conv1d/2d/3d or Linear, sharing its parameters."""
    return FUSED[type(layer)].of(layer, activation)  # type: ignore[attr-defined]
