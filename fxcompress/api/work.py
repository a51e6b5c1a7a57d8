"""One call of ``compress``: the forms of a model, their race, and the report."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from torch.fx import GraphModule

from fxcompress.api import describe
from fxcompress.api.options import Pruning
from fxcompress.api.parts import joined, run_parts
from fxcompress.capture import Captured
from fxcompress.errors import EquivalenceError, TargetError
from fxcompress.ir import numbers
from fxcompress.ir.inputs import Inputs
from fxcompress.pipeline import Pipeline, Run, StepRecord, registry
from fxcompress.pipeline.options import build
from fxcompress.pruning import handover
from fxcompress.pruning.plan import PruningPlan
from fxcompress.report import Candidate, Report
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


class Work:
    """One call of ``compress``."""

    def __init__(
        self, model: nn.Module, captured: Captured, pruning: Pruning, then: Pipeline, verify: bool, on_step: Callable[[str], None]
    ) -> None:
        self.model, self.captured, self.verify, self.on_step = model, captured, verify, on_step
        self.pruning, self.then = pruning, then
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

    def lower(self, target: str) -> None:
        """Lower every part to ``target``; a target that cannot, or whose numbers are off, is out of the race."""
        if target in NATIVE and any(name in self.forms for name in NATIVE):
            return
        missing = lookup(target).missing()
        if missing is not None:
            self.refused.append(Candidate(target, None, False, missing))
            return
        self.on_step(f"lower to {target}")
        lower = Pipeline((build(registry.lookup("lower"), {"target": target}),), self.then.establishes_all)
        form = self.forms[REWRITTEN].captured
        lines: list[StepRecord] = []
        output: Any = None
        try:
            for part in form.parts:
                run = lower.execute(part.graph, part.inputs, verify=self.verify, known=self.runs[part.path].known)
                form = form.with_part(part.path, run.module)
                lines += run.steps
                output = run.output if part.path == "" else None
        except (TargetError, EquivalenceError) as error:
            self.refused.append(Candidate(target, None, False, error.message.splitlines()[0]))
            return
        if any(line.changed for line in lines):
            self.forms[target] = _Form(target, form, output)
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
            if not self._is_faster(REWRITTEN) and self.plan is None:  # what was pruned stays pruned
                self.forms[CAPTURED] = _Form(CAPTURED, self.captured, note="nothing tried is faster than the original here")
                best = self._time([CAPTURED])
        self.kept = best

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
        if isinstance(module, GraphModule):
            return whole(module, report, self.plan)
        return in_parts(module, report, self.plan)

    def _report(self, title: str, form: _Form, seconds: float) -> Report:
        # An engine keeps the weights in a file of its own; they are those of the rewritten graph.
        plain = self.forms[CAPTURED if self.kept == CAPTURED else REWRITTEN].captured
        after = self.before if self.kept == CAPTURED else describe.costs(plain, self.runs)
        lines = [*self.lines, *self.lowered_lines.get(form.name, [])]
        assert form.error is not None
        costs = describe.measured(self.model, self.before, self.original), describe.measured(plain.module, after, form.timing)
        return replace(
            describe.base_report(title, "compressed" if self.plan is None else "pruned and compressed", self.captured, *costs),
            seconds=seconds,
            target=form.name,
            accuracy=describe.accuracy(form.error, self.runs.values()),
            passes=describe.pass_lines(lines),
            missed=describe.missed_lines(lines),
            race=self._race_lines(),
            graphs=describe.graph_pairs(plain, self.before, after),
            pruned=describe.pruned_lines(self.plan),
            changed=describe.changed_lines(self.plan),
        )

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
