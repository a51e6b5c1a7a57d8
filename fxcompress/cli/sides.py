"""What can be compared: a file of a snapshot, a saved model, or a model that a SPEC names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fxcompress.api import REWRITES
from fxcompress.api.comparing import snapshot
from fxcompress.api.tracing import trace
from fxcompress.cli.quantizing import batches
from fxcompress.cli.spec import DTYPES, FORMS, load_model, make_inputs
from fxcompress.compare import codec
from fxcompress.compare.schema import Snapshot
from fxcompress.errors import InputError
from fxcompress.ir.inputs import Inputs
from fxcompress.pipeline import Pipeline


@dataclass(frozen=True)
class Side:
    """How a model is loaded and looked at. ``pipeline``: passes that it goes through before, "default" for those of ``compress``."""

    inputs: tuple[str, ...] = ()
    dtype: str = "float32"
    weights: Path | None = None
    pretrained: bool = False
    bake: bool = False
    numbers: bool = True
    pipeline: str | None = None
    data: str | None = None


def is_snapshot(path: Path) -> bool:
    """Whether a file holds a snapshot: by its name, else by its first byte (a saved model begins with the length of a header)."""
    if not path.is_file():
        return False
    if path.suffix == codec.SUFFIX:
        return True
    with path.open("rb") as file:
        return file.read(1) == b"{"


def snapshot_of(spec: str, side: Side, show: Callable[[str], None], name: str | None = None) -> Snapshot:
    """The snapshot that ``spec`` stands for. ``name``: how reports call a model; the end of ``spec`` if not given.

    Raises:
        FxCompressError: there is no such model or file, it is damaged, or the model cannot be captured.
    """
    path = Path(spec)
    if is_snapshot(path):
        show(f"read {spec}")
        return codec.read(path)
    if ":" not in spec and not path.exists():
        raise InputError(f"there is no file '{spec}'", hint=f"give {FORMS}, or a {codec.SUFFIX} file that fxcompress snapshot has written")
    if not side.inputs:
        raise InputError(
            f"'{spec}' is no snapshot, and a model needs example inputs",
            hint=f"add --input 1x3x224x224; else give {FORMS}, or a {codec.SUFFIX} file",
        )
    inputs = make_inputs(side.inputs, side.dtype)
    show(f"load {spec}")
    model = load_model(spec, pretrained=side.pretrained, weights=side.weights)
    if side.dtype != "float32":
        model = model.to(DTYPES[side.dtype])
    if side.pipeline is not None:
        model = _after(side.pipeline, model, inputs, side.bake, show)
    title = path.name if path.is_file() else spec.rpartition(":")[2]
    data = None if side.data is None else batches(side.data)
    show(f"look at {spec}")
    return snapshot(model, inputs, name=name or title, numbers=side.numbers, data=data, bake=side.bake)


def _after(pipeline: str, model: nn.Module, inputs: tuple[Any, ...], bake: bool, show: Callable[[str], None]) -> nn.Module:
    passes = Pipeline.parse(REWRITES if pipeline == "default" else pipeline)
    show("capture")
    module = trace(model, inputs, bake=bake)
    show("run the passes")
    with torch.inference_mode(False):
        return passes.execute(module, Inputs.of(inputs, module.forward), verify=False).module  # what a gate is about, compress proves
