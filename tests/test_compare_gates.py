"""Gates on hand-made differences."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import fxcompress
from fxcompress import Int8
from fxcompress.compare import codec
from fxcompress.compare.budgets import NAMES, budgets
from fxcompress.compare.diff import diff
from fxcompress.compare.gates import Versions, judged, missing
from fxcompress.compare.schema import Contract, Cost, Grid, NodeRecord, Numbers, OutputPrint, Sketch, Snapshot, Value
from fxcompress.compare.widening import bits
from fxcompress.errors import InputError
from fxcompress.report.difference import (
    Change,
    ContractChange,
    Difference,
    Gate,
    Group,
    LatencyChange,
    Moved,
    NodeChange,
    NumbersChange,
    OutputNumbers,
    Place,
    Rewired,
)

CONV, RELU = Place("conv1", "conv"), Place("relu", "relu")
EMPTY = Difference("base", "head", 2, 2, 2)
SKETCH = Sketch(1.0, 1.0, 1, (1.0,))


def snapshot(*nodes: NodeRecord, classes: bool = True, numbers: bool = True, **cost: int) -> Snapshot:
    prints = (OutputPrint(SKETCH, 1, (1.0,), (3, 1) if classes else ()),)
    made = Numbers("torch", 0, "0" * 16, 1, prints) if numbers else None
    return Snapshot(
        "net", nodes, (), Contract((), ()), Cost(**{"params": 1000, "macs": 10_000, "weight_bytes": 4000, "peak_bytes": 800} | cost), made
    )


def gates(table: dict[str, object], difference: Difference = EMPTY, base: Snapshot | None = None, **options: Any) -> tuple[Gate, ...]:
    base = snapshot() if base is None else base
    head = options.pop("head", base)
    return judged(budgets(table, "[t]"), Versions(difference, base, head, **options)).gates


def gate(name: str, limit: object, difference: Difference = EMPTY, **options: Any) -> Gate:
    (found,) = gates({name: limit}, difference, **options)
    assert found.name == name
    return found


def changed(*changes: Change) -> Difference:
    return replace(EMPTY, changed=(NodeChange(CONV, CONV, 1.0, changes),))


# -- tables of gates


def test_one_several_and_with_a_message() -> None:
    found = budgets({"macs": ["1 G", {"limit": "+1%", "message": "ask"}], "topology": "approved", "sqnr": 30}, "[t]")
    assert [(budget.name, str(budget.limit), budget.message) for budget in found] == [
        ("macs", "at most 1 G", ""),
        ("macs", "at most +1%", "ask"),
        ("topology", "approved", ""),
        ("sqnr", "at least 30 dB", ""),
    ]
    assert [budget.needs_baseline for budget in found] == [False, True, True, True]


@pytest.mark.parametrize(
    ("table", "parts"),
    [
        ({"mac": "1 G"}, ["no gate 'mac' in [t]", "did you mean 'macs'"]),
        ({"toplogy": "approved"}, ["did you mean 'topology'"]),
        ({"x\n\x1b[31m": "1"}, ["no gate 'x ?[31m'"]),
        ({"topology": "aproved"}, ['write "approved" or "same"']),
        ({"dtypes": "approved"}, ['"no-widen" or "same"']),
        ({"topology": True}, ["cannot read topology"]),
        ({"topology": ["approved", 3]}, ["cannot read topology"]),
        ({"topology": {"limit": []}}, ["cannot read topology"]),
        ({"macs": {"limits": "1 G"}}, ["no 'limits' in [t].macs", "did you mean 'limit'"]),
        ({"macs": {"message": "m"}}, ["has no limit"]),
        ({"macs": {"limit": "1 G", "message": 3}}, ["message"]),
        ({"macs": []}, ["no limit"]),
        ({"macs": "fast"}, ["[t]", "cannot read the limit macs"]),
    ],
)
def test_tables_that_mean_nothing(table: dict[str, object], parts: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        budgets(table, "[t]")
    for part in parts:
        assert part in str(caught.value)


# -- costs


@pytest.mark.parametrize("name", ["params", "macs", "weight_bytes", "peak_bytes"])
def test_costs(name: str) -> None:
    base = snapshot()
    value = getattr(base.cost, name)
    assert gate(name, value).holds
    assert not gate(name, value - 1).holds
    grown = replace(base, cost=replace(base.cost, **{name: value + value // 100}))
    assert gate(name, "+1%", head=grown).holds
    violated = gate(name, {"limit": "+0.9%", "message": "ask"}, head=grown)
    assert not violated.holds
    assert violated.limit == "at most +0.9%"
    assert violated.measured.startswith("+1.00% (")
    assert violated.message == "ask"


# -- what differs


DIFFERENT = {
    "added": replace(EMPTY, added=(RELU,)),
    "removed": replace(EMPTY, removed=(RELU,)),
    "rewired": replace(EMPTY, rewired=(Rewired(CONV, CONV, 0, RELU, CONV),)),
    "moved": replace(EMPTY, moved=(Moved(RELU, RELU, (CONV,), ()),)),
    "group": replace(EMPTY, groups=(Group((CONV, RELU), (CONV,), "conv + relu -> conv+relu", 1.0),)),
    "kind": replace(EMPTY, changed=(NodeChange(CONV, Place("conv1", "conv+relu"), 1.0, (Change("other", "", 1, 2),)),)),
    "target": changed(Change("target", "", "a.B", "a.C")),
    "attribute": changed(Change("attribute", "stride", [1, 1], [2, 2])),
    "mode": changed(Change("mode", "", "eval", "train")),
    "shape": changed(Change("shape", "0", [1, 2], [1, 3])),
    "tensor": changed(Change("tensor", "weight", {"digest": "a"}, {"digest": "b"}, 0.01)),
    "dtype": changed(Change("dtype", "", "int8", "float32")),
    "narrowed": changed(Change("dtype", "", "float32", "float16")),
    "grid": changed(Change("quantization", "", {"scale": 0.1, "zero_point": 0, "bits": 8}, {"scale": 0.2, "zero_point": 0, "bits": 8})),
    "contract": replace(EMPTY, contract=(ContractChange("output", "name", "0", "a", "b"),)),
}
CAUGHT = {
    "topology": {"added", "removed", "rewired", "moved", "group", "target", "kind"},
    "attributes": {"attribute", "mode", "shape"},
    "weights": {"tensor"},
    "quantization": {"dtype", "narrowed", "grid"},
    "contract": {"contract"},
}


@pytest.mark.parametrize("name", CAUGHT)
@pytest.mark.parametrize("kind", DIFFERENT)
def test_each_gate_catches_its_own(name: str, kind: str) -> None:
    for word in ("approved", "same"):
        assert gate(name, word).holds
        found = gate(name, word, DIFFERENT[kind])
        assert found.holds is (kind not in CAUGHT[name])
        assert (found.measured == "unchanged") is found.holds
        assert found.limit == "unchanged"


def test_changes_inside_of_a_group_count() -> None:
    change = Change("attribute", "stride", 1, 2)
    assert not gate("attributes", "approved", replace(EMPTY, groups=(Group((CONV,), (CONV,), "a -> b", 1.0, (change,)),))).holds


def test_many_findings_are_told_in_short() -> None:
    found = gate("topology", "approved", replace(EMPTY, added=tuple(Place(f"n{i}", "relu") for i in range(50))))
    assert found.measured == "n0 (relu) added and 49 more"


# -- dtypes


WIDER = [
    Change("dtype", "", "int8", "float32"),
    Change("dtype", "", "float16", "float32"),
    Change("dtype", "", "uint8", "int32"),
    Change("dtype", "", "bfloat16", "float32"),
    Change("quantization", "", {"scale": 1.0, "zero_point": 0, "bits": 8}, None),
    Change("quantization", "", {"scale": 1.0, "zero_point": 0, "bits": 4}, {"scale": 1.0, "zero_point": 0, "bits": 8}),
    Change("tensor", "weight", {"dtype": "int8", "shape": [2]}, {"dtype": "float32", "shape": [2]}),
]
NOT_WIDER = [
    Change("dtype", "", "float32", "int8"),
    Change("dtype", "", "int8", "uint8"),
    Change("dtype", "", "float32", "int32"),
    Change("dtype", "", "float16", "bfloat16"),
    Change("quantization", "", None, {"scale": 1.0, "zero_point": 0, "bits": 8}),
    Change("quantization", "", {"scale": 1.0, "zero_point": 0, "bits": 8}, {"scale": 2.0, "zero_point": 0, "bits": 8}),
    Change("tensor", "weight", {"dtype": "float32", "shape": [2]}, {"dtype": "float32", "shape": [3]}),
    Change("tensor", "weight", None, {"dtype": "float32", "shape": [3]}),
    Change("attribute", "bits", "int8", "float32"),
]


@pytest.mark.parametrize("change", WIDER)
def test_widened(change: Change) -> None:
    found = gate("dtypes", "no-widen", changed(Change("attribute", "stride", 1, 2), change))
    assert not found.holds
    assert found.measured.startswith("conv1: ")
    assert found.limit == "no wider"
    grouped = replace(EMPTY, groups=(Group((CONV,), (CONV, RELU), "a -> b", 1.0, (change,)),))
    assert not gate("dtypes", "no-widen", grouped).holds


@pytest.mark.parametrize("change", NOT_WIDER)
def test_not_widened(change: Change) -> None:
    assert gate("dtypes", "no-widen", changed(change)).holds


def test_bits() -> None:
    assert [bits(value) for value in ("int8", "torch.float64", "bool", "relu", "int9", None, 8, {"bits": "x"}, {})] == [
        8,
        64,
        8,
        0,
        0,
        0,
        0,
        0,
        0,
    ]


@pytest.mark.parametrize(
    ("kind", "macs", "path", "caught"), [("conv", 9, "x", True), ("conv", 8, "c", True), ("conv", 8, "x", False), ("linear", 9, "c", False)]
)
def test_an_integer_layer_and_the_float_layer_in_its_place(kind: str, macs: int, path: str, caught: bool) -> None:
    """They are so different that they were not matched."""
    old = NodeRecord("q", "conv+relu", "A", "c", outputs=(Value("uint8", (1,), Grid(0.1, 0, 8)),), macs=9)
    new = NodeRecord("f", kind, "B", path, outputs=(Value("float32", (1,)),), macs=macs)
    difference = replace(EMPTY, removed=(Place("q", "conv+relu"),), added=(Place("f", kind),))
    found = gate("dtypes", "no-widen", difference, base=snapshot(old), head=snapshot(new))
    assert found.holds is not caught
    back = replace(EMPTY, removed=(Place("f", kind),), added=(Place("q", "conv+relu"),))
    assert gate("dtypes", "no-widen", back, base=snapshot(new), head=snapshot(old)).holds


def test_a_layer_that_stays_in_float_again() -> None:
    """Quantized networks themselves, also from files."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()).eval()
    x = torch.randn(1, 3, 12, 12)

    def taken(ignore: tuple[str, ...]) -> Snapshot:
        options = Int8(speed="none", ignore=ignore)
        return fxcompress.snapshot(fxcompress.quantize(net, x, options, calibration=[x], target="cpu", verify=False), x, name="net")

    whole, island = taken(()), taken(("2",))
    for base, head, holds in ((whole, island, False), (island, whole, True), (whole, whole, True), (island, island, True)):
        for one, other in ((base, head), (codec.decode(codec.encode(base)), codec.decode(codec.encode(head)))):
            assert gate("dtypes", "no-widen", diff(one, other), base=one, head=other).holds is holds


