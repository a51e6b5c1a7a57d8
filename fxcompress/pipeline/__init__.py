"""Passes, their text, their registry, and the frame that checks them."""

from fxcompress.pipeline.base import Calibration, Pass, PassContext, PassResult, Property, Semantics, StepRecord
from fxcompress.pipeline.pipeline import Known, Pipeline, Run
from fxcompress.pipeline.proof import Proof
from fxcompress.pipeline.rule_pass import RulePass
from fxcompress.pipeline.single import run_pass
from fxcompress.rewrite import Remark

__all__ = [
    "Calibration",
    "Known",
    "Pass",
    "PassContext",
    "PassResult",
    "Pipeline",
    "Proof",
    "Property",
    "Remark",
    "RulePass",
    "Run",
    "Semantics",
    "StepRecord",
    "run_pass",
]
