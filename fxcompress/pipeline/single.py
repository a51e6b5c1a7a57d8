"""Running one pass."""

from __future__ import annotations

from torch.fx import GraphModule

from fxcompress.analysis import Analyses
from fxcompress.errors import FxCompressError, GraphError, PassError
from fxcompress.ir.inputs import Inputs
from fxcompress.ir.verify import verify as lint
from fxcompress.pipeline.base import NO_DATA, Calibration, Pass, PassContext, PassResult


def run_pass(
    step: Pass,
    module: GraphModule,
    inputs: Inputs,
    analyses: Analyses | None = None,
    calibration: Calibration = NO_DATA,
) -> PassResult:
    """Run one pass and lint what it gives.

    Raises:
        PassError: it raised, or gave no PassResult. GraphError: its graph is broken.
    """
    ctx = PassContext(inputs, analyses or Analyses(module, inputs), calibration)
    try:
        result = step.run(module, ctx)
    except FxCompressError:
        raise
    except Exception as error:
        raise PassError(f"pass '{step}' raised {type(error).__name__}: {error}") from error
    if not isinstance(result, PassResult) or not isinstance(result.module, GraphModule):
        raise PassError(f"pass '{step}' returned {type(result).__name__}", hint="return PassResult(module, changed, ...)")
    try:
        lint(result.module)
    except GraphError as error:
        raise GraphError(f"pass '{step}' left a broken graph: {error.message}") from None
    return result


def advance(analyses: Analyses, result: PassResult) -> Analyses:
    """What is known of the graph that a pass gave."""
    if result.module is not analyses.module:
        return Analyses(result.module, analyses.inputs)
    if result.changed:
        analyses.drop(result.preserved)
    return analyses
