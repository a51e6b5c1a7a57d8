"""The proof of a plan: the masked network against the sliced one, in float64."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from fxcompress.analysis.channels import ChannelDependencyGraph, Mask
from fxcompress.errors import EquivalenceError, PlanError
from fxcompress.ir import numbers
from fxcompress.ir.edit import share
from fxcompress.ir.effects import is_random
from fxcompress.ir.inputs import Inputs
from fxcompress.ir.twin import double_twin, is_double
from fxcompress.ir.verify import source_line
from fxcompress.ir.view import spec_of
from fxcompress.pruning import plan_use
from fxcompress.pruning.mask import changed_statistics, masked
from fxcompress.pruning.plan import PruningPlan
from fxcompress.pruning.plan_build import keep_of
from fxcompress.pruning.slicing import sliced


@dataclass(frozen=True)
class OutputProof:
    """One output. ``error``: largest difference of the sliced from the masked network over the largest value (inf where
    shape, or the places of NaN and infinities, differ); ``changed``: the same for the masked against the unpruned one.
    ``finite``: whether there was a finite number to compare."""

    name: str
    shape: tuple[int, ...]
    error: float
    changed: float
    finite: bool = True
    why: str = ""


@dataclass(frozen=True)
class PruningProof:
    """Does the sliced network compute what the masked one does?

    Attributes:
        outputs: one entry per tensor of the output.
        dtype: in which it was compared.
        tolerance: what rounding may make of the relative error.
        removed: how many classes of channels were removed.
        statistics: where the function itself changes, because a statistic runs over fewer channels.
        note: what weakens the proof; "" when nothing does.
    """

    outputs: tuple[OutputProof, ...]
    dtype: str
    tolerance: float
    removed: int
    statistics: tuple[str, ...] = ()
    note: str = ""

    @property
    def error(self) -> float:
        """The largest of all outputs; 0 when nothing could be compared."""
        return max((output.error for output in self.outputs), default=0.0)

    @property
    def changed(self) -> float:
        """How much the removal changed the outputs, at most."""
        return max((output.changed for output in self.outputs), default=0.0)

    @property
    def holds(self) -> bool:
        """Whether all outputs agree but for rounding. An empty proof holds too: see ``is_empty``."""
        return self.error <= self.tolerance

    @property
    def is_empty(self) -> bool:
        """Whether it shows nothing, because the mask did not change any output."""
        return not any(output.finite and output.changed > 0 for output in self.outputs)

    def check(self) -> None:
        """Raises EquivalenceError, which names the output, unless the proof holds."""
        if not self.holds:
            worst = max(self.outputs, key=lambda output: output.error)
            what = worst.why or f"relative error {worst.error:.3g} in {self.dtype}"
            raise EquivalenceError(
                f"the sliced network does not compute what the masked one does: {worst.name} differs, {what}",
                hint="this is a fault of fxcompress; please report it with the plan",
            )

    def __str__(self) -> str:
        head = f"sliced against masked in {self.dtype}: relative error {self.error:.2g}" + ("" if self.holds else " (TOO LARGE)")
        lines = [head, *(_line(output) for output in self.outputs)]
        if self.statistics:
            lines.append("the function changes where a statistic runs over fewer channels: " + ", ".join(self.statistics))
        return "\n".join([*lines, *([f"note: {self.note}"] if self.note else [])])


def _line(output: OutputProof) -> str:
    shown = output.why or f"error {output.error:.2g}, changed by the removal {output.changed:.2g}"
    return f"  {output.name} {list(output.shape)}: {shown}" + ("" if output.finite else " (no finite number)")


def verify(subject: ChannelDependencyGraph | nn.Module, plan: PruningPlan | Mask, inputs: Any = None) -> PruningProof:
    """Run the masked and the sliced network and compare every output.

    In float64 and eval mode; where there is no float64 twin (the graph computes in half precision), in the dtype of
    the network with its tolerance, and a note says so.

    Args:
        subject: the channel dependencies of the graph, or the model, which is captured where it is no graph.
        plan: the plan, or one flag per class of ``subject``.
        inputs: on which to compare (and with which to capture); None takes the example inputs, or some of their form.

    Raises:
        PlanError: the plan does not fit. GraphError: the graph cannot be sliced so.
        CaptureError, InputError: the model cannot be captured.
    """
    if isinstance(subject, ChannelDependencyGraph):
        keep = plan.keep(subject) if isinstance(plan, PruningPlan) else plan
        return _Comparison(subject, keep, subject.inputs if inputs is None else Inputs.of(inputs)).run()
    if not isinstance(plan, PruningPlan):
        raise PlanError("flags of channels say nothing without the graph", hint="pass its ChannelDependencyGraph, or a PruningPlan")
    found = plan_use.dependencies(plan.parts, plan.inputs, subject, inputs)
    proofs = [_Comparison(deps, keep_of(part, deps), deps.inputs).run() for part, deps in zip(plan.parts, found, strict=True)]
    return proofs[0] if len(proofs) == 1 else _joined({part.path: proof for part, proof in zip(plan.parts, proofs, strict=True)})


def _joined(proofs: Mapping[str, PruningProof]) -> PruningProof:
    """One proof of all parts; it is as weak as the weakest."""
    dtypes = dict.fromkeys(proof.dtype for proof in proofs.values())
    return PruningProof(
        tuple(replace(output, name=f"{path}: {output.name}") for path, proof in proofs.items() for output in proof.outputs),
        ", ".join(dtypes),
        max(proof.tolerance for proof in proofs.values()),
        sum(proof.removed for proof in proofs.values()),
        tuple(f"{path}: {place}" for path, proof in proofs.items() for place in proof.statistics),
        "; ".join(f"{path}: {proof.note}" for path, proof in proofs.items() if proof.note),
    )


class _Comparison:
    def __init__(self, deps: ChannelDependencyGraph, keep: Mask, inputs: Inputs) -> None:
        self.deps, self.keep, self.inputs = deps, keep, inputs
        self.notes: list[str] = []

    def run(self) -> PruningProof:
        removed = int(np.count_nonzero(~self.keep))
        places = [f"{r.node.name} axis {r.axis}" + _at(source_line(r.node)) for r in changed_statistics(self.deps, self.keep)]
        proof = PruningProof((), "float64", numbers.FLOAT64_TOLERANCE, removed, tuple(places))
        graphs = [_evaluating(graph) for graph in (masked(self.deps, self.keep), sliced(self.deps, self.keep), self.deps.module)]
        obstacle = self._obstacle(graphs[0])
        if obstacle is not None:
            return replace(proof, note=f"not verified: {obstacle}")
        values = self._wide_values(graphs)
        if values is None:
            proof = replace(proof, dtype="its own dtype", tolerance=numbers.tolerance(self.inputs))
            values = [numbers.evaluate(graph, self.inputs) for graph in graphs]
        proof = replace(proof, outputs=tuple(_outputs(*values)))
        return replace(proof, note="; ".join([*self.notes, *_weaknesses(proof)]))

    def _obstacle(self, graph: GraphModule) -> str | None:
        """Why the networks cannot be compared."""
        if any(t.device.type == "meta" for t in (*self.inputs.tensors(), *graph.parameters())):
            return "the tensors have no data"
        node = next((node for node in graph.graph.nodes if spec_of(node) is not None and is_random(node)), None)
        return None if node is None else f"'{node.name}' draws random numbers{_at(source_line(node))}"

    def _wide_values(self, graphs: Sequence[GraphModule]) -> list[Any] | None:
        """The outputs of all graphs in float64; None (with a note) where that is not possible."""
        values = []
        for graph in graphs:
            twin = double_twin(graph, self.inputs)
            if isinstance(twin, str):
                self.notes.append(f"compared in the dtype of the network: {twin}")
                return None
            try:
                values.append(numbers.evaluate(*twin))
            except RuntimeError as error:
                self.notes.append(f"compared in the dtype of the network: it does not run in float64 ({str(error).splitlines()[0]})")
                return None
        if not all(map(is_double, values)):
            self.notes.append("compared in the dtype of the network: its outputs are narrower than float64")
            return None
        return values


def _evaluating(graph: GraphModule) -> GraphModule:
    """The graph in eval mode; a copy where it was not."""
    return share(graph).eval() if any(module.training for module in graph.modules()) else graph


def _outputs(expected: Any, found: Any, original: Any) -> Iterator[OutputProof]:
    """One entry per tensor of ``expected``, the masked network's output."""
    masked_leaves, sliced_leaves, original_leaves = (_named_leaves(value) for value in (expected, found, original))
    if [name for name, _ in masked_leaves] != [name for name, _ in sliced_leaves]:
        yield OutputProof("output", (), math.inf, math.inf, why=f"{len(masked_leaves)} output values became {len(sliced_leaves)}")
        return
    for (name, a), (_, b), (_, before) in zip(masked_leaves, sliced_leaves, original_leaves, strict=True):
        difference = numbers.compare(a, b)
        finite = not isinstance(a, Tensor) or bool(torch.isfinite(a).any())
        shape = tuple(a.shape) if isinstance(a, Tensor) else ()
        yield OutputProof(name, shape, difference.relative, numbers.compare(before, a).relative, finite, difference.why)


def _named_leaves(value: Any) -> list[tuple[str, Any]]:
    named = []
    for path, leaf in pytree.tree_leaves_with_path(value):
        name = f"output{pytree.keystr(path)}"
        parts = list(numbers.leaves(leaf))
        named += [(name, leaf)] if len(parts) == 1 else [(f"{name}.{place}", part) for place, part in enumerate(parts)]
    return named


def _weaknesses(proof: PruningProof) -> Iterator[str]:
    if proof.removed == 0:
        yield "nothing is removed, so nothing was shown"
    elif not any(output.finite for output in proof.outputs):
        yield "the outputs have no finite number, so nothing was shown"
    elif proof.is_empty:
        yield "the removal does not change any output, so nothing was shown (are the weights, or those of a head, zero?)"


def _at(source: str | None) -> str:
    return f" at {source}" if source else ""
