"""What example inputs look like, as plain data from which inputs of the same form can be made again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from fxcompress.errors import PlanError
from fxcompress.ir.inputs import Inputs

SMALL = 16
"""Tensors of integers or flags up to this many elements are kept as they are: they tend to be lengths or sizes."""

MAX_ELEMENTS = 2**31
"""Larger inputs are not made from a plan: the file may come from anywhere."""


@dataclass(frozen=True)
class InputSpec:
    """One tensor, constant or container of example inputs.

    Of floating-point tensors only the form is kept; of integers and flags the range too, since they may be indices.
    An ``opaque`` value is one that cannot be made again; ``value`` is its class then.
    """

    kind: Literal["tensor", "tuple", "list", "dict", "constant", "opaque"]
    shape: tuple[int, ...] = ()
    dtype: str = ""
    values: tuple[int, ...] = ()
    low: int | None = None
    high: int | None = None
    value: bool | int | float | str | None = None
    keys: tuple[str, ...] = ()
    items: tuple[InputSpec, ...] = ()

    @classmethod
    def of(cls, inputs: Inputs) -> InputSpec:
        """The form of a call's arguments: a tuple of the positional ones and a dict of the others."""
        return cls("tuple", items=(_spec(tuple(inputs.args)), _spec(dict(inputs.kwargs))))

    def make(self, device: torch.device | str = "cpu") -> Inputs:
        """Inputs of this form: uniform numbers in [0, 1), the same ones every time, and integers in the kept range.

        Raises:
            PlanError: there is something in it that cannot be made again.
        """
        if self.kind != "tuple" or [item.kind for item in self.items] != ["tuple", "dict"]:
            raise PlanError("the plan's inputs are not the arguments of a call")
        generator = torch.Generator().manual_seed(0)
        args, kwargs = (_make(item, generator, torch.device(device)) for item in self.items)
        return Inputs(args, kwargs)

    def __str__(self) -> str:
        if self.kind == "tensor":
            return f"{self.dtype}{list(self.shape)}"
        if self.kind == "dict":
            return "{" + ", ".join(f"{key}: {item}" for key, item in zip(self.keys, self.items, strict=False)) + "}"
        if self.kind in ("tuple", "list"):
            return ("({})" if self.kind == "tuple" else "[{}]").format(", ".join(map(str, self.items)))
        return repr(self.value) if self.kind == "constant" else str(self.value)


def _spec(value: Any) -> InputSpec:
    if type(value) is Tensor and value.layout == torch.strided:
        return _tensor_spec(value)
    if type(value) in (tuple, list):
        return InputSpec("tuple" if type(value) is tuple else "list", items=tuple(map(_spec, value)))
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return InputSpec("dict", keys=tuple(value), items=tuple(map(_spec, value.values())))
    if value is None or type(value) in (bool, int, float, str):
        return InputSpec("constant", value=value)
    return InputSpec("opaque", value=f"{type(value).__module__}.{type(value).__qualname__}")


def _tensor_spec(tensor: Tensor) -> InputSpec:
    shape, dtype = tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")
    if tensor.is_floating_point() or tensor.is_complex() or tensor.device.type == "meta" or tensor.numel() == 0:
        return InputSpec("tensor", shape, dtype)
    whole = tensor.detach().cpu().to(torch.int64)
    if tensor.numel() <= SMALL:
        return InputSpec("tensor", shape, dtype, values=tuple(whole.ravel().tolist()))
    return InputSpec("tensor", shape, dtype, low=int(whole.min()), high=int(whole.max()))


def _make(spec: InputSpec, generator: torch.Generator, device: torch.device) -> Any:
    if spec.kind == "tensor":
        return _make_tensor(spec, generator, device)
    if spec.kind == "opaque":
        raise PlanError(
            f"the plan cannot make the example inputs again: there is a {spec.value} in them",
            hint="pass example_inputs=... as when the plan was made",
        )
    items = [_make(item, generator, device) for item in spec.items]
    if spec.kind == "dict":
        if len(spec.keys) != len(items):
            raise PlanError(f"the plan has an input {spec} with {len(items)} entries for {len(spec.keys)} keys")
        return dict(zip(spec.keys, items, strict=True))
    if spec.kind == "constant":
        return spec.value
    return tuple(items) if spec.kind == "tuple" else items


def _make_tensor(spec: InputSpec, generator: torch.Generator, device: torch.device) -> Tensor:
    dtype = getattr(torch, spec.dtype, None)
    if not isinstance(dtype, torch.dtype) or min(spec.shape, default=1) < 0 or math.prod(spec.shape) > MAX_ELEMENTS:
        raise PlanError(f"the plan has an input {spec}, which cannot be made")
    if device.type == "meta":
        return torch.empty(spec.shape, dtype=dtype, device=device)
    try:
        return _numbers(spec, generator).reshape(spec.shape).to(device, dtype)
    except (ValueError, OverflowError, RuntimeError) as error:  # numbers that do not fit, a dtype that cannot be had
        raise PlanError(f"the plan has an input {spec}, which cannot be made: {str(error).splitlines()[0]}") from None


def _numbers(spec: InputSpec, generator: torch.Generator) -> Tensor:
    count = math.prod(spec.shape)
    if spec.values:
        return torch.tensor(spec.values, dtype=torch.int64)
    if spec.low is None or spec.high is None:
        return torch.rand(count, generator=generator)
    if spec.high < spec.low:
        raise ValueError(f"it has numbers from {spec.low} to {spec.high}")
    return spec.low + torch.arange(count) % (spec.high - spec.low + 1)
