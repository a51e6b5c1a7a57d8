"""Every exception that fxcompress raises on purpose.

::

    FxCompressError
    ├── InputError               example inputs or an argument are wrong
    ├── CaptureError             the model could not be turned into a graph
    │   └── UnsupportedModelError    it could be, but the result would be wrong (hooks, weight norm, ...)
    ├── GraphError               a graph breaks a rule of the dialect
    ├── PipelineError            something about passes
    │   ├── UnknownPassError         no such pass or option
    │   ├── OrderError               a pass stands before the one it needs
    │   ├── PassError                a pass raised
    │   ├── DishonestPassError       a pass said something untrue about its change
    │   └── EquivalenceError         a pass changed the numbers more than it promised
    ├── PlanError                a pruning plan contradicts itself, or was made for another network
    ├── TargetError              a target cannot run the graph, or is not installed
    ├── ModeError                training or gradients were asked of an inference-only module
    └── ArchiveError             a file cannot be written, or cannot be trusted
"""

from __future__ import annotations

__all__ = [
    "ArchiveError",
    "CaptureError",
    "DishonestPassError",
    "EquivalenceError",
    "FxCompressError",
    "GraphError",
    "InputError",
    "ModeError",
    "OrderError",
    "PassError",
    "PipelineError",
    "PlanError",
    "TargetError",
    "UnknownPassError",
    "UnsupportedModelError",
]


class FxCompressError(Exception):
    """Base of all errors. ``hint`` says what to do; it is printed after the message."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  -> {self.hint}" if self.hint else self.message


class InputError(FxCompressError, ValueError):
    """Example inputs or an argument do not fit the model."""


class CaptureError(FxCompressError):
    """No step of the capture ladder could turn the model into a graph."""


class UnsupportedModelError(CaptureError):
    """A graph could be made, but it would silently compute something else than the model."""


class GraphError(FxCompressError):
    """A graph breaks a rule of the dialect (see ``fxcompress.ir.verify``)."""


class PipelineError(FxCompressError):
    """Something about passes or their order."""


class UnknownPassError(PipelineError, LookupError):
    """A pass name or option that nobody has registered."""


class OrderError(PipelineError):
    """A pass stands in a pipeline before the one that establishes what it requires."""


class PassError(PipelineError):
    """A pass raised an exception."""


class DishonestPassError(PipelineError):
    """A pass reported a change it did not make, or made one it did not report."""


class EquivalenceError(PipelineError):
    """A pass changed the numbers by more than its semantics promise."""


class PlanError(FxCompressError):
    """A pruning plan contradicts itself, or was made for another network."""


class TargetError(FxCompressError):
    """A target is not installed or cannot run this graph."""


class ModeError(FxCompressError, RuntimeError):
    """Training or gradients were asked of a module that was lowered for inference."""


class ArchiveError(FxCompressError):
    """A saved model cannot be written, or a file cannot be trusted."""
