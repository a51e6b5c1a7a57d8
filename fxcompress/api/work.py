"""One call of ``compress``: the forms of a model, their race, and the report."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from torch.fx import GraphModule

from fxcompress.api import describe
from fxcompress.api.budget import Fitted, fit, for_engines
from fxcompress.api.options import Pruning
from fxcompress.api.parts import joined, run_parts
from fxcompress.api.quantized import describe_quantized, is_told
from fxcompress.api.quantizing import INT8, How, QuantizedForm, Quantizing
from fxcompress.capture import Captured
from fxcompress.errors import EquivalenceError, TargetError
from fxcompress.ir import numbers
from fxcompress.ir.inputs import Inputs
from fxcompress.pipeline import Pipeline, Property, Run, StepRecord, registry
from fxcompress.pipeline.options import build
from fxcompress.pruning import handover
from fxcompress.pruning.plan import PruningPlan
from fxcompress.report import Candidate, Quantized, Report
from fxcompress.result import in_parts, whole
from fxcompress.targets.registry import lookup
from fxcompress.targets.timing import Timing, race

NATIVE = ("onednn-graph", "cpu")
"""Both ways to run the native kernels, the faster first; ``target="cpu"`` takes the first that can run the graph."""

ORIGINAL, CAPTURED, REWRITTEN = "original", "captured", "rewritten"


@dataclass
class _Form:
    """One form of the model in the race."""

    name: str
    captured: Captured
    output: Any = None  # where a verified run of the whole has given it
    error: numbers.Difference | None = None
    timing: Timing | None = None
    note: str = ""

    @property
    def milliseconds(self) -> float:
        return math.inf if self.timing is None else self.timing.median


class Work:
    """One call of ``compress``."""

    def __init__(
        self,
        model: nn.Module,
        captured: Captured,
        pruning: Pruning,
        then: Pipeline,
        verify: bool,
        on_step: Callable[[str], None],
        quantizing: Quantizing | None = None,
    ) -> None:
        self.model, self.captured, self.verify, self.on_step = model, captured, verify, on_step
        self.pruning, self.then, self.quantizing = pruning, then, quantizing
        self.quantized: QuantizedForm | None = None
        self.fitted: Fitted | None = None
        self.engines: Fitted | None = None  # what engines are given, where that is something else
        self.tried: list[str] = []
        self.inputs = captured.inputs
        self.runs: dict[str, Run] = {}
        self.forms: dict[str, _Form] = {}
        self.lines: list[StepRecord] = []
        self.plan: PruningPlan | None = None
        self.lowered_lines: dict[str, list[StepRecord]] = {}
        self.refused: list[Candidate] = []
        self.before = describe.costs(captured)
        self.expected = captured.expected

    def rewrite(self) -> None:
        """Run the pipeline on every part."""
        rewritten, self.runs = run_parts(
            self.captured,
            lambda part: self.pruning.steps(part, self.then.passes),
            verify=self.verify,
            on_step=self.on_step,
            calibration=self.pruning.calibration,
            plan=self.pruning.plan,
            facts=describe.facts(self.captured, self.before),
        )
        self.lines = [line for run in self.runs.values() for line in run.steps]
        self.plan = joined(self.captured, self.runs, handover.applied, self.pruning.options)
        self.forms[REWRITTEN] = _Form(REWRITTEN, rewritten)

    def quantize(self) -> None:
        """Quantize the rewritten form, where that was asked for."""
        if self.quantizing is None:
            return
        how = How(self.verify, self.on_step)
        self.fitted = fit(self.quantizing, self.forms[REWRITTEN].captured, self.runs, self.then.establishes_all, how)
        if self.fitted.form.changed:
            self.quantized = self.fitted.form
            self.forms[INT8] = _Form(INT8, self.quantized.integer)

    def lower(self, target: str) -> None:
        """Lower every part to ``target``; a target that cannot, or whose numbers are off, is out of the race."""
        self.tried.append(target)
        missing = lookup(target).missing()
        if missing is not None:
            self.refused.append(Candidate(target, None, False, missing))
            return
        if not (target in NATIVE and any(name in self.forms for name in NATIVE)):
            self._lower(target, target, self.forms[REWRITTEN].captured, self.runs, self.then.establishes_all)
        given, name = self.then.establishes_all, f"{target} {INT8}"
        if target == NATIVE[1] and self.quantized is not None:
            made = self.quantized
            self._lower(name, target, made.integer, made.integer_runs, given | made.is_integer)
        elif target not in NATIVE and self.quantizing is not None:
            made = self._for_engines().form
            if made.changed:  # engines read the grids of the fake-quantized graph and compute with integers by themselves
                self._lower(name, target, made.fake, made.fake_runs, given | made.is_fake)

    def _for_engines(self) -> Fitted:
        """What engines are given, made when the first of them asks for it."""
        assert self.fitted is not None
        assert self.quantizing is not None
        if self.engines is None:
            how = How(self.verify, self.on_step)
            form = self.forms[REWRITTEN].captured
            self.engines = for_engines(self.fitted, self.quantizing, form, self.runs, self.then.establishes_all, how)
        return self.engines

    def _lower(self, name: str, target: str, form: Captured, runs: Mapping[str, Run], given: frozenset[Property]) -> None:
        self.on_step(f"lower to {name}")
        lower = Pipeline((build(registry.lookup("lower"), {"target": target}),), given)
        lines: list[StepRecord] = []
        output: Any = None
        try:
            for part in form.parts:
                run = lower.execute(part.graph, part.inputs, verify=self.verify, known=runs[part.path].known)
                form = form.with_part(part.path, run.module)
                lines += run.steps
                output = run.output if part.path == "" else None
        except (TargetError, EquivalenceError) as error:
            self.refused.append(Candidate(name, None, False, error.message.splitlines()[0]))
            return
        if any(line.changed for line in lines):
            self.forms[name] = _Form(name, form, output)
            self.lowered_lines[name] = lines
        else:
            self.refused.append(Candidate(name, None, False, "; ".join(r.why for line in lines for r in line.remarks)))

    def race(self) -> None:
        """Check every form against the model, time them, and keep the fastest that is not slower than the model."""
        if self.quantized is not None and not self.tried:
            self._keep_unlowered()
            return
        lowered = [name for name in self.forms if name not in (REWRITTEN, INT8)]
        best = self._time(lowered or [REWRITTEN])
        if self.quantizing is not None and self.quantizing.keeps_slower and self.quantized is not None:
            integer = [name for name in lowered if name.endswith(INT8)] or [INT8]
            self.kept = self._time(integer) if integer == [INT8] else min(integer, key=lambda name: self.forms[name].milliseconds)
            return
        if lowered and not self._is_faster(best):
            self._time([REWRITTEN])
            self.forms[REWRITTEN].note = f"{best} would not be faster than the original here"
            best = REWRITTEN
            if not self._is_faster(REWRITTEN) and self.plan is None:  # what was pruned stays pruned
                self.forms[CAPTURED] = _Form(CAPTURED, self.captured, note="nothing tried is faster than the original here")
                best = self._time([CAPTURED])
        self.kept = best

    def _keep_unlowered(self) -> None:
        """Nothing is lowered, so the result is the quantized graph in plain torch, whose speed says nothing."""
        form = self.forms[INT8]
        form.error = numbers.compare(self.expected, numbers.evaluate(form.captured.module, self.inputs))
        calls = {ORIGINAL: lambda: self.inputs.call(self.model)}
        self.original = race(calls, synchronize=lambda: describe.synchronize(self.inputs))[ORIGINAL]
        self.kept = INT8

    def _time(self, racing: list[str]) -> str:
        """Compare and time these forms beside the model; returns the fastest."""
        calls: dict[str, Callable[[], object]] = {ORIGINAL: lambda: self.inputs.call(self.model)}
        for name in racing:
            form = self.forms[name]
            output = form.output if form.output is not None else numbers.evaluate(form.captured.module, self.inputs)
            form.error = numbers.compare(self.expected, output)
            calls[name] = _caller(form.captured.module, self.inputs)
        timings = race(calls, synchronize=lambda: describe.synchronize(self.inputs))
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
        told = self._told
        fake = {part.path: part.graph for part in told.form.fake.parts} if told is not None and told.form.changed else None
        if isinstance(module, GraphModule):
            return whole(module, report, self.plan, fake)
        return in_parts(module, report, self.plan, fake)

    def _report(self, title: str, form: _Form, seconds: float) -> Report:
        # An engine keeps the weights in a file of its own; they are those of the rewritten graph.
        quantized = form.name.endswith(INT8)
        told = self._told
        plain = self.forms[CAPTURED if self.kept == CAPTURED else REWRITTEN].captured
        plain = told.form.integer if quantized and told is not None else plain
        after = self.before if self.kept == CAPTURED else describe.costs(plain, told.form.integer_runs if quantized and told else self.runs)
        steps = told.form.steps if told is not None else []
        lines = [*self.lines, *steps, *self.lowered_lines.get(form.name, [])]
        assert form.error is not None
        costs = describe.measured(self.model, self.before, self.original), describe.measured(plain.module, after, form.timing)
        return replace(
            describe.base_report(title, self._done(quantized), self.captured, *costs),
            seconds=seconds,
            target=form.name,
            accuracy=describe.accuracy(form.error, self.runs.values()),
            passes=describe.pass_lines(lines),
            missed=describe.missed_lines(line for line in lines if not is_told(line)),
            race=self._race_lines(),
            graphs=describe.graph_pairs(plain, self.before, after),
            pruned=describe.pruned_lines(self.plan),
            changed=describe.changed_lines(self.plan),
            quantized=self._quantized_lines(),
        )

    @property
    def _told(self) -> Fitted | None:
        """The quantized form that the report tells of: that of the engine that has won, else that of the native kernels."""
        is_engine = self.kept.endswith(f" {INT8}") and self.kept.split()[0] not in NATIVE
        return self.engines if is_engine and self.engines is not None else self.fitted

    def _done(self, quantized: bool) -> str:
        """What happened to the model, in a word or two."""
        words = [*(["pruned"] if self.plan is not None else []), "quantized" if quantized else "compressed"]
        return " and ".join(words)

    def _quantized_lines(self) -> Quantized | None:
        if self._told is None or self.quantizing is None:
            return None
        times = {name: form.timing.median for name, form in self.forms.items() if form.timing is not None}
        return describe_quantized(self._told, self.quantizing, self.forms[REWRITTEN].captured, self.kept, times)

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
