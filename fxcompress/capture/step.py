"""The failure of one step of the ladder; the next step is tried with this reason in the notes."""

from __future__ import annotations


class StepFailed(Exception):
    """Why a step could not capture the model, and the line of user code (``file:line``) that stopped it."""

    def __init__(self, reason: str, where: str | None = None, *, data_dependent: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.where = where
        self.data_dependent = data_dependent

    def __str__(self) -> str:
        return f"{self.reason} (at {self.where})" if self.where else self.reason
