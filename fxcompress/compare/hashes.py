"""What nodes are and where they stand, as numbers that are equal when the nodes of two graphs are."""

from __future__ import annotations

import json
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from fxcompress.compare.schema import NodeRecord, Snapshot

LEVELS = ("content", "form", "weights", "operation", "family")
"""How alike two nodes are, strictest first: all of it; all but the values of tensors; shapes of weights (for operations without any:
kind and target) and first word of the kind; kind and target; first word of the kind."""

RADIUS = 3
"""Edges around a node that make its surroundings."""


class Numbering:
    """Gives equal keys equal numbers: without collisions, and the same ones in every process, since they follow the order of asking."""

    def __init__(self) -> None:
        self._seen: dict[Hashable, int] = {}

    def __call__(self, key: Hashable) -> int:
        return self._seen.setdefault(key, len(self._seen))


@dataclass(frozen=True)
class Side:
    """One graph for matching.

    ``labels[level][i]``: a number for what node i is (see ``LEVELS``); ``values[i]``: of the digests of its tensors, -1 without tensors;
    ``outputs[i]``: of dtypes and shapes of what it gives; ``users[i]``: (node, operand place) pairs that read it;
    ``layers``: nodes with a tensor of two dimensions or more.
    """

    nodes: tuple[NodeRecord, ...]
    inputs: tuple[tuple[int, ...], ...]
    users: tuple[tuple[tuple[int, int], ...], ...]
    labels: tuple[tuple[int, ...], ...]
    values: tuple[int, ...]
    outputs: tuple[int, ...]
    layers: frozenset[int]

    @property
    def size(self) -> int:
        return len(self.nodes)

    def degree(self, node: int) -> int:
        """How many edges it has."""
        return len(self.inputs[node]) + len(self.users[node])


def sides(base: Snapshot, head: Snapshot) -> tuple[Side, Side]:
    """Both graphs, with numbers that can be compared between them."""
    number = Numbering()
    ordered = _input_count(base) == _input_count(head)
    return _side(base, number, ordered), _side(head, number, ordered)


def texts(snapshot: Snapshot) -> list[str]:
    """Each node and what it reads, without names: equal lists mean one and the same graph, written in one order."""
    digests = [record.digest for record in snapshot.tensors]
    return [f"{_content(node)} {sorted((k, digests[t]) for k, t in node.tensors.items())} {node.inputs}" for node in snapshot.nodes]


def ancestors(side: Side, labels: Sequence[int], fixed: Sequence[int], number: Numbering) -> list[int]:
    """A number per node for its label and everything above it, by operand place; nodes with ``fixed`` >= 0 stand for themselves."""
    found = [-1] * side.size
    for node, inputs in enumerate(side.inputs):
        if fixed[node] >= 0:
            found[node] = number(("fixed", fixed[node]))
        else:
            found[node] = number(("up", labels[node], tuple([found[source] for source in inputs])))
    return found


def descendants(side: Side, labels: Sequence[int], fixed: Sequence[int], number: Numbering) -> list[int]:
    """A number per node for its label and everything below it, with the places at which it is read.

    In one graph every node that leads to the output has a number of its own: two with one number would have equal users, by induction
    from the output the same users, which would read them at the same places.
    """
    found = [-1] * side.size
    for node in range(side.size - 1, -1, -1):
        if fixed[node] >= 0:
            found[node] = number(("fixed", fixed[node]))
        else:
            found[node] = number(("down", labels[node], tuple(sorted([(place, found[user]) for user, place in side.users[node]]))))
    return found


def around(side: Side, labels: Sequence[int], fixed: Sequence[int], number: Numbering) -> list[int]:
    """A number per node for all that is at most ``RADIUS`` edges away (Weisfeiler and Leman 1968, with operand places)."""
    found = [number(("fixed", mark)) if mark >= 0 else number(("is", label)) for mark, label in zip(fixed, labels, strict=True)]
    for _ in range(RADIUS):
        found = [old if fixed[node] >= 0 else number((old, *_beside(side, node, found))) for node, old in enumerate(found)]
    return found


def _beside(side: Side, node: int, found: Sequence[int]) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
    return tuple([found[source] for source in side.inputs[node]]), tuple(sorted([(place, found[user]) for user, place in side.users[node]]))


def _input_count(snapshot: Snapshot) -> int:
    return sum(node.kind == "input" for node in snapshot.nodes)


def _content(node: NodeRecord) -> str:
    return json.dumps([node.kind, node.target, node.attributes], sort_keys=True)


def _side(snapshot: Snapshot, number: Numbering, ordered: bool) -> Side:
    rows = [_labels(node, place, snapshot, number) for node, place in zip(snapshot.nodes, _places(snapshot, ordered), strict=True)]
    inputs = tuple(node.inputs for node in snapshot.nodes)
    return Side(
        nodes=snapshot.nodes,
        inputs=inputs,
        users=_users(inputs),
        labels=tuple(tuple(row[level] for row in rows) for level in range(len(LEVELS))),
        values=tuple(_values(node, snapshot, number) for node in snapshot.nodes),
        outputs=tuple(number(("outputs", *((value.dtype, value.shape) for value in node.outputs))) for node in snapshot.nodes),
        layers=frozenset(
            i for i, node in enumerate(snapshot.nodes) if any(len(snapshot.tensors[t].shape) > 1 for t in node.tensors.values())
        ),
    )


def _places(snapshot: Snapshot, ordered: bool) -> list[int]:
    """For inputs their place in the signature, which callers rely on (-1 where both sides have not equally many)."""
    places, seen = [], 0
    for node in snapshot.nodes:
        places.append(seen if ordered and node.kind == "input" else -1)
        seen += node.kind == "input"
    return places


def _labels(node: NodeRecord, place: int, snapshot: Snapshot, number: Numbering) -> tuple[int, ...]:
    tensors = sorted((name, snapshot.tensors[at]) for name, at in node.tensors.items()) if node.tensors else []
    form = ("form", _content(node), place, *((name, tensor.dtype, tensor.shape) for name, tensor in tensors))
    return (
        number(("content", form, *(tensor.digest for _, tensor in tensors))),
        number(form),
        number(("weights", *_weights(node, snapshot), place)),
        number(("operation", node.kind, node.target, place)),
        number(("family", node.kind.split("+")[0], place)),
    )


def _weights(node: NodeRecord, snapshot: Snapshot) -> tuple[object, ...]:
    """What is left of a layer when others were folded into it: vectors come and go, matrices stay."""
    shapes = sorted(shape for at in node.tensors.values() if len(shape := snapshot.tensors[at].shape) > 1)
    return (node.kind.split("+")[0], *shapes) if shapes else (node.kind, node.target)


def _values(node: NodeRecord, snapshot: Snapshot, number: Numbering) -> int:
    digests = sorted(snapshot.tensors[at].digest for at in node.tensors.values())
    return number(("values", *digests)) if digests else -1


def _users(inputs: tuple[tuple[int, ...], ...]) -> tuple[tuple[tuple[int, int], ...], ...]:
    users: list[list[tuple[int, int]]] = [[] for _ in inputs]
    for node, sources in enumerate(inputs):
        for place, source in enumerate(sources):
            users[source].append((node, place))
    return tuple(tuple(found) for found in users)
