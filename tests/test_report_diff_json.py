"""The JSON form of a difference: what the schema says, and back; and the inverse, field by field."""

from __future__ import annotations

import json
import math
from dataclasses import fields, is_dataclass, replace
from importlib.resources import files
from typing import Any

import jsonschema
import pytest

from fxcompress.errors import ArchiveError
from fxcompress.report import difference as records
from fxcompress.report.difference import (
    Change,
    Channels,
    ContractChange,
    CostChange,
    Difference,
    Gate,
    Group,
    LatencyChange,
    Match,
    Moved,
    NodeChange,
    NodeNumbers,
    NumbersChange,
    OutputNumbers,
    Place,
    Rewired,
    SideNode,
    Sides,
)

SCHEMA: Any = json.loads(files("fxcompress.report").joinpath("difference.schema.json").read_text())
LISTS = ["added", "removed", "changed", "rewired", "moved", "groups", "contract", "cost", "numbers", "gates"]
OTHERS = ["schema_version", "base", "head", "base_nodes", "head_nodes", "matched"]


def place(name: str, index: int) -> Place:
    return Place(name, "conv", f"layer.{name}", "a.py:3", index)


A, B, C, D = (place(name, index) for index, name in enumerate("abcd"))
FULL = Difference(
    base="old",
    head="new",
    base_nodes=5,
    head_nodes=4,
    matched=2,
    added=(B,),
    removed=(A, C),
    changed=(
        NodeChange(A, D, 0.9, (Change("attribute", "value", {"list": [1, None, True, "$0"]}, math.inf), Change("target", "", "x", "y"))),
        NodeChange(
            D,
            B,
            1.0,
            (
                Change(
                    "tensor",
                    "weight",
                    {"dtype": "float32", "shape": [3], "digest": "0" * 16},
                    {"dtype": "float16", "shape": [2], "digest": "1" * 16},
                    0.5,
                    "narrowed, channel 1 removed, estimated",
                    True,
                    (Channels(0, (1,), ()),),
                ),
                Change("quantization", "", {"scale": 0.1, "zero_point": 3, "bits": 8}, None, note="a value in 8 bits became float"),
                Change("dtype", "1", "float16", "float32", note="widened"),
            ),
        ),
    ),
    rewired=(Rewired(A, D, 1, None, C), Rewired(D, B, 0, A, B)),
    moved=(Moved(A, A, (B,), (C, D)),),
    groups=(Group((A, B), (C,), "conv + conv -> conv", 0.7, (Change("attribute", "bias", 1, 2),)),),
    contract=(ContractChange("output", "name", "a", "a", "b", "b"), ContractChange("model", "mode", "", "eval", "train")),
    cost=(CostChange("macs", 3, 2**60),),
    numbers=NumbersChange(
        (OutputNumbers("x", math.inf, -math.inf, 0.0, None, True, -math.inf), OutputNumbers("y", 0.1, 20.0, 0.99, 0.5, False, 21.0)),
        (NodeNumbers("a", "d", math.nan, 0, 3), NodeNumbers("d", "b", 7.5, 3, 1)),
        A,
        LatencyChange(1.0, 2.0, 0.001, "slower"),
        "something",
        B,
    ),
    gates=(Gate("macs", False, "1", "2", "ask"),),
    sides=Sides((SideNode("a", "a", "conv"),), (SideNode("b", "b", "conv", macs=3),), (Match("a", "b", 1.0, "test"),)),
)
EMPTY = Difference("a", "a", 3, 3, 3)


@pytest.mark.parametrize("difference", [FULL, EMPTY, FULL.inverse()], ids=["full", "empty", "inverse"])
def test_the_schema_describes_it_and_it_reads_back(difference: Difference) -> None:
    document = json.loads(difference.to_json())
    jsonschema.validate(document, SCHEMA, jsonschema.Draft202012Validator)
    assert sorted(document) == sorted([*LISTS, *OTHERS])
    again = Difference.from_json(difference.to_json())
    assert again.to_json() == difference.to_json()
    assert repr(replace(again, changed=())) == repr(replace(difference, changed=(), sides=None))  # NaN is not equal to itself


