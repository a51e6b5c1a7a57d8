"""Activations that a convolution or linear can carry as a post-operation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fxcompress.errors import GraphError

# name -> (function of the tensor and the arguments, number of arguments)
_FUNCTIONS: dict[str, tuple[Callable[..., Tensor], int]] = {
    "relu": (F.relu, 0),
    "hardtanh": (F.hardtanh, 2),
    "hardswish": (F.hardswish, 0),
    "hardsigmoid": (F.hardsigmoid, 0),
    "silu": (F.silu, 0),
    "gelu": (lambda x, approximate: F.gelu(x, approximate=approximate), 1),
    "sigmoid": (torch.sigmoid, 0),
    "tanh": (torch.tanh, 0),
    "leaky_relu": (F.leaky_relu, 1),
    "elu": (F.elu, 1),
    "mish": (F.mish, 0),
}


@dataclass(frozen=True)
class Activation:
    """An element-wise function by name, with its constants: ``Activation("hardtanh", (0.0, 6.0))`` is ReLU6."""

    name: str
    args: tuple[float | str, ...] = ()

    def __post_init__(self) -> None:
        if self.name not in _FUNCTIONS or len(self.args) != _FUNCTIONS[self.name][1]:
            raise GraphError(f"unknown activation {self}", hint=f"known are {', '.join(sorted(_FUNCTIONS))}")

    def apply(self, x: Tensor) -> Tensor:
        return _FUNCTIONS[self.name][0](x, *self.args)

    def __str__(self) -> str:
        return f"{self.name}({', '.join(map(str, self.args))})" if self.args else self.name
