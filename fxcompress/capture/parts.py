"""Step 3 of the ladder: the largest submodules that can be captured, put back into a copy of the user's module."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxcompress.capture.captured import Part
from fxcompress.capture.check import run
from fxcompress.capture.leaves import LeafRegistry
from fxcompress.capture.step import StepFailed
from fxcompress.ir.inputs import Inputs

CaptureOne = Callable[[nn.Module, list[Inputs]], fx.GraphModule]
_MAX_CALLS = 16


def capture_parts(root: nn.Module, inputs: Inputs, capture_one: CaptureOne) -> tuple[nn.Module, tuple[Part, ...], tuple[str, ...]]:
    """Capture the largest submodules of ``root`` that ``capture_one`` can turn into a graph.

    Returns:
        the module with the graphs in place of the submodules, the parts, and notes on what stayed as it was.

    Raises:
        StepFailed: no submodule of more than one layer could be captured.
    """
    calls = _recorded_calls(root, inputs)
    found: dict[str, fx.GraphModule] = {}
    notes: list[str] = []
    _descend(root, "", calls, capture_one, found, notes)
    if not found:
        raise StepFailed("no submodule of more than one layer can be captured on its own")
    for path, graph in found.items():
        _put(root, path, graph)
    parts = tuple(Part(path, graph, calls[path][0]) for path, graph in found.items())
    return root, parts, tuple(notes)


def _descend(
    module: nn.Module,
    path: str,
    calls: dict[str, list[Inputs]],
    capture_one: CaptureOne,
    found: dict[str, fx.GraphModule],
    notes: list[str],
) -> None:
    for name, child in module.named_children():
        below = f"{path}.{name}" if path else name
        if not _worth_it(child):
            continue
        if below in calls:
            try:
                found[below] = capture_one(child, calls[below])
                continue
            except StepFailed as failure:
                notes.append(f"'{below}' ({type(child).__name__}) stays in Python: {failure}")
        _descend(child, below, calls, capture_one, found, notes)


def _worth_it(module: nn.Module) -> bool:
    """Whether there is more than a single layer of torch.nn to capture, and some of it has parameters."""
    return not LeafRegistry().is_leaf(module) and any(True for _ in module.parameters())


def _recorded_calls(root: nn.Module, inputs: Inputs) -> dict[str, list[Inputs]]:
    """The inputs with which each submodule is called in one run of the model (detached copies)."""
    calls: dict[str, list[Inputs]] = {}
    with _hooked(root, calls):
        run(root, inputs)
    return {path: seen for path, seen in calls.items() if all(call.tensors() for call in seen)}


@contextmanager
def _hooked(root: nn.Module, calls: dict[str, list[Inputs]]) -> Iterator[None]:
    handles = []
    for path, module in root.named_modules():
        if path and _worth_it(module):

            def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], path: str = path) -> None:
                seen = calls.setdefault(path, [])
                if len(seen) < _MAX_CALLS:
                    seen.append(_kept(args, kwargs))

            handles.append(module.register_forward_pre_hook(note, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _kept(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inputs:
    args, kwargs = pytree.tree_map_only(Tensor, lambda t: t.detach().clone(), (args, kwargs))
    return Inputs(tuple(copy.copy(a) for a in args), dict(kwargs))


def _put(root: nn.Module, path: str, graph: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    root.get_submodule(parent)._modules[name] = graph
