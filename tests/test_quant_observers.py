"""Observers against oracles that work on the numbers themselves: sorted values, exhaustive searches, plain loops."""

from __future__ import annotations

import copy
import itertools
import math
import random
import time
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fxcompress.errors import InputError
from fxcompress.quant.affine import QParams
from fxcompress.quant.observers import OBSERVERS, Entropy, Histogram, MinMax, MovingAverage, Observer, Percentile, Sqnr, observer
from fxcompress.quant.observers_search import Density

torch.set_num_threads(1)

LARGEST = float(torch.finfo(torch.float32).max)
LEAST = 2.0**-149
NAMES = sorted(OBSERVERS)


def seen(watcher: Observer, *tensors: torch.Tensor) -> Observer:
    for tensor in tensors:
        watcher.observe(tensor)
    return watcher


def state(watcher: Observer) -> tuple[object, ...]:
    return watcher.low, watcher.high, watcher.sums().tolist(), watcher.qparams()


def samples(kind: str, count: int = 4000) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    normal = torch.randn(count, generator=generator)
    uniform = torch.rand(count, generator=generator)
    image = (uniform * 256).floor() / 255
    return {
        "normal": normal,
        "relu": normal.relu(),
        "negative": -normal.abs(),
        "laplace": uniform.log() * normal.sign(),
        "silu": torch.nn.functional.silu(2 * normal),
        "relu6": (3 * normal).clamp(0, 6),
        "shifted": normal + 5,
        "image": image,
        "normalized image": (image - 0.45) / 0.22,
        "one outlier": torch.cat([normal, torch.tensor([60.0])]),
        "two outliers": torch.cat([normal, torch.tensor([100.0, -80.0])]),
        "heavy tails": normal / uniform.clamp_min(1e-3).sqrt(),
        "three numbers": torch.tensor([0.0, 1.0, 100.0]).repeat(100),
    }[kind]


KINDS = [
    "normal", "relu", "negative", "laplace", "silu", "relu6", "shifted", "image", "normalized image",
    "one outlier", "two outliers", "heavy tails", "three numbers",
]  # fmt: skip


def squared_error(x: np.ndarray, low: float, high: float, bits: int) -> float:
    """Mean squared error of numbers rounded to the grid that covers low .. high and has a zero, in float64."""
    top = 2**bits - 1
    scale = (high - low) / top
    zero_point = round(-low / scale)
    q = np.clip(np.round(x / scale) + zero_point, 0, top)
    return float((((q - zero_point) * scale - x) ** 2).mean())


def error_of(x: np.ndarray, found: QParams) -> float:
    q = np.clip(np.round(x / found.scale) + found.zero_point, 0, 2**found.bits - 1)
    return float((((q - found.zero_point) * found.scale - x) ** 2).mean())


# The module.


@pytest.mark.parametrize("name", NAMES)
def test_it_is_off_until_switched_on_and_gives_its_input_back(name: str) -> None:
    watcher, x = observer(name), torch.randn(2, 3)
    assert watcher(x) is x
    assert watcher.seen == 0
    watcher.enabled = True
    assert watcher(x) is x
    assert watcher.seen == 6
    watcher.reset()
    assert (watcher.seen, watcher.enabled) == (0, True)
    assert watcher.qparams() == QParams(1.0, 0, 8)


def test_the_lookup_says_what_there_is() -> None:
    with pytest.raises(InputError, match="no observer 'minmx'") as caught:
        observer("minmx")
    assert all(name in str(caught.value) for name in NAMES)
    with pytest.raises(InputError, match="9 bits"):
        observer("histogram", 9)
    with pytest.raises(InputError, match="percentile=101"):
        Percentile(8, percentile=101)


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_is_independent(name: str) -> None:
    watcher = seen(observer(name), torch.randn(50))
    before = state(watcher)
    other = copy.deepcopy(watcher)
    seen(other, torch.randn(50) * 9)
    assert state(watcher) == before
    assert state(other) != before


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_types_count_as_their_float32_values(name: str, dtype: torch.dtype) -> None:
    x = torch.randn(500).to(dtype)
    assert state(seen(observer(name), x)) == state(seen(observer(name), x.float()))


