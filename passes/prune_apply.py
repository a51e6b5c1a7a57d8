"""Removes the channels that a plan names.

The result computes what the graph computes when every reader of a removed channel ignores it; statistics over channels
(layer norm, softmax) run over those that are left. :func:`fxcompress.pruning.mask.masked` is that graph, and the frame
compares the two in float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch.fx import GraphModule

from fxcompress.analysis.channels import ChannelDependencyGraph, Mask
from fxcompress.errors import InputError
from fxcompress.ir.effects import is_random
from fxcompress.ir.view import spec_of
from fxcompress.pipeline import Pass, PassContext, PassResult, Property, Remark, Semantics
from fxcompress.pruning.compensate import compensate
from fxcompress.pruning.handover import prepared, settle, waiting
from fxcompress.pruning.mask import masked
from fxcompress.pruning.plan import PruningPlan
from fxcompress.pruning.slicing import sliced
from fxcompress.pruning.unslicing import with_tensors_of


@dataclass(frozen=True)
class PruneApply(Pass):
    """Removes the channels that the waiting plan names; compensate fits what remains to calibration data."""

    name: ClassVar[str] = "prune-apply"
    semantics: ClassVar[Semantics] = Semantics.LOSSY
    requires: ClassVar[frozenset[Property]] = frozenset({Property.PLANNED})
    compensate: bool = False

    def run(self, module: GraphModule, ctx: PassContext) -> PassResult:
        plan = waiting(module)
        if plan is None:
            return PassResult(module, False, remarks=(Remark(False, "graph", "no plan waits; put prune-select before this"),))
        _check_steady(module)
        deps = ctx.analyses.get(ChannelDependencyGraph)
        keep = plan.keep(deps)
        remarks = tuple(_removed(plan))
        if keep.all():
            settle(module, plan)
            return PassResult(module, False, remarks=remarks)
        result = prepared(module, deps) or sliced(deps, keep)
        if self.compensate:
            found = compensate(deps, keep, result, ctx.calibration.batches)
            result, remarks = found.module, (*remarks, *found.remarks)
        settle(result, plan)
        return PassResult(result, True, remarks=remarks, reference=lambda: _reference(deps, keep, result, self.compensate))


def _reference(deps: ChannelDependencyGraph, keep: Mask, result: GraphModule, other_weights: bool) -> GraphModule:
    reference = masked(deps, keep)
    return with_tensors_of(result, reference, deps, keep) if other_weights else reference


def _check_steady(module: GraphModule) -> None:
    """A network that draws random numbers cannot be compared with one of another size."""
    node = next((node for node in module.graph.nodes if spec_of(node) is not None and is_random(node)), None)
    if node is not None:
        raise InputError(
            f"'{node.name}' draws random numbers, so it cannot be proven that the pruned network is right",
            hint="call model.eval() first; fxcompress.prune does that by itself, and undoes it afterwards",
        )


def _removed(plan: PruningPlan) -> Iterator[Remark]:
    for group in plan.groups:
        gone = group.channels - group.remaining
        why = f"; {group.reason}" if group.reason else ""
        yield Remark(bool(gone), group.name, f"{gone} of {group.channels} channels removed{why}")
    for statistic in plan.statistics:
        why = f"its statistic over axis {statistic.axis} runs over the channels that are left"
        yield Remark(True, statistic.node, why, statistic.source)
