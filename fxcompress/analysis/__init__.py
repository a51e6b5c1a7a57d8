"""Facts about graphs: shapes, sharing, cost. Computed lazily, cached, dropped after a pass that changed the graph."""

from fxcompress.analysis.aliases import Aliases
from fxcompress.analysis.base import Analyses, Analysis
from fxcompress.analysis.cost import Cost
from fxcompress.analysis.shapes import Shapes
from fxcompress.analysis.sharing import Sharing

__all__ = ["Aliases", "Analyses", "Analysis", "Cost", "Shapes", "Sharing"]
