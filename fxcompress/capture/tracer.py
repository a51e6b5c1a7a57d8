"""Step 1 of the ladder: run the model once on shape shadows and record it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch import fx, nn

from fxcompress.capture.assemble import assemble
from fxcompress.capture.inplace import functionalise
from fxcompress.capture.leaves import LeafRegistry
from fxcompress.capture.location import where_raised
from fxcompress.capture.recorder import Recorder
from fxcompress.capture.signature import output_argument, shadows
from fxcompress.capture.sizes import NUMBER_SHIMS, traced_function
from fxcompress.capture.step import StepFailed
from fxcompress.ir.inputs import Inputs

_DATA_DEPENDENT = (
    torch._subclasses.fake_tensor.DataDependentOutputException,
    torch._subclasses.fake_tensor.DynamicOutputShapeException,
)


@dataclass(frozen=True)
class Recording:
    """A recorded graph; ``decisions`` are the lines (``file:line``) where a size of the example inputs chose a branch."""

    graph: fx.GraphModule
    decisions: tuple[str, ...]
    looked_at_sizes: bool


def trace(root: nn.Module, inputs: Inputs, leaves: LeafRegistry) -> Recording:
    """Record ``root`` on ``inputs``; ``root`` is the library's own copy, whose layers the graph module takes over.

    Raises:
        StepFailed: with the line of user code that could not be recorded.
    """
    recorder = Recorder(root)
    with torch.no_grad(), _watched(root, recorder, leaves), _traced_numbers(root):
        args, kwargs = shadows(recorder.graph, root.forward, inputs, recorder.input)
        result = run_user_forward(recorder, root.forward, args, kwargs)
        recorder.graph.output(output_argument(recorder.graph, result, recorder.argument))
    functionalise(recorder)
    graph = assemble(root, recorder.graph, recorder.constants, recorder.ranks)
    return Recording(graph, tuple(recorder.decisions), recorder.looked)


def run_user_forward(recorder: Recorder, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The model's own forward under the recorder; its exceptions become the reason of the step's failure."""
    try:
        with recorder:
            return forward(*args, **kwargs)
    except StepFailed as failure:
        failure.where = failure.where or where_raised(failure.__traceback__)
        raise
    except _DATA_DEPENDENT as error:
        raise StepFailed(
            "a branch, an index or a shape depends on the values of a tensor", where_raised(error.__traceback__), data_dependent=True
        ) from error
    except Exception as error:  # whatever the user's code raises on shadows: the next step may do better
        text = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {text[0] if text else ''}"
        raise StepFailed(reason, where_raised(error.__traceback__)) from error


@contextmanager
def _watched(root: nn.Module, recorder: Recorder, leaves: LeafRegistry) -> Iterator[None]:
    """Give every module of the copy a forward that tells the recorder; taken away again at the end."""
    modules = [(path, module) for path, module in root.named_modules() if path and "forward" not in module.__dict__]
    try:
        for path, module in modules:
            watch = _leaf_forward if leaves.is_leaf(module) else _inner_forward
            module.__dict__["forward"] = watch(recorder, path, module)
        yield
    finally:
        for _, module in modules:
            module.__dict__.pop("forward", None)


def _leaf_forward(recorder: Recorder, path: str, module: nn.Module) -> Callable[..., Any]:
    forward = module.forward

    @functools.wraps(forward)
    def leaf(*args: Any, **kwargs: Any) -> Any:
        with recorder.inside(path, type(module)):
            return recorder.leaf(path, module, forward, args, kwargs)

    return leaf


def _inner_forward(recorder: Recorder, path: str, module: nn.Module) -> Callable[..., Any]:
    forward = module.forward

    @functools.wraps(forward)
    def inner(*args: Any, **kwargs: Any) -> Any:
        with recorder.inside(path, type(module)):
            return forward(*args, **kwargs)

    return inner


@contextmanager
def _traced_numbers(root: nn.Module) -> Iterator[None]:
    """``int(...)``, ``float(...)`` and the functions of ``math`` keep traced sizes traced in the code of the model."""
    namespaces = {id(names): names for names in map(_globals_of, root.modules()) if names is not None}
    with ExitStack() as stack:
        for names in namespaces.values():
            stack.enter_context(mock.patch.dict(names, {k: v for k, v in NUMBER_SHIMS.items() if k not in names}))
        stack.enter_context(_patched_math(math))
        yield


def _globals_of(module: nn.Module) -> dict[str, Any] | None:
    if type(module).__module__.startswith("torch."):
        return None
    return getattr(type(module).forward, "__globals__", None)


@contextmanager
def _patched_math(library: ModuleType) -> Iterator[None]:
    functions = {k: v for k, v in vars(library).items() if callable(v) and not k.startswith("_")}
    with mock.patch.dict(vars(library), {k: traced_function(v) for k, v in functions.items()}):
        yield
