"""Holds passes to what they promise about the numbers.

After each pass the outputs in the model's own dtype are compared with the step before: same bits for EXACT, within
rounding for CLOSE. Rounding in float32 can hide a small error and can look like one, so the same passes also run on
the graph's float64 twin: its start and end must agree to 1e-9. If they do not, the guilty pass is searched for by
running them again one by one.

Outputs of a graph that rounds to integers cannot be compared so closely; see :mod:`fxcompress.pipeline.bitwise`.

A LOSSY pass is only measured against the step before, and what follows it is compared with its result, whose twin is
the new start. If the pass gives a graph that says what its result must compute, the twins of both must agree, too.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from fxcompress.analysis import Analyses
from fxcompress.errors import EquivalenceError, FxCompressError, GraphError
from fxcompress.ir import numbers
from fxcompress.ir.edit import share
from fxcompress.ir.inputs import Inputs
from fxcompress.ir.numbers import Difference
from fxcompress.ir.twin import double_twin, is_double
from fxcompress.ir.verify import neighbourhood, source_line
from fxcompress.pipeline.base import NO_DATA, Calibration, Pass, Property, Semantics
from fxcompress.pipeline.bitwise import least_sqnr, other_bits, rounds
from fxcompress.pipeline.single import advance, run_pass

GROWTH = 16.0  # a rewritten graph may be this many times as far from the float64 truth as the original was


@dataclass(frozen=True)
class Proof:
    """What was compared. ``error`` is that of the whole run in the model's dtype, ``error64`` that of its float64 twin:
    the largest from one lossy pass to the next, and of lossy passes from their references.
    """

    error: Difference | None = None
    error64: Difference | None = None
    note: str = "not verified"


Truth = tuple[GraphModule, Inputs, Any]
"""A float64 twin, its inputs and its output."""


@dataclass
class _Stretch:
    """What happened since the start, or since the last lossy pass."""

    start: GraphModule
    output: Any  # of the start
    passes: list[Pass] = field(default_factory=list)  # that changed the graph
    on_twin: list[Pass] = field(default_factory=list)  # those before lowering, which can run in float64, too
    truth: Truth | None = None
    truth_known: bool = False


class Prover:
    """Follows a run; see the module's text.

    ``output``: of the start, where it is known; ``noise``: SQNR of the quantization in it, in dB.
    """

    def __init__(
        self,
        start: GraphModule,
        inputs: Inputs,
        calibration: Calibration = NO_DATA,
        output: Any = None,
        noise: float = math.inf,
        *,
        enabled: bool,
    ) -> None:
        self.inputs, self.calibration, self.enabled, self.noise = inputs, calibration, enabled, noise
        self.note = "" if enabled else "not verified"
        self.first = self.last = output
        if not enabled:
            return
        if output is None:
            self.first = self.last = numbers.evaluate(start, inputs)
        self.now = _Stretch(start, self.first)
        self.stretches = [self.now]
        self.twins: list[Difference] = []
        self.referenced = False

    def check(self, step: Pass, module: GraphModule, reference: Callable[[], GraphModule] | None = None) -> float | None:
        """Compare ``module`` with the step before; returns the relative difference. ``reference``: see PassResult.

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
            if Property.QUANTIZED in step.establishes:
                self.noise = difference.sqnr
            if Property.INTEGER in step.establishes and self._is_no_rounding(difference):
                self._fail(step, module, difference, "promises the numbers of the fake-quantized graph but for rounding")
            self._start_again(step, module, output, reference)
            return difference.relative
        if step.semantics is Semantics.EXACT and not difference.equal:
            self._fail(step, module, difference, "promises the same bits")
        if rounds(self.now.start):
            self._hold_modules(step, module, difference)
        elif difference.relative > numbers.tolerance(self.inputs) and not self._rounding(output, difference):
            self._fail(step, module, difference, "promises equal numbers but for rounding")
        self.now.passes.append(step)
        if not any(Property.LOWERED in p.establishes for p in self.now.passes):
            self.now.on_twin.append(step)
        self.last = output
        return difference.relative

    def finish(self) -> Proof:
        """The proof of the whole run, with the comparison of the float64 twin."""
        if not self.enabled:
            return Proof(note=self.note)
        difference = numbers.compare(self.first, self.last)
        for stretch in self.stretches:
            self._check_twin(stretch)
        twin = numbers.worst(self.twins) if self.twins else None
        note = self.note or "checked in float64" + (", lossy passes against their references" if self.referenced else "")
        if numbers.is_zero(self.first):
            note += "; the outputs are all zero, so this shows little"
        return Proof(difference, twin, note)

    # -- lossy passes --------------------------------------------------------------------------------------------

    def _start_again(self, step: Pass, module: GraphModule, output: Any, reference: Callable[[], GraphModule] | None) -> None:
        self.last = output
        self.now = _Stretch(share(module), output)
        self.stretches.append(self.now)
        if reference is not None:
            self._compare_with(reference(), step, module)

    def _compare_with(self, reference: GraphModule, step: Pass, module: GraphModule) -> None:
        """The twins of both must agree; where there are none, the graphs themselves as far as rounding allows."""
        self.referenced = True
        got, wanted = self.truth(), self._truth_of(reference)
        if got is not None and wanted is not None:
            difference, allowed = numbers.compare(wanted[2], got[2]), numbers.FLOAT64_TOLERANCE
            self.twins.append(difference)
        else:
            difference, allowed = numbers.compare(numbers.evaluate(reference, self.inputs), self.last), numbers.tolerance(self.inputs)
        if difference.relative > allowed:
            raise failure(step, reference, module, self.inputs, difference, "promises the numbers of its reference", same_shape=True)

    # -- float64 -------------------------------------------------------------------------------------------------

    def truth(self) -> Truth | None:
        """The present start's float64 twin, its inputs and its output; None when there is no such twin (see ``note``)."""
        return self._truth_at(self.now)

    def _truth_at(self, stretch: _Stretch) -> Truth | None:
        if not stretch.truth_known:
            stretch.truth, stretch.truth_known = self._truth_of(stretch.start), True
        return stretch.truth

    def _truth_of(self, module: GraphModule) -> Truth | None:
        twin = double_twin(module, self.inputs)
        if isinstance(twin, str):
            self.note = f"checked in the model's own dtype: {twin}"
            return None
        try:
            output = numbers.evaluate(twin[0], twin[1])
        except RuntimeError as error:
            self.note = f"checked in the model's own dtype: it does not run in float64 ({str(error).splitlines()[0]})"
            return None
        if not is_double(output):
            self.note = "checked in the model's own dtype: its outputs are narrower than float64"
            return None
        return *twin, output

    def _hold_modules(self, step: Pass, module: GraphModule, difference: Difference) -> None:
        """A graph that rounds to integers: every module must give the bits of the one that it replaces."""
        if Property.LOWERED in step.establishes:
            before = self._replay(self.now.start, self.inputs, self.now.passes)
            found = other_bits(before, module, self.inputs)
            if found is not None:
                node, how = found
                raise EquivalenceError(f"pass '{step}' promises the bits of '{node.name}': {how}\n{neighbourhood(node)}")
        if self._is_no_rounding(difference):
            self._fail(step, module, difference, "promises equal numbers but for rounding to integers")

    def _is_no_rounding(self, difference: Difference) -> bool:
        """Whether a graph that rounds is further off than other roundings can bring it; see ``fxcompress.pipeline.bitwise``."""
        return bool(difference.why) or difference.sqnr < least_sqnr(self.noise)

    def _rounding(self, output: Any, difference: Difference) -> bool:
        """Whether ``output`` is about as near to the float64 truth as the original was."""
        truth = self.truth()
        if truth is None or difference.why:
            return False
        exact = truth[2]
        before = numbers.compare(exact, _widen(self.now.output, exact)).relative
        after = numbers.compare(exact, _widen(output, exact)).relative
        return after <= GROWTH * before

    def _check_twin(self, stretch: _Stretch) -> None:
        """Let the passes of a stretch run on its twin, and compare start and end."""
        truth = self._truth_at(stretch) if stretch.on_twin else None
        if truth is None:
            return
        module, inputs, exact = truth
        end = self._replay(module, inputs, stretch.on_twin)
        difference = numbers.compare(exact, numbers.evaluate(end, inputs))
        if difference.relative > numbers.FLOAT64_TOLERANCE:
            self._blame(module, inputs, stretch.on_twin, exact)
        self.twins.append(difference)

    def _replay(self, module: GraphModule, inputs: Inputs, steps: Sequence[Pass]) -> GraphModule:
        analyses = Analyses(share(module), inputs)
        for step in steps:
            analyses = advance(analyses, run_pass(step, analyses.module, inputs, analyses, self.calibration))
        return analyses.module

    def _blame(self, module: GraphModule, inputs: Inputs, steps: Sequence[Pass], exact: Any) -> None:
        """Find the first pass after which the twin differs, and raise."""
        for count in range(1, len(steps) + 1):
            after = self._replay(module, inputs, steps[:count])
            difference = numbers.compare(exact, numbers.evaluate(after, inputs))
            if difference.relative > numbers.FLOAT64_TOLERANCE:
                before = self._replay(module, inputs, steps[: count - 1])
                raise failure(steps[count - 1], before, after, inputs, difference, "promises equal numbers (in float64)")

    def _fail(self, step: Pass, module: GraphModule, difference: Difference, promise: str) -> None:
        before = self._replay(self.now.start, self.inputs, self.now.passes)
        raise failure(step, before, module, self.inputs, difference, promise)


