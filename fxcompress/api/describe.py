"""What one call did, as the plain data of a report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import nn

from fxcompress.analysis import Analyses, Cost, Shapes
from fxcompress.analysis.cost import weight_cost
from fxcompress.capture import Captured
from fxcompress.ir import numbers
from fxcompress.ir.inputs import Inputs
from fxcompress.pipeline import Run, StepRecord
from fxcompress.pruning.plan import PruningPlan
from fxcompress.report import (
    Accuracy,
    ChangedLine,
    GraphPair,
    Measured,
    MissedLine,
    PassLine,
    PrunedLine,
    Report,
    environment,
    graph_view,
)
from fxcompress.targets.timing import Timing


def costs(captured: Captured, runs: Mapping[str, Run] | None = None) -> list[Cost]:
    """What every captured part costs on its inputs. ``runs``: what gave their graphs."""
    known = {path: run.analyses for path, run in (runs or {}).items()}
    return [known[part.path].get(Cost) if part.path in known else Cost.of(part.graph, part.inputs) for part in captured.parts]


def facts(captured: Captured, costs: list[Cost]) -> dict[str, Analyses]:
    """What is known of the parts of which ``costs`` are the costs."""
    return {part.path: cost.analyses for part, cost in zip(captured.parts, costs, strict=True)}


def measured(module: nn.Module, parts: list[Cost], timing: Timing | None) -> Measured:
    """The cost of a whole model of which ``parts`` were captured."""
    params, weight_bytes = weight_cost(module)
    macs, peak = sum(c.macs for c in parts), max((c.peak_bytes for c in parts), default=0)
    found = Measured(params, macs, weight_bytes, peak)
    return found if timing is None else replace(found, latency_ms=timing.median, latency_spread_ms=timing.spread)


def accuracy(error: numbers.Difference, runs: Iterable[Run]) -> Accuracy:
    """``error`` of the whole, with what the frame has proven of every part."""
    proofs = [run.proof for run in runs]
    exact = [proof.error64.relative for proof in proofs if proof.error64 is not None]
    note = "; ".join(dict.fromkeys(proof.note for proof in proofs))
    return Accuracy(error.absolute, error.relative, error.sqnr, max(exact, default=None), note)


def pass_lines(lines: Iterable[StepRecord]) -> tuple[PassLine, ...]:
    """One line per pass, however many parts it ran on."""
    merged: dict[str, PassLine] = {}
    for line in lines:
        old = merged.get(line.text, PassLine(line.text, False, 0.0, 0, None))
        error = old.error if line.error is None else max(line.error, old.error or 0.0)
        merged[line.text] = replace(
            old, changed=old.changed or line.changed, seconds=old.seconds + line.seconds, rewrites=old.rewrites + line.rewrites, error=error
        )
    return tuple(merged.values())


def missed_lines(lines: Iterable[StepRecord]) -> tuple[MissedLine, ...]:
    return tuple(MissedLine(r.node, r.why, r.source) for line in lines for r in line.remarks if not r.applied)


def graph_pairs(captured: Captured, before: list[Cost], after: list[Cost]) -> tuple[GraphPair, ...]:
    """The graphs of every part, as they are drawn."""
    views = [[graph_view(cost.module, cost.analyses.get(Shapes)) for cost in both] for both in (before, after)]
    return tuple(GraphPair(part.path, old, new) for part, old, new in zip(captured.parts, *views, strict=True))


def base_report(title: str, done: str, captured: Captured, before: Measured, after: Measured) -> Report:
    """What every report says. ``done``: "compressed" or "pruned"."""
    inputs = captured.inputs
    return Report(
        model=title,
        title=f"{title} {done}",
        capture=captured.step,
        capture_notes=captured.notes,
        before=before,
        after=after,
        inputs=", ".join("x".join(map(str, t.shape)) for t in inputs.tensors()),
        environment=environment(str(inputs.tensors()[0].device)),
    )


def synchronize(inputs: Inputs) -> None:
    """Wait until the device of the inputs has done what was asked."""
    if any(t.is_cuda for t in inputs.tensors()):
        torch.cuda.synchronize()


def pruned_lines(plan: PruningPlan | None) -> tuple[PrunedLine, ...]:
    """The groups of channels of a plan, under the names that the layers have in the whole model."""
    if plan is None:
        return ()
    return tuple(
        PrunedLine(
            part.full_name(group.name),
            group.channels,
            group.remaining,
            tuple(map(part.full_name, group.producers)),
            tuple(map(part.full_name, group.consumers)),
            group.reason,
        )
        for part in plan.parts
        for group in part.groups
    )


def changed_lines(plan: PruningPlan | None) -> tuple[ChangedLine, ...]:
    """The statistics that run over fewer channels by a plan."""
    parts = plan.parts if plan is not None else ()
    return tuple(ChangedLine(part.full_name(s.node), s.axis, s.source) for part in parts for s in part.statistics)
