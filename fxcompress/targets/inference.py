"""What every lowered module says when it is asked to train."""

from __future__ import annotations

from typing import Self

from torch import nn

from fxcompress.errors import ModeError


class InferenceOnly(nn.Module):
    """A module that stays in eval mode."""

    def train(self, mode: bool = True) -> Self:
        """Only ``train(False)`` is possible; anything else raises ModeError."""
        if mode:
            raise ModeError(
                f"{type(self).__name__} was lowered for inference and cannot be trained",
                hint="train the original model and compress it again",
            )
        return super().train(False)
