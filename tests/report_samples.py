"""Reports for tests: small ones, hostile ones, and one of a real network."""

from __future__ import annotations

import math
from functools import cache

import torch
import torchvision

from fxcompress.analysis import Shapes
from fxcompress.capture import capture
from fxcompress.pipeline import Pipeline
from fxcompress.report import (
    Accuracy,
    Candidate,
    ChangedLine,
    Environment,
    GraphPair,
    GraphView,
    Measured,
    MissedLine,
    NodeView,
    PassLine,
    PrunedLine,
    Report,
    graph_view,
)

HOSTILE = "</script><script>window.pwned=1</script><img src=x onerror=window.pwned=1>\"'`&|*_\x1b[31m\u202e"
"""A name that tries to end elements, attributes, tables and lines."""

BEFORE = Measured(25_557_032, 4_089_184_256, 102_228_128, 9_633_792, 41.2, 1.3)
AFTER = Measured(25_530_472, 4_089_184_256, 102_121_888, 8_028_160, 28.9, 0.8)


def report(name: str = "resnet50", graphs: tuple[GraphPair, ...] = (), notes: tuple[str, ...] = ()) -> Report:
    """A report with every part."""
    return Report(
        model=name,
        title=f"{name} compressed",
        capture="fx",
        capture_notes=notes,
        before=BEFORE,
        after=AFTER,
        target="openvino",
        inputs="1x3x224x224",
        environment=Environment("cpu", "Some CPU", 2, "2.15.0", "0.1.0"),
        accuracy=Accuracy(3.1e-6, 4e-7, 131.2, 2.1e-15, "checked in float64"),
        passes=(
            PassLine("functionalize", True, 0.037, 17, 0.0),
            PassLine("drop-noops", False, 0.366, 0, None),
            PassLine("fold-norm", True, 1.2, 20, 2.4e-7),
        ),
        missed=(
            *(
                MissedLine(f"layer{i}_conv", f"fold-norm: 'layer{i}_conv' is also read by a{i}", f"/x/site-packages/n/resnet.py:{i}")
                for i in range(9)
            ),
            MissedLine("head", "fuse: 'head' has a residual of another shape", None),
        ),
        race=(
            Candidate("original", 41.2, False, "", 1.3),
            Candidate("cpu", 31.0, False, "", 1.1),
            Candidate("openvino", 28.9, True, "", 0.8),
            Candidate("onnxruntime", None, False, "not installed: pip install onnxruntime"),
        ),
        pruned=(
            PrunedLine("conv1", 64, 32, ("conv1.weight",), ("layer1.0.conv1.weight", "layer1.0.downsample.0.weight"), ""),
            PrunedLine("layer1.0.conv1", 64, 64, ("layer1.0.conv1.weight",), ("layer1.0.conv2.weight",), "ignored"),
        ),
        changed=(ChangedLine("norm", 2, "/x/site-packages/n/vit.py:7"),),
        seconds=2.31,
        graphs=graphs,
    )


def hostile() -> Report:
    """Every text of it is hostile."""
    nodes = (
        NodeView("x", HOSTILE, "input", HOSTILE, HOSTILE),
        NodeView(HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE, ("x", "nowhere"), (HOSTILE, "x"), HOSTILE),
    )
    return Report(
        model=HOSTILE,
        title=HOSTILE,
        capture=HOSTILE,
        capture_notes=(HOSTILE,),
        before=BEFORE,
        after=AFTER,
        target=HOSTILE,
        inputs=HOSTILE,
        environment=Environment(HOSTILE, HOSTILE, 2, HOSTILE, HOSTILE),
        accuracy=Accuracy(math.inf, math.nan, -math.inf, None, HOSTILE),
        passes=(PassLine(HOSTILE, True, 0.1, 1, None),),
        missed=(MissedLine(HOSTILE, HOSTILE, HOSTILE),),
        race=(Candidate(HOSTILE, 1.0, True, HOSTILE), Candidate("b", 2.0, False)),
        pruned=(PrunedLine(HOSTILE, 8, 4, (HOSTILE,), (HOSTILE, HOSTILE), HOSTILE),),
        changed=(ChangedLine(HOSTILE, 1, HOSTILE),),
        graphs=(GraphPair(HOSTILE, GraphView(nodes), GraphView(nodes[:1])),),
    )


@cache
def pair_of(name: str) -> GraphPair:
    """The graphs of a torchvision model before and after the cheap passes."""
    torch.manual_seed(0)
    part = capture(torchvision.models.get_model(name, weights=None).eval(), torch.randn(1, 3, 224, 224)).parts[0]
    run = Pipeline.parse("functionalize,drop-noops,fold-norm,fuse").execute(part.graph, part.inputs, verify=False)
    shapes = [Shapes.of(graph, part.inputs) for graph in (part.graph, run.module)]
    return GraphPair("", graph_view(part.graph, shapes[0]), graph_view(run.module, shapes[1]))
