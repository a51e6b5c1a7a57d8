"""What all commands make of their options: the model, its inputs, its name, the width of tables."""

from __future__ import annotations

import shutil
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fxcompress.cli.spec import DTYPES, load_model, make_inputs


def model_and_inputs(options: Namespace, show: Callable[[str], None]) -> tuple[nn.Module, tuple[Any, ...]]:
    """The model and the example inputs that the options ask for."""
    inputs = make_inputs(options.input, options.dtype)
    return model_of(options, show), inputs


def model_of(options: Namespace, show: Callable[[str], None]) -> nn.Module:
    """The model that the options ask for, in its dtype."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    show(f"load {options.spec}")
    model = load_model(options.spec, pretrained=options.pretrained, weights=options.weights)
    return model if options.dtype == "float32" else model.to(DTYPES[options.dtype])


def title(options: Namespace) -> str:
    """How reports call the model."""
    return Path(options.spec).name if Path(options.spec).is_file() else options.spec.rpartition(":")[2]


def width() -> int:
    """Of what is printed: the terminal's, within reason."""
    return max(80, min(100, shutil.get_terminal_size((96, 24)).columns))