def _widen(output: Any, exact: Any) -> Any:
    """The output's tensors with the dtypes of ``exact``."""
    pairs = zip(numbers.leaves(output), numbers.leaves(exact), strict=True)
    return [a.to(b.dtype) if isinstance(a, Tensor) and isinstance(b, Tensor) else a for a, b in pairs]


def failure(
    step: Pass, before: GraphModule, after: GraphModule, inputs: Inputs, difference: Difference, promise: str, *, same_shape: bool = False
) -> EquivalenceError:
    """The error for a pass that changed the numbers, with the first node that differs (``same_shape``: and has kept its shape)."""
    what = difference.why or f"relative error {difference.relative:.3g}, SQNR {difference.sqnr:.1f} dB"
    message = f"pass '{step}' {promise}, but the output differs: {what}"
    node = first_difference(before, after, inputs, same_shape)
    if node is not None:
        where = source_line(node)
        message += f"\nfirst node that differs: {node.name}" + (f" ({where})" if where else "") + f"\n{neighbourhood(node)}"
    return EquivalenceError(message)


def first_difference(before: GraphModule, after: GraphModule, inputs: Inputs, same_shape: bool = False) -> Node | None:
    """The first node of ``after`` whose value differs from that of the node of the same name in ``before``."""
    old, new = _values(before, inputs), _values(after, inputs)
    by_name = {node.name: value for node, value in old.items()}
    for node, value in new.items():
        if node.name not in by_name or (same_shape and _shape(by_name[node.name]) != _shape(value)):
            continue
        if numbers.compare(by_name[node.name], value).relative > numbers.tolerance(inputs):
            return node
    return None


def _shape(value: Any) -> Any:
    return value.shape if isinstance(value, Tensor) else None


def _values(module: GraphModule, inputs: Inputs) -> dict[Node, Any]:
    recorder = numbers.Recorder(module)
    # A broken graph has still shown the values up to its fault.
    with torch.no_grad(), contextlib.suppress(RuntimeError, FxCompressError, TypeError):
        recorder.run(*inputs.clone().bind(module.graph).values())
    return recorder.values
