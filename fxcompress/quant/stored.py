"""Layers that store their weights small and compute in float: weight-only quantization.

    w = integer * scale        (int8, or 4-bit integers kept in int8; one scale per output channel, or per row of an embedding)

or ``w`` in a 16-bit float type. The weights are widened in every call, so file and memory shrink and the arithmetic is that of the
float layer on the rounded weights. Where the scale belongs to an output channel it multiplies the output, not the weights:
``act(op(x, integer) * scale + bias + residual)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxcompress.errors import InputError
from fxcompress.ir.activation import Activation
from fxcompress.ir.fused import FusedConv1d, FusedConv2d, FusedConv3d, FusedLinear
from fxcompress.quant.affine import quantize_weight, weight_scale
from fxcompress.quant.options import Storage

__all__ = ["STORED", "StoredConv", "StoredEmbedding", "StoredLinear", "StoredRecurrent", "narrowed", "stored", "why_not_stored"]

_BITS: dict[str, int] = {"int8": 8, "int4": 4}
_HALVES: dict[str, torch.dtype] = {"float16": torch.float16, "bfloat16": torch.bfloat16}
_CONVS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def narrowed(weight: Tensor, storage: Storage) -> tuple[Tensor, Tensor | None]:
    """The weight as it is stored, of its shape, and the float32 scale (rows,) of integers; None for 16-bit floats.

    Raises:
        InputError: a value is too large for float16.
    """
    weight = weight.detach()
    if storage in _HALVES:
        half = weight.to(_HALVES[storage])
        if not torch.equal(torch.isfinite(half), torch.isfinite(weight)):
            raise InputError("a weight is too large for float16", hint='write storage="bfloat16"')
        return half, None
    scale = weight_scale(weight, _BITS[storage])
    return quantize_weight(weight, scale, _BITS[storage]), scale


class _Stored(nn.Module):
    """What all share: the buffers ``weight`` and ``weight_scale`` (None for 16-bit floats), and refusing to train."""

    weight: Tensor
    weight_scale: Tensor | None
    bias: Tensor | None

    def __init__(self, weight: Tensor, weight_scale: Tensor | None, bias: Tensor | None = None) -> None:
        super().__init__()
        self.training = False
        self.register_buffer("weight", weight.detach())
        self.register_buffer("weight_scale", None if weight_scale is None else weight_scale.detach())
        self.register_buffer("bias", None if bias is None else bias.detach())

    def _finish(self, y: Tensor, axis: int, residual: Tensor | None, activation: Activation | None) -> Tensor:
        channel = [-1, *[1] * (y.dim() - 1 - axis % y.dim())]
        if self.weight_scale is not None:
            y = y * self.weight_scale.to(y.dtype).reshape(channel)
        if self.bias is not None:
            y = y + self.bias.to(y.dtype).reshape(channel)
        if residual is not None:
            y = y + residual
        return y if activation is None else activation.apply(y)

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, {str(self.weight.dtype).removeprefix('torch.')}"


class StoredLinear(_Stored):
    """``act(x @ w.T + bias + residual)`` for x (..., in_features)."""

    def __init__(
        self, weight: Tensor, weight_scale: Tensor | None = None, bias: Tensor | None = None, *, activation: Activation | None = None
    ) -> None:
        super().__init__(weight, weight_scale, bias)
        self.activation = activation

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return self._finish(F.linear(x, self.weight.to(x.dtype)), -1, residual, self.activation)


class StoredConv(_Stored):
    """1-, 2- or 3-d convolution with zero padding of x (N, C, ...) or (C, ...)."""

    def __init__(
        self,
        weight: Tensor,
        weight_scale: Tensor | None = None,
        bias: Tensor | None = None,
        *,
        stride: Sequence[int],
        padding: str | Sequence[int],
        dilation: Sequence[int],
        groups: int = 1,
        activation: Activation | None = None,
    ) -> None:
        super().__init__(weight, weight_scale, bias)
        self.stride, self.dilation, self.groups, self.activation = tuple(stride), tuple(dilation), groups, activation
        self.padding = padding if isinstance(padding, str) else tuple(padding)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        spatial = self.weight.dim() - 2
        y = _CONVS[spatial](x, self.weight.to(x.dtype), None, self.stride, self.padding, self.dilation, self.groups)
        return self._finish(y, y.dim() - spatial - 1, residual, self.activation)


class StoredEmbedding(_Stored):
    """Rows of the weight (rows, features) by an index of any shape, float32; one scale per row."""

    def __init__(self, weight: Tensor, weight_scale: Tensor | None = None, *, padding_idx: int | None = None) -> None:
        super().__init__(weight, weight_scale)
        self.padding_idx = padding_idx

    def forward(self, index: Tensor) -> Tensor:
        rows = F.embedding(index, self.weight)
        if self.weight_scale is None:
            return rows.to(torch.promote_types(rows.dtype, torch.float32))
        return rows.to(self.weight_scale.dtype) * F.embedding(index, self.weight_scale[:, None])


class StoredRecurrent(nn.Module):
    """An LSTM, GRU or RNN; the call is that of the torch.nn class.

    Buffers carry the names of its parameters; matrices are integers with a scale per row in ``<name>_scale``, or 16-bit floats, and
    biases stay as they were.

    Args:
        kind: "LSTM", "GRU" or "RNN". settings: what its class is constructed with.
    """

    def __init__(
        self,
        kind: str,
        tensors: dict[str, Tensor],
        *,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        has_bias: bool = True,
        batch_first: bool = False,
        bidirectional: bool = False,
        proj_size: int = 0,
        nonlinearity: str = "tanh",
    ) -> None:
        super().__init__()
        self.training = False
        self.kind, self.input_size, self.hidden_size, self.num_layers = kind, input_size, hidden_size, num_layers
        self.has_bias, self.batch_first, self.bidirectional = has_bias, batch_first, bidirectional
        self.proj_size, self.nonlinearity = proj_size, nonlinearity
        # Outside _modules: it says how to compute, and its own weights are on the meta device.
        self.__dict__["_skeleton"] = self._make_skeleton()
        self._take(tensors)

    def _make_skeleton(self) -> nn.RNNBase:
        if self.kind not in ("LSTM", "GRU", "RNN"):
            raise InputError(f"there is no recurrent layer '{self.kind}'", hint="write LSTM, GRU or RNN")
        cls: Any = getattr(nn, self.kind)
        more: dict[str, Any] = {"proj_size": self.proj_size} if self.kind == "LSTM" else {}
        more |= {"nonlinearity": self.nonlinearity} if self.kind == "RNN" else {}
        flags = {"bias": self.has_bias, "batch_first": self.batch_first, "bidirectional": self.bidirectional}
        made: nn.RNNBase = cls(self.input_size, self.hidden_size, self.num_layers, **flags, **more, device="meta")
        return made.eval()

    def _take(self, tensors: dict[str, Tensor]) -> None:
        """Register the buffers; the kernels trust their shapes, so these are checked."""
        wanted = {name: parameter.shape for name, parameter in self.__dict__["_skeleton"].named_parameters()}
        scales = {f"{name}_scale": shape[:1] for name, shape in wanted.items() if len(shape) == 2}
        for name, tensor in tensors.items():
            if tensor.shape != (wanted | scales).get(name):
                raise InputError(
                    f"the weight '{name}' of a {self.kind} has the shape {tuple(tensor.shape)}", hint="give those of the layer"
                )
            self.register_buffer(name, tensor.detach())
        if missing := set(wanted) - set(tensors):
            raise InputError(f"a {self.kind} lacks the weights {', '.join(sorted(missing))}", hint="give those of the layer")

    def forward(self, x: Tensor, state: Any = None) -> Any:
        skeleton = self.__dict__["_skeleton"]
        dtype = x.dtype if isinstance(x, Tensor) else x.data.dtype
        widened = {name: self._widened(name, dtype) for name, _ in skeleton.named_parameters()}
        return torch.func.functional_call(skeleton, widened, (x, state))

    def _widened(self, name: str, dtype: torch.dtype) -> Tensor:
        weight, scale = self._buffers[name], self._buffers.get(f"{name}_scale")
        assert weight is not None
        return weight.to(dtype) if scale is None else weight.to(dtype) * scale.to(dtype)[:, None]

    @property
    def weight_dtype(self) -> torch.dtype:
        """In which the matrices are stored."""
        found = self._buffers["weight_ih_l0"]
        assert found is not None
        return found.dtype

    def extra_repr(self) -> str:
        return (
            f"{self.kind}, {self.input_size}, {self.hidden_size}, layers={self.num_layers}, {str(self.weight_dtype).removeprefix('torch.')}"
        )


STORED = (StoredLinear, StoredConv, StoredEmbedding, StoredRecurrent)


def why_not_stored(layer: nn.Module) -> str | None:
    """None for a layer that has a form with small weights, else the reason why it has none."""
    kind = type(layer)
    if kind in (nn.Linear, FusedLinear):
        return None
    if kind in _CONV_LAYERS:
        mode = str(layer.padding_mode)
        return None if mode == "zeros" else f"it pads with {mode}"
    if kind is nn.Embedding:
        return "it scales rows in place (max_norm)" if layer.max_norm is not None else None
    if kind in (nn.LSTM, nn.GRU, nn.RNN):
        return None
    return f"a {kind.__name__} has no form with small weights"


_CONV_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, FusedConv1d, FusedConv2d, FusedConv3d)


def stored(layer: nn.Module, storage: Storage) -> nn.Module:
    """The form of a layer with small weights; ``why_not_stored`` must be None. The layer is not changed."""
    plain: Any = layer
    if isinstance(plain, nn.RNNBase):
        return _stored_recurrent(plain, storage)
    weight, scale = narrowed(plain.weight, storage)
    if isinstance(plain, nn.Embedding):
        return StoredEmbedding(weight, scale, padding_idx=plain.padding_idx)
    activation: Activation | None = getattr(plain, "activation", None)
    if isinstance(plain, nn.Linear):
        return StoredLinear(weight, scale, plain.bias, activation=activation)
    geometry = {"stride": plain.stride, "padding": plain.padding, "dilation": plain.dilation, "groups": plain.groups}
    return StoredConv(weight, scale, plain.bias, activation=activation, **geometry)


def _stored_recurrent(layer: nn.RNNBase, storage: Storage) -> StoredRecurrent:
    tensors: dict[str, Tensor] = {}
    for name, parameter in layer.named_parameters():
        tensors[name], scale = narrowed(parameter, storage) if parameter.dim() == 2 else (parameter.detach(), None)
        if scale is not None:
            tensors[f"{name}_scale"] = scale
    return StoredRecurrent(
        layer.mode.partition("_")[0],
        tensors,
        input_size=layer.input_size,
        hidden_size=layer.hidden_size,
        num_layers=layer.num_layers,
        has_bias=layer.bias,
        batch_first=layer.batch_first,
        bidirectional=layer.bidirectional,
        proj_size=layer.proj_size,
        nonlinearity="relu" if layer.mode == "RNN_RELU" else "tanh",
    )
