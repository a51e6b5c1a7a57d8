"""The ladder: record the run, else raise the graph of torch.export, else capture the largest parts that can be."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from fxcompress.capture.captured import Captured, Part
from fxcompress.capture.check import compare, difference, kept_state, other_batch, other_image, run
from fxcompress.capture.door import copied
from fxcompress.capture.exporter import export
from fxcompress.capture.leaves import LeafRegistry
from fxcompress.capture.location import where_raised
from fxcompress.capture.parts import capture_parts
from fxcompress.capture.refuse import check_graph, check_hooks, check_inputs, check_model
from fxcompress.capture.sizeguard import fix_sizes
from fxcompress.capture.step import StepFailed
from fxcompress.capture.tracer import trace
from fxcompress.errors import CaptureError, InputError, UnsupportedModelError
from fxcompress.ir.inputs import Inputs

BATCH, IMAGE = (0,), (2, 3)


def capture(model: nn.Module, example_inputs: Any, *, leaves: Iterable[type[nn.Module]] = (), bake: bool = False) -> Captured:
    """Turn ``model`` into one graph, or into graphs of its largest parts that can be one.

    The model runs on ``example_inputs`` and is never changed: everything happens on a deep copy. Sizes stay symbolic,
    so the graph takes other batch (and, where the model does, image) sizes; where it cannot, it says so when called.

    Args:
        model: any ``nn.Module``, on any device and dtype, in eval or training mode (which is kept).
        example_inputs: a tensor, a tuple of positional arguments, a dict of keyword arguments, or an ``Inputs``.
        leaves: module types that shall stay one node of the graph, besides the layers of ``torch.nn``.
        bake: allow parametrizations, weight norm and spectral norm, and store their present result as the weights.

    Raises:
        InputError: the model does not run on the example inputs, or they lie on another device.
        UnsupportedModelError: a graph would compute something else (hooks, a baked training flag, ...), or a branch
            depends on values and no step of the ladder gets around it.
        CaptureError: no step of the ladder works; the message names the user's line that stopped each.
    """
    check_model(model)
    inputs = Inputs.of(example_inputs, model.forward)
    check_inputs(model, inputs)
    check_hooks(model, bake)
    root = copied(model, bake)
    subject = Subject(root, inputs, LeafRegistry.of(leaves), _reference(root, inputs))
    return _climb_down(subject)


@dataclass(frozen=True)
class Subject:
    """What is captured: the library's copy, its inputs, the leaf rule and what the model returns on the inputs."""

    root: nn.Module
    inputs: Inputs
    leaves: LeafRegistry
    expected: Any


@dataclass
class Attempt:
    """A graph that is right on the example inputs, with the dimensions that it cannot follow."""

    graph: fx.GraphModule
    output: Any = None
    notes: list[str] = field(default_factory=list)
    batch: str | None = None
    image: str | None = None
    branches: bool = False


def _reference(root: nn.Module, inputs: Inputs) -> Any:
    try:
        return run(root, inputs)
    except Exception as error:  # whatever the user's forward raises on these inputs
        text = str(error).strip().splitlines()
        where = where_raised(error.__traceback__)
        at = f" at {where}" if where else ""
        raise InputError(
            f"the model itself fails on the example inputs{at}: {type(error).__name__}: {text[0] if text else ''}",
            hint="check shapes, dtype and device: model(*example_inputs) must work before it can be captured",
        ) from error


def _climb_down(subject: Subject) -> Captured:
    failures: list[tuple[str, StepFailed]] = []
    recorded = _attempt("fx", _record, subject, failures)
    if recorded is not None and not (recorded.batch or (recorded.image and not recorded.branches)):
        return _whole(subject, "fx", recorded, failures)
    exported = _attempt("export", _export, subject, failures)
    if recorded is not None and (exported is None or _freedom(exported) <= _freedom(recorded)):
        return _whole(subject, "fx", recorded, failures)
    if exported is not None:
        return _whole(subject, "export", exported, failures)
    try:
        module, parts, notes = capture_parts(subject.root, subject.inputs, lambda m, i: _part(m, i, subject.leaves))
        with_notes = (*_reasons(failures), *notes)
        found = compare(subject.expected, run(module, subject.inputs))
        if found is None:
            return Captured(module, parts, "parts", with_notes, subject.inputs, subject.expected)
        failures.append(("parts", StepFailed(f"the parts together give another result: {found}")))
    except StepFailed as failure:
        failures.append(("parts", failure))
    raise _nothing_works(subject.root, failures)


