"""How a plan travels from the pass that makes it to the pass that applies it: in ``module.meta``.

Within a process the plan goes with the graph that was sliced to make it, so that nothing large is done twice. Copies of a
graph keep it; pickles and files keep its JSON text, so a plan may be made today and applied tomorrow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch.fx import GraphModule

from fxcompress.analysis.channels import ChannelDependencyGraph
from fxcompress.pruning.plan import PruningPlan

WAITING = "fxcompress_plan"
APPLIED = "fxcompress_applied_plan"


@dataclass(frozen=True)
class Handed:
    """A plan, and the graph that it gives for some dependencies."""

    plan: PruningPlan
    result: tuple[ChannelDependencyGraph, GraphModule] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Handed:
        return Handed(self.plan)

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (self.plan.to_json(),)


def _read(handed: object) -> PruningPlan | None:
    if isinstance(handed, Handed):
        return handed.plan
    return PruningPlan.from_json(handed) if isinstance(handed, str) else None


def leave(module: GraphModule, plan: PruningPlan, result: tuple[ChannelDependencyGraph, GraphModule] | None = None) -> None:
    """Put a plan down for whoever applies it; one that waits already is replaced.

    Args:
        result: dependencies of ``module``, and the graph that the plan makes of it.
    """
    module.meta[WAITING] = Handed(plan, result)


def prepared(module: GraphModule, deps: ChannelDependencyGraph) -> GraphModule | None:
    """The result of the waiting plan, if it was left with it for the very same dependencies."""
    handed = module.meta.get(WAITING)
    known = handed.result if isinstance(handed, Handed) else None
    return known[1] if known is not None and known[0] is deps else None


def waiting(module: GraphModule) -> PruningPlan | None:
    """The plan that waits to be applied to this graph."""
    return _read(module.meta.get(WAITING))


def settle(module: GraphModule, plan: PruningPlan) -> None:
    """Note that a plan has been applied to this graph."""
    module.meta.pop(WAITING, None)
    module.meta[APPLIED] = Handed(plan)


def applied(module: GraphModule) -> PruningPlan | None:
    """The plan that this graph was made by; the last of several."""
    return _read(module.meta.get(APPLIED))
