"""Calibration data as loaders give it: what is taken as inputs, what as targets, and what is left out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxcompress.api.batches import calibration_of
from fxcompress.errors import InputError

X, Y = torch.randn(2, 3), torch.tensor([1, 0])


class One(nn.Module):
    """forward(pixels, scale=None)"""

    def forward(self, pixels: Tensor, scale: Tensor | None = None) -> Tensor:
        return pixels if scale is None else pixels * scale


class Two(nn.Module):
    """forward(a, b)"""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b


@pytest.mark.parametrize(
    ("model", "example", "batch"),
    [
        (One(), X, X),
        (One(), X, (X,)),
        (One(), X, [X]),
        (One(), X, (X, Y)),  # and not a scale, which the example has not
        (One(), X, [X, Y]),
        (One(), X, (X, Y, ["a", "b"])),
        (One(), X, ((X,), Y)),
        (One(), X, ({"pixels": X}, Y)),
        (One(), X, {"pixels": X}),
        (One(), X, {"pixels": X, "label": Y, "name": ["a", "b"]}),
        (One(), {"pixels": X}, {"pixels": X, "label": Y}),
        (One(), {"pixels": X}, {"label": Y, "pixels": X}),
        (Two(), (X, X), (X, X)),
        (Two(), (X, X), [X, X]),
        (Two(), (X, X), (X, X, Y)),
        (Two(), (X, X), ((X, X), Y)),
        (Two(), (X, X), {"b": X, "a": X, "y": Y}),
    ],
)
def test_what_loaders_give(model: nn.Module, example: Any, batch: Any) -> None:
    (inputs,) = calibration_of([batch], None, model, example).batches
    tensors = inputs.tensors()
    assert len(tensors) == (2 if isinstance(model, Two) else 1)
    assert all(t is X for t in tensors)
    assert torch.equal(inputs.call(model), 2 * X if isinstance(model, Two) else X)


@pytest.mark.parametrize("batch", [(X, Y), ((X,), Y), (X, Y, "name"), ({"pixels": X}, Y)])
def test_targets(batch: Any) -> None:
    seen: list[Any] = []
    data = calibration_of([batch, batch], lambda output, target: seen.append(target) or output.sum(), One(), X)
    assert data.loss is not None
    data.loss(X, 1)
    assert seen == [Y] or seen[0] is Y


@pytest.mark.parametrize("batch", [{"image": X}, 3, "text", (Y,), {"label": Y}, torch.randn(2, 3, 1), torch.full((2, 3), float("nan"))])
def test_what_does_not_fit(batch: Any) -> None:
    with pytest.raises(InputError) as found:
        calibration_of([batch], None, One(), X)
    assert found.value.hint


@pytest.mark.parametrize("batches", [X, {"pixels": X}, "folder", 3])
def test_one_batch_is_not_several(batches: Any) -> None:
    with pytest.raises(InputError, match="not a number of batches"):
        calibration_of(batches, None, One(), X)
