"""A pass that is a set of rewrite rules."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

from torch.fx import GraphModule

from fxcompress.analysis import Shapes
from fxcompress.pipeline.base import Pass, PassContext, PassResult
from fxcompress.rewrite import Rule, Rules, apply


@dataclass(frozen=True)
class RulePass(Pass):
    """Applies :meth:`rules` until none matches. Rewrites keep the value of every node that survives, so shapes stay known."""

    @abstractmethod
    def rules(self) -> Rules | Rule[Any]:
        """The rules of this pass, tried in order at every node."""

    def run(self, module: GraphModule, ctx: PassContext) -> PassResult:
        changed, remarks = apply(self.rules(), module, ctx.analyses)
        return PassResult(module, changed, frozenset({Shapes}), remarks)
