"""The tensors of an archive: each stored once, under the first name it has in the model."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fxcompress.errors import ArchiveError
from fxcompress.storage.values import DTYPES, damaged, is_path

# What the safetensors format can name; tensors of other types are stored as their bytes.
_NATIVE_TYPES = (
    "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 uint16 uint32 uint64 bool complex64 float8_e4m3fn float8_e5m2"
)
_NATIVE = frozenset(_NATIVE_TYPES.split())


@dataclass
class TensorWriter:
    """Collects tensors; :meth:`add` gives the key under which a tensor is stored."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    stored: dict[str, Tensor] = field(default_factory=dict)
    _keys: dict[tuple[Any, ...], tuple[str, Tensor]] = field(default_factory=dict)

    def add(self, name: str, tensor: Tensor) -> str:
        identity = _identity(tensor)
        known = self._keys.get(identity)
        if known is not None:
            return known[0]
        _check(name, tensor)
        dtype = str(tensor.dtype).removeprefix("torch.")
        plain = tensor.detach().cpu().resolve_conj().resolve_neg()
        row: dict[str, Any] = {"key": name, "dtype": dtype, "shape": list(tensor.shape)}
        if not plain.is_contiguous() and is_dense(plain.shape, plain.stride()):
            row["stride"] = list(plain.stride())
        row["requires_grad"] = tensor.requires_grad
        row["parameter"] = isinstance(tensor, nn.Parameter)
        self.rows.append(row)
        carrier = plain.contiguous()
        self.stored[name] = carrier if dtype in _NATIVE else carrier.reshape(-1).view(torch.uint8)
        self._keys[identity] = (name, tensor)  # the tensor is kept, so that its memory stays its own
        return name


def _identity(tensor: Tensor) -> tuple[Any, ...]:
    """Equal for tensors that are one: the same object, or the same part of the same memory with the same flags."""
    if tensor.numel() == 0 or tensor.layout is not torch.strided or tensor.device.type == "meta":
        return (id(tensor),)
    flags = (tensor.requires_grad, isinstance(tensor, nn.Parameter), tensor.is_conj(), tensor.is_neg())
    return (tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride(), *flags)


def _check(name: str, tensor: Tensor) -> None:
    problem = None
    if type(tensor) not in (Tensor, nn.Parameter, nn.Buffer):
        problem = f"is a {type(tensor).__name__}"
    elif tensor.layout is not torch.strided or tensor.is_quantized:
        problem = "is not a plain strided tensor"
    elif tensor.device.type == "meta":
        problem = "is on the meta device and has no values"
    if problem:
        raise ArchiveError(f"tensor '{name}' {problem} and cannot be saved", hint="turn it into a plain torch.Tensor first")


def is_dense(shape: tuple[int, ...] | torch.Size, stride: tuple[int, ...]) -> bool:
    """Whether strides address each element of a block of memory exactly once (channels_last does, expand does not)."""
    expected = 1
    for step, size in sorted((step, size) for step, size in zip(stride, shape, strict=True) if size != 1):
        if step != expected:
            return False
        expected *= size
    return expected == math.prod(shape) > 0


def read_tensors(rows: Any, stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """Key -> tensor or parameter, as the rows of a :class:`TensorWriter` describe them.

    Raises:
        ArchiveError: the rows and the stored tensors do not fit together.
    """
    if not isinstance(rows, list):
        raise damaged("there is no table of tensors")
    tensors: dict[str, Tensor] = {}
    for row in rows:
        key = row.get("key") if isinstance(row, dict) else None
        if not is_path(key) or key in tensors or key not in stored:
            raise damaged(f"the table of tensors names {str(key)[:80]!r}, which is not there")
        tensors[key] = _tensor(row, stored[key])
    if len(tensors) != len(stored):
        raise damaged("there are tensors without a description")
    return tensors


def _tensor(row: dict[str, Any], carrier: Tensor) -> Tensor:
    key, dtype = row["key"], DTYPES.get(str(row.get("dtype")))
    shape: Any = row.get("shape")
    if dtype is None or not _is_ints(shape):
        raise damaged(f"tensor '{key}' has no known type or shape")
    if str(row["dtype"]) not in _NATIVE:
        if carrier.dtype is not torch.uint8 or carrier.numel() != math.prod(shape) * dtype.itemsize:
            raise damaged(f"tensor '{key}' has the wrong size")
        carrier = carrier.view(dtype).reshape(shape)
    if carrier.dtype is not dtype or list(carrier.shape) != shape:
        raise damaged(f"tensor '{key}' is not what its description says")
    tensor = _strided(row, carrier)
    requires_grad, parameter = row.get("requires_grad"), row.get("parameter")
    differentiable = dtype.is_floating_point or dtype.is_complex
    if type(requires_grad) is not bool or type(parameter) is not bool or (requires_grad and not differentiable):
        raise damaged(f"tensor '{key}' has no sound flags")
    return nn.Parameter(tensor, requires_grad=requires_grad) if parameter else tensor.requires_grad_(requires_grad)


def _strided(row: dict[str, Any], carrier: Tensor) -> Tensor:
    stride = row.get("stride")
    if stride is None:
        return carrier
    if not _is_ints(stride) or len(stride) != carrier.dim() or not is_dense(carrier.shape, tuple(stride)):
        raise damaged(f"tensor '{row['key']}' has impossible strides")
    return torch.empty_strided(carrier.shape, stride, dtype=carrier.dtype).copy_(carrier)


def _is_ints(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**62 for v in itertools.islice(values, 65)) and len(values) <= 64
