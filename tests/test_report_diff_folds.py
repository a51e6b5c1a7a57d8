"""Which rows of a drawing are folded at first."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxcompress.report.diff_folds import SHORTEST, Fold, Row, folds, repeats


def rows(tokens: str, paths: Iterable[str] = ()) -> list[Row]:
    """One row for each letter; capital letters are changed."""
    named = list(paths) or [""] * len(tokens)
    return [Row(token, token.isupper(), path, 1) for token, path in zip(tokens, named, strict=True)]


def spans(found: Iterable[Fold]) -> list[tuple[int, int]]:
    return [(fold.first, fold.last) for fold in found]


@given(st.text("abcAB", max_size=60))
def test_folds_lie_inside_each_other_and_hide_no_first_change(tokens: str) -> None:
    def check(found: tuple[Fold, ...], first: int, last: int) -> None:
        at = first
        for fold in found:
            assert at <= fold.first <= fold.last <= last
            assert fold.last - fold.first + 1 >= 2
            check(fold.inner, fold.first, fold.last)
            at = fold.last + 1

    found = folds(rows(tokens))
    check(found, 0, len(tokens) - 1)
    for fold in found:
        hidden = tokens[fold.first : fold.last + 1]
        if hidden != hidden.lower():  # then the rows above it show the same block
            periods = (p for p in range(2, len(hidden) + 1) if len(hidden) % p == 0)
            assert any(hidden == tokens[fold.first - p : fold.first] * (len(hidden) // p) for p in periods)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ("", []),
        ("i", []),
        ("iabco", []),  # too short to be worth it
        ("iabcdefXghijklo", [(1, 5), (9, 13)]),  # one row stays open beside the change and at the ends
        ("iXaXaXao", [(3, 6)]),  # the same change three times: the first block is shown
        ("iabcXabcXabcXo", [(5, 12)]),
        ("XY" * 3, [(2, 5)]),
        ("ABCDEF", []),
    ],
)
def test_what_is_folded(tokens: str, expected: list[tuple[int, int]]) -> None:
    assert spans(folds(rows(tokens))) == expected


def test_blocks_are_found_by_structure() -> None:
    found = repeats(rows("s" + "cbrcba" * 4 + "xyz" * 3 + "o"), 0, 35)
    assert [(one.first, one.period, one.count) for one in found] == [(1, 6, 4), (25, 3, 3)]


def test_a_block_begins_where_the_path_changes_most() -> None:
    paths = ["", "stem.a", "l.0.a", "l.0.b", "l.0.c", "l.1.a", "l.1.b", "l.1.c", "l.2.a", "l.2.b", "l.2.c", "head"]
    one = repeats(rows("scabcabcabcd"[:12], paths), 0, 12)[0]
    assert (one.first, one.period, one.count) == (2, 3, 3)


def test_words_of_a_fold() -> None:
    paths = ["", *(f"layer1.{i}.{word}" for i in range(3) for word in ("conv1", "bn1", "relu", "conv2")), ""]
    (fold,) = folds(rows("i" + "Abcd" * 3 + "o", paths))
    assert (fold.title, fold.where) == ("the same 4 nodes 2 times more", "layer1")
    assert [inner.where for inner in fold.inner] == ["layer1.1", "layer1.2"]


def test_nothing_changed_gives_an_overview_of_modules() -> None:
    tokens = "i" + "".join(chr(ord("a") + at) for at in range(16)) + "o"
    paths = ["", *(f"stage{at // 8}.{at % 8}" for at in range(16)), ""]
    found = folds(rows(tokens, paths))
    assert [fold.where for fold in found] == ["stage0", "stage1"]
    assert all(fold.last - fold.first + 1 >= SHORTEST for fold in found)


def test_many_rows_are_quick() -> None:
    found = folds(rows("i" + "abcdefgh" * 370 + "Xo"))
    assert len(found) == 1
    assert found[0].inner[0].title == "369 x 8 nodes"
    assert len(found[0].inner[0].inner) == 369
