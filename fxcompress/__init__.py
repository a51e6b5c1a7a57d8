"""fxcompress makes trained PyTorch networks smaller and faster by rewriting their torch.fx graph, and proves every rewrite.

>>> small = fxcompress.compress(model, example_inputs)  # doctest: +SKIP
>>> print(small.report)  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from fxcompress import errors

if TYPE_CHECKING:
    from fxcompress.api import compress, plan, prune, quantize, trace
    from fxcompress.api.comparing import diff, snapshot
    from fxcompress.api.explaining import explain
    from fxcompress.ir.inputs import Inputs
    from fxcompress.pipeline import Pass, PassContext, PassResult, Pipeline, Property, Remark, RulePass, Semantics
    from fxcompress.pruning.criteria import Criterion, Scoring
    from fxcompress.pruning.options import Budget, Prune
    from fxcompress.pruning.plan import PruningPlan
    from fxcompress.quant.options import Int8
    from fxcompress.report import Report
    from fxcompress.result import load
    from fxcompress.rewrite import Rule, Rules
    from fxcompress.storage import save

__version__ = version("fxcompress")

# Names are imported when they are first used: the command line shows its help without importing torch.
_HOMES = {
    "Budget": "fxcompress.pruning.options",
    "Criterion": "fxcompress.pruning.criteria",
    "Inputs": "fxcompress.ir.inputs",
    "Int8": "fxcompress.quant.options",
    "Pass": "fxcompress.pipeline",
    "PassContext": "fxcompress.pipeline",
    "PassResult": "fxcompress.pipeline",
    "Pipeline": "fxcompress.pipeline",
    "Property": "fxcompress.pipeline",
    "Prune": "fxcompress.pruning.options",
    "PruningPlan": "fxcompress.pruning.plan",
    "Remark": "fxcompress.pipeline",
    "Report": "fxcompress.report",
    "Rule": "fxcompress.rewrite",
    "RulePass": "fxcompress.pipeline",
    "Rules": "fxcompress.rewrite",
    "Scoring": "fxcompress.pruning.criteria",
    "Semantics": "fxcompress.pipeline",
    "compress": "fxcompress.api",
    "diff": "fxcompress.api.comparing",
    "explain": "fxcompress.api.explaining",
    "load": "fxcompress.result",
    "plan": "fxcompress.api",
    "prune": "fxcompress.api",
    "quantize": "fxcompress.api",
    "save": "fxcompress.storage",
    "snapshot": "fxcompress.api.comparing",
    "trace": "fxcompress.api",
}

__all__ = [
    "Budget",
    "Criterion",
    "Inputs",
    "Int8",
    "Pass",
    "PassContext",
    "PassResult",
    "Pipeline",
    "Property",
    "Prune",
    "PruningPlan",
    "Remark",
    "Report",
    "Rule",
    "RulePass",
    "Rules",
    "Scoring",
    "Semantics",
    "compress",
    "diff",
    "errors",
    "explain",
    "load",
    "plan",
    "prune",
    "quantize",
    "save",
    "snapshot",
    "trace",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fxcompress' has no attribute '{name}'")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
