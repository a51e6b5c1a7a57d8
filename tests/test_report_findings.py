"""Changes as sentences, told together where they are the same."""

from __future__ import annotations

import dataclasses
import math

import pytest
from made_differences import empty, place

from fxcompress.report.diff_values import between, cosine, percent, plain, share, value_text
from fxcompress.report.difference import Change, Group, Moved, NodeChange, Rewired
from fxcompress.report.findings import Told, told
from fxcompress.report.sentences import sentences

FLOAT, INT8 = {"dtype": "float32", "shape": [8, 3], "digest": "a"}, {"dtype": "int8", "shape": [8, 3], "digest": "b"}
GRID = {"scale": 0.5, "zero_point": 0, "bits": 8}


def said(*changes: Change) -> list[str]:
    return [plain((*s.what, *((" ", *s.detail) if s.detail else ()), *((", ", *s.note) if s.note else ()))) for s in sentences(changes)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (Change("attribute", "stride", [1, 1], [2, 2]), "stride (1, 1) -> (2, 2)"),
        (Change("attribute", "bias", None, True), "bias unset -> yes"),
        (Change("attribute", "eps", 1e-5, 1.00001e-5), "eps 1e-05 -> 1.00001e-05"),
        (Change("attribute", "other", "$1", "$$1"), "other operand 1 -> $1"),
        (Change("target", "", "torch.relu", "torch.tanh"), "torch.relu -> torch.tanh"),
        (Change("mode", "", "eval", "train"), "mode eval -> train"),
        (Change("dtype", "output", "int8", "float32", None, "widened"), "int8 -> float32, widened"),
        (Change("dtype", "output 1", "int8", "float32"), "int8 -> float32 of output 1"),
        (Change("shape", "", [1, 2], [1, 3]), "shape 1x2 -> 1x3"),
        (Change("shape", "", [], [1]), "shape scalar -> 1"),
        (Change("quantization", "", GRID, None), "float instead of int8"),
        (Change("quantization", "", None, GRID), "int8 instead of float, scale 0.5, zero point 0, bits 8"),
        (Change("quantization", "", GRID, {**GRID, "bits": 4}, None, "narrowed"), "int8 -> int4, narrowed"),
        (Change("quantization", "", GRID, {**GRID, "scale": 0.505}, 0.01), "scale 0.5 -> 0.505, by 1 %"),
        (Change("quantization", "", GRID, {**GRID, "zero_point": 1}), "scale and zero point (0.5, 0) -> (0.5, 1)"),
        (Change("tensor", "weight", FLOAT, FLOAT, 0.001), "weight changed by 0.1 %"),
        (Change("tensor", "weight", FLOAT, FLOAT, 0.1, "estimated", True), "weight changed by about 10 %"),
        (Change("tensor", "weight", FLOAT, INT8, 0.1, "narrowed"), "weight float32 -> int8, narrowed"),
        (
            Change("tensor", "weight", FLOAT, {**FLOAT, "shape": [7, 3]}, None, "channel 2 removed"),
            "weight resized 8x3 -> 7x3, channel 2 removed",
        ),
        (Change("tensor", "bias", None, FLOAT), "bias new (float32 8x3)"),
        (Change("tensor", "bias", FLOAT, None), "bias gone (float32 8x3)"),
        (Change("tensor", "weight"), "weight changed"),
        (Change("something", "x", 1, 2, None, "as told"), "something 1 -> 2, as told"),
        (Change("something", "x"), "something of x"),
    ],
)
def test_sentences(change: Change, words: str) -> None:
    assert said(change) == [words]


@pytest.mark.parametrize("value", [None, 1, "x", [1, "y"], {"bits": "many"}, {}, [], {"shape": 3, "dtype": []}, {"shape": ["a"]}, math.nan])
@pytest.mark.parametrize("what", ["attribute", "tensor", "quantization", "dtype", "shape", "target", "mode", "else"])
def test_values_of_another_form_are_told_too(what: str, value: object) -> None:
    """A file may hold any JSON there."""
    for change in (Change(what, "n", value, 1), Change(what, "n", [2], value), Change(what, "n", value, value)):
        assert all(said(change))


def test_what_several_tensors_share_is_told_once() -> None:
    small = {**FLOAT, "shape": [4, 3]}
    assert said(Change("tensor", "a", FLOAT, small), Change("tensor", "b", FLOAT, small)) == ["a, b resized 8x3 -> 4x3"]
    assert len(said(Change("tensor", "a", FLOAT, small), Change("tensor", "b", FLOAT, {**FLOAT, "shape": [5, 3]}))) == 2
    assert said(Change("attribute", "p", 1, 2), Change("attribute", "q", 1, 2)) == ["p, q 1 -> 2"]
    assert len(said(Change("dtype", "output 0", "a", "b"), Change("dtype", "output 1", "a", "b"))) == 2


def test_another_layer_is_one_sentence() -> None:
    changes = (
        Change("target", "", "BatchNorm2d", "Identity"),
        Change("attribute", "eps", 1e-5, None),
        Change("tensor", "weight", FLOAT, None),
        Change("tensor", "scale", None, FLOAT),
        Change("attribute", "kept", 1, 2),
    )
    assert said(*changes) == ["BatchNorm2d -> Identity, without weight, with new scale", "kept 1 -> 2"]
    assert len(said(*changes[1:])) == 4


