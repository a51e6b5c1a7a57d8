"""The definitions of operations on uint8, against exact arithmetic."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxcompress.errors import InputError
from fxcompress.ir.activation import Activation
from fxcompress.quant.affine import QParams
from fxcompress.quant.elementwise import QuantActivation, QuantAdd, QuantMean, QuantMul, clamp_of
from fxcompress.quant.pooling import QuantAdaptiveAvgPool, QuantAvgPool, QuantMaxPool

FIRST = torch.arange(256, dtype=torch.uint8).repeat_interleave(256)
SECOND = torch.arange(256, dtype=torch.uint8).repeat(256)
RELU, RELU6, SILU = Activation("relu"), Activation("hardtanh", (0.0, 6.0)), Activation("silu")
ZEROS = (0, 3, 128, 254, 255)


def _params(seed: int, count: int) -> list[QParams]:
    numbers = random.Random(seed)
    return [QParams(2.0 ** numbers.uniform(-9, 3), numbers.choice((0, 255, numbers.randrange(256)))) for _ in range(count)]


def _real(q: Tensor, p: QParams) -> Tensor:
    return (q.double() - p.zero_point) * p.scale


def _off(got: Tensor, real: Tensor, p: QParams) -> float:
    """The largest distance of integers from the real numbers they stand for, in steps; what lies outside the range is clamped."""
    return float((got.double() - (real / p.scale + p.zero_point).clamp(0, p.high)).abs().max())


@pytest.mark.parametrize("activation", [None, RELU, RELU6, Activation("hardtanh", (-1.0, 0.5))], ids=str)
@pytest.mark.parametrize("seed", range(12))
def test_a_sum_is_within_a_hundredth_of_a_step_of_the_nearest_integer(seed: int, activation: Activation | None) -> None:
    a, b, out = _params(seed, 3)
    real = _real(FIRST, a) + _real(SECOND, b)
    got = QuantAdd(a, b, out, activation)(FIRST, SECOND)
    limits = (0, 255) if activation is None else clamp_of(activation, out)
    assert limits is not None
    steps = (real / out.scale + out.zero_point).clamp(*limits)
    assert float((got.double() - steps).abs().max()) <= 0.5 + max(1.0, a.scale / out.scale, b.scale / out.scale) / 128


def test_a_sum_is_exactly_the_formula() -> None:
    a, b, out = QParams(0.1, 3), QParams(0.037, 250), QParams(0.11, 17)
    module = QuantAdd(a, b, out)
    fixed = module.fixed_point()
    assert fixed is not None
    m_a, m_b, shift = fixed
    assert m_a == round(Fraction(a.scale) / Fraction(out.scale) * 2**shift)
    got = module(FIRST, SECOND).tolist()
    for i in range(0, 65536, 17):
        exact = Fraction(m_a * (i // 256 - 3) + m_b * (i % 256 - 250), 2**shift)
        assert got[i] == min(max(round(exact) + 17, 0), 255)  # round() of a Fraction takes halves to even


def test_multipliers_of_a_sum_keep_all_of_it_within_float32() -> None:
    for seed in range(200):
        fixed = QuantAdd(*_params(seed, 3)).fixed_point()
        assert fixed is not None
        assert 255 * (fixed[0] + fixed[1]) < 2**24
        assert max(fixed[:2]) >= 2**14


@pytest.mark.parametrize("seed", range(12))
def test_a_product_is_the_nearest_integer(seed: int) -> None:
    a, b, out = _params(seed, 3)
    got = QuantMul(a, b, out)(FIRST, SECOND)
    assert _off(got, _real(FIRST, a) * _real(SECOND, b), out) <= 0.501
    gate = torch.rand(65536)
    assert _off(QuantMul(a, None, out)(FIRST, gate), _real(FIRST, a) * gate.double(), out) <= 0.501


@pytest.mark.parametrize("kind", [QuantAdd, QuantMul])
def test_activations_that_do_more_than_clamp_and_float_results(kind: type[QuantAdd] | type[QuantMul]) -> None:
    a, b, out = QParams(0.02, 100), QParams(0.03, 0), QParams(0.05, 12)
    real = _real(FIRST, a) + _real(SECOND, b) if kind is QuantAdd else _real(FIRST, a) * _real(SECOND, b)
    assert _off(kind(a, b, out, SILU)(FIRST, SECOND), F.silu(real), out) <= 0.501
    assert torch.allclose(kind(a, b, None, SILU)(FIRST, SECOND).double(), F.silu(real), atol=1e-5)
    other = torch.randn(65536)
    real = _real(FIRST, a) + other.double() if kind is QuantAdd else _real(FIRST, a) * other.double()
    assert _off(kind(a, None, out)(FIRST, other), real, out) <= 0.501
    assert torch.allclose(kind(a, None, None, RELU)(FIRST, other).double(), F.relu(real), atol=1e-5)


@pytest.mark.parametrize("scales", [(2.0**-90, 2.0**-90, 2.0**40), (2.0**60, 2.0**60, 2.0**-90)])
def test_scales_far_apart_give_zero_or_the_ends(scales: tuple[float, ...]) -> None:
    a, b, out = (QParams(s, z) for s, z in zip(scales, (3, 7, 100), strict=True))
    for module in (QuantAdd(a, b, out), QuantMul(a, b, out)):
        got = module(FIRST, SECOND)
        real = _real(FIRST, a) + _real(SECOND, b) if isinstance(module, QuantAdd) else _real(FIRST, a) * _real(SECOND, b)
        assert torch.equal(got.double(), (real / out.scale + out.zero_point).clamp(0, 255).round())


def test_few_bits_stay_few() -> None:
    a, b, out = QParams(0.1, 3, 4), QParams(0.1, 15, 4), QParams(0.02, 7, 4)
    few = torch.arange(16, dtype=torch.uint8)
    for module in (QuantAdd(a, b, out), QuantMul(a, b, out)):
        assert int(module(few[:, None], few).max()) == 15


@pytest.mark.parametrize("name", ["silu", "sigmoid", "tanh", "hardswish", "hardsigmoid", "mish", "relu"])
@pytest.mark.parametrize("zero_point", ZEROS)
def test_an_activation_is_its_real_value_rounded(name: str, zero_point: int) -> None:
    source, out = QParams(0.05, zero_point), QParams(0.03, 30)
    every = torch.arange(256, dtype=torch.uint8)
    got = QuantActivation(source, out, Activation(name))(every.view(4, 8, 8))
    real = Activation(name).apply(_real(every, source)).view(4, 8, 8)
    assert _off(got, real, out) <= 0.5 + 1e-9


def test_a_mean_is_the_mean() -> None:
    q, source, out = torch.randint(0, 256, (2, 5, 7, 9), dtype=torch.uint8), QParams(0.1, 77), QParams(0.03, 128)
    real = _real(q, source).mean((2, 3), keepdim=True)
    assert torch.allclose(QuantMean(source, None, (-2, -1), True)(q).double(), real, atol=1e-6)
    assert _off(QuantMean(source, out, (2, 3), True)(q), real, out) <= 0.501
    assert QuantMean(source, out, (1,))(q).shape == (2, 7, 9)


def test_a_mean_of_very_many() -> None:
    q = torch.full((1, 300, 300), 255, dtype=torch.uint8)
    assert QuantMean(QParams(1.0, 0), None, (1, 2))(q).item() == pytest.approx(255, abs=1e-4)


POOLS = [((3, 3), (2, 2), (1, 1)), ((2, 2), (2, 2), (0, 0)), ((3, 2), (1, 3), (1, 0)), ((5, 5), (3, 3), (2, 2)), ((7, 1), (1, 1), (3, 0))]


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("numbers", POOLS, ids=str)
def test_pooling_is_that_of_torch(numbers: tuple[tuple[int, int], ...], ceil_mode: bool) -> None:
    q, source, out = torch.randint(0, 256, (2, 3, 13, 11), dtype=torch.uint8), QParams(0.1, 200), QParams(0.05, 100)
    for include_pad in (False, True):
        real = F.avg_pool2d(_real(q, source), *numbers, ceil_mode, include_pad)
        pool = QuantAvgPool(source, None, *numbers, ceil_mode=ceil_mode, count_include_pad=include_pad)
        assert torch.allclose(pool(q).double(), real, atol=1e-5)
        assert pool(q).shape == real.shape
        pool = QuantAvgPool(source, out, *numbers, ceil_mode=ceil_mode, count_include_pad=include_pad)
        assert _off(pool(q), real, out) <= 0.501
    for dilation in (1, 2):
        if 13 + 2 * numbers[2][0] > dilation * (numbers[0][0] - 1) and dilation * (numbers[0][1] - 1) < 11:
            got = QuantMaxPool(*numbers, (dilation, dilation), ceil_mode)(q)
            assert torch.equal(got.double(), F.max_pool2d(q.double(), *numbers, dilation, ceil_mode))


def test_pooling_in_one_and_three_dimensions() -> None:
    source = QParams(0.1, 9)
    line, block = (torch.randint(0, 256, shape, dtype=torch.uint8) for shape in ((2, 3, 13), (1, 2, 5, 6, 7)))
    assert torch.allclose(
        QuantAvgPool(source, None, (3,), (2,), (1,))(line).double(), F.avg_pool1d(_real(line, source), 3, 2, 1), atol=1e-5
    )
    three = ((3, 3, 3), (2, 2, 2), (1, 1, 1))
    assert torch.allclose(QuantAvgPool(source, None, *three)(block).double(), F.avg_pool3d(_real(block, source), 3, 2, 1), atol=1e-5)
    assert torch.equal(QuantMaxPool((3,), (2,), (1,), (1,))(line).float(), F.max_pool1d(line.float(), 3, 2, 1))
    assert torch.equal(QuantMaxPool(*three, (1, 1, 1))(block).float(), F.max_pool3d(block.float(), 3, 2, 1))


def test_a_divisor_of_the_users_own() -> None:
    q, source = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8), QParams(0.1, 9)
    real = F.avg_pool2d(_real(q, source), 2, 2, divisor_override=7)
    assert torch.allclose(QuantAvgPool(source, None, (2, 2), (2, 2), (0, 0), divisor=7)(q).double(), real, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (3, 4), (13, 11), (7, None), (20, 2)], ids=str)
def test_adaptive_pooling_is_that_of_torch(size: tuple[int | None, int | None]) -> None:
    q, source, out = torch.randint(0, 256, (2, 3, 13, 11), dtype=torch.uint8), QParams(0.1, 200), QParams(0.05, 100)
    real = nn.AdaptiveAvgPool2d(size)(_real(q, source))
    assert torch.allclose(QuantAdaptiveAvgPool(source, None, size)(q).double(), real, atol=1e-5)
    assert _off(QuantAdaptiveAvgPool(source, out, size)(q), real, out) <= 0.501


def test_pools_refuse_numbers_that_do_not_fit() -> None:
    with pytest.raises(InputError, match="one number per spatial dimension"):
        QuantMaxPool((2, 2), (2,), (0, 0), (1, 1))
