"""Writes a small script that shows a failing pipeline again."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.fx import GraphModule

from fxcompress.errors import ArchiveError
from fxcompress.ir.inputs import Inputs
from fxcompress.pipeline.base import Pass
from fxcompress.storage import save

_SCRIPT = '''"""Shows the failure of the last pass of this pipeline again."""

import torch

import fxcompress

module = fxcompress.load({graph!r})
args, kwargs = torch.load({inputs!r}, weights_only=True)
pipeline = fxcompress.Pipeline.parse({pipeline!r})
pipeline.execute(module, fxcompress.Inputs(args, kwargs))
'''


def write_reproducer(start: GraphModule, inputs: Inputs, passes: Sequence[Pass]) -> str:
    """Write graph, inputs and script to a new directory below the system's temporary one; returns what to tell the user."""
    text = ",".join(str(step) for step in passes)
    try:
        folder = Path(tempfile.mkdtemp(prefix="fxcompress-failure-"))
        graph, data, script = folder / "graph.fxc", folder / "inputs.pt", folder / "reproduce.py"
        save(start, graph)
        torch.save((inputs.args, dict(inputs.kwargs)), data)
        script.write_text(_SCRIPT.format(graph=str(graph), inputs=str(data), pipeline=text))
    except (ArchiveError, OSError) as error:
        return f"no script that reproduces this could be written ({error}); the pipeline is '{text}'"
    return f"to reproduce: python {script}"
