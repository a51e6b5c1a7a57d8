"""How far two outputs are apart, from what files hold of them."""

from __future__ import annotations

import math

from fxcompress.compare.schema import OutputPrint
from fxcompress.compare.sketch import distance
from fxcompress.report.difference import OutputNumbers


def of_prints(name: str, base: OutputPrint, head: OutputPrint) -> OutputNumbers | None:
    """One output of both sides; None when they have different sizes.

    The power of the error is that of the sketches, whose expectation is right whatever the values are; every n-th value may always be one
    at the border of a picture. Where the sample is the whole output nothing is estimated.
    """
    a, b = base.sketch, head.sketch
    if a.count != b.count or len(base.sample) != len(head.sample):
        return None
    top1 = _agreement(base.classes, head.classes)
    if not (math.isfinite(a.max_abs) and math.isfinite(b.max_abs)):
        return _not_finite(name, base, head, top1)
    apart = [y - x for x, y in zip(base.sample, head.sample, strict=True)]
    whole = len(apart) == a.count
    power = sum(d * d for d in apart) if whole else distance(a, b) ** 2
    largest = max((abs(d) for d in apart), default=0.0)
    if not whole:  # the largest difference is at least what the sample and the norms show
        largest = max(largest, abs(a.max_abs - b.max_abs))
    return outputs(name, a.norm**2, b.norm**2, power, largest, top1, estimated=not whole)


def outputs(name: str, base: float, head: float, error: float, max_abs: float, top1: float | None, *, estimated: bool) -> OutputNumbers:
    """From the squared L2 norms of base, of head and of their difference."""
    if error == 0:
        return OutputNumbers(name, 0.0, None, 1.0, top1, estimated, None)
    scale = math.sqrt(base) * math.sqrt(head)
    cosine = (base + head - error) / (2 * scale) if scale > 0 else 0.0
    return OutputNumbers(name, max_abs, _db(base, error), min(1.0, max(-1.0, cosine)), top1, estimated, _db(head, error))


def _db(signal: float, error: float) -> float:
    return 10 * (math.log10(signal) - math.log10(error)) if signal > 0 else -math.inf


def _not_finite(name: str, base: OutputPrint, head: OutputPrint, top1: float | None) -> OutputNumbers:
    """NaN and infinities have no distance: either everything that is known agrees, or nothing does."""
    if repr(base) == repr(head):  # NaN is equal to itself as a text
        return OutputNumbers(name, 0.0, None, 1.0, top1, True, None)
    return OutputNumbers(name, math.inf, -math.inf, 0.0, top1, True, -math.inf)


def _agreement(base: tuple[int, ...], head: tuple[int, ...]) -> float | None:
    """Share of equal classes."""
    if not base or len(base) != len(head):
        return None
    return sum(a == b for a, b in zip(base, head, strict=True)) / len(base)
