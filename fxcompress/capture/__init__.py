"""From a model to a graph: ``capture(model, example_inputs)``."""

from fxcompress.capture.captured import Captured, Part
from fxcompress.capture.ladder import capture

__all__ = ["Captured", "Part", "capture"]
