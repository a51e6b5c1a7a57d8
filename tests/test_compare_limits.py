"""Limits with units, against arithmetic that is written out here."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxcompress.compare.limits import QUANTITIES, Form, decimal, nearest, parse
from fxcompress.errors import InputError


@pytest.mark.parametrize(
    ("quantity", "written", "value"),
    [
        ("params", "11.7 M", 11_700_000),
        ("params", 11_700_000, 11_700_000),
        ("params", "11_700_000", 11_700_000),
        ("macs", "1.2 GMACs", 1_200_000_000),
        ("macs", "1.2G", 1_200_000_000),
        ("macs", 1.5e9, 1_500_000_000),
        ("weight_bytes", "3.0 MB", 3_000_000),
        ("weight_bytes", "3.0 MiB", 3 * 2**20),
        ("weight_bytes", "0 B", 0),
        ("peak_bytes", "100 kb", 100_000),
        ("latency", "12 ms", Fraction(12, 1000)),
        ("latency", "250 us", Fraction(250, 10**6)),
        ("sqnr", "35 dB", 35),
        ("sqnr", 35, 35),
        ("top1", "99.5%", Fraction(995, 1000)),
    ],
)
def test_absolute_limits(quantity: str, written: object, value: Fraction) -> None:
    limit = parse(quantity, written)
    assert (limit.form, limit.value, limit.bound(123)) == (Form.ABSOLUTE, value, value)
    exactly, worse = (
        float(value),
        float(value) * (1.001 if QUANTITIES[quantity].most else 0.999) + (1e-9 if QUANTITIES[quantity].most else -1e-9),
    )
    assert limit.holds(exactly) or Fraction(exactly) != value
    assert not limit.holds(worse)


def test_relative_limits_are_exact() -> None:
    half = parse("macs", "+0.5%")
    assert half.form is Form.SHARE
    assert half.holds(1005, 1000)  # in floating point 1000 * 1.005 is less than 1005
    assert not half.holds(1006, 1000)
    assert parse("params", "-10%").holds(90, 100)
    assert not parse("params", "-10%").holds(91, 100)
    assert parse("weight_bytes", "+100 kB").holds(1_100_000, 1_000_000)
    assert not parse("weight_bytes", "+100 kB").holds(1_100_001, 1_000_000)
    assert parse("weight_bytes", "-1 kB").bound(5000) == 4000
    assert parse("params", "+0%").holds(7, 7)
    assert not parse("params", "+0%").holds(8, 7)
    assert not parse("params", "+50%").holds(1, 0)  # from nothing, no share is enough


@pytest.mark.parametrize(
    ("quantity", "written", "parts"),
    [
        ("weight_bytes", "3.0 MBs", ["no unit 'MBs'", "did you mean 'mb'"]),
        ("weight_bytes", "0.5%", ["has a sign", '"+0.5%"', '"-0.5%"']),
        ("weight_bytes", "-101%", ["shrink"]),
        ("weight_bytes", "", ["cannot read", "3.0 MB"]),
        ("weight_bytes", "MB", ["cannot read"]),
        ("weight_bytes", "3,0 MB", ["cannot read"]),
        ("weight_bytes", "1e9 MB", ["cannot read"]),
        ("weight_bytes", "3 MB MB", ["cannot read"]),
        ("weight_bytes", "٣ MB", ["cannot read"]),
        ("weight_bytes", True, ["cannot read", "True"]),
        ("weight_bytes", -1, ["cannot read"]),
        ("weight_bytes", math.nan, ["cannot read"]),
        ("weight_bytes", math.inf, ["cannot read"]),
        ("weight_bytes", None, ["cannot read"]),
        ("weight_bytes", ["3 MB"], ["cannot read"]),
        ("weight_bytes", "9" * 10_000, ["cannot read"]),
        ("latency", "12", ["needs a unit", "12 ms"]),
        ("latency", 12, ["cannot read", "12 ms"]),
        ("latency", "12 msec", ["no unit 'msec'", "did you mean 'ms'"]),
        ("sqnr", "+3 dB", ["relative to the baseline"]),
        ("sqnr", "35 db/s", ["cannot read"]),
        ("sqnr", "35%", ["no unit '%'"]),
        ("top1", "-1%", ["relative to the baseline"]),
        ("top1", "101%", ["at most 100%"]),
        ("top1", 0.99, ["cannot read", '"99%"']),
        ("macs", "1.2 GFLOPs", ["no unit 'GFLOPs'"]),
        ("params", "3 MB", ["no unit 'MB'"]),
    ],
)
def test_what_cannot_be_read(quantity: str, written: object, parts: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        parse(quantity, written)
    for part in [quantity, *parts]:
        assert part in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("quantity", "written", "value", "base", "shown"),
    [
        ("weight_bytes", "3.0 MB", 3_020_000, 0, "3.02 MB"),
        ("weight_bytes", "3.0 MB", 3_000_001, 0, "3.000001 MB"),
        ("weight_bytes", "3.0 MB", 3_000_000, 0, "3.00 MB"),
        ("weight_bytes", "3 MiB", 2**20, 0, "1.00 MiB"),
        ("params", 1000, 1001, 0, "1001"),
        ("macs", "+0.5%", 1006, 1000, "+0.600%"),
        ("macs", "+0.5%", 100501, 100000, "+0.501%"),
        ("macs", "+0.5%", 900, 1000, "-10.0%"),
        ("macs", "+0.5%", 5, 0, "from 0"),
        ("weight_bytes", "+100 kB", 1_250_000, 1_000_000, "+250 kB"),
        ("latency", "12 ms", 0.0123, 0, "12.3 ms"),
        ("sqnr", "35 dB", 34.99, 0, "34.99 dB"),
        ("sqnr", "35 dB", math.nan, 0, "nan dB"),
        ("top1", "99%", 0.98999, 0, "98.999%"),
        ("top1", "99%", 1.0, 0, "100%"),
    ],
)
def test_values_are_shown_as_the_limit_is_written(quantity: str, written: object, value: float, base: float, shown: str) -> None:
    assert parse(quantity, written).shown(value, base) == shown


def test_what_is_no_number_holds_no_limit() -> None:
    assert not parse("sqnr", 10).holds(math.nan)
    assert parse("sqnr", 10).holds(math.inf)
    assert not parse("sqnr", 10).holds(-math.inf)
    assert not parse("macs", 10).holds(math.inf)
    assert not parse("macs", 10).holds(math.nan)


@given(st.fractions(0, 10**9, max_denominator=10**6), st.fractions(0, 10**9, max_denominator=10**3))
def test_a_shown_number_lies_on_its_side_of_the_limit(value: Fraction, limit: Fraction) -> None:
    shown = Fraction(decimal(value, limit))
    if abs(value - limit) > Fraction(1, 10**6):  # nearer than that no budget is
        assert (shown > limit, shown < limit) == (value > limit, value < limit)
    assert abs(shown - value) <= max(abs(value) / 100, Fraction(1, 10**5))


@given(st.text(max_size=80) | st.integers() | st.floats() | st.booleans() | st.none(), st.sampled_from(sorted(QUANTITIES)))
def test_anything_else_is_an_error_of_the_user(written: object, quantity: str) -> None:
    try:
        parse(quantity, written)
    except InputError:
        return
    assert isinstance(written, (str, int, float))


def test_nearest_names() -> None:
    assert nearest("mac", ["macs", "params"], "gates") == "did you mean 'macs'? the gates are macs, params"
    assert nearest("zzz", ["macs", "params"], "gates") == "the gates are macs, params"
