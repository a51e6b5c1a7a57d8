"""What a pass is: a frozen object with a name and typed options that takes a graph and gives a graph."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar

from torch import Tensor
from torch.fx import GraphModule

from fxcompress.analysis import Analyses, Analysis
from fxcompress.ir.inputs import Inputs
from fxcompress.pipeline.options import pass_text
from fxcompress.rewrite import Remark


class Semantics(Enum):
    """What a pass promises about the numbers; the pipeline holds it to that."""

    EXACT = "the same bits"
    CLOSE = "equal but for rounding; checked in float64"
    LOSSY = "other numbers, reported; equal to a reference, checked in float64, if the pass gives one"


class Property(Enum):
    """What can be said of a graph after a pass."""

    FUNCTIONAL = "no node writes to memory that another node reads"
    PLANNED = "a plan waits that says which channels are removed"
    FUSED = "layers carry their activations and residuals"
    OBSERVED = "observers stand on the values that will be quantized"
    QUANTIZED = "values and weights lie on the grids of integers, in float arithmetic"
    INTEGER = "quantized operations compute with integers"
    LOWERED = "operations are bound to one machine's kernels"


@dataclass(frozen=True)
class Calibration:
    """Data for passes that look at values: inputs of the graph, and how good its output on them is.

    ``loss(output, i)`` is a scalar for the output on ``batches[i]``.
    """

    batches: tuple[Inputs, ...] = ()
    loss: Callable[[Any, int], Tensor] | None = None


NO_DATA = Calibration()


@dataclass(frozen=True)
class PassContext:
    """What a pass may look at besides the graph."""

    inputs: Inputs
    analyses: Analyses
    calibration: Calibration = NO_DATA


@dataclass(frozen=True)
class PassResult:
    """The graph after a pass. ``preserved`` names the analyses that still hold.

    ``reference``: of a LOSSY pass that can say what its result must compute, a function that gives such a graph; the
    result is held to agree with it but for rounding, in float64.
    """

    module: GraphModule
    changed: bool
    preserved: frozenset[type[Analysis]] = frozenset()
    remarks: tuple[Remark, ...] = ()
    steps: tuple[StepRecord, ...] = ()  # of a pipeline inside a pipeline
    reference: Callable[[], GraphModule] | None = None


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
