"""What ``fxcompress check`` found out about one model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from fxcompress.report.difference import Difference, Gate


class Status(IntEnum):
    """The worst of all models is the exit status of the command."""

    HOLDS = 0
    VIOLATED = 1
    FAILED = 2

    @property
    def word(self) -> str:
        """As reports name it: "holds", "violated" or "failed"."""
        return self.name.lower()


@dataclass(frozen=True)
class Outcome:
    """``difference``: of the model to its baseline, with its gates. ``error``: why it could not be checked. ``note``: what was written."""

    name: str
    difference: Difference
    error: str = ""
    note: str = ""

    @property
    def status(self) -> Status:
        if self.error:
            return Status.FAILED
        return Status.HOLDS if all(gate.holds for gate in self.difference.gates) else Status.VIOLATED


def failed(name: str, baseline: str, error: str) -> Outcome:
    """Of a model that could not be checked; its one gate, which is violated, says so in every form of the report."""
    gate = Gate("check", False, "the model can be checked", "it failed", error)
    return Outcome(name, Difference(baseline, name, 0, 0, 0, gates=(gate,)), error)


def worst(outcomes: Iterable[Outcome]) -> Status:
    """The exit status."""
    return max((outcome.status for outcome in outcomes), default=Status.HOLDS)
