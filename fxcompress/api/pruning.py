"""One call that removes channels and gives a network that can be trained."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from fxcompress.analysis import Cost
from fxcompress.api import describe
from fxcompress.api.batches import calibration_of
from fxcompress.api.options import Asked, Pruning, as_options
from fxcompress.api.parts import joined, run_parts
from fxcompress.api.tracing import check_model
from fxcompress.capture import Captured, capture
from fxcompress.errors import InputError
from fxcompress.ir import numbers
from fxcompress.pipeline import Run
from fxcompress.pruning import handover
from fxcompress.pruning.options import Prune
from fxcompress.pruning.plan import PruningPlan
from fxcompress.report import Accuracy, Candidate, Report
from fxcompress.result import in_parts, whole
from fxcompress.targets.timing import Timing, race

ORIGINAL, PRUNED = "original", "pruned"


def prune(
    model: nn.Module,
    example_inputs: Any,
    options: Asked | None = None,
    *,
    ratio: float | None = None,
    calibration: Iterable[Any] = (),
    loss: Callable[[Any, Any], Tensor] | None = None,
    verify: bool = True,
    measure: bool = True,
    leaves: Iterable[type[nn.Module]] = (),
    bake: bool = False,
    name: str | None = None,
    on_step: Callable[[str], None] = lambda text: None,
) -> nn.Module:
    """``model`` with channels removed, ready to be trained on. The model itself is not touched.

    Nothing is fused or lowered: the layers are those of the model with fewer channels, under their names, and every
    weight that survives has the bits it had (unless ``Prune(compensate=True)`` was asked for). The result computes what
    the model computes when all readers of the removed channels ignore them; that is checked in float64.

    Args:
        model: a module in eval or training mode, which the result keeps; choosing and checking are done in eval mode.
        example_inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments.
        options: :class:`fxcompress.Prune` with everything that can be chosen; or only the share of channels to remove;
            or a plan that was made before.
        ratio: the share of channels to remove, 0.5 where nothing else is said.
        calibration: batches for criteria and compensation that look at values: each as ``example_inputs``, or a pair of
            those and targets, as a DataLoader gives.
        loss: ``loss(output, targets)`` is a scalar, for criteria that take its gradient, e.g. ``F.cross_entropy``.
        verify: check the result against the masked network, and compare its output with the model's.
        measure: time the model and the result.
        leaves, bake: see :func:`fxcompress.trace`.
        name: how the report calls the model.
        on_step: called with a line of text before each step.

    Returns:
        A module with the signature of ``model.forward``, ``.plan``, ``.report`` and ``.save(path)``.

    Raises:
        FxCompressError: every error of the library; see :mod:`fxcompress.errors`.
    """
    check_model(model)
    began = time.perf_counter()
    pruning = Pruning.of(_asked(options, ratio), calibration_of(calibration, loss, model, example_inputs), model)
    with torch.inference_mode(False):  # what is made here must be good outside of a caller's inference mode
        on_step("capture")
        captured = capture(model, example_inputs, leaves=leaves, bake=bake)
        pruning.check(captured)
        training = {path: module.training for path, module in captured.module.named_modules()}
        captured = captured.in_eval()
        before = describe.costs(captured)
        pruned, runs = run_parts(
            captured,
            pruning.steps,
            verify=verify,
            on_step=on_step,
            calibration=pruning.calibration,
            plan=pruning.plan,
            facts=describe.facts(captured, before),
        )
        on_step("measure")
        plan = joined(captured, runs, handover.applied, pruning.options)
        report = _report(name or type(model).__name__, captured, pruned, runs, plan, before, verify=verify, measure=measure)
        report = replace(report, seconds=time.perf_counter() - began)
        _restore(pruned.module, training)
        module = pruned.module
        return whole(module, report, plan) if isinstance(module, GraphModule) else in_parts(module, report, plan)


def plan(
    model: nn.Module,
    example_inputs: Any,
    options: float | Prune | None = None,
    *,
    ratio: float | None = None,
    calibration: Iterable[Any] = (),
    loss: Callable[[Any, Any], Tensor] | None = None,
    leaves: Iterable[type[nn.Module]] = (),
    bake: bool = False,
    on_step: Callable[[str], None] = lambda text: None,
) -> PruningPlan:
    """Which channels :func:`prune` would remove, without removing them. The arguments are those of :func:`prune`.

    Returns:
        A plan to print, store and compare; ``prune(model, example_inputs, plan)`` carries it out.

    Raises:
        FxCompressError: every error of the library; see :mod:`fxcompress.errors`.
    """
    check_model(model)
    pruning = Pruning.of(_asked(options, ratio), calibration_of(calibration, loss, model, example_inputs), model)
    with torch.inference_mode(False):
        on_step("capture")
        captured = capture(model, example_inputs, leaves=leaves, bake=bake)
        pruning.check(captured)
        captured.module.eval()
        _, runs = run_parts(captured, pruning.select, verify=False, on_step=on_step, calibration=pruning.calibration)
    found = joined(captured, runs, handover.waiting, pruning.options)
    assert found is not None
    return found


def _asked(options: Asked | None, ratio: float | None) -> Asked:
    if options is None:
        return Prune() if ratio is None else as_options(ratio)
    if ratio is not None:
        raise InputError("both options and ratio are given", hint="write Prune(ratio=...)")
    return options if isinstance(options, PruningPlan) else as_options(options)


def _restore(module: nn.Module, training: dict[str, bool]) -> None:
    """Give every module its training flag back; one that was not there before has that of the whole."""
    for path, child in module.named_modules():
        child.training = training.get(path, training[""])


def _report(
    title: str,
    captured: Captured,
    pruned: Captured,
    runs: dict[str, Run],
    plan: PruningPlan | None,
    before: list[Cost],
    *,
    verify: bool,
    measure: bool,
) -> Report:
    has_data = not any(t.is_meta for t in captured.inputs.tensors())
    timings = _timings(captured, pruned) if measure and has_data else {}
    after = describe.costs(pruned, runs)
    lines = [line for run in runs.values() for line in run.steps]
    old = describe.measured(captured.module, before, timings.get(ORIGINAL))
    new = describe.measured(pruned.module, after, timings.get(PRUNED))
    return replace(
        describe.base_report(title, "pruned", captured, old, new),
        accuracy=_accuracy(captured, pruned, runs) if verify and has_data else None,
        passes=describe.pass_lines(lines),
        missed=describe.missed_lines(lines),
        race=tuple(Candidate(form, t.median, form == PRUNED, "", t.spread) for form, t in timings.items()),
        graphs=describe.graph_pairs(captured, before, after),
        pruned=describe.pruned_lines(plan),
        changed=describe.changed_lines(plan),
    )


def _accuracy(captured: Captured, pruned: Captured, runs: dict[str, Run]) -> Accuracy:
    expected, got = (numbers.evaluate(form.module, captured.inputs) for form in (captured, pruned))
    return describe.accuracy(numbers.compare(expected, got), runs.values())


def _timings(captured: Captured, pruned: Captured) -> dict[str, Timing]:
    inputs = captured.inputs
    calls: dict[str, Callable[[], object]] = {
        ORIGINAL: lambda: inputs.call(captured.module),
        PRUNED: lambda: inputs.call(pruned.module),
    }
    return race(calls, synchronize=lambda: describe.synchronize(inputs))
