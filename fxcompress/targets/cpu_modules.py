"""Convolutions and linears with weights packed for this CPU: :class:`PackedConv` and :class:`PackedLinear`.

The plain weight and bias are the state (buffers ``weight`` and ``bias``, so the keys of the state_dict survive). What is
packed is a cache: made on the first call with an input shape, dropped when the weights change, and never copied,
pickled or stored. Wherever a kernel does not apply (another dtype or device, an empty batch, autocast, tracing, ...)
the module computes the reference, ``act(op(x) + residual)`` in plain torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxcompress.errors import TargetError
from fxcompress.ir.activation import Activation
from fxcompress.targets.cpu_kernels import kernels, refuse_gradients, runs_native
from fxcompress.targets.cpu_plans import ConvGeometry, Plan, conv_plan, finish, linear_plan, matmul_plan, prefers_mkl
from fxcompress.targets.inference import InferenceOnly

__all__ = ["PackedConv", "PackedLinear", "lowerable"]

_CONVS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_MAX_PLANS = 16  # input shapes for which packed weights are kept


class _Packed(InferenceOnly):
    """What both modules share: the state, plans by input shape, the refusal of training."""

    weight: Tensor
    bias: Tensor | None
    _plans: dict[torch.Size, Plan]
    _planned_for: tuple[Tensor | None, int | None]  # the weight and its version

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: Activation | None) -> None:
        super().__init__()
        self.training = False
        self.register_buffer("weight", weight.detach())
        self.register_buffer("bias", None if bias is None else bias.detach())
        self.activation = activation
        self._forget()

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """``act(op(x) + residual)``; raises ModeError when an input requires a gradient and grad mode is on."""
        weight = self._buffers["weight"]
        assert weight is not None
        if not runs_native(x) or x.requires_grad or residual is not None:
            refuse_gradients(x, residual)
            if not runs_native(x) or not (residual is None or runs_native(residual)):
                return self.reference(x, residual)
        planned, version = self._planned_for
        if weight is not planned or (version is not None and weight._version != version):
            self._forget()
            self._planned_for = (weight, None if weight.is_inference() else weight._version)
        plan = self._plans.get(x.shape) or self._remember(x)
        return plan(x, residual, self._buffers["bias"])

    def reference(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """The same function in plain torch operations, for any dtype and device."""
        return finish(self._operation(x), residual, self.activation)

    def _operation(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _plan(self, x: Tensor) -> Plan | None:
        """A plan for inputs of the shape of ``x``, or None where only the reference will do."""
        raise NotImplementedError

    def _remember(self, x: Tensor) -> Plan:
        native = x.numel() > 0 and self.weight.numel() > 0 and self.weight.dtype is torch.float32 and self.weight.is_cpu
        plan = self._plan(x) if native and torch.backends.mkldnn.enabled else None
        if plan is None:
            return lambda x, residual, bias: self.reference(x, residual)
        while len(self._plans) >= _MAX_PLANS:
            del self._plans[next(iter(self._plans))]
        self._plans[x.shape] = plan
        return plan

    def _forget(self) -> None:
        self._plans, self._planned_for = {}, (None, None)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._forget()  # inference tensors have no version that would tell

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_plans": {}, "_planned_for": (None, None)}


class PackedConv(_Packed):
    """1-, 2- or 3-d convolution with packed weights: ``act(conv(x) + residual)``, in float32 on a CPU.

    Input (N, C, L), (N, C, H, W) or (N, C, D, H, W) of any size and strides; the output is channels_last.
    ``overwrites_residual=True`` lets it write the result into the residual's memory (about 1.15 times faster where the
    output is large and the kernel small); only for a residual that nobody reads afterwards.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        stride: Sequence[int],
        padding: Sequence[int] | str,
        dilation: Sequence[int],
        groups: int = 1,
        padding_mode: str = "zeros",
        activation: Activation | None = None,
        overwrites_residual: bool = False,
    ) -> None:
        super().__init__(weight, bias, activation)
        self.stride, self.dilation, self.groups = tuple(stride), tuple(dilation), groups
        self.padding = padding if isinstance(padding, str) else tuple(padding)
        self.padding_mode, self.overwrites_residual = padding_mode, overwrites_residual
        before, after = _explicit_padding(self.padding, weight.shape[2:], self.dilation)
        inside = padding_mode == "zeros" and before == after
        self._outer_padding = [] if inside else [p for pair in zip(reversed(before), reversed(after), strict=True) for p in pair]
        self._geometry = ConvGeometry(before if inside else (0,) * len(before), self.stride, self.dilation, groups)

    @classmethod
    def of(cls, layer: nn.Module, *, overwrites_residual: bool = False) -> Self:
        """The packed form of a plain or fused Conv1d, Conv2d or Conv3d; shares its tensors.

        TargetError where :func:`lowerable` gives a reason.
        """
        _require_lowerable(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        conv: Any = layer
        return cls(
            conv.weight,
            conv.bias,
            stride=conv.stride,
            padding=conv.padding,
            dilation=conv.dilation,
            groups=conv.groups,
            padding_mode=conv.padding_mode,
            activation=getattr(conv, "activation", None),
            overwrites_residual=overwrites_residual,
        )

    def _padded(self, x: Tensor) -> Tensor:
        if not self._outer_padding:
            return x
        return F.pad(x, self._outer_padding, mode="constant" if self.padding_mode == "zeros" else self.padding_mode)

    def _operation(self, x: Tensor) -> Tensor:
        g = self._geometry
        return _CONVS[self.weight.dim() - 2](self._padded(x), self.weight, self.bias, g.stride, g.padding, g.dilation, g.groups)

    def _plan(self, x: Tensor) -> Plan | None:
        weight, geometry = self.weight, self._geometry
        if x.dim() != weight.dim() or x.shape[1] != weight.shape[1] * geometry.groups or kernels().missing():
            return None
        sample = self._padded(x)
        if min(geometry.output_size(sample.shape[2:], weight.shape[2:])) < 1:
            return None  # the reference raises torch's own error
        if self._is_matmul(x):
            return matmul_plan(weight, x.shape[0], self.activation)
        plan = conv_plan(weight, sample.shape, geometry, self.activation, self.overwrites_residual)
        return (lambda x, residual, bias: plan(self._padded(x), residual, bias)) if self._outer_padding else plan

    def _is_matmul(self, x: Tensor) -> bool:
        """A small 1x1 convolution of one pixel, as in squeeze and excite: as a matmul it costs 7 us instead of 28."""
        pixel = all(n == 1 for n in (*x.shape[2:], *self.weight.shape[2:]))
        plain = self.groups == 1 and not any(self._geometry.padding) and not self._outer_padding
        return pixel and plain and prefers_mkl(self.weight, x.shape[0])

    def extra_repr(self) -> str:
        kernel = "x".join(map(str, self.weight.shape[2:]))
        return (
            f"{self.weight.shape[1] * self.groups}, {self.weight.shape[0]}, {kernel}, stride={self.stride}, padding={self.padding}, "
            f"dilation={self.dilation}, groups={self.groups}, bias={self.bias is not None}, activation={self.activation}"
        )


class PackedLinear(_Packed):
    """Linear with packed weights: ``act(x @ weight.T + bias + residual)``; input (..., in_features), float32 on a CPU."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, activation: Activation | None = None) -> None:
        super().__init__(weight, bias, activation)

    @classmethod
    def of(cls, layer: nn.Module) -> Self:
        """The packed form of a plain or fused Linear; shares its tensors. TargetError where :func:`lowerable` gives a reason."""
        _require_lowerable(layer, nn.Linear)
        linear: Any = layer
        return cls(linear.weight, linear.bias, activation=getattr(linear, "activation", None))

    def _operation(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def _plan(self, x: Tensor) -> Plan | None:
        if x.dim() < 2 or x.shape[-1] != self.weight.shape[1] or kernels().missing():
            return None
        return linear_plan(self.weight, x.numel() // x.shape[-1], self.activation)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}, bias={self.bias is not None}, activation={self.activation}"


def lowerable(module: nn.Module) -> str | None:
    """Why ``module`` cannot become a PackedConv or PackedLinear, or None when it can."""
    if not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
        return f"{type(module).__name__} has no packed form"
    if isinstance(module, nn.LazyConv1d | nn.LazyConv2d | nn.LazyConv3d | nn.LazyLinear):
        return f"{type(module).__name__} has no weights yet"
    if not module.weight.is_cpu:
        return f"its weight is on {module.weight.device}, not on the CPU"
    if module.weight.dtype is not torch.float32:
        return f"its weight is {str(module.weight.dtype).removeprefix('torch.')}, not float32"
    if module.weight.numel() == 0:
        return "its weight is empty"
    return kernels().missing()


def _require_lowerable(layer: nn.Module, kind: Any) -> None:
    reason = lowerable(layer) if isinstance(layer, kind) else f"{type(layer).__name__} is another kind of layer"
    if reason is not None:
        raise TargetError(f"cannot pack {layer}: {reason}", hint="leave this layer as it is")


def _explicit_padding(
    padding: tuple[int, ...] | str, kernel: Sequence[int], dilation: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Padding before and after each dimension; "same" puts the odd one behind, as torch does."""
    if padding == "valid":
        padding = (0,) * len(kernel)
    if not isinstance(padding, str):
        return padding, padding
    totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    return tuple(t // 2 for t in totals), tuple(t - t // 2 for t in totals)
