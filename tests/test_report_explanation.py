"""A pipeline step by step, as text."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fxcompress.errors import InputError
from fxcompress.report.difference import Change, CostChange, Difference, Group, Moved, NodeChange, Place, Rewired, SideNode, Sides
from fxcompress.report.explanation import ExplainedStep, Explanation

CONV, BN, RELU = Place("conv1", "conv", "conv1", "/home/me/net/resnet.py:7"), Place("bn1", "bn"), Place("relu", "relu")
EMPTY = Difference("a", "b", 5, 5, 5)


def side(name: str, kind: str, *inputs: str, shape: str = "1x8x4x4") -> SideNode:
    return SideNode(name, name, kind, shape=shape, inputs=inputs)


def told(difference: Difference | None, **facts: object) -> Explanation:
    return Explanation("net", (replace(ExplainedStep("fold-norm", "", 0.5), difference=difference, **facts),))


def folded(times: int) -> Difference:
    groups = tuple(
        Group((replace(CONV, name=f"conv{i}"), replace(BN, name=f"bn{i}")), (replace(CONV, name=f"conv{i}"),), "conv + bn -> conv", 1.0)
        for i in range(times)
    )
    nodes = tuple(node for i in range(times) for node in (side(f"conv{i}", "conv", "x"), side(f"bn{i}", "bn", f"conv{i}")))
    sides = Sides(nodes, tuple(node for node in nodes if node.kind == "conv"), ())
    return replace(EMPTY, groups=groups, base_nodes=2 * times, head_nodes=times, sides=sides)


def test_equal_changes_are_told_once_with_the_nodes_of_the_first() -> None:
    text = told(folded(9), rewrites=9, missed=2, error=3e-7).to_text()
    assert "fold-norm: 9 rewrites, 2 refused, 18 -> 9 nodes, 500 ms, largest error 3.0e-07" in text
    assert "9 x conv + bn -> conv\n" in text
    assert [line.split()[:4] for line in text.splitlines() if line.lstrip()[:2] in ("- ", "+ ")] == [
        ["-", "conv0", "=", "conv(x)"],
        ["-", "bn0", "=", "bn(conv0)"],
        ["+", "conv0", "=", "conv(x)"],
    ]
    assert "the same at conv1, conv2, conv3, conv4, and 4 more" in text
    assert "1x8x4x4, resnet.py:7" in text


def test_one_change_has_no_count() -> None:
    text = told(folded(1)).to_text()
    assert "\n  conv + bn -> conv\n" in text
    assert "the same at" not in text


def test_every_kind_of_change_is_told() -> None:
    change = Change("attribute", "inplace", True, False)
    difference = replace(
        EMPTY,
        added=(RELU,),
        removed=(BN,),
        changed=(NodeChange(CONV, CONV, 1.0, (change, Change("tensor", "weight", amount=0.25, note="estimated"))),),
        rewired=(Rewired(RELU, RELU, 1, CONV, None),),
        moved=(Moved(BN, BN, (CONV,), (RELU, CONV)),),
        cost=(CostChange("macs", 2_000_000, 1_000_000),),
    )
    text = told(difference).to_text()
    for wanted in (
        "multiply-adds 2.00 M -> 1.00 M, x0.50",
        "removed bn",
        "added relu",
        "attribute inplace: yes -> no",
        "tensor weight, differs by 25 % (estimated)",
        "relu reads nothing instead of conv1 as operand 1",
        "bn1 stood after conv1, now after relu, conv1",
    ):
        assert wanted in text


def test_changes_of_other_values_are_other_kinds() -> None:
    nodes = [NodeChange(CONV, CONV, 1.0, (Change("attribute", "stride", 1, value),)) for value in (2, 2, 3)]
    text = told(replace(EMPTY, changed=tuple(nodes))).to_text()
    assert "2 x conv: attribute stride: 1 -> 2" in text
    assert "\n  conv: attribute stride: 1 -> 3\n" in text


def test_passes_without_a_change_share_one_line() -> None:
    steps = (
        ExplainedStep("cse", "", 0.1),
        ExplainedStep("fuse", "", 0.1, missed=3),
        ExplainedStep("fold-norm", "part", 0.1, difference=folded(1)),
    )
    text = Explanation("net", steps, (folded(1),)).to_text()
    assert text.startswith("net: 1 of 3 passes changed the graph\nin all: 2 -> 1 node\n")
    assert "\nno change: cse, fuse (3 refused)\n" in text
    assert "\nfold-norm in part: 2 -> 1 node" in text


def test_equal_bits_are_called_so() -> None:
    assert "same values" in told(folded(1), error=0.0).to_text()


def test_a_step_whose_change_no_node_shows_says_so() -> None:
    assert "only names and settings that no node shows" in told(EMPTY).to_text()


@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_line_is_longer_than_the_width_and_nothing_drives_the_terminal(width: int) -> None:
    hostile = Place("x\x1b[31m\n" + "y" * 300, "k\r" * 50, "", "/a/" + "f" * 200 + ".py:1")
    changes = tuple(Change("attribute", "a" * 90 + "\n", "\x07" * 60, ["b"] * 99, note="n" * 300) for _ in range(9))
    many = tuple(replace(hostile, kind=f"{hostile.kind}{i}") for i in range(30))
    difference = replace(
        EMPTY, removed=many, changed=(NodeChange(hostile, hostile, 1.0, changes),), groups=(Group(many, many, "k\x1b" * 99, 1.0),)
    )
    text = Explanation(
        "m\n" * 99, (ExplainedStep("p" * 300, "", 1.0, difference=difference), ExplainedStep("q" * 300, "\x1b", 1.0))
    ).to_text(width)
    assert max(map(len, text.splitlines())) <= width
    assert all(char.isprintable() or char == "\n" for char in text)
    assert "of 24 other kinds" in text
    assert text.count("\n") < 80


def test_forms_are_chosen_by_suffix() -> None:
    explanation = told(folded(2))
    assert explanation.render(".txt") == explanation.to_text() == str(explanation)
    assert explanation.render("html").lstrip().startswith("<!DOCTYPE html>")
    with pytest.raises(InputError, match="in the form 'pdf'"):
        explanation.render("pdf")