@pytest.mark.parametrize("name", NAMES)
def test_neither_layout_nor_strides_nor_empty_tensors_matter(name: str) -> None:
    x = torch.randn(2, 6, 5, 4)
    want = state(seen(observer(name), x))
    views = [
        x.to(memory_format=torch.channels_last),
        x.permute(3, 0, 2, 1),
        torch.randn(2, 6, 5, 8)[..., ::2].copy_(x),
        x.double().requires_grad_(),
    ]
    for view in views:
        assert state(seen(observer(name), view, torch.empty(0, 3))) == want
    one = torch.tensor(2.5)
    assert state(seen(observer(name), one.expand(3, 4)))[2] == state(seen(observer(name), one.repeat(3, 4)))[2]


@pytest.mark.parametrize("name", NAMES)
def test_integers_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="int64"):
        observer(name).observe(torch.arange(3))


# Numbers that are not usual.


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_counted_and_make_an_error(name: str, bad: float) -> None:
    watcher = seen(observer(name), torch.tensor([1.0, bad, bad]), torch.tensor([2.0]))
    assert (watcher.nonfinite, watcher.seen) == (2, 1)
    with pytest.raises(InputError, match="2 numbers are NaN or infinite"):
        watcher.qparams()


@pytest.mark.parametrize("name", NAMES)
def test_a_float64_that_float32_cannot_hold_is_not_finite(name: str) -> None:
    assert seen(observer(name), torch.tensor([1e300], dtype=torch.float64)).nonfinite == 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bits", [2, 8])
@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -3.0, 1e-45, -1e-40, 2.0**-126, 1e30, LARGEST, -LARGEST])
def test_a_constant_gets_a_safe_quantization(name: str, bits: int, value: float) -> None:
    watcher = seen(observer(name, bits), torch.full((7,), value))
    found = watcher.qparams()
    assert "everywhere" in str(watcher.doubt())
    assert 0 < found.scale < math.inf
    if abs(value) >= 1e-29:  # smaller than the least scale is zero
        assert error_of(np.array([value]), found) <= (1e-6 * value) ** 2


@pytest.mark.parametrize("name", NAMES)
def test_never_seen_is_scale_one_and_doubtful(name: str) -> None:
    watcher = observer(name, 5)
    assert watcher.qparams() == QParams(1.0, 0, 5)
    assert "never seen" in str(watcher.doubt())
    assert seen(watcher, torch.tensor([0.5, 1.0])).doubt() is None


