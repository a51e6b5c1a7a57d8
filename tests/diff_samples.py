"""Differences for tests of their renderings: of real graphs by their provenance, of long made-up ones, and hostile ones."""

from __future__ import annotations

import math
from collections.abc import Iterable

from report_samples import HOSTILE

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
from fxcompress.report.model import GraphPair, NodeView

NUMBERS = (OutputNumbers("[0]", 3.1e-2, 34.2, 0.9998, 0.98, False),)
GATES = (
    Gate("weight_bytes", False, "40 MiB", "44.6 MiB", "ask the mobile team first"),
    Gate("topology", True, "approved", "approved"),
)
COSTS = (CostChange("params", 11_689_512, 11_684_712), CostChange("macs", 1_819_066_368, 1_819_066_368))
COSTS += (CostChange("weight_bytes", 46_796_968, 46_738_848), CostChange("peak_bytes", 9_633_792, 7_225_344))


BLOCK = (("conv", "conv1"), ("batch_norm", "bn1"), ("relu", "act1"), ("conv", "conv2"), ("batch_norm", "bn2"), ("relu", "act2"))


def place(node: NodeView, index: int = -1) -> Place:
    return Place(node.id, node.kind, getattr(node, "path", ""), node.source, index)


def side(nodes: Iterable[NodeView]) -> tuple[SideNode, ...]:
    """Nodes with a module path where they have one, and costs made up from their shapes."""
    made = []
    for n in nodes:
        size = math.prod(int(part) for part in n.shape.split("x")) if n.shape.replace("x", "").isdigit() else 0
        heavy = n.kind.split("+")[0] in ("conv", "linear")
        path = n.name if "." in n.name or n.kind.split("+")[0] in ("conv", "linear", "batch_norm", "relu") else ""
        made.append(
            SideNode(n.id, n.name, n.kind, n.detail, n.shape, n.inputs, n.from_, n.source, path, 300 * size * heavy, 9 * size // 7 * heavy)
        )
    return tuple(made)


def of_pair(pair: GraphPair, name: str = "resnet18") -> Difference:
    """What became of the graph, told by the provenance of its nodes."""
    base, head = side(pair.before.nodes), side(pair.after.nodes)
    at = {n.id: n for n in base}
    owners: dict[str, list[SideNode]] = {}
    for node in head:
        for origin in node.from_ or (node.id,):
            owners.setdefault(origin, []).append(node)
    groups, matches = [], []
    for node in head:
        origins = [at[o] for o in node.from_ or (node.id,) if o in at]
        if len(origins) == 1 and len(owners[origins[0].id]) == 1:
            matches.append(Match(origins[0].id, node.id, 1.0, "provenance"))
        elif origins and node is owners[origins[0].id][0]:
            kind = f"{' + '.join(o.kind for o in origins)} -> {node.kind}"
            groups.append(Group(tuple(map(place, origins)), (place(node),), kind, 0.98))
    found = {m.base for m in matches} | {p.name for g in groups for p in g.base}
    removed = tuple(place(n) for n in base if n.id not in found)
    numbers = tuple(NodeNumbers(m.base, m.head, 120.0 - 1.5 * at_) for at_, m in enumerate(matches))
    return Difference(
        name,
        f"{name} folded and fused",
        len(base),
        len(head),
        len(matches),
        removed=removed,
        groups=tuple(groups),
        cost=COSTS,
        numbers=NumbersChange(NUMBERS, numbers, latency=LatencyChange(41.2, 40.9, 0.4, "~")),
        gates=GATES,
        sides=Sides(base, head, tuple(matches)),
    )


def stack(blocks: int, *, edit: bool = True, name: str = "deep") -> Difference:
    """``blocks`` residual blocks of eight nodes; one conv in the middle has another stride, one node is new, one is gone."""
    base = [SideNode("x", "x", "input", shape="1x64x56x56")]
    for i in range(blocks):
        first = base[-1].id
        path = f"stages.{i // 6}.{i % 6}"
        for kind, word in BLOCK:
            heavy = kind == "conv"
            base.append(
                SideNode(
                    f"b{i}_{word}",
                    f"{path}.{word}",
                    kind,
                    f"{kind}(64, 64)",
                    "1x64x56x56",
                    (base[-1].id,),
                    (),
                    f"/m/net.py:{10 + i}",
                    f"{path}.{word}",
                    (1 + i % 7) * 10**6 * heavy,
                    (1 + i) * 4096 * heavy,
                )
            )
        base.append(SideNode(f"b{i}_add", f"b{i}_add", "add", "add(x, y)", "1x64x56x56", (base[-1].id, first), (), f"/m/net.py:{10 + i}"))
        base.append(SideNode(f"b{i}_out", f"{path}.act3", "relu", "", "1x64x56x56", (base[-1].id,), (), None, f"{path}.act3"))
    base.append(SideNode("output", "output", "output", inputs=(base[-1].id,)))
    head, matches, half = list(base), [Match(n.id, n.id, 1.0, "anchor") for n in base], blocks // 2
    if not edit:
        return Difference(name, name, len(base), len(head), len(base), sides=Sides(tuple(base), tuple(head), tuple(matches)))
    gone, after, changed = f"b{half}_act1", f"b{half}_conv2", f"b{half + 1}_conv1"
    new = SideNode("dropout", f"stages.{half // 6}.dropout", "dropout", "dropout(0.1)", "1x64x56x56", (f"b{half}_bn1",), (), "/m/net.py:99")
    head = [n for n in head if n.id != gone]
    spot = next(k for k, n in enumerate(head) if n.id == after)
    head[spot] = SideNode(**{**vars(head[spot]), "inputs": (new.id,)})
    head.insert(spot, new)
    by_name = {n.id: n for n in base}
    stride = NodeChange(place(by_name[changed]), place(by_name[changed]), 0.97, (Change("attribute", "stride", [1, 1], [2, 2]),))
    return Difference(
        name, f"{name} with dropout", len(base), len(head), len(base) - 1,
        added=(place(new),), removed=(place(by_name[gone]),), changed=(stride,), cost=COSTS,
        sides=Sides(tuple(base), tuple(head), tuple(m for m in matches if m.base != gone)),
    )  # fmt: skip


def hostile() -> Difference:
    """Every text of it is hostile, and every kind of change is there."""
    nodes = (
        SideNode("x", HOSTILE, "input", HOSTILE, HOSTILE),
        SideNode(HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE, ("x", "nowhere"), (HOSTILE,), HOSTILE, HOSTILE, 5, 7),
        SideNode("z", HOSTILE, HOSTILE, HOSTILE, HOSTILE, (HOSTILE,), (), HOSTILE, HOSTILE),
    )
    evil, z = place(nodes[1]), place(nodes[2])
    changes = (
        Change("attribute", HOSTILE, HOSTILE, {HOSTILE: [HOSTILE]}, None, HOSTILE),
        Change("tensor", HOSTILE, None, None, math.nan, HOSTILE),
    )
    outputs = OutputNumbers(HOSTILE, math.inf, math.nan, math.nan, 0.5, True)
    slower = LatencyChange(1.0, 2.0, 0.001, "slower")
    return Difference(
        HOSTILE, HOSTILE + "2", 3, 3, 2,
        added=(z,), removed=(z, Place("not drawn", HOSTILE)), changed=(NodeChange(evil, evil, 0.4, changes),),
        rewired=(Rewired(evil, evil, 0, z, None),), moved=(Moved(evil, evil, (z,), (evil,)),),
        groups=(Group((evil,), (evil,), HOSTILE, 0.3, changes),),
        contract=(ContractChange("output", "name", HOSTILE, HOSTILE, [HOSTILE]),), cost=COSTS,
        numbers=NumbersChange((outputs,), (NodeNumbers(HOSTILE, HOSTILE, math.inf),), evil, slower, HOSTILE),
        gates=(Gate(HOSTILE, False, HOSTILE, HOSTILE, HOSTILE),),
        sides=Sides(nodes, nodes, (Match(HOSTILE, HOSTILE, 0.4, HOSTILE), Match("x", "x", 1.0, HOSTILE), Match("gone", "x", 1.0, ""))),
    )  # fmt: skip
