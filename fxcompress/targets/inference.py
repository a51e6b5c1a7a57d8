"""What every lowered module says when it is asked to train."""

from __future__ import annotations

from typing import Self

from torch import Tensor, nn

from fxcompress.errors import ModeError


def constant(tensor: Tensor) -> Tensor:
    """The same numbers, of which no gradient is taken; a parameter stays one."""
    return nn.Parameter(tensor.detach(), requires_grad=False) if isinstance(tensor, nn.Parameter) else tensor.detach()


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
