"""fxcompress makes trained PyTorch networks smaller and faster by rewriting their torch.fx graph, and proves every rewrite.

>>> small = fxcompress.compress(model, example_inputs)  # doctest: +SKIP
>>> print(small.report)  # doctest: +SKIP
"""

from importlib.metadata import version

from fxcompress import errors
from fxcompress.api import compress, trace
from fxcompress.ir.inputs import Inputs
from fxcompress.pipeline import Pass, PassContext, PassResult, Pipeline, Property, Remark, RulePass, Semantics
from fxcompress.report import Report
from fxcompress.result import load
from fxcompress.rewrite import Rule, Rules
from fxcompress.storage import save

__version__ = version("fxcompress")

__all__ = [
    "Inputs",
    "Pass",
    "PassContext",
    "PassResult",
    "Pipeline",
    "Property",
    "Remark",
    "Report",
    "Rule",
    "RulePass",
    "Rules",
    "Semantics",
    "compress",
    "errors",
    "load",
    "save",
    "trace",
]
