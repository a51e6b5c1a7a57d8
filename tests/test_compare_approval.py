"""When there is nothing to approve, on hand-made differences."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fxcompress.compare.approval import agree, without_values
from fxcompress.compare.schema import Contract, Cost, Numbers, Snapshot
from fxcompress.report.difference import Change, CostChange, Difference, Group, NodeChange, NumbersChange, OutputNumbers, Place

EMPTY = Difference("a", "b", 1, 1, 1)
NODE = Place("conv", "conv")
TAKEN = Snapshot("net", (), (), Contract((), ()), Cost(1, 1, 1, 1), Numbers("g", 0, "0" * 16, 1, ()))
VALUES = Change("tensor", "weight", {"dtype": "float32", "shape": [2], "digest": "a"}, {"dtype": "float32", "shape": [2], "digest": "b"})
SHAPE = Change("tensor", "weight", {"dtype": "float32", "shape": [2]}, {"dtype": "float32", "shape": [3]})
STRIDE = Change("attribute", "stride", 1, 2)
OUTPUT = OutputNumbers("y", 1.0, 3.0, 0.5, None, False)


def changed(*changes: Change) -> Difference:
    return replace(EMPTY, changed=(NodeChange(NODE, NODE, 1.0, changes),))


@pytest.mark.parametrize(
    "found",
    [
        changed(VALUES),
        replace(EMPTY, added=(NODE,)),
        replace(EMPTY, cost=(CostChange("macs", 1, 2),)),
        replace(EMPTY, numbers=NumbersChange((OUTPUT,))),
        replace(EMPTY, numbers=NumbersChange(note="not compared")),
    ],
)
def test_something_is_left_to_approve(found: Difference) -> None:
    assert not agree(found, TAKEN, TAKEN)


def test_nothing_is_left_to_approve() -> None:
    assert agree(EMPTY, TAKEN, TAKEN)
    assert not agree(EMPTY, TAKEN, replace(TAKEN, numbers=None))
    assert not agree(EMPTY, replace(TAKEN, schema_version=0), TAKEN)


def test_only_structure() -> None:
    assert without_values(changed(VALUES)) == EMPTY
    assert without_values(changed(VALUES, STRIDE, SHAPE)) == changed(STRIDE, SHAPE)
    assert without_values(changed(Change("tensor", "bias", None, {"dtype": "float32", "shape": [2]}))).changed
    group = Group((NODE,), (NODE,), "a -> b", 1.0, (VALUES, STRIDE))
    found = without_values(replace(EMPTY, groups=(group,), numbers=NumbersChange((OUTPUT,))))
    assert found == replace(EMPTY, groups=(replace(group, changes=(STRIDE,)),))
