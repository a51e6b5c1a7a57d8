"""The front doors: one call that prunes, one that quantizes, one that captures, rewrites, lowers, measures and reports."""

from fxcompress.api.compressing import REWRITES, compress, quantize
from fxcompress.api.pruning import plan, prune
from fxcompress.api.tracing import trace
from fxcompress.api.work import NATIVE

__all__ = ["NATIVE", "REWRITES", "compress", "plan", "prune", "quantize", "trace"]