def _attempt(name: str, step: Callable[[Subject], Attempt], subject: Subject, failures: list[tuple[str, StepFailed]]) -> Attempt | None:
    try:
        attempt = step(subject)
    except StepFailed as failure:
        failures.append((name, failure))
        return None
    return attempt


def _record(subject: Subject) -> Attempt:
    with kept_state(subject.root, subject.inputs):
        recording = trace(subject.root, subject.inputs, subject.leaves)
    attempt = _checked(subject, recording.graph)
    if recording.decisions:
        attempt.branches = True
        shown = ", ".join(recording.decisions[:3]) + (", ..." if len(recording.decisions) > 3 else "")
        attempt.notes.append(f"branches taken by the sizes of the example inputs: {shown}")
    if recording.looked_at_sizes:
        _probe(subject, attempt)
    return attempt


def _export(subject: Subject) -> Attempt:
    with kept_state(subject.root, subject.inputs):
        graph = export(subject.root, subject.inputs)
    attempt = _checked(subject, graph)
    _probe(subject, attempt)
    return attempt


def _checked(subject: Subject, graph: fx.GraphModule) -> Attempt:
    check_graph(graph.graph)
    try:
        output = run(graph, subject.inputs)
        found = compare(subject.expected, output)
    except Exception as error:  # the graph alone is to blame: the model ran on the same inputs
        found = f"the graph fails: {type(error).__name__}: {error}"
    if found:
        raise StepFailed(f"the graph does not give the model's result: {found}")
    return Attempt(graph, output)


def _probe(subject: Subject, attempt: Attempt) -> None:
    """Compare with the model at another batch and another image size, where the model runs at all."""
    attempt.batch = _differs(subject, attempt.graph, other_batch(subject.inputs))
    attempt.image = _differs(subject, attempt.graph, other_image(subject.inputs))


def _differs(subject: Subject, graph: fx.GraphModule, inputs: Inputs | None) -> str | None:
    if inputs is None:
        return None
    try:
        expected = run(subject.root, inputs)
    except Exception:  # the model does not take this size, so the graph need not either
        return None
    return difference(expected, graph, inputs)


def _freedom(attempt: Attempt) -> int:
    return 2 * (attempt.batch is None) + (attempt.image is None)


def _whole(subject: Subject, step: Any, attempt: Attempt, failures: list[tuple[str, StepFailed]]) -> Captured:
    notes = [*_reasons(failures), *attempt.notes]
    for found, dims, what in ((attempt.batch, BATCH, "batch"), (attempt.image, IMAGE, "image")):
        if found:
            fix_sizes(attempt.graph, subject.inputs, dims)
            notes.append(f"the {what} size is fixed to the example's, because the model's code depends on it: {found}")
    part = Part("", attempt.graph, subject.inputs, attempt.output)
    return Captured(attempt.graph, (part,), step, tuple(notes), subject.inputs, subject.expected)


def _part(module: nn.Module, calls: list[Inputs], leaves: LeafRegistry) -> fx.GraphModule:
    """The graph of a submodule that gives the right result for each of its recorded calls; used by the parts step."""
    failures: list[StepFailed] = []
    for step in (_record, _export):
        try:
            subject = Subject(module, calls[0], leaves, run(module, calls[0]))
            attempt = step(subject)
            if attempt.batch or attempt.image:  # a check in the middle of a model would refuse what the model accepts
                raise StepFailed(f"its sizes would be fixed: {attempt.batch or attempt.image}")
            for call in calls[1:]:
                found = difference(run(module, call), attempt.graph, call)
                if found:
                    raise StepFailed(f"one graph cannot serve all its calls: {found}")
            return attempt.graph
        except StepFailed as failed:
            failures.append(failed)
            if failed.data_dependent:  # smaller parts are the way around it, and much faster to find than another export
                break
    raise failures[0]


def _reasons(failures: list[tuple[str, StepFailed]]) -> list[str]:
    names = {"fx": "recording", "export": "torch.export", "parts": "parts"}
    return [f"{names[step]} was not possible: {_short(str(failure))}" for step, failure in failures]


def _short(text: str, limit: int = 300) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _nothing_works(root: nn.Module, failures: list[tuple[str, StepFailed]]) -> CaptureError:
    lines = "\n".join(f"  {reason}" for reason in _reasons(failures))
    message = f"{type(root).__name__} cannot be captured\n{lines}"
    if any(failure.data_dependent for _, failure in failures):
        return UnsupportedModelError(
            message, hint="express the branch with tensor operations (torch.where), or move it out of the part that you want to compress"
        )
    return CaptureError(message, hint="name the modules to keep as they are in leaves=..., or capture a submodule")