# -- numbers


def numbers(*values: tuple[float | None, float | None], estimated: bool = False, note: str = "") -> Difference:
    outputs = tuple(OutputNumbers(f"out{i}", 0.1, sqnr, 1.0, top1, estimated) for i, (sqnr, top1) in enumerate(values))
    return replace(EMPTY, numbers=NumbersChange(outputs, note=note))


@pytest.mark.parametrize(
    ("values", "sqnr", "top1"),
    [
        ((), "equal", "100%"),
        (((40.0, 1.0),), "40.0 dB", "100%"),
        (((34.999, 0.9),), "!34.999 dB", "!90.0%"),
        (((40.0, 1.0), (20.0, None)), "!20.0 dB (output out1)", "100% (output out0)"),
        (((None, None),), "equal", "100%"),
        (((math.nan, math.nan),), "!nan dB", "!nan %"),
        (((40.0, 1.0), (math.nan, 0.5)), "!nan dB (output out1)", "!50.0% (output out1)"),
        (((-math.inf, 0.0),), "!-inf dB", "!0%"),
    ],
)
def test_quality(values: tuple[tuple[float | None, float | None], ...], sqnr: str, top1: str) -> None:
    for name, limit, expected in (("sqnr", "35 dB", sqnr), ("top1", "99%", top1)):
        found = gate(name, limit, numbers(*values))
        assert (found.holds, found.measured) == (not expected.startswith("!"), expected.removeprefix("!"))


