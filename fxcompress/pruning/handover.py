"""How a plan travels from the pass that makes it to the pass that applies it: as JSON text in ``module.meta``.

Copies and files of a graph keep it, so a plan may be made today and applied tomorrow. Within a process the text carries
the plan that it was made of and the graph that was sliced to make it, so that nothing large is done twice.
"""

from __future__ import annotations

from torch.fx import GraphModule

from fxcompress.analysis.channels import ChannelDependencyGraph
from fxcompress.pruning.plan import PruningPlan

WAITING = "fxcompress_plan"
APPLIED = "fxcompress_applied_plan"


class _Text(str):
    """A plan's JSON, the plan, and the graph that it gives for some dependencies."""

    plan: PruningPlan
    result: tuple[ChannelDependencyGraph, GraphModule] | None

    @classmethod
    def of(cls, plan: PruningPlan, result: tuple[ChannelDependencyGraph, GraphModule] | None = None) -> _Text:
        text = cls(plan.to_json())
        text.plan, text.result = plan, result
        return text


def _read(text: object) -> PruningPlan | None:
    if isinstance(text, _Text):
        return text.plan
    return PruningPlan.from_json(text) if isinstance(text, str) else None


def leave(module: GraphModule, plan: PruningPlan, result: tuple[ChannelDependencyGraph, GraphModule] | None = None) -> None:
    """Put a plan down for whoever applies it; one that waits already is replaced.

    Args:
        result: dependencies of ``module``, and the graph that the plan makes of it.
    """
    module.meta[WAITING] = _Text.of(plan, result)


def prepared(module: GraphModule, deps: ChannelDependencyGraph) -> GraphModule | None:
    """The result of the waiting plan, if it was left with it for the very same dependencies."""
    text = module.meta.get(WAITING)
    known = text.result if isinstance(text, _Text) else None
    return known[1] if known is not None and known[0] is deps else None


def waiting(module: GraphModule) -> PruningPlan | None:
    """The plan that waits to be applied to this graph."""
    return _read(module.meta.get(WAITING))


def settle(module: GraphModule, plan: PruningPlan, source: GraphModule | None = None) -> None:
    """Note that a plan has been applied to this graph. ``source``: the graph in which it waited."""
    known = [(source or module).meta.get(WAITING), module.meta.get(APPLIED)]
    text = next((t for t in known if isinstance(t, _Text) and t.plan is plan), None) or _Text.of(plan)
    text.result = None
    module.meta.pop(WAITING, None)
    module.meta[APPLIED] = text


def applied(module: GraphModule) -> PruningPlan | None:
    """The plan that this graph was made by; the last of several."""
    return _read(module.meta.get(APPLIED))
