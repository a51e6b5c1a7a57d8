"""What quantization did, as the plain data of a report."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from fxcompress.analysis.cost import weight_cost
from fxcompress.api.budget import Fitted
from fxcompress.api.quantizing import INT8, Quantizing, full_name
from fxcompress.capture import Captured
from fxcompress.ir import numbers
from fxcompress.ir.edit import provenance
from fxcompress.ir.inputs import Inputs
from fxcompress.pipeline import Remark, StepRecord
from fxcompress.pipeline.options import parse_call
from fxcompress.quant.modules import Dequantize, Quantize
from fxcompress.quant.options import Int8
from fxcompress.report import Quantized, QuantLine, RankLine
from fxcompress.report.quant_rows import reason

DECIDING = ("observe", "weight-only", "dynamic")
"""Passes whose remarks say of nodes why they are quantized or not."""

REMARKING = ("equalize", "smooth", "calibrate", "adaround", "correct-bias", "safe-weights", "lower-int8")
"""Passes whose remarks the report tells in its part on quantization."""

_FORM = re.compile(r"int8|float|\w+ weights")
LOW_SQNR = 10.0  # dB; less is remarked


def describe_quantized(fitted: Fitted, quantizing: Quantizing, before: Captured, kept: str, times: Mapping[str, float]) -> Quantized:
    """The lines of the report.

    Args:
        before: the rewritten float form. kept: the form that won. times: of every form that ran, in ms.
    """
    form = fitted.form
    floats = {name: ms for name, ms in times.items() if not name.endswith(INT8)}
    integers = {name: ms for name, ms in times.items() if name.endswith(INT8)}
    fastest = min(floats.values(), default=None), min(integers.values(), default=None)
    sqnr, output = _sqnr(before, form.fake)
    lines = [_line(remark, path, sqnr) for path, run in form.fake_runs.items() for remark in _deciding(run.steps)]
    nothing = f"float was kept: {'nothing is left in int8 within the budget' if fitted.in_float else 'nothing in it could be quantized'}"
    return Quantized(
        kept=kept.endswith(INT8),
        verdict=_verdict(kept, *fastest, quantizing) if form.changed else nothing,
        options=_options(quantizing.options),
        batches=len(quantizing.data.batches) if quantizing.options.static else 0,
        quantizes=_count(form.integer, Quantize),
        dequantizes=_count(form.integer, Dequantize),
        sqnr_db=output,
        float_bytes=weight_cost(before.module)[1],
        int8_bytes=weight_cost(form.integer.module)[1],
        float_ms=fastest[0],
        int8_ms=fastest[1],
        budget=fitted.budget,
        lines=tuple(_with_budget(lines, fitted)),
        ranking=tuple(RankLine(layer.nodes, layer.cost, place < fitted.in_float) for place, layer in enumerate(fitted.ranking)),
        notes=(*_remarked(form.steps), *_notes(output)),
    )


def _verdict(kept: str, in_float: float | None, in_int8: float | None, quantizing: Quantizing) -> str:
    if not kept.endswith(INT8):
        if in_int8 is None:
            return "float was kept: nothing quantized could be lowered here; the race says why"
        return "float was kept: int8 is not faster here"
    if in_float is None or in_int8 is None:
        return "the quantized form was kept; nothing was lowered, so this is the graph in plain torch, not for speed"
    if in_int8 < in_float:
        return f"the quantized form was kept: {in_float / in_int8:.2f}x as fast as the fastest float form"
    why = "speed='none' was asked for" if quantizing.options.static else "small weights were asked for, not speed"
    return f"the quantized form was kept although it is slower than float here: {why}"


def _options(options: Int8) -> str:
    shown = []
    for field in fields(options):
        value = getattr(options, field.name)
        if value != field.default:
            shown.append(f"{field.name}={getattr(value, '__name__', None) or repr(value)}")
    return ", ".join(shown)


def decides(step: StepRecord) -> bool:
    """Whether the remarks of a pass say of nodes why they are quantized or not."""
    return parse_call(step.text)[0] in DECIDING


def is_told(step: StepRecord) -> bool:
    """Whether the part of the report on quantization tells the remarks of a pass."""
    return decides(step) or parse_call(step.text)[0] in REMARKING


def _deciding(steps: Iterable[StepRecord]) -> list[Remark]:
    """One remark for every node, of the pass that decided on it first."""
    found: dict[str, Remark] = {}
    for step in steps:
        if decides(step):
            for remark in step.remarks:
                if remark.node not in found or not found[remark.node].applied:
                    found[remark.node] = remark
    return list(found.values())


def _line(remark: Remark, path: str, sqnr: Mapping[str, float]) -> QuantLine:
    form, colon, why = remark.why.partition(": ")
    if not colon or not _FORM.fullmatch(form):
        form, why = "int8" if remark.applied else "float", remark.why
    name = full_name(path, remark.node)
    return QuantLine(name, form, why, remark.source, sqnr.get(name))


def _with_budget(lines: Iterable[QuantLine], fitted: Fitted) -> Iterable[QuantLine]:
    """The lines; of layers that stay in float for the budget they say so."""
    nodes = {layer.nodes for layer in fitted.ranking[: fitted.in_float]}
    return (replace(line, why="the budget: it is among the most sensitive layers") if line.node in nodes else line for line in lines)


def _remarked(steps: Iterable[StepRecord]) -> list[str]:
    """What calibration and the making of integers found worth a remark, equal reasons once."""
    found: dict[str, list[str]] = {}
    for step in steps:
        name = parse_call(step.text)[0]
        for remark in step.remarks if name in REMARKING else ():
            if remark.node != "graph":
                found.setdefault(f"{name}: {reason(remark.why)}", []).append(remark.node)
    return [f"{why} ({', '.join(nodes[:2])}{f' and {len(nodes) - 2} more' if len(nodes) > 2 else ''})" for why, nodes in found.items()]


def _notes(output: float | None) -> list[str]:
    if output is None or output >= LOW_SQNR:
        return []
    return [f"the outputs lose much ({output:.1f} dB): find the layers in this report that do, and name them in Int8(ignore=...)"]


def _count(form: Captured, kind: type) -> int:
    """How many nodes call a module of class ``kind``, or a fast form of it."""
    return sum(_is_call(node, part.graph, kind) for part in form.parts for node in part.graph.graph.nodes)


def _is_call(node: Node, graph: GraphModule, kind: type) -> bool:
    return node.op == "call_module" and isinstance(graph.get_submodule(str(node.target)), kind)


def _sqnr(before: Captured, fake: Captured) -> tuple[dict[str, float], float | None]:
    """dB of every node that both graphs have, by the names of the captured nodes, and the least of an output."""
    found: dict[str, float] = {}
    outputs: list[float] = []
    for old, new in zip(before.parts, fake.parts, strict=True):
        wanted, got = (_values(part.graph, part.inputs) for part in (old, new))
        for name, (value, origin) in got.items():
            if name in wanted and isinstance(value, Tensor) and isinstance(wanted[name][0], Tensor):
                decibels = numbers.compare(wanted[name][0], value).sqnr
                found[full_name(new.path, origin)] = decibels
        outputs.append(numbers.compare(wanted["output"][0], got["output"][0]).sqnr)
    return found, min(outputs, default=None)


def _values(graph: GraphModule, inputs: Inputs) -> dict[str, tuple[Any, str]]:
    """The value of every node, and the captured nodes that it stands for, by name."""
    recorder = numbers.Recorder(graph)
    with torch.no_grad():
        recorder.run(*inputs.clone().bind(graph.graph).values())
    return {node.name: (value, "+".join(provenance(node))) for node, value in recorder.values.items()}
