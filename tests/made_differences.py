"""Differences made by hand for tests of their forms: none, one of each kind, of a real network's size, huge and hostile."""

from __future__ import annotations

import dataclasses
from typing import Any

from fxcompress.report.difference import (
    Change,
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

HOSTILE = (
    "`x`](javascript:alert(1))</script><img src=x onerror=alert(1)>\"'&|*_~$@octocat #1 GH-1 https://evil.example www.evil.example "
    'a@evil.example\r\n::error file=a::b%0A::set-output\x1b[31m\u202e\x00\ud800 ]]> --> ``` "] click n0 --'
)
"""A name that tries to end, to link, to mention and to command."""

COSTS = (
    CostChange("params", 11_689_512, 5_912_311),
    CostChange("macs", 1_814_073_344, 921_000_000),
    CostChange("weight_bytes", 46_800_000, 6_100_000),
    CostChange("peak_bytes", 6_422_528, 6_500_000),
)


def place(name: str, kind: str = "conv", line: int = 7) -> Place:
    """A node of a user's file."""
    return Place(name.replace(".", "_"), kind, name, f"/home/runner/work/app/app/models/net.py:{line}")


def empty(**more: Any) -> Difference:
    """Nothing differs."""
    return Difference("net", "net", 70, 70, 70, **more)


def small() -> Difference:
    """One of each kind."""
    stride = Change("attribute", "stride", [1, 1], [2, 2])
    return Difference(
        base="net@main",
        head="net@feature",
        base_nodes=12,
        head_nodes=12,
        matched=11,
        added=(place("act.gelu", "gelu", 31),),
        removed=(place("act.relu", "relu", 30),),
        changed=(
            NodeChange(place("stem", line=21), place("stem", line=22), 1.0, (stride,)),
            NodeChange(place("head", "linear", 40), place("head", "linear", 41), 1.0, (Change("tensor", "weight", amount=0.001),)),
        ),
        rewired=(Rewired(place("add", "add", 35), place("add", "add", 35), 1, place("stem"), place("block")),),
        moved=(Moved(place("norm", "layer_norm"), place("norm", "layer_norm"), (place("stem"),), (place("head", "linear"),)),),
        groups=(Group((place("c1"), place("b1", "batch_norm")), (place("c1"),), "conv + batch_norm -> conv", 0.93),),
        contract=(ContractChange("output", "name", "logits", "logits", "scores", "scores"),),
        cost=COSTS,
        numbers=NumbersChange(
            outputs=(OutputNumbers("[0]", 0.0312, 31.94, 0.99968, 0.984, False),),
            nodes=(NodeNumbers("stem", "stem", 61.0), NodeNumbers("act_gelu", "act_gelu", 33.5)),
            first_drop=place("act.gelu", "gelu", 31),
            latency=LatencyChange(12.31, 12.02, 0.31, "~"),
        ),
        gates=(
            Gate("macs", True, "at most 1.2 GMACs", "921 M"),
            Gate("weight_bytes", False, "at most 5 MB", "6.1 MB", "the phone has no more room"),
        ),
    )


BLOCKS = [f"layer{stage}.{block}.conv{conv}" for stage in range(1, 5) for block in range(2) for conv in (1, 2)]


def resnet(gates: tuple[Gate, ...] = ()) -> Difference:
    """A chain of the size of resnet18, pruned and in int8 against its float form."""
    names = ["conv1", *BLOCKS]
    base, head, matches = _chain(names)
    return Difference(
        base="resnet18",
        head="resnet18 int8",
        base_nodes=len(base),
        head_nodes=len(head),
        matched=2,
        added=(place("quantize_0", "quantize"), place("dequantize_0", "dequantize")),
        changed=(NodeChange(place("fc", "linear"), place("fc", "linear"), 1.0, _quantized(16)),),
        groups=tuple(_folded(name, at) for at, name in enumerate(names)),
        cost=COSTS,
        numbers=NumbersChange((OutputNumbers("[0]", 0.41, 27.3, 0.99905, 0.94, False),), (), place("layer3.0.conv1", "conv+relu", 93)),
        gates=gates,
        sides=Sides(base, head, matches),
    )


def _quantized(at: int) -> tuple[Change, ...]:
    channels, kept = 64 * 2 ** (at // 5), 48 * 2 ** (at // 5)
    was = {"dtype": "float32", "shape": [channels, channels, 3, 3], "digest": f"{at:016x}"}
    now = {"dtype": "int8", "shape": [kept, kept, 3, 3], "digest": f"{at + 99:016x}"}
    gone = f"{channels - kept} channels (0, 1, 2, 3, 4, 5, 6, 7, ...) removed, narrowed"
    return (
        Change("tensor", "weight", was, now, None, gone),
        Change("tensor", "bias", None, {"dtype": "float32", "shape": [kept], "digest": f"{at:016x}"}),
        Change(
            "quantization", "", None, {"scale": 0.021 * (at + 1), "zero_point": 3, "bits": 8}, None, "a float value became one in 8 bits"
        ),
        Change("dtype", "", "float32", "uint8", None, "narrowed"),
        Change("shape", "", [1, channels, 56, 56], [1, kept, 56, 56]),
    )


def _folded(name: str, at: int) -> Group:
    norm = place(name.replace("conv", "bn"), "batch_norm")
    three = (place(name), norm, place(name.replace("conv", "relu"), "relu"))
    return Group(three, (place(name, "conv+relu"),), "conv + batch_norm + relu -> conv+relu", 1.0, _quantized(at))


def _chain(names: list[str]) -> tuple[tuple[SideNode, ...], tuple[SideNode, ...], tuple[Match, ...]]:
    base, head = [SideNode("x", "x", "input")], [SideNode("x", "x", "input"), side("quantize_0", "quantize", "x")]
    for name in names:
        before = base[-1].id
        for part, kind in (("conv", "conv"), ("bn", "batch_norm"), ("relu", "relu")):
            base.append(side(name.replace("conv", part), kind, before))
            before = base[-1].id
        head.append(side(name, "conv+relu", head[-1].id))
    head += [side("fc", "linear", head[-1].id), side("dequantize_0", "dequantize", "fc")]
    base.append(side("fc", "linear", base[-1].id))
    return tuple(base), tuple(head), (Match("x", "x", 1.0, "ends"), Match("fc", "fc", 1.0, "tensors"))


def side(name: str, kind: str, *inputs: str) -> SideNode:
    """A node as it is drawn."""
    return SideNode(name.replace(".", "_"), name, kind, inputs=inputs, path=name)


def huge(count: int = 1000) -> Difference:
    """Thousands of findings, no two alike."""
    nodes = [place(f"block{i}.conv", f"kind{i}", i) for i in range(count)]
    sides = tuple(side(f"block{i}.conv", f"kind{i}", *([f"block{i - 1}_conv"] if i else [])) for i in range(count))
    return Difference(
        base="huge",
        head="huge2",
        base_nodes=count,
        head_nodes=count,
        matched=count,
        added=tuple(nodes),
        removed=tuple(nodes),
        changed=tuple(NodeChange(p, p, 1.0, (Change("attribute", f"option{i}", i, -i),)) for i, p in enumerate(nodes)),
        rewired=tuple(Rewired(p, p, 0, nodes[0], nodes[-1]) for p in nodes),
        moved=tuple(Moved(p, p, (nodes[0],), (nodes[-1],)) for p in nodes),
        groups=tuple(Group((p, p), (p,), f"{p.kind} + {p.kind} -> {p.kind}", 0.9) for p in nodes),
        contract=tuple(ContractChange("output", "shape", f"out{i}", [1, i], [2, i]) for i in range(count)),
        cost=COSTS,
        numbers=NumbersChange(tuple(OutputNumbers(f"out{i}", 0.1, 20.0 + i, 0.9, None, True) for i in range(count))),
        gates=tuple(Gate(f"gate{i}", i % 2 == 0, "at most 1", "2", "too much") for i in range(count)),
        sides=Sides(sides, sides, tuple(Match(n.id, n.id, 1.0, "tensors") for n in sides[::2])),
    )


def hostile(text: str = HOSTILE) -> Difference:
    """The small one with every text replaced by ``text``; what selects a form (``what``, names of costs) is kept."""
    sides = Sides((_bad_side("a", text), _bad_side("b", text, "a")), (_bad_side("a", text), _bad_side("c", text, "a")), ())
    made = dataclasses.replace(_replaced(small(), text), sides=sides)
    assert isinstance(made, Difference)
    return made


def _bad_side(name: str, text: str, *inputs: str) -> SideNode:
    return SideNode(name, text, text, inputs=inputs, path=text, source=text)


def _replaced(value: Any, text: str) -> Any:
    if isinstance(value, str):
        return text
    if isinstance(value, (tuple, list)):
        return type(value)(_replaced(item, text) for item in value)
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    kept = {"what", "verdict", "where"} | ({"name"} if isinstance(value, CostChange) else set())
    changed = {f.name: _replaced(getattr(value, f.name), text) for f in dataclasses.fields(value) if f.name not in kept}
    return dataclasses.replace(value, **changed)
