"""Holds passes to what they promise about the numbers.

After each pass the outputs in the model's own dtype are compared with the step before: same bits for EXACT, within
rounding for CLOSE. Rounding in float32 can hide a small error and can look like one, so the same passes also run on
the graph's float64 twin: its start and end must agree to 1e-9. If they do not, the guilty pass is searched for by
running them again one by one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from fxcompress.analysis import Analyses
from fxcompress.errors import EquivalenceError, FxCompressError, GraphError
from fxcompress.ir.edit import share
from fxcompress.ir.inputs import Inputs
from fxcompress.ir.verify import neighbourhood, source_line
from fxcompress.pipeline import numbers
from fxcompress.pipeline.base import Pass, Property, Semantics
from fxcompress.pipeline.numbers import Difference
from fxcompress.pipeline.single import advance, run_pass
from fxcompress.pipeline.twin import double_twin, is_double

GROWTH = 16.0  # a rewritten graph may be this many times as far from the float64 truth as the original was


@dataclass(frozen=True)
class Proof:
    """What was compared. ``error`` is that of the whole run in the model's dtype, ``error64`` that of its float64 twin."""

    error: Difference | None = None
    error64: Difference | None = None
    note: str = "not verified"


class Prover:
    """Follows a run; see the module's text."""

    def __init__(self, start: GraphModule, inputs: Inputs, *, enabled: bool) -> None:
        self.inputs, self.enabled = inputs, enabled
        self.note = "" if enabled else "not verified"
        self.lossy = False
        if not enabled:
            return
        self.first = self.last = numbers.evaluate(start, inputs)
        self.start = start
        self.exact_passes: list[Pass] = []  # that ran on the twin
        self.twin_open = True
        self._truth: tuple[GraphModule, Inputs, Any] | None = None
        self._truth_known = False

    def check(self, step: Pass, done: Sequence[Pass], module: GraphModule) -> float | None:
        """Compare ``module`` with the step before; returns the relative difference.

        Raises:
            EquivalenceError: it is larger than the semantics of ``step`` allow. GraphError: it does not run.
        """
        if not self.enabled:
            return None
        try:
            output = numbers.evaluate(module, self.inputs)
        except Exception as error:  # whatever the operations raise that the pass has put there
            reason = str(error).strip().splitlines()
            raise GraphError(
                f"pass '{step}' left a graph that does not run: {type(error).__name__}: {reason[0] if reason else ''}"
            ) from error
        difference = numbers.compare(self.last, output)
        if step.semantics is Semantics.LOSSY:
            self.lossy, self.twin_open = True, False
        elif step.semantics is Semantics.EXACT and not difference.equal:
            self._fail(step, done, module, difference, "promises the same bits")
        elif difference.relative > numbers.tolerance(self.inputs) and not self._rounding(output, difference):
            self._fail(step, done, module, difference, "promises equal numbers but for rounding")
        if self.twin_open:
            self.exact_passes.append(step)
        if Property.LOWERED in step.establishes:
            self.twin_open = False
        self.last = output
        return difference.relative

    def finish(self) -> Proof:
        """The proof of the whole run, with the comparison of the float64 twin."""
        if not self.enabled:
            return Proof(note=self.note)
        difference = numbers.compare(self.first, self.last)
        twin = self._twin_difference()
        note = self.note or "checked in float64"
        if numbers.is_zero(self.first):
            note += "; the outputs are all zero, so this shows little"
        return Proof(difference, twin, note)

    # -- float64 -------------------------------------------------------------------------------------------------

    def truth(self) -> tuple[GraphModule, Inputs, Any] | None:
        """The start's float64 twin, its inputs and its output; None when there is no such twin (see ``note``)."""
        if not self._truth_known:
            self._truth_known = True
            twin = double_twin(self.start, self.inputs)
            if isinstance(twin, str):
                self.note = f"checked in the model's own dtype: {twin}"
                return None
            try:
                output = numbers.evaluate(twin[0], twin[1])
            except RuntimeError as error:
                self.note = f"checked in the model's own dtype: it does not run in float64 ({str(error).splitlines()[0]})"
                return None
            if is_double(output):
                self._truth = (*twin, output)
            else:
                self.note = "checked in the model's own dtype: its outputs are narrower than float64"
        return self._truth

    def _rounding(self, output: Any, difference: Difference) -> bool:
        """Whether ``output`` is about as near to the float64 truth as the original was."""
        truth = self.truth()
        if truth is None or difference.why:
            return False
        exact = truth[2]
        before = numbers.compare(exact, _widen(self.first, exact)).relative
        after = numbers.compare(exact, _widen(output, exact)).relative
        return after <= GROWTH * before

    def _twin_difference(self) -> Difference | None:
        steps = [p for p in self.exact_passes if p.semantics is not Semantics.LOSSY and Property.LOWERED not in p.establishes]
        truth = self.truth() if steps else None
        if truth is None:
            return None
        module, inputs, exact = truth
        end = self._replay(module, inputs, steps)
        difference = numbers.compare(exact, numbers.evaluate(end, inputs))
        if difference.relative > numbers.FLOAT64_TOLERANCE:
            self._blame(module, inputs, steps, exact)
        return difference

    def _replay(self, module: GraphModule, inputs: Inputs, steps: Sequence[Pass]) -> GraphModule:
        analyses = Analyses(share(module), inputs)
        for step in steps:
            analyses = advance(analyses, run_pass(step, analyses.module, inputs, analyses))
        return analyses.module

    def _blame(self, module: GraphModule, inputs: Inputs, steps: Sequence[Pass], exact: Any) -> None:
        """Find the first pass after which the twin differs, and raise."""
        for count in range(1, len(steps) + 1):
            after = self._replay(module, inputs, steps[:count])
            difference = numbers.compare(exact, numbers.evaluate(after, inputs))
            if difference.relative > numbers.FLOAT64_TOLERANCE:
                before = self._replay(module, inputs, steps[: count - 1])
                raise failure(steps[count - 1], before, after, inputs, difference, "promises equal numbers (in float64)")

    def _fail(self, step: Pass, done: Sequence[Pass], module: GraphModule, difference: Difference, promise: str) -> None:
        before = self._replay(self.start, self.inputs, done)
        raise failure(step, before, module, self.inputs, difference, promise)


