"""What a pass is: a frozen object with a name and typed options that takes a graph and gives a graph."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar

from torch.fx import GraphModule

from fxcompress.analysis import Analyses, Analysis
from fxcompress.ir.inputs import Inputs
from fxcompress.pipeline.options import pass_text
from fxcompress.rewrite import Remark


class Semantics(Enum):
    """What a pass promises about the numbers; the pipeline holds it to that."""

    EXACT = "the same bits"
    CLOSE = "equal but for rounding; checked in float64"
    LOSSY = "other numbers, reported and bounded"


class Property(Enum):
    """What can be said of a graph after a pass."""

    FUNCTIONAL = "no node writes to memory that another node reads"
    FUSED = "layers carry their activations and residuals"
    LOWERED = "operations are bound to one machine's kernels"


@dataclass(frozen=True)
class PassContext:
    """What a pass may look at besides the graph."""

    inputs: Inputs
    analyses: Analyses


@dataclass(frozen=True)
class PassResult:
    """The graph after a pass. ``preserved`` names the analyses that still hold."""

    module: GraphModule
    changed: bool
    preserved: frozenset[type[Analysis]] = frozenset()
    remarks: tuple[Remark, ...] = ()
    steps: tuple[StepRecord, ...] = ()  # of a pipeline inside a pipeline


@dataclass(frozen=True)
class Pass(ABC):
    """Base of all passes. Subclasses are frozen dataclasses whose fields are their options.

    ``run`` may change the graph that it is given in place and must return it, or another. It must not change tensors
    in place: give a module new parameters instead (``fxcompress.ir.edit``).
    """

    name: ClassVar[str]
    semantics: ClassVar[Semantics] = Semantics.CLOSE
    requires: ClassVar[frozenset[Property]] = frozenset()
    establishes: ClassVar[frozenset[Property]] = frozenset()
    forbids: ClassVar[frozenset[Property]] = frozenset({Property.LOWERED})

    @abstractmethod
    def run(self, module: GraphModule, ctx: PassContext) -> PassResult:
        """Rewrite ``module``."""

    def __str__(self) -> str:
        return pass_text(self)


@dataclass(frozen=True)
class StepRecord:
    """What one pass of a run did. ``error`` is the largest relative difference to the step before, in the model's dtype."""

    text: str
    changed: bool
    seconds: float
    remarks: tuple[Remark, ...] = field(default=())
    error: float | None = None

    @property
    def rewrites(self) -> int:
        return sum(remark.applied for remark in self.remarks)
