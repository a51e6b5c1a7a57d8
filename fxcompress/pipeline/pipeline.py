"""A list of passes, and the frame that holds every one of them to its promise."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch.fx import GraphModule

from fxcompress.analysis import Analyses
from fxcompress.errors import (
    DishonestPassError,
    FxCompressError,
    InputError,
    OrderError,
    PassError,
    PipelineError,
    PlanError,
)
from fxcompress.ir.edit import share
from fxcompress.ir.inputs import Inputs
from fxcompress.ir.snapshot import Fingerprinter
from fxcompress.pipeline import options, registry
from fxcompress.pipeline.base import NO_DATA, Calibration, Pass, PassContext, PassResult, Property, StepRecord
from fxcompress.pipeline.proof import Proof, Prover
from fxcompress.pipeline.reproducer import write_reproducer
from fxcompress.pipeline.single import advance, run_pass


@dataclass(frozen=True)
class Known:
    """What is known of a graph before a pipeline runs on it: facts about it or about a graph of which it is a copy, its
    output on the inputs, its tensors, and the noise of the quantization that made it (SQNR in dB)."""

    analyses: Analyses | None = None
    output: Any = None
    prints: Fingerprinter | None = None
    noise: float = math.inf


NOTHING = Known()


@dataclass(frozen=True)
class Run:
    """A pipeline's result: the graph, what each pass did, and what is known of the numbers."""

    module: GraphModule
    steps: tuple[StepRecord, ...]
    proof: Proof
    prints: Fingerprinter  # knows the module's tensors
    analyses: Analyses
    output: Any = None  # of the module on the inputs; None when it was not verified
    noise: float = math.inf  # SQNR of the quantization in it, in dB

    @property
    def known(self) -> Known:
        """What a pipeline that continues need not find out again."""
        return Known(self.analyses, self.output, self.prints, self.noise)


@dataclass(frozen=True)
class Pipeline(Pass):
    """Passes in order; itself a pass. ``Pipeline.parse("functionalize,fold-norm")``, ``p + q``, ``str(p)``.

    ``given``: what the graph already is when the pipeline starts, for one that continues another.

    Raises:
        OrderError: a pass stands before the one that establishes what it requires, or after one that rules it out.
    """

    name: ClassVar[str] = "pipeline"
    passes: tuple[Pass, ...] = ()
    given: frozenset[Property] = frozenset()

    def __post_init__(self) -> None:
        flat: list[Pass] = []
        for step in self.passes:
            flat.extend(step.passes if isinstance(step, Pipeline) else [step])
        object.__setattr__(self, "passes", tuple(flat))
        _check_order(self.passes, self.given)

    @classmethod
    def of(cls, *passes: Pass | str) -> Pipeline:
        """A pipeline of passes and texts of passes."""
        steps: list[Pass] = []
        for step in passes:
            steps.extend(cls.parse(step).passes if isinstance(step, str) else [step])
        return cls(tuple(steps))

    @classmethod
    def parse(cls, text: str) -> Pipeline:
        """Read ``"name,name{option=value}"``.

        Raises:
            UnknownPassError: an unknown name or option; the nearest known one is in the message.
            PipelineError: the text cannot be read, or a value has the wrong type.
        """
        calls = [options.parse_call(part) for part in options.split(text) if part]
        return cls(tuple(options.build(registry.lookup(name), values) for name, values in calls))

    def __add__(self, other: Pass) -> Pipeline:
        return Pipeline((*self.passes, other), self.given)

    def __str__(self) -> str:
        return ",".join(str(step) for step in self.passes)

    @property
    def establishes_all(self) -> frozenset[Property]:
        """What a graph is after the last pass."""
        return self.given.union(*(step.establishes for step in self.passes))

    def run(self, module: GraphModule, ctx: PassContext) -> PassResult:
        result = self.execute(module, ctx.inputs, verify=False, calibration=ctx.calibration)
        remarks = tuple(remark for step in result.steps for remark in step.remarks)
        return PassResult(result.module, any(step.changed for step in result.steps), remarks=remarks, steps=result.steps)

    def execute(
        self,
        module: GraphModule,
        inputs: Inputs,
        *,
        verify: bool = True,
        on_step: Callable[[str], None] = lambda text: None,
        known: Known = NOTHING,
        calibration: Calibration = NO_DATA,
    ) -> Run:
        """Run all passes on a copy of ``module``, which is not changed.

        After every pass the graph is linted, ``changed`` is compared with the graph's fingerprint and, if ``verify``,
        the outputs on ``inputs`` with those of the step before, as the pass's semantics demand; at the end the whole
        is compared with the start in float64. ``known`` is not computed again; ``calibration`` is the data for passes that need some.

        Raises:
            PassError: a pass raised. DishonestPassError: a pass misreported its change. GraphError: it left a broken
            graph. EquivalenceError: it changed the numbers. All name the pass and the way to reproduce the failure.
        """
        frame = Frame(module, inputs, verify=verify, known=known, calibration=calibration)
        for step in self.passes:
            on_step(str(step))
            frame.apply(step)
        return Run(frame.module, tuple(frame.steps), frame.finish(), frame.prints, frame.analyses, frame.prover.last, frame.prover.noise)


