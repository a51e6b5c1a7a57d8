"""The graph's difference after every pass of a pipeline."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from fxcompress.api.batches import calibration_of
from fxcompress.api.compressing import REWRITES
from fxcompress.api.parts import per_part
from fxcompress.api.tracing import check_model
from fxcompress.capture import Captured, Part, capture
from fxcompress.capture.refuse import check_data
from fxcompress.compare.diff import diff
from fxcompress.compare.schema import Snapshot
from fxcompress.compare.take import take
from fxcompress.errors import InputError
from fxcompress.ir.edit import share
from fxcompress.ir.inputs import Inputs
from fxcompress.pipeline import Calibration, Pass, Pipeline, StepRecord
from fxcompress.pipeline.pipeline import Frame
from fxcompress.report.difference import Difference
from fxcompress.report.explanation import ExplainedStep, Explanation


def explain(
    model: nn.Module,
    example_inputs: Any,
    pipeline: str | Pass | None = None,
    *,
    calibration: Iterable[Any] = (),
    loss: Callable[[Any, Any], Tensor] | None = None,
    numbers: bool = True,
    verify: bool = True,
    leaves: Iterable[type[nn.Module]] = (),
    bake: bool = False,
    name: str | None = None,
    on_step: Callable[[str], None] = lambda text: None,
) -> Explanation:
    """What each pass of a pipeline does to the graph of ``model``, as compilers print their code after each change.

    Every pass runs and is verified as in :func:`fxcompress.compress`. The model itself is not touched.

    Args:
        model: a trained module in eval mode, or a graph that fxcompress has made.
        example_inputs: a tensor, a tuple of positional arguments, or a dict of keyword arguments.
        pipeline: passes as text (``"functionalize,fold-norm,fuse"``) or as a Pass; those of ``compress`` before lowering if not given.
        calibration, loss: data for passes that need some; see :func:`fxcompress.prune`.
        numbers: compare the values of all nodes, too, which costs two runs of the model per pass that changes something.
        verify: compare the outputs after every pass, and the whole in float64.
        leaves, bake: see :func:`fxcompress.trace`.
        name: how the report calls the model.
        on_step: called with a line of text before each pass.

    Raises:
        FxCompressError: every error of the library; see :mod:`fxcompress.errors`.
    """
    check_model(model)
    check_data(model)
    if model.training:
        raise InputError("the model is in training mode", hint="call model.eval() first; dropout and batch norm behave differently there")
    passes = _passes(pipeline)
    data = calibration_of(calibration, loss, model, example_inputs)
    title = name or type(model).__name__
    with torch.inference_mode(False):
        on_step("capture")
        captured = _captured(model, example_inputs, leaves, bake)
        batches = per_part(captured, data)
        steps: list[ExplainedStep] = []
        wholes: list[Difference] = []
        for part in captured.parts:
            walk = _Walk(part, title, verify, numbers, batches[part.path], on_step)
            steps += [walk.step(one) for one in passes.passes]
            wholes += walk.finish()
    return Explanation(title, tuple(steps), tuple(wholes))


def _passes(given: str | Pass | None) -> Pipeline:
    if given is None or isinstance(given, str):
        found = Pipeline.parse(REWRITES if given is None else given)
    elif isinstance(given, Pass):
        found = Pipeline((given,))
    else:
        raise InputError(f"pipeline is a {type(given).__name__}", hint='pass text such as "fold-norm,fuse", a Pass or a Pipeline')
    if not found.passes:
        raise InputError("the pipeline has no passes", hint='name some, e.g. "functionalize,fold-norm,fuse"')
    return found


def _captured(model: nn.Module, example_inputs: Any, leaves: Iterable[type[nn.Module]], bake: bool) -> Captured:
    """A graph is taken as it is, so that its nodes keep their names and settings."""
    if isinstance(model, GraphModule):
        inputs = Inputs.of(example_inputs, model.forward)
        return Captured(model, (Part("", model, inputs),), "fx", (), inputs)
    return capture(model, example_inputs, leaves=leaves, bake=bake)


class _Walk:
    """One part on its way through the passes."""

    def __init__(
        self, part: Part, title: str, verify: bool, numbers: bool, calibration: Calibration, on_step: Callable[[str], None]
    ) -> None:
        self.part, self.numbers, self.on_step = part, numbers, on_step
        self.title = f"{title}.{part.path}" if part.path else title
        self.frame = Frame(part.graph, part.inputs, verify=verify, calibration=calibration)
        self.first = self.last = self._taken("captured")

    def _taken(self, after: str) -> Snapshot:
        """Of a copy: the next pass may edit the graph in place, while differences are still to be found."""
        return take(share(self.frame.module), self.part.inputs, model=f"{self.title} {after}", numbers=self.numbers, count=1)

    def step(self, one: Pass) -> ExplainedStep:
        """Run one pass, and compare the graph after it with the one before."""
        text, before = str(one), len(self.frame.steps)
        self.on_step(text)
        self.frame.apply(one)
        records = self.frame.steps[before:]
        difference = self._difference(text) if any(record.changed for record in records) else None
        return _told(text, self.part.path, records, difference)

    def _difference(self, text: str) -> Difference:
        now = self._taken(f"after {text}")
        found = diff(self.last, now)
        self.last = now
        return found

    def finish(self) -> list[Difference]:
        """The difference of the whole way; nothing where no pass changed anything."""
        self.frame.finish()
        return [] if self.last is self.first else [diff(self.first, self.last)]


def _told(text: str, part: str, records: list[StepRecord], difference: Difference | None) -> ExplainedStep:
    remarks = [remark for record in records for remark in record.remarks]
    errors = [record.error for record in records if record.error is not None]
    return ExplainedStep(
        text,
        part,
        sum(record.seconds for record in records),
        sum(remark.applied for remark in remarks),
        sum(not remark.applied for remark in remarks),
        max(errors, default=None),
        difference,
    )
