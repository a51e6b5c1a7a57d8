"""Quantizing within a budget: the layers that cost the most stay in float until the numbers are good enough."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from glob import escape

import torch
from torch import nn

from fxcompress.api.quantizing import How, QuantizedForm, Quantizing, full_name
from fxcompress.capture import Captured, Part
from fxcompress.errors import InputError, TargetError
from fxcompress.ir.edit import provenance
from fxcompress.pipeline import Property, Run
from fxcompress.quant.options import Int8
from fxcompress.quant.sensitivity import layer_costs, output_sqnr, partly_float
from fxcompress.report import units
from fxcompress.targets.registry import lookup

_BATCHES = 2  # of the calibration data on which layers are ranked


@dataclass(frozen=True)
class Ranked:
    """One layer: its path in the model, the captured nodes that it computes, and what quantizing it alone costs: the power of the
    error of the output, as a share of the power of the output."""

    path: str
    nodes: str
    cost: float


@dataclass(frozen=True)
class Fitted:
    """A quantized model that holds its budget as far as that can be had.

    ``budget``: in words, "" for none. ``ranking``: the layers, the worst first; the first ``in_float`` of them stay in float for it.
    """

    form: QuantizedForm
    budget: str = ""
    ranking: tuple[Ranked, ...] = ()
    in_float: int = 0


def fit(quantizing: Quantizing, form: Captured, after: dict[str, Run], given: frozenset[Property], how: How) -> Fitted:
    """Quantize; with a budget, keep the most sensitive layers in float until it holds.

    The number of layers is found by bisection: keeping more of the worst layers in float is taken to never make the numbers worse.
    """

    def made(in_float: tuple[str, ...]) -> QuantizedForm:
        return quantizing.run(form, after, given, how, _without(quantizing.options, in_float))

    everything = made(())
    if not quantizing.options.has_budget or not everything.changed:
        return Fitted(everything)
    judge = _judge(quantizing, form)
    verdict = judge(_runnable(everything))
    if verdict.holds:
        return Fitted(everything, verdict.text)
    how.on_step("rank layers")
    ranking = _ranking(everything, quantizing)
    for count in range(_bisected(everything, judge, ranking, how.on_step), len(ranking) + 1):
        found = made(tuple(layer.path for layer in ranking[:count]))
        verdict = judge(_runnable(found))
        if verdict.holds or count == len(ranking):
            break
    return Fitted(found, f"{verdict.text}; {count} of {len(ranking)} layers stay in float for it", ranking, count)


def for_engines(
    fitted: Fitted, quantizing: Quantizing, form: Captured, after: dict[str, Run], given: frozenset[Property], how: How
) -> Fitted:
    """The same for engines, which have integer kernels of their own: every layer that can be int8, but for those of the budget."""
    if quantizing.options.speed == "none" or not quantizing.options.static:
        return fitted
    in_float = tuple(layer.path for layer in fitted.ranking[: fitted.in_float])
    options = replace(_without(quantizing.options, in_float), speed="none")
    return replace(fitted, form=quantizing.run(form, after, given, how, options))


def _without(options: Int8, in_float: tuple[str, ...]) -> Int8:
    return replace(options, ignore=(*options.ignore, *map(escape, in_float)))


def _bisected(everything: QuantizedForm, judge: Judge, ranking: tuple[Ranked, ...], on_step: Callable[[str], None]) -> int:
    """With how many of the worst layers in float the budget holds; tried on the fake-quantized graph, which needs no calibration."""
    low, high = 1, len(ranking)
    while low < high:
        middle = (low + high) // 2
        on_step(f"{middle} of {len(ranking)} layers in float")
        if judge(_partly(everything.fake, ranking[:middle])).holds:
            high = middle
        else:
            low = middle + 1
    return high


def _partly(fake: Captured, in_float: tuple[Ranked, ...]) -> Captured:
    """The fake-quantized model with these layers in float."""
    for part in fake.parts:
        inside = [layer.path[len(part.path) + 1 if part.path else 0 :] for layer in in_float if _is_in(layer, part)]
        fake = fake.with_part(part.path, partly_float(part.graph, inside)) if inside else fake
    return fake


def _is_in(layer: Ranked, part: Part) -> bool:
    return not part.path or layer.path.startswith(f"{part.path}.")


@dataclass(frozen=True)
class Verdict:
    """Whether a budget holds, and the sentence for the report."""

    holds: bool
    text: str


Judge = Callable[[Captured], Verdict]


def _judge(quantizing: Quantizing, form: Captured) -> Judge:
    options = quantizing.options
    if options.max_drop is None:
        return lambda made: _by_sqnr(form, made, quantizing)
    before = score(options, form.module)
    return lambda made: _by_score(options, before, score(options, made.module))


def _by_score(options: Int8, before: float, after: float) -> Verdict:
    assert options.max_drop is not None
    holds = before - after <= options.max_drop
    text = f"score {after:.6g}, {before:.6g} in float; a loss of {options.max_drop:g} is allowed"
    return Verdict(holds, text if holds else f"{text}, which could not be held")


def _by_sqnr(form: Captured, made: Captured, quantizing: Quantizing) -> Verdict:
    assert quantizing.options.min_sqnr is not None
    found = output_sqnr(form.module, made.module, quantizing.data.batches[:_BATCHES])
    holds = found >= quantizing.options.min_sqnr
    text = f"outputs with {units.decibel(found)} SQNR on calibration data; at least {quantizing.options.min_sqnr:g} dB are wanted"
    return Verdict(holds, text if holds else f"{text}, which could not be had")


def score(options: Int8, module: nn.Module) -> float:
    """What the user's function says of a module.

    Raises:
        InputError: it raised, or gave no number.
    """
    assert options.evaluate is not None
    name = getattr(options.evaluate, "__name__", type(options.evaluate).__name__)
    try:
        with torch.no_grad():
            found = float(options.evaluate(module))
    except Exception as error:  # the user's own code may fail in any way
        raise InputError(
            f"evaluate raised {type(error).__name__}: {str(error)[:200]}",
            hint=f"{name}(module) is called with a module of the signature of the model, and gives a number; higher is better",
        ) from error
    if math.isnan(found):
        raise InputError("evaluate gave NaN", hint=f"{name}(module) must give a number; higher is better")
    return found


def _runnable(made: QuantizedForm) -> Captured:
    """The integer form on this machine's kernels where they take it, else the fake-quantized one: both are fast enough to be scored."""
    target = lookup("cpu")
    if target.missing() is not None or any(tensor.device.type != "cpu" for tensor in made.integer.inputs.tensors()):
        return made.fake
    lowered = made.integer
    try:
        for part in made.integer.parts:
            lowered = lowered.with_part(part.path, target.lower(part.graph, part.inputs))
    except TargetError:
        return made.fake
    return lowered


def _ranking(made: QuantizedForm, quantizing: Quantizing) -> tuple[Ranked, ...]:
    """Layers by what quantizing each alone does to the output of its part, the worst first."""
    data = quantizing.per_part(made.fake)
    found: list[Ranked] = []
    for part in made.fake.parts:
        origin = {str(node.target): "+".join(provenance(node)) for node in part.graph.graph.nodes if node.op == "call_module"}
        for path, cost in layer_costs(part.graph, data[part.path].batches[:_BATCHES]):
            found.append(Ranked(full_name(part.path, path), full_name(part.path, origin[path]), cost))
    return tuple(sorted(found, key=lambda layer: -layer.cost))
