"""Reports: what was done to a model and what it brought, as data, plain text, Markdown, JSON and HTML."""

from fxcompress.report.environment import environment
from fxcompress.report.graphs import graph_view
from fxcompress.report.model import (
    Accuracy,
    Candidate,
    ChangedLine,
    Environment,
    GraphPair,
    GraphView,
    Measured,
    MissedLine,
    NodeView,
    PassLine,
    PrunedLine,
    Quantized,
    QuantLine,
    RankLine,
    Report,
)

__all__ = [
    "Accuracy",
    "Candidate",
    "ChangedLine",
    "Environment",
    "GraphPair",
    "GraphView",
    "Measured",
    "MissedLine",
    "NodeView",
    "PassLine",
    "PrunedLine",
    "QuantLine",
    "Quantized",
    "RankLine",
    "Report",
    "environment",
    "graph_view",
]
