"""Affine quantization against exact rational arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fxcompress.errors import InputError
from fxcompress.quant.affine import QParams, quantize_weight, weight_limit, weight_scale

ALL_BITS = range(2, 9)


def expected(x: Tensor, params: QParams, *, zero_point_first: bool) -> list[int]:
    """The definition, with float32 products by numpy and rounding by exact fractions."""
    inverse = np.float32(1) / np.float32(params.scale)
    found = []
    for value in x.tolist():
        quotient = float(np.float32(value) * inverse)
        if math.isinf(quotient):
            found.append(params.high if quotient > 0 else 0)
            continue
        shifted = float(np.float32(quotient) + np.float32(params.zero_point)) if zero_point_first else quotient
        whole = round(Fraction(shifted)) + (0 if zero_point_first else params.zero_point)
        found.append(min(max(whole, 0), params.high))
    return found


scales = st.floats(2.0**-20, 2.0**20, width=32)
numbers = st.lists(st.floats(-(2.0**23), 2.0**23, width=32), min_size=1, max_size=20)


@given(scales, st.integers(0, 255), numbers, st.lists(st.integers(-600, 600), max_size=10))
def test_quantize_and_store_round_as_they_say(scale: float, zero_point: int, values: list[float], halves: list[int]) -> None:
    params = QParams(scale, zero_point)
    ties = [h / 2 * params.scale for h in halves]
    x = torch.tensor(values + ties, dtype=torch.float32)
    with np.errstate(over="ignore"):
        assert params.quantize(x).tolist() == expected(x, params, zero_point_first=False)
        assert params.store(x).tolist() == expected(x, params, zero_point_first=True)


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("end", [0, 1])
def test_every_integer_comes_back(bits: int, end: int) -> None:
    params = QParams(0.037, end * (2**bits - 1), bits)
    q = torch.arange(2**bits, dtype=torch.uint8)
    x = params.dequantize(q)
    assert x.dtype is torch.float32
    assert torch.equal(params.quantize(x), q)
    assert torch.equal(params.store(x), q)
    assert torch.equal(params.fake(x), x)
    assert torch.equal(params.quantize(x.double()), q)
    assert params.range == (x[0].item(), x[-1].item()) or math.isclose(params.range[1], x[-1].item(), rel_tol=1e-6)


def test_halves_go_to_even_numbers() -> None:
    halves = torch.tensor([-0.5, 0.5, 1.5, 2.5, 3.5])
    assert QParams(1.0, 2).quantize(halves).tolist() == [2, 2, 4, 4, 6]
    assert QParams(1.0, 1).quantize(halves).tolist() == [1, 1, 3, 3, 5]
    assert QParams(1.0, 1).store(halves).tolist() == [0, 2, 2, 4, 4]  # the zero point comes first
    assert QParams(1.0, 0).store(halves).tolist() == [0, 0, 2, 2, 4]


def test_infinities_and_nan() -> None:
    x = torch.tensor([math.inf, -math.inf, math.nan, 3e38, -3e38])
    for params in (QParams(0.5, 7), QParams(1e-30, 7), QParams(0.5, 7, 4)):
        for q in (params.quantize(x), params.store(x), params.quantize(x.double())):
            assert q.tolist() == [params.high, 0, 7, params.high, 0]


def test_memory_layout_stays() -> None:
    x = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    assert QParams(0.1, 3).quantize(x).stride() == x.stride()
    assert QParams(0.1, 3).dequantize(QParams(0.1, 3).quantize(x)).stride() == x.stride()


@given(st.floats(-1e30, 1e30), st.floats(-1e30, 1e30), st.sampled_from(list(ALL_BITS)))
def test_a_range_is_covered_within_half_a_step(a: float, b: float, bits: int) -> None:
    low, high = min(a, b), max(a, b)
    params = QParams.of_range(low, high, bits)
    found_low, found_high = params.range
    step = params.scale * (0.5 + 1e-5)
    assert 0 <= params.zero_point <= params.high
    assert found_low <= min(low, 0.0) + step
    assert found_high >= max(high, 0.0) - step
    assert params.dequantize(torch.tensor([params.zero_point], dtype=torch.uint8)).item() == 0.0


def test_a_range_of_nothing() -> None:
    assert QParams.of_range(0.0, 0.0) == QParams(1.0, 0)
    assert QParams.of_range(2.0, 2.0).zero_point == 0
    assert QParams.of_range(-2.0, -2.0).zero_point == 255
    tiny = QParams.of_range(0.0, 1e-44)
    assert torch.isfinite(torch.tensor(tiny.inverse()))


def test_a_scale_is_a_float32_number() -> None:
    params = QParams(0.1)
    assert params.scale == float(np.float32(0.1))
    assert params.inverse() == float(np.float32(1) / np.float32(0.1))
    assert params.inverse(torch.float64) == 1 / params.scale
    assert QParams(0.1) == QParams(params.scale)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        *(((scale,), "scale") for scale in (0.0, -1.0, math.inf, math.nan, 1e39)),
        *((values, "zero point") for values in ((1.0, 256), (1.0, -1), (1.0, 16, 4))),
        *((values, "bits") for values in ((1.0, 0, 9), (1.0, 0, 1))),
    ],
)
def test_impossible_parameters(arguments: tuple[float | int, ...], text: str) -> None:
    with pytest.raises(InputError, match=text):
        QParams(*arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("shape", [(5, 3), (5, 3, 3), (4, 2, 3, 3), (2, 2, 2, 2, 2)])
def test_weights_per_output_channel(bits: int, shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape) * torch.logspace(-3, 3, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    scale = weight_scale(weight, bits)
    q = quantize_weight(weight, scale, bits)
    limit = weight_limit(bits)
    assert q.dtype is torch.int8
    assert q.shape == weight.shape
    assert q.abs().flatten(1).amax(1).tolist() == [limit] * shape[0]
    for channel, s, row in zip(q.flatten(1), scale.tolist(), weight.flatten(1).tolist(), strict=True):
        assert channel.tolist() == [min(max(round(Fraction(w) / Fraction(s)), -limit), limit) for w in row]


def test_weights_of_zero() -> None:
    weight = torch.zeros(2, 3)
    weight[1, 2] = 1e-40
    scale = weight_scale(weight)
    assert scale[0].item() == 1.0
    assert torch.isfinite(1 / scale).all()
    assert quantize_weight(weight, scale)[0].tolist() == [0, 0, 0]
    assert weight_scale(torch.empty(3, 0)).tolist() == [1.0] * 3
    for bits in (1, 9):
        with pytest.raises(InputError, match="bits per weight"):
            weight_limit(bits)
