"""A snapshot of a model that could only be captured in parts: all their graphs, one after the other, and the model's own contract."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import nn

from fxcompress.analysis.cost import weight_cost
from fxcompress.capture import Captured
from fxcompress.compare.fingerprint import numbers_of, refusal, tensors_in, undisturbed
from fxcompress.compare.ports import contract_of, varying
from fxcompress.compare.schema import Contract, Cost, NodeRecord, Snapshot
from fxcompress.compare.seeded import chosen
from fxcompress.compare.take import COUNT, SEED, take
from fxcompress.ir.inputs import Inputs

__all__ = ["take_parts"]


def take_parts(
    captured: Captured, *, model: str, numbers: bool = True, count: int = COUNT, data: Iterable[Inputs] | None = None
) -> Snapshot:
    """One snapshot of all parts of ``captured``; arguments and errors as of :func:`fxcompress.compare.take.take`.

    The names of nodes and tensors begin with the path of their part. There is no ``live``: what runs is no single graph. Code between the
    parts is the user's own; it shows in the contract and in the numbers only. Tensors of the output whose shape depends on data, as the
    boxes of a detector do, are of unknown shape.
    """
    inputs, generator = chosen(captured.inputs, SEED, count, data)
    results, seen = _runs(captured, inputs if numbers else inputs[:1])
    parts = []
    for part in captured.parts:
        runs = seen.get(part.path)
        one = take(part.graph, part.inputs, model=model, numbers=numbers and runs is not None, data=runs)
        parts.append((part.path, one))
    nodes = [node for path, one, start, first in _starts(parts) for node in _moved(one, path, start, first)]
    tensors = [replace(tensor, name=f"{path}.{tensor.name}") for path, one in parts for tensor in one.tensors]
    found = numbers_of([tensors_in(result) for result in results], inputs, generator, SEED) if numbers else None
    cost = _cost(captured.module, [one.cost for _, one in parts])
    contract = _contract(captured, results[0])
    return Snapshot(model, tuple(nodes), tuple(tensors), contract, cost, found, captured.step, captured.module.training)


def _runs(captured: Captured, inputs: tuple[Inputs, ...]) -> tuple[list[Any], dict[str, tuple[Inputs, ...]]]:
    """What the model gives on ``inputs``, and with what each part is called first."""
    seen: dict[str, tuple[Inputs, ...]] = {}
    results = []
    with _listening(captured, seen):
        for one in inputs:
            with undisturbed(captured.module, one), refusal():
                results.append(one.clone().call(captured.module))
    return results, seen


@contextmanager
def _listening(captured: Captured, seen: dict[str, tuple[Inputs, ...]]) -> Iterator[None]:
    handles = []
    for part in captured.parts:

        def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], path: str = part.path) -> None:
            seen.setdefault(path, (Inputs(args, kwargs).clone(),))

        handles.append(captured.module.get_submodule(part.path).register_forward_pre_hook(note, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _starts(parts: list[tuple[str, Snapshot]]) -> Iterator[tuple[str, Snapshot, int, int]]:
    """Every part with the places of its first node and its first tensor."""
    nodes = tensors = 0
    for path, one in parts:
        yield path, one, nodes, tensors
        nodes, tensors = nodes + len(one.nodes), tensors + len(one.tensors)


def _moved(part: Snapshot, path: str, start: int, first: int) -> Iterator[NodeRecord]:
    for node in part.nodes:
        yield replace(
            node,
            name=f"{path}.{node.name}",
            path=f"{path}.{node.path}" if node.path else "",
            inputs=tuple(start + place for place in node.inputs),
            tensors={name: first + place for name, place in node.tensors.items()},
            origins=tuple(f"{path}.{name}" for name in node.origins),
        )


def _contract(captured: Captured, result: Any) -> Contract:
    """Of the user's own forward. ``result``: on other numbers than those of the example."""
    forward = inspect.signature(captured.module.forward)
    plain = forward.replace(
        parameters=[p.replace(annotation=p.empty) for p in forward.parameters.values()], return_annotation=forward.empty
    )
    bound = plain.bind(*captured.inputs.args, **captured.inputs.kwargs)
    return contract_of(bound.arguments, captured.expected, str(plain), varying(captured.expected, result))


def _cost(module: nn.Module, parts: list[Cost]) -> Cost:
    params, weight_bytes = weight_cost(module)
    return Cost(params, sum(cost.macs for cost in parts), weight_bytes, max((cost.peak_bytes for cost in parts), default=0))
