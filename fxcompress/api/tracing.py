"""The graph of a model, as the passes see it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from fxcompress.capture import capture
from fxcompress.errors import InputError


def trace(model: nn.Module, example_inputs: Any, *, leaves: Iterable[type[nn.Module]] = (), bake: bool = False) -> GraphModule:
    """The graph of ``model`` as the passes see it; a copy, the model is not touched.

    Args:
        example_inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments.
        leaves: module classes to call as they are instead of looking inside.
        bake: accept parametrizations and weight norm, with their present value.

    Raises:
        CaptureError: the model cannot be captured as one graph; the message says where and why.
    """
    with torch.inference_mode(False):  # the graph must be good for training, too, wherever it is made
        captured = capture(model, example_inputs, leaves=leaves, bake=bake)
    if captured.step == "parts" or not isinstance(captured.module, GraphModule):
        reasons = "; ".join(captured.notes[:3])
        raise InputError(f"{type(model).__name__} can only be captured in parts: {reasons}", hint="fxcompress.compress works on parts")
    return captured.module


def check_model(model: object) -> None:
    """Raise InputError unless ``model`` is a module."""
    if not isinstance(model, nn.Module):
        raise InputError(
            f"model is {type(model).__name__}, not a torch.nn.Module", hint="pass the module itself, e.g. torchvision.models.resnet18()"
        )