def _check_order(passes: Iterable[Pass], given: frozenset[Property]) -> None:
    have = dict.fromkeys(given, "what came before")
    for step in passes:
        if not isinstance(step, Pass):
            raise PipelineError(f"{step!r} is not a pass", hint="a pipeline takes passes; Pipeline.parse reads their names")
        for wanted in sorted(step.requires - set(have), key=lambda p: p.name):
            makers = [n for n in registry.names() if wanted in registry.lookup(n).establishes]
            raise OrderError(f"'{step.name}' requires a graph that is {wanted.name}", hint=f"put {' or '.join(makers)} before it")
        for unwanted in sorted(step.forbids & set(have), key=lambda p: p.name):
            raise OrderError(f"'{step.name}' cannot run after '{have[unwanted]}' ({unwanted.name})", hint=f"put it before {have[unwanted]}")
        have.update(dict.fromkeys(step.establishes, step.name))


class Frame:
    """One run of a pipeline. ``reproduce``: write a script when it fails."""

    def __init__(
        self,
        module: GraphModule,
        inputs: Inputs,
        *,
        verify: bool,
        reproduce: bool = True,
        known: Known = NOTHING,
        calibration: Calibration = NO_DATA,
    ) -> None:
        self.reproduce, self.calibration = reproduce, calibration
        self.start = share(module)
        self.module = share(module)
        self.inputs = inputs
        self.steps: list[StepRecord] = []
        self.done: list[Pass] = []
        self.prints = known.prints or Fingerprinter()
        self.fingerprint = self.prints.of(self.module)
        self.analyses = known.analyses.carried(self.module) if known.analyses is not None else Analyses(self.module, inputs)
        self.prover = Prover(self.start, inputs, calibration, known.output, known.noise, enabled=verify)

    def apply(self, step: Pass) -> None:
        began = time.perf_counter()
        try:
            result = run_pass(step, self.module, self.inputs, self.analyses, self.calibration)
            self._check_honesty(step, result)
            error = self._numbers(step, result)
        except FxCompressError as failure:
            self._explain(step, failure)
            raise
        self.analyses = advance(self.analyses, result)
        self.module = result.module
        self.done.append(step)
        self.steps.extend(result.steps or (StepRecord(str(step), result.changed, time.perf_counter() - began, result.remarks, error),))

    def _numbers(self, step: Pass, result: PassResult) -> float | None:
        if not result.changed:
            return None
        try:
            return self.prover.check(step, result.module, result.reference)
        except (RuntimeError, TypeError, AttributeError, ValueError, LookupError) as error:
            if isinstance(error, FxCompressError):
                raise
            raise PassError(f"pass '{step}' left a graph that does not run: {type(error).__name__}: {error}") from error

    def finish(self) -> Proof:
        try:
            if self.prints.written():
                raise DishonestPassError(
                    "one of the passes has written into a parameter or buffer in place",
                    hint="give the module a new tensor: fxcompress.ir.edit.set_parameter",
                )
            return self.prover.finish()
        except FxCompressError as failure:
            self._note_script(failure, self.done)
            raise

    def _check_honesty(self, step: Pass, result: PassResult) -> None:
        now = self.prints.of(result.module)
        if result.changed != (now != self.fingerprint):
            said, did = ("a change", "made none") if result.changed else ("no change", "changed the graph")
            raise DishonestPassError(
                f"pass '{step}' reports {said} but {did}", hint="return PassResult(changed=True) exactly when the graph or a tensor differs"
            )
        self.fingerprint = now

    def _explain(self, step: Pass, failure: FxCompressError) -> None:
        """Add to an error where it happened and how to see it again."""
        before = ",".join(str(p) for p in self.done)
        failure.add_note(f"in pass '{step}'" + (f" after '{before}'" if before else ""))
        if not isinstance(failure, (InputError, PlanError)):  # which are about what the user wrote
            self._note_script(failure, [*self.done, step])

    def _note_script(self, failure: FxCompressError, passes: list[Pass]) -> None:
        if self.reproduce:
            failure.add_note(write_reproducer(self.start, self.inputs, passes))
