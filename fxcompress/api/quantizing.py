"""What the calls take for quantization, as passes for every captured part, and running them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from fxcompress.api.options import check_patterns_of, inside
from fxcompress.api.parts import per_part
from fxcompress.capture import Captured, Part
from fxcompress.errors import InputError
from fxcompress.passes.dynamic import Dynamic
from fxcompress.passes.weight_only import WeightOnly
from fxcompress.pipeline import Calibration, Pass, Pipeline, Property, Run, StepRecord, registry
from fxcompress.quant.options import Int8, as_int8

INT8 = "int8"
"""How reports call quantized forms, also those of a target: "cpu int8"."""

PATTERNS = ("ignore", "only", "weight_only", "dynamic")


@dataclass(frozen=True)
class Quantizing:
    """What the user asked for, and the data for it.

    Attributes:
        data: for the whole model.
    """

    options: Int8
    data: Calibration

    @classmethod
    def of(cls, asked: Any, data: Calibration) -> Quantizing | None:
        """Read what the user passed; None where nothing is to be quantized.

        Raises:
            InputError: it is nothing of the kind, or there is no data.
        """
        if asked is None or asked is False:
            return None
        options = as_int8(asked)
        if options.static and not data.batches:
            raise InputError(
                "int8 needs calibration data",
                hint="pass calibration=loader with a few dozen typical inputs, each as example_inputs or a pair of those and targets",
            )
        return cls(options, data)

    def check(self, captured: Captured) -> None:
        """Raise InputError for what only a look at the captured parts shows to be wrong."""
        for name in PATTERNS:
            check_patterns_of(getattr(self.options, name), captured.parts)

    @property
    def keeps_slower(self) -> bool:
        """Whether the quantized form is kept although it is slower: what was asked for is not speed."""
        return self.options.speed == "none" or not self.options.static

    def per_part(self, form: Captured) -> dict[str, Calibration]:
        """The data that each part of the model receives."""
        return per_part(form, replace(self.data, loss=None) if form.step == "parts" else self.data)

    def run(
        self, form: Captured, after: dict[str, Run], given: frozenset[Property], how: How, options: Int8 | None = None
    ) -> QuantizedForm:
        """Quantize every part of the rewritten ``form``, which ``after`` are the runs of.

        Args:
            given: what can be said of the graphs. options: instead of those that the user asked for.
        """
        asked = self.options if options is None else options
        data = self.per_part(form)
        made = QuantizedForm(asked, form, form, {}, {})
        for part in form.parts:
            inner, run = _for_part(asked, part), after[part.path]
            nothing = replace(run, steps=())
            made = made.with_part(part, (nothing, nothing) if inner is None else _quantize(inner, part, run, given, data[part.path], how))
        return made


def full_name(path: str, node: str) -> str:
    """The name of a node of the captured part ``path`` in the whole model."""
    return f"{path}.{node}" if path else node


def limit_of(asked: Any) -> int | None:
    """How many batches of calibration data are asked for; None for all."""
    return asked.batches if isinstance(asked, Int8) else None


@dataclass(frozen=True)
class How:
    """How passes are run: compared after every step or not, and who is told of each."""

    verify: bool
    on_step: Callable[[str], None]


@dataclass(frozen=True)
class QuantizedForm:
    """A quantized model: ``fake`` in float arithmetic on the grids of integers, ``integer`` in integers, and the runs of their parts."""

    options: Int8
    fake: Captured
    integer: Captured
    fake_runs: dict[str, Run]
    integer_runs: dict[str, Run]

    def with_part(self, part: Part, runs: tuple[Run, Run]) -> QuantizedForm:
        """The same with one more part."""
        fake, integer = runs
        return QuantizedForm(
            self.options,
            self.fake.with_part(part.path, fake.module),
            self.integer.with_part(part.path, integer.module),
            self.fake_runs | {part.path: fake},
            self.integer_runs | {part.path: integer},
        )

    @property
    def changed(self) -> bool:
        """Whether anything was quantized."""
        return any(step.changed for step in self.steps)

    @property
    def is_fake(self) -> frozenset[Property]:
        """What can be said of the fake-quantized graphs besides what was said of the rewritten ones."""
        return frozenset(p for step in to_fake(self.options) for p in step.establishes)

    @property
    def is_integer(self) -> frozenset[Property]:
        """The same of the integer graphs."""
        return self.is_fake.union(*(step.establishes for step in to_integers(self.options)))

    @property
    def steps(self) -> list[StepRecord]:
        """What every pass did."""
        return [step for path, run in self.fake_runs.items() for step in (*run.steps, *self.integer_runs[path].steps)]


def _quantize(options: Int8, part: Part, after: Run, given: frozenset[Property], data: Calibration, how: How) -> tuple[Run, Run]:
    steps = Pipeline(to_fake(options), given)
    fake = steps.execute(part.graph, part.inputs, verify=how.verify, on_step=how.on_step, known=after.known, calibration=data)
    lower = Pipeline(to_integers(options), steps.establishes_all)
    return fake, lower.execute(fake.module, part.inputs, verify=how.verify, on_step=how.on_step, known=fake.known, calibration=data)


def to_fake(options: Int8) -> tuple[Pass, ...]:
    """The passes from the rewritten float graph to the fake-quantized one."""
    steps: list[Pass] = []
    if options.weight_only:
        steps.append(WeightOnly(options.weight_only, options.storage))
    if options.dynamic:
        steps.append(Dynamic(options.dynamic))
    if not options.static:
        return tuple(steps)
    steps += [_make("equalize", bits=options.bits, weight_bits=options.weight_bits)] if options.equalize else []
    steps += [_make("smooth", alpha=options.smooth)] if options.smooth is not None else []
    names = ("bits", "weight_bits", "observer", "weight_observer", "ignore", "only", "speed")
    steps += [_make("observe", **{name: getattr(options, name) for name in names}), _make("calibrate")]
    steps += [_make("adaround")] if options.adaround else []
    steps += (
        [_make("correct-bias", mode=options.bias_correction)] if options.bias_correction != "none" else []
    )  # which takes back what rounding has moved
    return tuple(steps)


def to_integers(options: Int8) -> tuple[Pass, ...]:
    """The passes from the fake-quantized graph to the one that computes with integers."""
    return (_make("safe-weights"), _make("lower-int8")) if options.static else ()


def _make(name: str, **options: Any) -> Pass:
    kind: Any = registry.lookup(name)
    made: Pass = kind(**options)
    return made


def _for_part(options: Int8, part: Part) -> Int8 | None:
    """The options with patterns for the names inside a captured part; None where nothing in it is to be quantized."""
    if not part.path:
        return options
    found = {name: tuple(p for pattern in getattr(options, name) for p in inside(pattern, part)) for name in PATTERNS}
    static = options.static and not (options.only and not found["only"])
    if not static and not found["weight_only"] and not found["dynamic"]:
        return None
    return replace(options, static=static, **found, **({} if static else _NO_BUDGET))  # type: ignore[arg-type]


_NO_BUDGET: dict[str, Any] = {"evaluate": None, "max_drop": None, "min_sqnr": None}
