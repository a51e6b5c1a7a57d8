"""Numbers as people read them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fxcompress.ir.verify import place as place

_COUNT = ("", "k", "M", "G", "T", "P")
_BYTES = ("B", "KiB", "MiB", "GiB", "TiB")


def count(value: int) -> str:
    """25557032 -> "25.6 M"."""
    return _scaled(value, 1000, _COUNT)


def size(value: int) -> str:
    """102228128 -> "97.5 MiB"."""
    return _scaled(value, 1024, _BYTES)


def _scaled(value: float, base: int, names: Sequence[str]) -> str:
    place = 0
    while abs(value) >= 999.5 and place < len(names) - 1:
        value, place = value / base, place + 1
    return f"{_significant(value) if place else round(value)} {names[place]}".rstrip()


def _significant(value: float) -> str:
    """Three significant digits, never in exponent form: 1.23, 12.3, 123."""
    value = float(f"{value:.3g}")
    digits = 0 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(digits, 6)}f}"


def milliseconds(value: float | None) -> str:
    """0.01234 -> "0.0123 ms"; a dash for None."""
    return "-" if value is None else f"{_significant(value)} ms"


def seconds(value: float) -> str:
    """0.0123 -> "12 ms", 2.5 -> "2.5 s"."""
    return f"{value * 1000:.0f} ms" if value < 0.9995 else f"{value:.1f} s"


def small(value: float | None) -> str:
    """An error: "0", "3.1e-07", a dash for None."""
    return "-" if value is None else ("0" if value == 0 else f"{value:.1e}")


def decibel(value: float) -> str:
    """A ratio of powers: "123.4 dB", "exact" for inf."""
    return "exact" if value == math.inf else f"{value:.1f} dB"


def ratio(before: float, after: float) -> str:
    """ "x0.62"; "same" when nothing changed; more digits where a small change would read x1.00."""
    if before == after:
        return "same"
    if before <= 0:
        return ""
    value = after / before
    digits = 2
    while f"{value:.{digits}f}" == f"{1:.{digits}f}" and digits < 6:
        digits += 1
    return f"x{value:.{digits}f}"


def speedup(before: float | None, after: float | None, spreads: Sequence[float | None]) -> str:
    """ "1.43x faster", "1.10x slower", or "~ same" when the medians differ by no more than the largest spread (at least 1 %)."""
    if not before or not after:
        return ""
    noise = max([0.01 * before, *(spread for spread in spreads if spread is not None)])
    if abs(before - after) <= noise:
        return "~ same"
    factor = before / after
    return f"{factor:.2f}x faster" if factor > 1 else f"{1 / factor:.2f}x slower"


def shape(dims: Sequence[int]) -> str:
    """(1, 64, 56, 56) -> "1x64x56x56"; "scalar" for none."""
    return "x".join(map(str, dims)) if len(dims) else "scalar"


def plural(number: int, word: str) -> str:
    """1 -> "1 place", 2 -> "2 places"."""
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def printable(text: str) -> str:
    """``text`` in one line without control characters, which could drive a terminal."""
    return "".join(char if char.isprintable() else "?" for char in " ".join(text.split()))


def clip(text: str, width: int) -> str:
    """``text`` in one printable line of at most ``width`` characters."""
    flat = printable(text)
    return flat if len(flat) <= width else flat[: max(0, width - 3)] + "..."
