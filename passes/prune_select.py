"""Chooses the channels that shall go.

The channels are scored, and the least important ones are chosen, see :mod:`fxcompress.pruning.criteria` and
:mod:`fxcompress.pruning.select`. What comes out is a plan that is left in ``module.meta``; the graph stays as it is, and
``prune-apply`` does what the plan says.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import ClassVar, Self

from torch.fx import GraphModule

from fxcompress.analysis.channels import ChannelDependencyGraph
from fxcompress.ir.inputs import Inputs
from fxcompress.pipeline import Pass, PassContext, PassResult, Pipeline, Property, Remark, Semantics
from fxcompress.pruning.budget import Fitted, fitted
from fxcompress.pruning.clock import MachineClock
from fxcompress.pruning.criteria import Criterion, Scoring, scored
from fxcompress.pruning.criteria import criterion as criterion_of
from fxcompress.pruning.handover import leave
from fxcompress.pruning.options import Budget, Normalization, Prune, Reduction, Scope
from fxcompress.pruning.plan import PruningPlan, make_plan
from fxcompress.pruning.select import select
from fxcompress.pruning.slicing import sliced
from fxcompress.targets.cpu import CpuTarget
from fxcompress.targets.latency_cache import cache_path

Limit = float | str | None

_NO_CHANNELS = ("it is the window of a convolution", "it is looked up by number")
"""Why axes are kept that nobody would call channels; they are in the plan, and not worth a remark."""

_BUDGET = ("macs", "params", "bytes", "latency")


@dataclass(frozen=True)
class PruneSelect(Pass):
    """Chooses channels to remove and leaves a plan; the options are those of fxcompress.Prune and its Budget."""

    name: ClassVar[str] = "prune-select"
    semantics: ClassVar[Semantics] = Semantics.EXACT
    establishes: ClassVar[frozenset[Property]] = frozenset({Property.PLANNED})
    ratio: float = 0.5
    criterion: str | Criterion = "l2"
    reduction: Reduction = "mean"
    normalize: Normalization = "mean"
    scope: Scope = "local"
    macs: Limit = None
    params: Limit = None
    bytes: Limit = None
    latency: Limit = None
    ratios: tuple[tuple[str, float], ...] = ()
    ignore: tuple[str, ...] = ()
    round_to: int | None = None
    min_channels: int = 1
    max_ratio: float = 0.9

    def __post_init__(self) -> None:
        criterion_of(self.options.criterion)  # a wrong name is answered here

    @classmethod
    def of(cls, options: Prune) -> Self:
        """The pass that does what ``options`` say (``compensate`` is said to ``prune-apply``)."""
        limits = {} if options.budget is None else {name: getattr(options.budget, name) for name in _BUDGET}
        same = {f.name: getattr(options, f.name) for f in fields(options) if f.name not in ("budget", "compensate")}
        return cls(**same, **limits)

    @property
    def options(self) -> Prune:
        """What ``fxcompress.prune`` calls the same."""
        limits = {name: getattr(self, name) for name in _BUDGET}
        budget = Budget(**limits) if any(value is not None for value in limits.values()) else None
        same = {f.name: getattr(self, f.name) for f in fields(Prune) if f.name not in ("budget", "compensate")}
        return Prune(**same, budget=budget)

    def run(self, module: GraphModule, ctx: PassContext) -> PassResult:
        deps = ctx.analyses.get(ChannelDependencyGraph)
        options, data = self.options, ctx.calibration
        scores = scored(options.criterion, Scoring(deps, module, ctx.inputs, data.batches, data.loss, options.reduction))
        if options.budget is None:
            found = Fitted(select(deps, options, scores))
        else:
            found = fitted(deps, options, scores, MachineClock.of(module, _deployed), cache_path())
        result = sliced(deps, found.keep)
        plan = make_plan(deps, found.keep, scores, options, latency=found.latency, result=result)
        leave(module, plan, (deps, result))
        remarks = [Remark(False, "latency", text) for text in found.remarks]
        return PassResult(module, False, remarks=(*remarks, *_pinned(plan)))


def _deployed(module: GraphModule, inputs: Inputs) -> GraphModule:
    """What will run, and is measured when a latency is asked for: norms folded, activations fused, on native kernels."""
    lower = ",lower" if CpuTarget().missing() is None else ""
    return Pipeline.parse(f"functionalize,drop-noops,fold-norm,fuse{lower}").execute(module, inputs, verify=False).module


def _pinned(plan: PruningPlan) -> Iterator[Remark]:
    for pinned in plan.pinned:
        if pinned.why in _NO_CHANNELS:
            continue
        yield Remark(False, pinned.parameter, f"{pinned.count} channels of axis {pinned.axis} stay: {pinned.why}", pinned.source)
