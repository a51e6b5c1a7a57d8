"""Both graphs as a page draws them."""

from __future__ import annotations

import json
import math

from fxcompress.compare.matching import Matching
from fxcompress.compare.schema import NodeRecord, Snapshot, TensorRecord
from fxcompress.compare.widening import bits
from fxcompress.report import units
from fxcompress.report.difference import Match, SideNode, Sides

_DETAIL = 300


def sides(base: Snapshot, head: Snapshot, matching: Matching) -> Sides:
    """The nodes of both snapshots, and which are one."""
    matches = (Match(base.nodes[p.base].name, head.nodes[p.head].name, p.confidence, p.how) for p in matching.pairs)
    return Sides(_side(base), _side(head), tuple(sorted(matches, key=lambda m: (m.base, m.head))))


def _side(snapshot: Snapshot) -> tuple[SideNode, ...]:
    return tuple(_node(snapshot, node) for node in snapshot.nodes)


def _node(snapshot: Snapshot, node: NodeRecord) -> SideNode:
    shapes = [units.shape(value.shape) for value in node.outputs]
    shape = ", ".join(shapes[:4]) + (f", +{len(shapes) - 4}" if len(shapes) > 4 else "")
    inputs = tuple(dict.fromkeys(snapshot.nodes[i].name for i in node.inputs))
    return SideNode(
        id=node.name,
        name=node.path or node.name,
        kind=node.kind,
        detail=_detail(node),
        shape=shape,
        inputs=inputs,
        from_=node.origins,
        source=node.source,
        path=node.path,
        macs=node.macs,
        bytes=sum(_bytes(snapshot.tensors[at]) for at in set(node.tensors.values())),
    )


def _detail(node: NodeRecord) -> str:
    settings = ", ".join(f"{name}={json.dumps(value)}" for name, value in sorted(node.attributes.items()))
    return units.clip(f"{node.target.rpartition('.')[2]}({settings})" if node.target else settings, _DETAIL)


def _bytes(tensor: TensorRecord) -> int:
    return math.prod(tensor.shape) * bits(tensor.dtype) // 8