EXTREMES = [
    [LARGEST, -LARGEST], [LARGEST, 1.0, -1e-45], [LEAST, -LEAST], [LEAST, 1e-38, 1.0], [-1e-38, LARGEST], [-LARGEST, LEAST],
    [2.0**k for k in range(-149, 128)], [-(2.0**k) for k in range(-149, 128)], [1 - 2**-24, 1.0, -1.0], [0.0, -0.0],
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("numbers", EXTREMES, ids=range(len(EXTREMES)))
def test_extreme_numbers_join_exactly_and_get_a_finite_scale(name: str, numbers: list[float]) -> None:
    whole = seen(observer(name), *(torch.tensor([number]) for number in numbers))
    found = whole.qparams()
    assert 0 < found.scale < math.inf
    shuffled = random.Random(1).sample(numbers, len(numbers))
    assert state(seen(observer(name), *(torch.tensor([number]) for number in shuffled))) == state(whole)
    parts = [seen(observer(name), torch.tensor([number])) for number in shuffled]
    total = observer(name)
    for part in parts:
        total.merge(part)
    assert state(total) == state(whole)


# Exact joining.

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
usual = st.floats(-100, 100, width=32)
calls = st.lists(st.lists(floats | usual, min_size=1, max_size=30), min_size=1, max_size=8)


@settings(max_examples=30, deadline=None)
@given(calls=calls, names=st.just(NAMES), seed=st.integers(0, 999), groups=st.integers(1, 4))
def test_any_order_and_any_split_of_the_calls_gives_the_same(calls: list[list[float]], names: list[str], seed: int, groups: int) -> None:
    tensors = [torch.tensor(call) for call in calls]
    drawn = random.Random(seed)
    order = drawn.sample(range(len(tensors)), len(tensors))
    owner = [drawn.randrange(groups) for _ in tensors]
    for name in names:
        want = state(seen(observer(name), *tensors))
        parts = [observer(name) for _ in range(groups)]
        for index in order:
            parts[owner[index]].observe(tensors[index])
        drawn.shuffle(parts)
        untouched = [copy.deepcopy(part.sums()) for part in parts]
        total = copy.deepcopy(parts[0])
        for part in parts[1:]:
            total.merge(part)
        assert state(total) == want
        assert all(torch.equal(part.sums(), before) for part, before in zip(parts, untouched, strict=True))


@settings(max_examples=25, deadline=None)
@given(calls=calls, seed=st.integers(0, 999))
def test_but_for_means_over_calls_pieces_of_any_size_give_the_same(calls: list[list[float]], seed: int) -> None:
    numbers = torch.tensor([number for call in calls for number in call])
    for name in set(NAMES) - {"moving-average", "sqnr"}:
        pieces = list(numbers.split(1 + seed % 7))
        random.Random(seed).shuffle(pieces)
        assert state(seen(observer(name), *pieces)) == state(seen(observer(name), numbers))


def test_large_tensors_are_counted_in_pieces() -> None:
    x = torch.randn(700_001)
    for name in ("histogram", "percentile", "entropy"):
        parts = [seen(observer(name), part) for part in x.split(30_000)]
        for part in parts[1:]:
            parts[0].merge(part)
        assert state(parts[0]) == state(seen(observer(name), x))


@pytest.mark.parametrize("name", NAMES)
def test_joining_with_what_saw_nothing_changes_nothing(name: str) -> None:
    watcher = seen(observer(name), torch.randn(30))
    before = state(watcher)
    watcher.merge(observer(name))
    assert state(watcher) == before
    empty = observer(name)
    empty.merge(watcher)
    assert state(empty) == before


def test_different_kinds_do_not_join() -> None:
    pairs = [
        (observer("min-max"), observer("histogram")),
        (observer("histogram", 8), observer("histogram", 7)),
        (Percentile(8, 99), Percentile(8, 98)),
    ]
    for mine, other in pairs:
        with pytest.raises(InputError, match="cannot be joined"):
            mine.merge(other)


# Ranges.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [3, 8])
def test_min_max_covers_everything(kind: str, bits: int) -> None:
    x = samples(kind).double().numpy()
    found = seen(MinMax(bits), samples(kind)).qparams()
    low, high = min(0.0, x.min()), max(0.0, x.max())
    assert found.scale == pytest.approx((high - low) / (2**bits - 1), rel=1e-6)
    assert np.abs(x - np.clip(x, *found.range)).max() <= found.scale / 2 * 1.001  # zero is on the grid, so the ends move by half a step


def test_the_moving_average_is_the_exact_mean_of_the_calls_ranges() -> None:
    generator = torch.Generator().manual_seed(1)
    tensors = [torch.randn(40, generator=generator) * 10.0 ** random.Random(k).randint(-30, 30) for k in range(25)]
    lows = [Fraction(float(x.min())) for x in tensors]
    highs = [Fraction(float(x.max())) for x in tensors]
    assert seen(MovingAverage(), *tensors).range() == (float(sum(lows) / 25), float(sum(highs) / 25))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("percentile", [50.0, 90.0, 99.0, 99.9, 99.99, 100.0])
def test_percentiles_against_the_sorted_numbers(kind: str, percentile: float) -> None:
    x = samples(kind)
    ordered = x.double().sort().values.tolist()
    cut = int((1 - Fraction(str(percentile)) / 100) / 2 * len(ordered))
    low, high = seen(Percentile(8, percentile), x).range()
    want_low, want_high = ordered[cut], ordered[-1 - cut]
    assert low <= want_low
    assert high >= want_high
    assert want_low - low <= abs(want_low) / 128 + LEAST * 2**16
    assert high - want_high <= abs(want_high) / 128 + LEAST * 2**16
    if percentile == 100:
        assert (low, high) == (ordered[0], ordered[-1])


def test_one_number_far_away_does_not_blur_the_percentile() -> None:
    x = torch.cat([torch.rand(100_000), torch.tensor([1e30, -1e30])])
    low, high = seen(Percentile(), x).range()
    assert -1e-2 < low <= 1e-4
    assert 0.999 < high < 1.008


# Histograms.


@pytest.mark.parametrize("kind", KINDS)
def test_the_histogram_counts_what_numpy_counts(kind: str) -> None:
    x = samples(kind).double().numpy()
    watcher = Histogram()
    seen(watcher, *samples(kind).split(97))
    low, high = min(0.0, x.min()), max(0.0, x.max())
    width = watcher.width
    assert math.frexp(width)[0] == 0.5  # a power of two
    used = [math.trunc(high / w) - math.trunc(low / w) + 1 for w in (width / 2, width)]
    assert used[1] <= 8192 < used[0]
    bins = np.trunc(x / width).astype(int) - math.trunc(low / width)
    assert watcher.tallies.tolist() == np.bincount(bins, minlength=8192).tolist()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_the_histogram_finds_the_least_squared_error(kind: str, bits: int) -> None:
    x = samples(kind)
    exact = x.double().numpy()
    found = error_of(exact, seen(Histogram(bits), x).qparams())
    low, high = min(0.0, exact.min()), max(0.0, exact.max())
    shares = [0.94**k for k in range(50)]
    tried = [squared_error(exact, low * a, high * b, bits) for a in (shares if low else [1]) for b in (shares if high else [1])]
    assert found <= 1.03 * min(tried) + 1e-12 * max(-low, high) ** 2
    assert found <= 1.001 * squared_error(exact, low, high, bits) + 1e-12 * max(-low, high) ** 2


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_error_that_the_search_expects_is_the_real_one(bits: int) -> None:
    x = samples("heavy tails")
    watcher = seen(Histogram(bits), x)
    density = watcher.density()
    for a, b in [(1.0, 1.0), (0.3, 0.9), (0.7, 0.2), (0.05, 0.1)]:
        low, high = density.low * a, density.high * b
        expected = float(density.error(torch.tensor([low]), torch.tensor([high]), bits)) * watcher.width**2
        real = squared_error(x.double().numpy(), low * watcher.width, high * watcher.width, bits)
        assert expected == pytest.approx(real, rel=0.02)


def test_the_density_is_constant_in_each_bin_and_cut_at_the_range() -> None:
    counts = [30, 10, 40, 20]
    spans = [(-2.5, -2.0), (-2.0, -1.0), (-1.0, 1.0), (1.0, 1.75)]  # of the bins -2, -1, 0 and 1
    density = Density(torch.tensor(counts), -2, -2.5, 1.75)
    numbers = [a + (b - a) * (k + 0.5) / 1000 for (a, b) in spans for k in range(1000)]
    weights = [count / 100_000 for count in counts for _ in range(1000)]
    for x in (-2.5, -2.2, -2.0, -1.5, -1.0, -0.5, 0.0, 0.25, 1.0, 1.5, 1.75):
        want = sum(w * max(x - t, 0.0) for t, w in zip(numbers, weights, strict=True))
        assert float(density.excess(torch.tensor([x], dtype=torch.float64))) == pytest.approx(want, abs=1e-5)
    assert density.mean == pytest.approx(sum(w * t for t, w in zip(numbers, weights, strict=True)))
    assert density.square == pytest.approx(sum(w * t * t for t, w in zip(numbers, weights, strict=True)), rel=1e-5)


def divergence(histogram: np.ndarray, centres: np.ndarray, low: float, high: float, bits: int) -> float:
    """KL(P || Q) in plain loops, as in Migacz's slides; Q has 1e-4 of a number where only P has something."""
    inside = [k for k, centre in enumerate(centres) if low <= centre <= high]
    if not inside:
        return math.inf
    p = {k: float(histogram[k]) for k in inside}
    p[inside[0]] += float(sum(histogram[k] for k, centre in enumerate(centres) if centre < low))
    p[inside[-1]] += float(sum(histogram[k] for k, centre in enumerate(centres) if centre > high))
    levels: dict[int, list[int]] = {}
    for k in inside:
        levels.setdefault(round(centres[k] / ((high - low) / (2**bits - 1))), []).append(k)
    q = dict.fromkeys(inside, 0.0)
    for members in levels.values():
        filled = [k for k in members if histogram[k] > 0]
        for k in filled:
            q[k] = float(sum(histogram[j] for j in members)) / len(filled)
    q = {k: q[k] or 1e-4 for k in inside if p[k] > 0}
    p_total, q_total = sum(p.values()), sum(q.values())
    return sum(p[k] / p_total * math.log((p[k] / p_total) / (q[k] / q_total)) for k in q)


@pytest.mark.parametrize("kind", ["normal", "relu", "silu", "laplace", "one outlier", "negative"])
@pytest.mark.parametrize("bits", [4, 8])
def test_entropy_finds_the_least_divergence(kind: str, bits: int) -> None:
    x = samples(kind).double().numpy()
    watcher = seen(Entropy(bits), samples(kind))
    width = watcher.width
    low, high = min(0.0, x.min()) / width, max(0.0, x.max()) / width
    first, last = math.trunc(low), math.trunc(high)
    histogram = np.bincount(np.trunc(x / width).astype(int) - first, minlength=last - first + 1).astype(float)
    edges = [max(low, k - 1.0 if k <= 0 else k) for k in range(first, last + 1)] + [high]
    centres = np.array([(a + b) / 2 for a, b in itertools.pairwise(edges)])
    beside = sum(histogram[k] for k in (-first - 1, -first + 1) if 0 <= k < len(histogram))
    histogram[-first] = beside  # zero itself loses nothing, whatever the scale
    tried = np.linspace(max(-low, high), min(max(-low, high), 2.0**bits), 12)
    losses = [divergence(histogram, centres, max(low, -t), min(high, t), bits) for t in tried]
    found_low, found_high = watcher.range()
    found = divergence(histogram, centres, found_low / width, found_high / width, bits)
    assert found <= min(losses) * 1.1 + 1e-9


def test_entropy_cuts_a_lonely_outlier_off() -> None:
    x = torch.cat([samples("normal", 100_000), torch.tensor([200.0])])
    assert seen(Entropy(), x).range()[1] < 100
    assert seen(Entropy(), x).qparams().scale < seen(MinMax(), x).qparams().scale


# The mean in dB.


def several(kind: str) -> list[torch.Tensor]:
    """Inputs that are alike but for their size, one of them by far the largest."""
    return [part * factor for part, factor in zip(samples(kind, 12_000).chunk(6), (1, 2, 0.5, 1.5, 40, 0.8), strict=True)]


def mean_decibels(inputs: list[torch.Tensor], low: float, high: float, bits: int) -> float:
    """Of the noise and a thousandth of the signal, up to what does not depend on the range."""
    arrays = [x.double().numpy() for x in inputs]
    return float(np.mean([10 * np.log10(squared_error(x, low, high, bits) + 1e-3 * np.square(x).mean()) for x in arrays]))


@pytest.mark.parametrize("kind", ["normal", "relu", "laplace", "silu", "heavy tails", "negative", "shifted"])
@pytest.mark.parametrize("bits", [4, 6, 8])
def test_sqnr_is_the_best_in_the_mean_over_inputs(kind: str, bits: int) -> None:
    inputs = several(kind)
    low, high = min(0.0, *(float(x.min()) for x in inputs)), max(0.0, *(float(x.max()) for x in inputs))
    largest = max(-low, high)
    cuts = [largest * 0.94**k for k in range(110)]
    best = min(mean_decibels(inputs, max(low, -cut), min(high, cut), bits) for cut in cuts)
    found = seen(Sqnr(bits), *inputs)
    found_low, found_high = found.range()
    assert mean_decibels(inputs, min(0.0, found_low), max(0.0, found_high), bits) <= best + 0.75
    if low < 0 < high:
        assert max(found_low / low, found_high / high) == 1 or -found_low == pytest.approx(found_high)


def test_one_large_input_decides_the_squared_error_but_not_the_mean_in_decibels() -> None:
    inputs = several("normal")
    assert seen(Histogram(), *inputs).range()[1] > 60
    assert seen(Sqnr(), *inputs).range()[1] < 15
    assert seen(Sqnr(), inputs[4]).range()[1] > 60


def test_a_batch_counts_as_its_inputs() -> None:
    inputs = [x.reshape(2, 4, -1) for x in several("laplace")]
    want = state(seen(Sqnr(), *inputs))
    together = Sqnr()
    together.inputs = 6
    assert state(seen(together, torch.cat(inputs))) == want  # two rows of every input
    assert state(seen(together, torch.cat(inputs)[:5])) != want  # no whole number of rows: one input
    zeros = Sqnr()
    assert state(seen(zeros, *inputs, torch.zeros(3, 4)))[3] == want[3]


# Speed.


def test_a_histogram_costs_little_beside_the_convolution() -> None:
    conv = torch.nn.Conv2d(64, 64, 3, padding=1).to(memory_format=torch.channels_last).requires_grad_(False)
    x = torch.randn(1, 64, 112, 112).relu().to(memory_format=torch.channels_last)
    watcher = observer("histogram")

    def least(run: object) -> float:
        assert callable(run)
        times = []
        for _ in range(15):
            started = time.process_time()
            run(x)
            times.append(time.process_time() - started)
        return min(times)

    assert least(watcher.observe) < 0.5 * least(conv)
