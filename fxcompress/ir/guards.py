"""Checks that stand in a graph for what capture has taken as constant."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fxcompress.errors import InputError


def expect_constant(value: Any, expected: Any, name: str) -> None:
    """Refuse a call whose argument ``name`` differs from the value with which the model was captured.

    Raises:
        InputError: ``value`` is not ``expected``.
    """
    if value is expected or torch.jit.is_tracing():  # a trace holds for its own sizes only, which it sees as tensors
        return
    if isinstance(value, torch.Tensor) or type(value) is not type(expected) or value != expected:
        raise InputError(
            f"argument '{name}' was {expected!r} when the model was captured; this call passes {_shown(value)}",
            hint=f"leave '{name}' out, or capture the model again with an example of it in example_inputs",
        )


def _shown(value: Any) -> str:
    return repr(value)[:80] if isinstance(value, (int, float, str)) else type(value).__name__


fx.node.has_side_effect(expect_constant)