def test_estimated_numbers_say_so() -> None:
    assert gate("sqnr", "35 dB", numbers((40.0, None), estimated=True)).measured == "40.0 dB (estimated)"


@pytest.mark.parametrize(
    ("difference", "base", "head", "word"),
    [
        (EMPTY, snapshot(numbers=False), snapshot(), "the baseline has no numbers"),
        (EMPTY, snapshot(), snapshot(numbers=False), "the model has no numbers"),
        (numbers(note="other seeds"), snapshot(), snapshot(), "other seeds"),
        (numbers((40.0, 1.0), note="outputs of another size: b"), snapshot(), snapshot(), "another size"),
    ],
)
def test_a_gate_that_looks_at_nothing_is_not_green(difference: Difference, base: Snapshot, head: Snapshot, word: str) -> None:
    for name, limit in (("sqnr", "1 dB"), ("top1", "1%")):
        found = gate(name, limit, difference, base=base, head=head)
        assert not found.holds
        assert found.measured.startswith("not compared")
        assert word in found.measured


def test_top1_needs_classes() -> None:
    assert "no output" in gate("top1", "1%", base=snapshot(classes=False)).measured
    assert gate("sqnr", "1 dB", base=snapshot(classes=False)).holds


# -- latency


def timed(base: float, head: float, verdict: str) -> Difference:
    return replace(EMPTY, numbers=NumbersChange(latency=LatencyChange(base, head, 0.01, verdict)))


