"""Count sketches against a sketch that is written down from its definition, and digests."""

from __future__ import annotations

import hashlib
import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxcompress.compare.sketch import BUCKETS, digest, distance, sketch


def _bits(what: str, count: int) -> list[int]:
    raw = hashlib.shake_256(f"fxcompress sketch {what}".encode()).digest(count // 8)
    return [1 if byte >> (7 - bit) & 1 else -1 for byte in raw for bit in range(8)]


_ELEMENTS, _PERIODS = _bits("elements", 2**20), _bits("periods", 2**12)


def _oracle(values: list[float], buckets: int) -> list[float]:
    """Element by element in exact sums."""
    width = min(buckets, len(values))
    parts: list[list[float]] = [[] for _ in range(width)]
    for place, value in enumerate(values):
        parts[place % width].append(_ELEMENTS[place % 2**20] * _PERIODS[place // 2**20] * value)
    return [math.fsum(part) for part in parts]


@pytest.mark.parametrize(
    ("count", "buckets"),
    [*((n, 8) for n in (1, 2, 7, 8, 9, 100, 2**16 - 1, 2**16, 2**16 + 1, 2**20 + 77)), (31, 32), (33, 32), (70_001, 32)],
)
def test_agrees_with_the_definition(count: int, buckets: int) -> None:
    values = torch.randn(count, dtype=torch.float64)
    found = sketch(values, buckets=buckets)
    assert found.count == count
    assert found.buckets == pytest.approx(_oracle(values.tolist(), buckets), rel=1e-6, abs=1e-4)
    assert found.norm == pytest.approx(math.sqrt(math.fsum(v * v for v in values.tolist())), rel=1e-6)
    assert found.max_abs == pytest.approx(max(map(abs, values.tolist())), rel=1e-7)


def test_numbers_are_those_of_float32() -> None:
    found = sketch(torch.randn(1000, dtype=torch.float64))
    numbers = torch.tensor([found.norm, found.max_abs, *found.buckets], dtype=torch.float64)
    assert torch.equal(numbers.float().double(), numbers)


@given(st.integers(1, 300), st.integers(0, 2**31))
def test_distance_is_that_of_the_tensors(count: int, seed: int) -> None:
    """Exact for as many elements as buckets; in the mean over many tensors else."""
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, count, generator=generator, dtype=torch.float64)
    if count <= BUCKETS:
        assert distance(sketch(a), sketch(b)) == pytest.approx(float((a - b).norm()), rel=1e-5, abs=1e-5)
    else:
        assert distance(sketch(a), sketch(b)) < 6 * float((a - b).norm())


_SHAPES = {
    "constant": torch.ones,
    "normal": torch.randn,
    "ramp": lambda n: torch.linspace(-1, 3, n),
    "saw": lambda n: torch.arange(n) % 7.0,
}


@pytest.mark.parametrize("shape", _SHAPES)
@pytest.mark.parametrize("count", [5000, 70_000, 1_000_000])
def test_squared_distance_is_right(shape: str, count: int) -> None:
    """With 4,096 buckets the standard deviation is 2 %. Regular differences must not be taken for larger or smaller ones."""
    error = _SHAPES[shape](count).double()
    found = distance(sketch(error, buckets=4096), sketch(torch.zeros(count), buckets=4096)) ** 2
    assert found == pytest.approx(float(error.square().sum()), rel=0.1)


def test_the_whole_distance_of_a_scale_shows() -> None:
    weight = torch.randn(64, 3, 7, 7)
    other = weight.clone()
    other[3] *= 1.001
    assert digest([weight]) != digest([other])
    far = distance(sketch(weight), sketch(other))
    assert 0.2 * float((other - weight).norm()) < far < 3 * float((other - weight).norm())


def test_sizes_that_differ_have_no_distance() -> None:
    with pytest.raises(ValueError, match="no difference"):
        distance(sketch(torch.ones(3)), sketch(torch.ones(4)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.int64, torch.uint8, torch.bool])
def test_every_dtype(dtype: torch.dtype) -> None:
    tensor = torch.tensor([[0, 1, 1], [1, 0, 1]]).to(dtype)
    assert sketch(tensor).norm == 2.0
    assert sketch(tensor) == sketch(tensor.double())
    assert len(digest([tensor])) == 16


def test_complex_numbers_are_pairs() -> None:
    tensor = torch.tensor([3 + 4j, 0 - 1j])
    assert sketch(tensor) == sketch(torch.tensor([3.0, 4.0, 0.0, -1.0]))
    assert digest([tensor.conj()]) == digest([torch.tensor([3 - 4j, 0 + 1j])])


def test_strides_and_layouts_do_not_show() -> None:
    tensor = torch.randn(2, 3, 4, 5)
    other = tensor.to(memory_format=torch.channels_last)
    assert sketch(tensor) == sketch(other) == sketch(tensor.to_sparse())
    assert digest([tensor]) == digest([other])
    assert digest([tensor]) != digest([tensor.permute(1, 0, 2, 3)])
    assert digest([tensor.reshape(-1)]) != digest([tensor])


@pytest.mark.parametrize(("odd", "largest"), [(math.nan, math.nan), (math.inf, math.inf), (-math.inf, math.inf)])
def test_what_is_not_finite_shows_in_the_largest_only(odd: float, largest: float) -> None:
    values = torch.randn(100)
    values[17] = odd
    found = sketch(values)
    assert str(found.max_abs) == str(largest)
    values[17] = 0.0
    assert (found.norm, found.buckets) == (sketch(values).norm, sketch(values).buckets)


def test_nothing_and_no_data() -> None:
    assert sketch(torch.empty(0, 3)).buckets == ()
    assert sketch(torch.empty(5, device="meta")).count == 5
    assert sketch(torch.tensor(3.0)).norm == 3.0
    assert digest([torch.empty(2, device="meta")]) != digest([torch.empty(3, device="meta")])
    assert sketch(torch.full((4,), 1e300, dtype=torch.float64)).norm == math.inf


def test_several_tensors_are_one_after_the_other() -> None:
    a, b = torch.randn(13), torch.randn(5, 4).double()
    assert sketch(a, b) == sketch(torch.cat([a.double(), b.flatten()]))


def test_the_same_in_every_process() -> None:
    code = "import torch; from fxcompress.compare.sketch import *; x = torch.arange(99999.0).sin(); print(sketch(x), digest([x]))"
    x = torch.arange(99999.0).sin()
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert told == f"{sketch(x)} {digest([x])}"
