"""Integer convolutions and linears with weights packed for this CPU: :class:`PackedQuantConv` and :class:`PackedQuantLinear`.

They are the integer modules of ``fxcompress.quant.modules``: the same state (int8 weights, scales, float32 bias), and the same
numbers, bit for bit. What is packed is a cache: made on the first call with an input shape, dropped when a buffer changes, and
never copied, pickled or stored. Wherever a kernel does not apply (another device, an empty batch, tracing, ...) the
reference runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from fxcompress.errors import TargetError
from fxcompress.ir.activation import Activation
from fxcompress.quant.affine import QParams
from fxcompress.quant.modules import QuantConv, QuantLinear
from fxcompress.targets.cpu_kernels import refuse_gradients
from fxcompress.targets.inference import InferenceOnly
from fxcompress.targets.int8_kernels import int8_kernels, runs_int8
from fxcompress.targets.int8_plans import Int8Plan, conv_plan, exceeds_int32, is_pointwise, linear_plan, packed_linear, pointwise_plan
from fxcompress.targets.int8_values import quantized
from fxcompress.targets.saturation import saturation, violations

__all__ = ["PackedQuantConv", "PackedQuantLinear", "int8_lowerable"]

_MAX_PLANS = 16  # input shapes for which packed weights are kept
_NOTHING = (None, None, None, None)


def _versions(weight: Tensor | None, scale: Tensor | None, bias: Tensor | None) -> int:
    """A number that grows with every edit in place."""
    assert weight is not None
    assert scale is not None
    return weight._version + scale._version + (0 if bias is None else bias._version)


class _PackedQuant(InferenceOnly):
    """What both modules share; comes before the integer module among the bases."""

    weight: Tensor
    source: QParams
    qparams: QParams | None
    residual: QParams | None
    activation: Activation | None
    _plans: dict[torch.Size, Int8Plan]
    _planned_for: tuple[Tensor | None, Tensor | None, Tensor | None, int | None] = _NOTHING  # the buffers and the sum of their versions

    def forward(self, q: Tensor, residual: Tensor | None = None) -> Tensor:
        """``q`` uint8; ``residual`` uint8 if it has qparams, else float32. uint8, or float32 where ``qparams`` is None."""
        if not runs_int8(q) or (residual is not None and not self._takes(residual)):
            return self.reference(q, residual)
        buffers, (weight, scale, bias, versions) = self._buffers, self._planned_for
        same = buffers["weight"] is weight and buffers["weight_scale"] is scale and buffers["bias"] is bias
        if not same or (versions is not None and versions != _versions(weight, scale, bias)):
            self._renew()
        plan = self._plans.get(q.shape) or self._remember(q, residual)
        return plan(q, residual)

    def reference(self, q: Tensor, residual: Tensor | None = None) -> Tensor:
        """The same integers in plain torch operations, on any device."""
        layer: Any = super()
        return layer.forward(q, residual)

    def follow(self, y: Tensor, residual: Tensor | None) -> Tensor:
        """As in the integer module, in the memory of ``y`` and with a fast quantization."""
        if residual is not None:
            addend = residual if self.residual is None else self.residual.dequantize(residual)
            y = y.add_(addend) if addend.shape == y.shape else y + addend
        layer: Any = self
        y = layer._activated(y)
        return y if self.qparams is None else quantized(y, self.qparams)

    def _takes(self, residual: Tensor) -> bool:
        """Whether a plan may see the residual; ``q`` may go to a kernel."""
        if self.residual is None:
            refuse_gradients(residual)
        dtype = torch.float32 if self.residual is None else torch.uint8
        return type(residual) is Tensor and residual.dtype is dtype and residual.is_cpu and residual.layout is torch.strided

    def _plan(self, q: Tensor, residual: Tensor | None) -> Int8Plan | None:
        """A plan for inputs of the shape of ``q``, with or without residual, or None where only the reference will do."""
        raise NotImplementedError

    def _remember(self, q: Tensor, residual: Tensor | None) -> Int8Plan:
        plan = self._plan(q, residual) if q.numel() > 0 and torch.backends.mkldnn.enabled and self._state_runs() else None
        if plan is None:
            return self.reference
        while len(self._plans) >= _MAX_PLANS:
            del self._plans[next(iter(self._plans))]
        self._plans[q.shape] = plan
        return plan

    def _state_runs(self) -> bool:
        layer: Any = self
        return int8_lowerable(layer) is None

    def _renew(self) -> None:
        self._forget()
        weight, scale, bias = (self._buffers[name] for name in ("weight", "weight_scale", "bias"))
        counted = not any(tensor is not None and tensor.is_inference() for tensor in (weight, scale, bias))
        self._planned_for = (weight, scale, bias, _versions(weight, scale, bias) if counted else None)

    def _forget(self) -> None:
        self._plans, self._planned_for = {}, _NOTHING

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._forget()  # inference tensors have no version that would tell

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_plans": {}, "_planned_for": _NOTHING}


class PackedQuantConv(_PackedQuant, QuantConv):
    """:class:`QuantConv` on oneDNN; the output is channels_last.

    ``overwrites_residual=True`` lets it write the result over the residual; only for a residual that nobody reads afterwards.
    """

    def __init__(
        self,
        weight: Tensor,
        weight_scale: Tensor,
        bias: Tensor | None = None,
        *,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int = 1,
        source: QParams,
        qparams: QParams | None = None,
        residual: QParams | None = None,
        activation: Activation | None = None,
        overwrites_residual: bool = False,
    ) -> None:
        QuantConv.__init__(
            self,
            weight,
            weight_scale,
            bias,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            source=source,
            qparams=qparams,
            residual=residual,
            activation=activation,
        )
        self.overwrites_residual = overwrites_residual

    @classmethod
    def of(cls, layer: QuantConv, *, overwrites_residual: bool = False) -> Self:
        """The packed form of ``layer``; shares its tensors. TargetError where :func:`int8_lowerable` gives a reason."""
        _require_lowerable(layer, QuantConv)
        return cls(
            layer.weight,
            layer.weight_scale,
            layer.bias,
            stride=layer.stride,
            padding=layer.padding,
            dilation=layer.dilation,
            groups=layer.groups,
            source=layer.source,
            qparams=layer.qparams,
            residual=layer.residual,
            activation=layer.activation,
            overwrites_residual=overwrites_residual,
        )

    def _plan(self, q: Tensor, residual: Tensor | None) -> Int8Plan | None:
        if q.dim() != self.weight.dim() or q.shape[1] != self.weight.shape[1] * self.groups:
            return None
        padded = [n + 2 * p for n, p in zip(q.shape[2:], self.padding, strict=True)]
        extent = [d * (k - 1) + 1 for k, d in zip(self.weight.shape[2:], self.dilation, strict=True)]
        if any(n < k for n, k in zip(padded, extent, strict=True)):
            return None  # the reference raises torch's own error
        make = pointwise_plan if residual is not None and is_pointwise(self) else conv_plan
        return make(self, q.shape, self.overwrites_residual)


class PackedQuantLinear(_PackedQuant, QuantLinear):
    """:class:`QuantLinear` on oneDNN."""

    _packed: Tensor | None = None  # one for all shapes

    @classmethod
    def of(cls, layer: QuantLinear) -> Self:
        """The packed form of ``layer``; shares its tensors. TargetError where :func:`int8_lowerable` gives a reason."""
        _require_lowerable(layer, QuantLinear)
        return cls(
            layer.weight,
            layer.weight_scale,
            layer.bias,
            source=layer.source,
            qparams=layer.qparams,
            residual=layer.residual,
            activation=layer.activation,
        )

    def _plan(self, q: Tensor, residual: Tensor | None) -> Int8Plan | None:
        if q.dim() == 0 or q.shape[-1] != self.weight.shape[1]:
            return None
        if self._packed is None:
            self._packed = packed_linear(self.weight)
        return linear_plan(self, q.shape, self._packed)

    def _forget(self) -> None:
        super()._forget()
        self._packed = None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_packed": None}


def int8_lowerable(module: nn.Module) -> str | None:
    """Why ``module`` cannot become a PackedQuantConv or PackedQuantLinear, or None when it can."""
    if not isinstance(module, QuantConv | QuantLinear):
        return f"{type(module).__name__} has no packed form"
    if not module.weight.is_cpu:
        return f"its weight is on {module.weight.device}, not on the CPU"
    if module.weight.dtype is not torch.int8:
        return f"its weight is {str(module.weight.dtype).removeprefix('torch.')}, not int8"
    if module.weight_scale.dtype is not torch.float32 or (module.bias is not None and module.bias.dtype is not torch.float32):
        return "its scales or its bias are not float32"
    if module.weight.numel() == 0:
        return "its weight is empty"
    if exceeds_int32(module.weight):
        return "its sums may exceed 32 bits"
    groups = module.groups if isinstance(module, QuantConv) else 1
    if bool(violations(module.weight, groups, saturation(), module.source.high).any()):
        return "sums of two of its products may exceed 16 bits, which is what this CPU has for them"
    return int8_kernels().missing()


def _require_lowerable(layer: nn.Module, kind: Any) -> None:
    reason = int8_lowerable(layer) if isinstance(layer, kind) else f"{type(layer).__name__} is another kind of layer"
    if reason is not None:
        raise TargetError(f"cannot pack {layer}: {reason}", hint="leave this layer as it is")