def test_latency() -> None:
    assert gate("latency", "12 ms", latency=0.0119).holds
    assert gate("latency", "12 ms", latency=0.0121).measured == "12.1 ms"
    assert not gate("latency", "12 ms", latency=0.0121).holds
    assert not gate("latency", "12 ms").holds
    assert not gate("latency", "+5%").holds
    assert gate("latency", "+5%", timed(10, 10.4, "slower")).holds
    assert not gate("latency", "+5%", timed(10, 10.6, "slower")).holds
    assert gate("latency", "+5%", timed(10, 10.6, "~")).holds
    assert gate("latency", "+5%", timed(10, 8, "faster")).measured == "-20.0% (10.0 ms -> 8.00 ms)"
    assert gate("latency", "9 ms", timed(10, 8, "faster")).holds
    assert not gate("latency", "7 ms", timed(10, 8, "faster")).holds


# -- baselines


def test_without_a_baseline_only_absolute_limits_are_judged() -> None:
    table = {name: "same" if name in CAUGHT else "no-widen" for name in NAMES if name in CAUGHT or name == "dtypes"}
    everything: dict[str, object] = {
        **table,
        "params": ["999", "+0%"],
        "macs": "+0%",
        "weight_bytes": "+1 kB",
        "peak_bytes": "1 GB",
        "sqnr": 3,
        "top1": "1%",
    }
    found = judged(budgets(everything, "[t]"), Versions(replace(EMPTY, gates=(missing("b.fxs"),)), None, snapshot())).gates
    assert [(g.name, g.holds) for g in found] == [("baseline", False), ("params", False), ("peak_bytes", True)]
    assert "b.fxs" in found[0].limit
    assert "--update" in found[0].message
