"""Running one pipeline on every captured part of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from fxcompress.analysis import Analyses
from fxcompress.capture import Captured, Part
from fxcompress.errors import InputError, PlanError
from fxcompress.ir.edit import share
from fxcompress.ir.inputs import Inputs
from fxcompress.pipeline import Calibration, Known, Pipeline, Run
from fxcompress.pruning import handover
from fxcompress.pruning.options import Prune
from fxcompress.pruning.plan import PruningPlan, options_text


def run_parts(
    captured: Captured,
    steps: Callable[[Part], Pipeline],
    *,
    verify: bool,
    on_step: Callable[[str], None],
    calibration: Calibration,
    plan: PruningPlan | None = None,
    facts: Mapping[str, Analyses] | None = None,
) -> tuple[Captured, dict[str, Run]]:
    """The capture with every part rewritten, and the run of every part.

    Args:
        steps: the passes for a part.
        calibration: data for the whole model.
        plan: one that waits to be applied.
        facts: what is known of the graphs of the parts.
    """
    graphs = _with_plan(captured, plan)
    data = per_part(captured, calibration)
    runs: dict[str, Run] = {}
    rewritten = captured
    for part in captured.parts:
        known = Known((facts or {}).get(part.path), part.output)
        run = steps(part).execute(graphs[part.path], part.inputs, verify=verify, on_step=on_step, known=known, calibration=data[part.path])
        runs[part.path] = run
        rewritten = rewritten.with_part(part.path, run.module)
    return rewritten, runs


def _with_plan(captured: Captured, plan: PruningPlan | None) -> dict[str, GraphModule]:
    """The graphs of all parts, with the plan's part for each waiting in it."""
    graphs = {part.path: part.graph for part in captured.parts}
    for part in plan.parts if plan is not None else ():
        if part.path not in graphs:
            raise PlanError(
                f"the plan has a part '{part.path}'; this model was captured as {', '.join(map(repr, graphs))}",
                hint="apply it to the network for which it was made",
            )
        assert plan is not None
        graphs[part.path] = share(graphs[part.path])
        handover.leave(graphs[part.path], PruningPlan(plan.options, part.inputs, (replace(part, path=""),)))
    return graphs


def joined(
    captured: Captured, runs: Mapping[str, Run], find: Callable[[GraphModule], PruningPlan | None], options: Prune | None
) -> PruningPlan | None:
    """One plan of all parts, of what ``find`` finds in each. ``options``: what was asked of the whole."""
    plans: dict[str, PruningPlan] = {}
    for path, run in runs.items():
        plan = find(run.module)
        if plan is not None:
            asked = plan.options if options is None else options_text(options)
            plans[path] = plan if asked == plan.options else replace(plan, options=asked)
    if set(plans) == {""}:
        return plans[""]
    return PruningPlan.joined(plans, captured.inputs) if plans else None


def per_part(captured: Captured, calibration: Calibration) -> dict[str, Calibration]:
    """The calibration data that each part receives when the whole model runs on ``calibration``.

    Raises:
        InputError: a loss of the whole model is given, which a part does not have.
    """
    if captured.step != "parts" or not calibration.batches:
        return {part.path: calibration for part in captured.parts}
    if calibration.loss is not None:
        raise InputError(
            "the model was captured in parts, and the gradient of a loss would have to pass the code between them",
            hint="choose a criterion without a gradient, such as l2, or prune the submodule that you want smaller",
        )
    seen: dict[str, list[Inputs]] = {part.path: [] for part in captured.parts}
    hooks = [_listen(captured.module.get_submodule(path), calls) for path, calls in seen.items()]
    try:
        with torch.no_grad():
            for batch in calibration.batches:
                batch.clone().call(captured.module)
    finally:
        for hook in hooks:
            hook.remove()
    return {path: Calibration(tuple(calls)) for path, calls in seen.items()}


def _listen(module: nn.Module, calls: list[Inputs]) -> Any:
    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append(Inputs(args, kwargs).clone())

    return module.register_forward_pre_hook(note, with_kwargs=True)
