"""Finds a smaller tensor in a larger one: which rows and columns were kept, in their order."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice, pairwise
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor

Array: TypeAlias = np.ndarray[tuple[int, ...], np.dtype[Any]]

_CANDIDATES = 8
_PROBES = 3
_ALIKE = 0.9  # cosine of two rows that are one, trained further


def blocks(tensor: Tensor) -> Array:
    """``tensor`` (O, I, ...) as integers (O, I, rest) that are equal exactly when its bits are; (O,) becomes (O, 1, 1)."""
    array = tensor.detach().cpu().contiguous()
    flat = array.reshape(array.shape[0], array.shape[1] if array.dim() > 1 else 1, -1)
    return flat.view(_integers(flat)).numpy()


def _integers(tensor: Tensor) -> Any:
    import torch

    return {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]


def embedding(large: Sequence[bytes], small: Sequence[bytes]) -> list[int] | None:
    """Places of the items of ``small`` in ``large`` in ascending order; None when there are none, or more than one such choice."""
    first = _leftmost(large, small)
    if first is None:
        return None
    last = _leftmost(large[::-1], small[::-1])
    assert last is not None
    return first if first == [len(large) - 1 - place for place in reversed(last)] else None


def _leftmost(large: Sequence[bytes], small: Sequence[bytes]) -> list[int] | None:
    places = enumerate(large)
    found = []
    for item in small:
        place = next((at for at, other in places if other == item), None)
        if place is None:
            return None
        found.append(place)
    return found


def lines(array: Array) -> list[bytes]:
    """The rows of an array as comparable items."""
    flat = np.ascontiguousarray(array.reshape(array.shape[0], -1))
    return [row.tobytes() for row in flat]


def rows(large: Array, small: Array) -> list[int] | None:
    """The rows of ``large`` that are those of ``small``; both (rows, columns, rest), with as many columns."""
    return embedding(lines(large), lines(small))


def rows_and_columns(large: Array, small: Array) -> tuple[list[int], list[int]] | None:
    """The rows and columns of ``large`` that are left in ``small``: ``large[rows][:, columns] == small``; None when unclear."""
    if large.shape[2:] != small.shape[2:]:
        return None
    if large.shape[1] == small.shape[1]:
        found = rows(large, small)
        return None if found is None else (found, list(range(large.shape[1])))
    if large.shape[0] == small.shape[0]:
        found = rows(large.swapaxes(0, 1), small.swapaxes(0, 1))
        return None if found is None else (list(range(large.shape[0])), found)
    for probe in _probes(small):
        for row in islice(_holding(large, probe), _CANDIDATES):
            columns = embedding(lines(large[row]), lines(probe))
            found = None if columns is None else rows(large[:, columns], small)
            if columns is not None and found is not None:
                return found, columns
    return None


def _probes(small: Array) -> Sequence[Array]:
    """A few rows that are not all zero."""
    return list(islice((row for row in small if row.any()), _PROBES))


def _holding(large: Array, probe: Array) -> Sequence[int]:
    """The rows of ``large`` in which some blocks of ``probe`` occur."""
    held = np.ones(large.shape[0], dtype=bool)
    for place in {0, len(probe) // 2, len(probe) - 1}:
        held &= (large == probe[place]).all(-1).any(1)
    return [int(row) for row in np.flatnonzero(held)]


def alike(large: Tensor, small: Tensor) -> list[int] | None:
    """The rows of ``large`` that those of ``small`` point into the direction of, where weights were scaled or trained further.

    None unless each has one clear best, and these ascend.
    """
    a, b = (t.detach().cpu().double().reshape(t.shape[0], -1) for t in (large, small))
    if a.shape[1] != b.shape[1] or a.shape[1] < 2 or not a.isfinite().all() or not b.isfinite().all():
        return None
    a, b = (t / t.norm(dim=1, keepdim=True).clamp_min(1e-30) for t in (a, b))
    cosines, places = (b @ a.T).max(dim=1)
    found: list[int] = places.tolist()
    ascending = all(x < y for x, y in pairwise(found))
    return found if ascending and bool((cosines > _ALIKE).all()) else None