def changed(*changes: Change, count: int = 1) -> tuple[NodeChange, ...]:
    nodes = [dataclasses.replace(place(f"conv{i}"), index=i) for i in range(count)]
    return tuple(NodeChange(node, node, 1.0, changes) for node in nodes)


def lines(stories: list[Told]) -> list[str]:
    return [f"{s.first.sign} {plain(s.subject)}: {plain(s.statement)}" for s in stories]


def test_the_worst_of_a_node_is_first() -> None:
    order = (
        Change("target", "", "a", "b"),
        Change("attribute", "stride", 1, 2),
        Change("quantization", "", GRID, None),
        Change("quantization", "", {**GRID, "bits": 4}, GRID),
        Change("dtype", "", "int8", "float32", None, "widened"),
        Change("dtype", "1", "float32", "int8", None, "narrowed"),
        Change("tensor", "bias", FLOAT, None),
        Change("tensor", "big", FLOAT, FLOAT, 0.5),
        Change("tensor", "little", FLOAT, FLOAT, 0.1),
        Change("shape", "", [1], [2]),
    )
    forwards = lines(told(empty(changed=changed(*order[1:]))))
    assert forwards == lines(told(empty(changed=changed(*order[:0:-1]))))
    assert [line.split(": ")[1].split()[0] for line in forwards] == [
        "stride", "float", "int4", "int8", "float32", "bias", "big", "little", "shape",
    ]  # fmt: skip


def test_the_largest_amount_is_first() -> None:
    nodes = [
        NodeChange(place(f"c{i}"), place(f"c{i}"), 1.0, (Change("tensor", "w", FLOAT, FLOAT, a),))
        for i, a in enumerate((0.1, 0.3, math.nan, 0.2))
    ]
    [story] = told(empty(changed=tuple(nodes)))
    assert [f.label for f in story.findings] == ["c2", "c1", "c3", "c0"]
    assert [plain(e) for e in story.examples(2)] == ["c2 by nan", "c1 by 30 %"]
    assert plain(story.subject) == "4 conv"


def test_equal_changes_are_told_together() -> None:
    [story] = told(empty(changed=changed(Change("attribute", "stride", 1, 2), count=5)))
    assert lines([story]) == ["* 5 conv: stride 1 -> 2"]
    assert [plain(e) for e in story.examples(3)] == ["conv0", "conv1", "conv2"]


def test_topology_comes_before_changes_and_merges() -> None:
    stories = told(
        empty(
            changed=changed(Change("attribute", "stride", 1, 2)),
            groups=(Group((place("a"), place("b")), (place("q", "quantize"), place("a")), "conv + relu -> quantize + conv", 0.3),),
            moved=(Moved(place("m"), place("m"), (), (place("x"), place("y"))),),
            added=(place("n"),),
            removed=(place("n"),),
            rewired=(Rewired(place("r"), place("r"), 2, None, place("x")),),
        )
    )
    assert lines(stories) == [
        "~ conv r: rewired (operand 2: nothing -> x)",
        "- conv n: removed",
        "+ conv n: added",
        "> conv m: moved (after nothing -> after x and y)",
        "* conv conv0: stride 1 -> 2",
        "= a: conv + relu -> quantize + conv (match is a guess, 30%)",
    ]


def test_calls_of_one_module_are_told_apart() -> None:
    nodes = [dataclasses.replace(place("act", "relu"), name=f"act_{i}") for i in range(2)]
    [story] = told(empty(removed=tuple(nodes)))
    assert [plain(e) for e in story.examples(5)] == ["act at act_0", "act at act_1"]


def test_a_change_without_words_is_told() -> None:
    [story] = told(empty(changed=changed()))
    assert lines([story]) == ["* conv conv0: not the same"]


def test_nothing_to_tell() -> None:
    assert told(empty()) == []


@pytest.mark.parametrize(
    ("base", "head"),
    [
        (0.1, 0.1 + 1e-12),
        ("x" * 90 + "a", "x" * 90 + "b"),
        ([1] * 60 + [2], [1] * 60 + [3]),
        ({"a": 1.0}, {"a": 1.0 + 1e-9}),
        (True, "yes"),
        (None, "unset"),
    ],
)
def test_what_differs_is_written_differently(base: object, head: object) -> None:
    was, _, now = between(base, head)
    assert was != now
    assert max(len(was), len(now)) <= 48
    assert between(head, base) == (now, " -> ", was)


def test_values() -> None:
    assert value_text({"scale": 0.25, "zero_point": [1, 2]}) == "scale 0.25, zero point (1, 2)"
    assert value_text((1, (2, None), "$3", False)) == "(1, (2, unset), operand 3, no)"
    assert percent(0.00123) == "0.12 %"
    assert percent(2.5) == "250 %"
    assert percent(math.inf) == "without bound"
    assert percent(1e9) == "x1.0e+09"
    assert share(1.0) == "100 %"
    assert share(0.9999999) != "100 %"
    assert cosine(1.0) == "1"
    assert cosine(0.9999999) != "1"
    assert cosine(0.5) == "0.5"
