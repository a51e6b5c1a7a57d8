"""Facts about a graph, computed when somebody asks, kept until a pass changes the graph."""

from __future__ import annotations

from typing import Self, TypeVar

from torch.fx import GraphModule

from fxcompress.ir.inputs import Inputs


class Analysis:
    """A fact about one graph. Made by :class:`Analyses` on first use."""

    def __init__(self, module: GraphModule, inputs: Inputs, analyses: Analyses) -> None:
        self.module, self.inputs, self.analyses = module, inputs, analyses

    def carried(self, analyses: Analyses) -> Self | None:
        """The same fact for ``analyses.module``, a copy of this module with the same nodes; None where it must be found anew."""
        return None

    @classmethod
    def of(cls, module: GraphModule, inputs: Inputs) -> Self:
        return Analyses(module, inputs).get(cls)


A = TypeVar("A", bound=Analysis)


class Analyses:
    """The facts known of one graph on its example inputs."""

    def __init__(self, module: GraphModule, inputs: Inputs) -> None:
        self.module, self.inputs = module, inputs
        self._known: dict[type[Analysis], Analysis] = {}

    def get(self, kind: type[A]) -> A:
        """The fact of this kind, computed now if it is not known."""
        if kind not in self._known:
            self._known[kind] = kind(self.module, self.inputs, self)
        found = self._known[kind]
        assert isinstance(found, kind)
        return found

    def carried(self, copy: GraphModule) -> Analyses:
        """What is known of a copy with the same nodes in the same order."""
        new = Analyses(copy, self.inputs)
        found = {kind: fact.carried(new) for kind, fact in self._known.items()}
        new._known = {kind: fact for kind, fact in found.items() if fact is not None}
        return new

    def drop(self, preserved: frozenset[type[Analysis]] = frozenset()) -> None:
        """Forget every fact that is not among ``preserved``."""
        self._known = {kind: fact for kind, fact in self._known.items() if kind in preserved}
