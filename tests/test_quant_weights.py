"""Scales of weights against exhaustive searches in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fxcompress.errors import InputError
from fxcompress.quant.affine import quantize_weight
from fxcompress.quant.weights import WEIGHT_SCALES, least_error_scale, weight_scales

torch.set_num_threads(1)


def weights(kind: str, shape: tuple[int, ...] = (12, 9, 3, 3)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    normal = torch.randn(shape, generator=generator)
    if kind == "laplace":
        return torch.rand(shape, generator=generator).log() * normal.sign()
    if kind == "outlier":
        normal.flatten(1)[:, 4] = 30
    if kind == "sparse":
        return normal * (torch.rand(shape, generator=generator) < 0.1)
    if kind == "unequal":
        return normal * 10.0 ** torch.arange(-6, 6).reshape(-1, 1, 1, 1)
    return normal


KINDS = ["normal", "laplace", "outlier", "sparse", "unequal"]


def errors(weight: torch.Tensor, scale: np.ndarray, bits: int) -> np.ndarray:
    """Squared error of each channel, (O,), of ``round(w / s)`` within +-(2**(bits-1) - 1)."""
    limit = 2 ** (bits - 1) - 1
    rows = weight.double().flatten(1).numpy()
    per_row = scale.astype(np.float64)[:, None]
    return np.asarray(((np.clip(np.round(rows / per_row), -limit, limit) * per_row - rows) ** 2).sum(1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_min_max_makes_the_largest_weight_the_largest_integer(kind: str, bits: int) -> None:
    weight = weights(kind)
    scale = weight_scales(weight, bits)
    assert (scale.dtype, scale.shape) == (torch.float32, (12,))
    limit = 2 ** (bits - 1) - 1
    assert scale.tolist() == pytest.approx((weight.double().flatten(1).abs().amax(1) / limit).tolist(), rel=1e-6)
    assert quantize_weight(weight, scale, bits).flatten(1).abs().amax(1).tolist() == [limit] * 12


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_mse_finds_the_least_squared_error(kind: str, bits: int) -> None:
    weight = weights(kind)
    largest = weight_scales(weight, bits).numpy()
    found = errors(weight, weight_scales(weight, bits, "mse").numpy(), bits)
    tried = np.stack([errors(weight, largest * share, bits) for share in np.linspace(0.05, 1, 800)])
    assert (found <= 1.02 * tried.min(0)).all()
    assert found.mean() <= 1.005 * tried.min(0).mean()
    assert (found <= errors(weight, largest, bits) * (1 + 1e-5)).all()


def test_channels_do_not_depend_on_each_other() -> None:
    weight = weights("laplace", (40, 4000))
    whole = least_error_scale(weight, 4)
    alone = torch.cat([least_error_scale(row[None], 4) for row in weight])
    assert whole.tolist() == pytest.approx(alone.tolist(), rel=1e-3)


@pytest.mark.parametrize("method", sorted(WEIGHT_SCALES))
def test_unusual_weights(method: str) -> None:
    zeros = torch.zeros(3, 4)
    assert weight_scales(zeros, 8, method).tolist() == [1, 1, 1]
    assert weight_scales(torch.zeros(0, 4), 8, method).shape == (0,)
    assert weight_scales(torch.zeros(2, 0), 8, method).tolist() == [1, 1]
    single = weight_scales(torch.tensor([[5.0], [-3e38], [1e-45]]), 8, method)
    assert bool((single > 0).all() and single.isfinite().all())
    assert single[0].item() == pytest.approx(5 / 127)
    double = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert not weight_scales(double, 8, method).requires_grad


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_errors(bad: float) -> None:
    with pytest.raises(InputError, match="1 of 4 weights are NaN or infinite"):
        weight_scales(torch.tensor([[1.0, bad], [0.0, 2.0]]))
    with pytest.raises(InputError, match="no weight range 'max'"):
        weight_scales(torch.ones(2, 2), 8, "max")
    with pytest.raises(InputError, match="9 bits"):
        weight_scales(torch.ones(2, 2), 9, "mse")
