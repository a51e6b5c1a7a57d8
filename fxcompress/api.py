"""The front door: one call that captures, rewrites, lowers, measures and reports."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from fxcompress.analysis import Cost, Shapes
from fxcompress.analysis.cost import weight_cost
from fxcompress.capture import Captured, capture
from fxcompress.errors import EquivalenceError, InputError, TargetError
from fxcompress.ir.inputs import Inputs
from fxcompress.ir.snapshot import Fingerprinter
from fxcompress.pipeline import Pass, Pipeline, Run, StepRecord, numbers, registry
from fxcompress.pipeline.base import Property
from fxcompress.pipeline.options import build
from fxcompress.report import Accuracy, Candidate, GraphPair, GraphView, Measured, MissedLine, PassLine, Report, environment, graph_view
from fxcompress.result import in_parts, whole
from fxcompress.targets.registry import lookup, names
from fxcompress.targets.timing import Timing, interleaved

REWRITES = (
    "functionalize,drop-noops,fold-constants,raise-layers,cse,dead-code,"
    "fold-norm,fold-norm-before,fold-scale,merge-branches,fold-scale,merge-chain,merge-parallel,fuse"
)
"""The passes of ``compress`` before lowering: all keep the function."""

NATIVE = ("onednn-graph", "cpu")
"""Both ways to run the native kernels, the faster first; ``target="cpu"`` takes the first that can run the graph."""

ORIGINAL, CAPTURED, REWRITTEN = "original", "captured", "rewritten"


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


def compress(
    model: nn.Module,
    example_inputs: Any,
    *,
    pipeline: str | Pass | None = None,
    target: str = "auto",
    verify: bool = True,
    leaves: Iterable[type[nn.Module]] = (),
    bake: bool = False,
    name: str | None = None,
    on_step: Callable[[str], None] = lambda text: None,
) -> nn.Module:
    """A module that computes the same as ``model``, faster. The model itself is not touched.

    Args:
        model: a trained module in eval mode.
        example_inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments. The result also takes
            other batch sizes, and other image sizes where the model does.
        pipeline: passes to run instead of the default ones, as text (``"fold-norm,fuse"``) or as a Pass.
        target: ``"auto"`` races the native CPU kernels and every installed engine and keeps the fastest whose numbers
            hold; a name (``"cpu"``, ``"openvino"``, ``"onnxruntime"``) races only that one; ``"none"`` only rewrites, and
            the result can still be trained.
        verify: compare the outputs after every pass, and the whole in float64.
        leaves, bake: see :func:`trace`.
        name: how the report calls the model.
        on_step: called with a line of text before each step.

    Returns:
        A module with the signature of ``model.forward``, ``.report`` and ``.save(path)``.

    Raises:
        FxCompressError: every error of the library; see :mod:`fxcompress.errors`.
    """
    if not isinstance(model, nn.Module):
        raise InputError(
            f"model is {type(model).__name__}, not a torch.nn.Module", hint="pass the module itself, e.g. torchvision.models.resnet18()"
        )
    if model.training:
        raise InputError("the model is in training mode", hint="call model.eval() first; dropout and batch norm behave differently there")
    began = time.perf_counter()
    steps = _pipeline(pipeline)
    candidates = _candidates(target, steps)
    with torch.inference_mode(False):  # what is made here must be good outside of a caller's inference mode
        on_step("capture")
        captured = capture(model, example_inputs, leaves=leaves, bake=bake)
        work = _Work(model, captured, steps, verify, on_step)
        work.rewrite()
        for candidate in candidates:
            work.lower(candidate)
        on_step("measure")
        work.race()
        return work.result(name or type(model).__name__, began)


def _pipeline(given: str | Pass | None) -> Pipeline:
    if given is None:
        return Pipeline.parse(REWRITES)
    if isinstance(given, str):
        return Pipeline.parse(given)
    if isinstance(given, Pass):
        return Pipeline((given,))
    raise InputError(
        f"pipeline is a {type(given).__name__}",
        hint='pass text such as "fold-norm,fuse", a Pass or a Pipeline',
    )


def _candidates(target: str, steps: Pipeline) -> list[str]:
    """Targets to race; none when the pipeline lowers by itself."""
    if target != "none" and target != "auto":
        missing = lookup(target).missing()
        if missing is not None:
            raise TargetError(f"target '{target}' cannot be used: {missing}")
    if target == "none" or any(Property.LOWERED in step.establishes for step in steps.passes):
        return []
    if target not in ("auto", "cpu"):
        return [target]
    return [*NATIVE, *(name for name in names() if name not in NATIVE and target == "auto")]


@dataclass
class _Form:
    """One form of the model in the race."""

    name: str
    captured: Captured
    error: numbers.Difference | None = None
    timing: Timing | None = None
    note: str = ""


class _Work:
    """One call of ``compress``."""

    def __init__(self, model: nn.Module, captured: Captured, steps: Pipeline, verify: bool, on_step: Callable[[str], None]) -> None:
        self.model, self.captured, self.steps, self.verify, self.on_step = model, captured, steps, verify, on_step
        self.inputs = captured.inputs
        self.runs: dict[str, Run] = {}
        self.forms: dict[str, _Form] = {}
        self.lines: list[StepRecord] = []
        self.lowered_lines: dict[str, list[StepRecord]] = {}
        self.refused: list[Candidate] = []
        self.prints = Fingerprinter()
        self.before = [Cost.of(part.graph, part.inputs) for part in captured.parts]
        self.expected = numbers.evaluate(model, self.inputs)

    def rewrite(self) -> None:
        """Run the pipeline on every part."""
        rewritten = self.captured
        for part in self.captured.parts:
            self.runs[part.path] = self.steps.execute(part.graph, part.inputs, verify=self.verify, on_step=self.on_step, prints=self.prints)
            rewritten = rewritten.with_part(part.path, self.runs[part.path].module)
            self.lines += self.runs[part.path].steps
        self.forms[REWRITTEN] = _Form(REWRITTEN, rewritten)

    def lower(self, target: str) -> None:
        """Lower every part to ``target``; a target that cannot, or whose numbers are off, is out of the race."""
        if target in NATIVE and any(name in self.forms for name in NATIVE):
            return
        missing = lookup(target).missing()
        if missing is not None:
            self.refused.append(Candidate(target, None, False, missing))
            return
        self.on_step(f"lower to {target}")
        lower = Pipeline((build(registry.lookup("lower"), {"target": target}),), self.steps.establishes_all)
        form = self.forms[REWRITTEN].captured
        lines: list[StepRecord] = []
        try:
            for part in form.parts:
                run = lower.execute(part.graph, part.inputs, verify=self.verify, prints=self.prints)
                form = form.with_part(part.path, run.module)
                lines += run.steps
        except (TargetError, EquivalenceError) as error:
            self.refused.append(Candidate(target, None, False, error.message.splitlines()[0]))
            return
        if any(line.changed for line in lines):
            self.forms[target] = _Form(target, form)
            self.lowered_lines[target] = lines
        else:
            self.refused.append(Candidate(target, None, False, "; ".join(r.why for line in lines for r in line.remarks)))

    def race(self) -> None:
        """Check every form against the model, time them, and keep the fastest that is not slower than the model."""
        lowered = [name for name in self.forms if name != REWRITTEN]
        best = self._time(lowered or [REWRITTEN])
        if lowered and not self._is_faster(best):
            self._time([REWRITTEN])
            self.forms[REWRITTEN].note = f"{best} would not be faster than the original here"
            best = REWRITTEN
            if not self._is_faster(REWRITTEN):
                self.forms[CAPTURED] = _Form(CAPTURED, self.captured, note="nothing tried is faster than the original here")
                best = self._time([CAPTURED])
        self.kept = best

    def _time(self, racing: list[str]) -> str:
        """Compare and time these forms beside the model; returns the fastest."""
        calls: dict[str, Callable[[], object]] = {ORIGINAL: lambda: self.inputs.call(self.model)}
        for name in racing:
            form = self.forms[name]
            form.error = numbers.compare(self.expected, numbers.evaluate(form.captured.module, self.inputs))
            calls[name] = _caller(form.captured.module, self.inputs)
        timings = interleaved(calls, synchronize=_synchronizer(self.inputs))
        self.original = timings.pop(ORIGINAL)
        for name, timing in timings.items():
            self.forms[name].timing = timing
        return min(timings, key=lambda name: timings[name].median)

    def _is_faster(self, name: str) -> bool:
        timing = self.forms[name].timing
        return timing is not None and timing.median < self.original.median

    # -- the report ----------------------------------------------------------------------------------------------

    def result(self, title: str, began: float) -> nn.Module:
        form = self.forms[self.kept]
        report = self._report(title, form, time.perf_counter() - began)
        module = form.captured.module
        if isinstance(module, GraphModule):
            return whole(module, report)
        return in_parts(module, report)

    def _report(self, title: str, form: _Form, seconds: float) -> Report:
        # An engine keeps the weights in a file of its own; they are those of the rewritten graph.
        plain = self.forms[CAPTURED if self.kept == CAPTURED else REWRITTEN].captured
        after = [Cost.of(part.graph, part.inputs) for part in plain.parts]
        lines = [*self.lines, *self.lowered_lines.get(form.name, [])]
        first = next(iter(self.inputs.tensors()))
        return Report(
            model=title,
            title=f"{title} compressed",
            capture=self.captured.step,
            capture_notes=self.captured.notes,
            before=_measured(self.model, self.before, self.original),
            after=_measured(plain.module, after, form.timing),
            target=form.name,
            inputs=", ".join("x".join(map(str, t.shape)) for t in self.inputs.tensors()),
            environment=environment(str(first.device)),
            accuracy=self._accuracy(form),
            passes=tuple(_merged(lines)),
            missed=tuple(MissedLine(r.node, r.why, r.source) for line in lines for r in line.remarks if not r.applied),
            race=self._race_lines(),
            seconds=seconds,
            graphs=tuple(
                GraphPair(part.path, _drawn(old), _drawn(new)) for part, old, new in zip(plain.parts, self.before, after, strict=True)
            ),
        )

    def _accuracy(self, form: _Form) -> Accuracy:
        assert form.error is not None
        proofs = [run.proof for run in self.runs.values()]
        exact = [proof.error64.relative for proof in proofs if proof.error64 is not None]
        note = "; ".join(dict.fromkeys(proof.note for proof in proofs))
        return Accuracy(form.error.absolute, form.error.relative, form.error.sqnr, max(exact, default=None), note)

    def _race_lines(self) -> tuple[Candidate, ...]:
        ran = [
            Candidate(f.name, f.timing.median, f.name == self.kept, f.note, f.timing.spread)
            for f in self.forms.values()
            if f.timing is not None
        ]
        first = Candidate(ORIGINAL, self.original.median, False, "", self.original.spread)
        return (first, *sorted(ran, key=lambda c: c.latency_ms or math.inf), *self.refused)


def _caller(module: nn.Module, inputs: Inputs) -> Callable[[], object]:
    return lambda: inputs.call(module)


def _synchronizer(inputs: Inputs) -> Callable[[], None]:
    return torch.cuda.synchronize if any(t.is_cuda for t in inputs.tensors()) else lambda: None


def _measured(module: nn.Module, costs: list[Cost], timing: Timing | None) -> Measured:
    params, weight_bytes = weight_cost(module)
    macs, peak = sum(c.macs for c in costs), max((c.peak_bytes for c in costs), default=0)
    measured = Measured(params, macs, weight_bytes, peak)
    return measured if timing is None else replace(measured, latency_ms=timing.median, latency_spread_ms=timing.spread)


def _merged(lines: list[StepRecord]) -> list[PassLine]:
    """One line per pass, however many parts it ran on."""
    merged: dict[str, PassLine] = {}
    for line in lines:
        old = merged.get(line.text, PassLine(line.text, False, 0.0, 0, None))
        error = old.error if line.error is None else max(line.error, old.error or 0.0)
        merged[line.text] = replace(
            old, changed=old.changed or line.changed, seconds=old.seconds + line.seconds, rewrites=old.rewrites + line.rewrites, error=error
        )
    return list(merged.values())


def _drawn(cost: Cost) -> GraphView:
    return graph_view(cost.module, cost.analyses.get(Shapes))