def _widen(output: Any, exact: Any) -> Any:
    """The output's tensors with the dtypes of ``exact``."""
    pairs = zip(numbers.leaves(output), numbers.leaves(exact), strict=True)
    return [a.to(b.dtype) if isinstance(a, Tensor) and isinstance(b, Tensor) else a for a, b in pairs]


def failure(step: Pass, before: GraphModule, after: GraphModule, inputs: Inputs, difference: Difference, promise: str) -> EquivalenceError:
    """The error for a pass that changed the numbers, with the first node that differs."""
    what = difference.why or f"relative error {difference.relative:.3g}, SQNR {difference.sqnr:.1f} dB"
    message = f"pass '{step}' {promise}, but the output differs: {what}"
    node = first_difference(before, after, inputs)
    if node is not None:
        where = source_line(node)
        message += f"\nfirst node that differs: {node.name}" + (f" ({where})" if where else "") + f"\n{neighbourhood(node)}"
    return EquivalenceError(message)


def first_difference(before: GraphModule, after: GraphModule, inputs: Inputs) -> Node | None:
    """The first node of ``after`` whose value differs from that of the node of the same name in ``before``."""
    old, new = _values(before, inputs), _values(after, inputs)
    by_name = {node.name: value for node, value in old.items()}
    for node, value in new.items():
        if node.name in by_name and numbers.compare(by_name[node.name], value).relative > numbers.tolerance(inputs):
            return node
    return None


def _values(module: GraphModule, inputs: Inputs) -> dict[Node, Any]:
    recorder = numbers.Recorder(module)
    # A broken graph has still shown the values up to its fault.
    with torch.no_grad(), contextlib.suppress(RuntimeError, FxCompressError, TypeError):
        recorder.run(*inputs.clone().bind(module.graph).values())
    return recorder.values