def test_one_function_under_other_names_is_all_empty() -> None:
    document = json.loads(EMPTY.to_json())
    assert not any(document[name] for name in LISTS)


def test_the_schema_has_every_field_of_every_record() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    names = {
        "Place",
        "Channels",
        "Change",
        "NodeChange",
        "Rewired",
        "Moved",
        "Group",
        "ContractChange",
        "CostChange",
        "OutputNumbers",
        "NodeNumbers",
    }
    described = {name: SCHEMA["$defs"][name[0].lower() + name[1:]] for name in names}
    described |= {
        "Gate": SCHEMA["$defs"]["gate"],
        "LatencyChange": SCHEMA["$defs"]["latency"],
        "NumbersChange": SCHEMA["properties"]["numbers"],
    }
    described["Difference"] = SCHEMA
    for name, schema in described.items():
        record = getattr(records, name)
        assert is_dataclass(record)
        assert set(schema["properties"]) == {f.name for f in fields(record)} - {"sides"}, name
        assert schema["additionalProperties"] is False


def test_the_schema_refuses_what_is_none() -> None:
    good = json.loads(FULL.to_json())
    broken = [
        {**good, "extra": 1},
        {**good, "schema_version": 2},
        {**good, "matched": -1},
        {**good, "added": [{"name": "x"}]},
        {key: value for key, value in good.items() if key != "gates"},
    ]
    for document in broken:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(document, SCHEMA, jsonschema.Draft202012Validator)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "no schema_version"),
        ("{}", "no schema_version"),
        ('{"schema_version": true}', "no schema_version"),
        ('{"schema_version": 1}', "lacks parts"),
        ('{"schema_version": 99}', "schema version 99"),
        (FULL.to_json()[:-30], "not JSON"),
        (FULL.to_json().replace('"added": [', '"added": ["x", ', 1), "added"),
        (FULL.to_json().replace('"matched": 2', '"matched": "2"'), "matched"),
        (FULL.to_json().replace('"matched": 2', '"other": 2'), "no Difference"),
    ],
)
def test_what_is_no_difference_is_refused(text: str, why: str) -> None:
    with pytest.raises(ArchiveError, match=why) as caught:
        Difference.from_json(text)
    assert caught.value.hint


def test_the_inverse_of_the_inverse_is_the_difference_without_its_gates() -> None:
    plain = replace(FULL, numbers=replace(FULL.numbers, nodes=FULL.numbers.nodes[1:]))  # NaN is not equal to itself
    assert plain.inverse().inverse() == replace(plain, gates=())


def test_the_inverse_says_everything_the_other_way_round() -> None:
    back = FULL.inverse()
    assert (back.base, back.head, back.added, back.removed) == ("new", "old", FULL.removed, FULL.added)
    assert [(n.base, n.head) for n in back.changed] == [(B, D), (D, A)]  # in the order of what is base now
    tensor, grid, dtype = back.changed[0].changes
    assert (tensor.note, tensor.channels) == ("widened, channel 1 added, estimated", (Channels(0, (), (1,)),))
    assert grid.note == "a float value became one in 8 bits"
    assert dtype.note == "narrowed"
    assert back.groups[0].kind == "conv -> conv + conv"
    assert back.contract[0] == ContractChange("output", "name", "b", "b", "a", "a")
    assert back.numbers.outputs[1].sqnr_db == 21.0
    assert back.numbers.latency == LatencyChange(2.0, 1.0, 0.001, "faster")
    assert (back.numbers.first_drop, back.numbers.first_drop_base) == (B, A)
    assert back.gates == ()
    assert back.sides is not None
    assert back.sides.matches == (Match("b", "a", 1.0, "test"),)
