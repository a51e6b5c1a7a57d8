"""Random graphs as snapshots, edits of them, and what a matching says about an edit, found without the code of the package."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Iterable

from fxcompress.compare.matching import Matching
from fxcompress.compare.schema import Contract, Cost, NodeRecord, Sketch, Snapshot, TensorRecord, Value

UNARY = ("relu", "sigmoid", "dropout", "max_pool", "flatten")
BINARY = ("add", "mul", "matmul", "sub")
LAYERS = ("conv", "linear", "batch_norm")
EDITS = ("remove", "add", "rewire", "swap", "attribute", "digest", "target")


def snapshot_of(nodes: Iterable[NodeRecord], tensors: Iterable[TensorRecord] = ()) -> Snapshot:
    return Snapshot("random", tuple(nodes), tuple(tensors), Contract((), ()), Cost(0, 0, 0, 0))


def tensor(name: str, digest: str, shape: tuple[int, ...] = (4, 4)) -> TensorRecord:
    return TensorRecord(name, "float32", shape, digest, Sketch(1.0, 1.0, 16, (1.0,)))


def node(kind: str, *inputs: int, name: str = "", **attributes: object) -> NodeRecord:
    target = "" if kind in ("input", "output", "constant") else f"lib.{kind}"
    return NodeRecord(name or kind, kind, target, inputs=inputs, attributes=dict(attributes), outputs=(Value("float32", (1, 4)),))


class Draft:
    """A graph that is being written; ``build`` gives the snapshot with one name for each node."""

    def __init__(self) -> None:
        self.nodes: list[NodeRecord] = []
        self.tensors: list[TensorRecord] = []

    def add(self, kind: str, *inputs: int, weight: str | None = None, **attributes: object) -> int:
        made = node(kind, *inputs, **attributes)
        if weight is not None:
            made = dataclasses.replace(made, tensors={"weight": len(self.tensors)})
            self.tensors.append(tensor(f"t{len(self.tensors)}", weight, (4,) if kind in ("bn", "batch_norm") else (4, 4)))
        self.nodes.append(made)
        return len(self.nodes) - 1

    def build(self) -> Snapshot:
        return snapshot_of((dataclasses.replace(n, name=f"n{i}") for i, n in enumerate(self.nodes)), self.tensors)


def random_graph(rng: random.Random, size: int, *, weights: str = "own", near: int = 8) -> Snapshot:
    """``size`` operations that read one of the last ``near`` nodes, mostly the last. ``weights``: "own" (each), "few" (some equal)."""
    draft = Draft()
    for _ in range(rng.randint(1, 3)):
        draft.add("input")
    for at in range(size):
        last = len(draft.nodes) - 1
        source = last if rng.random() < 0.7 else rng.randint(max(0, last - near), last)
        other = rng.randint(max(0, last - near), last)
        match rng.randrange(4):
            case 0:
                draft.add(rng.choice(BINARY), source, other)
            case 1:
                draft.add(rng.choice(UNARY), source)
            case 2:
                draft.add(rng.choice(UNARY), source, p=rng.randint(0, 2))
            case _:
                draft.add(
                    rng.choice(LAYERS), source, weight=f"{at if weights == 'own' else rng.randrange(3):016x}", stride=rng.randint(1, 2)
                )
    read = {source for n in draft.nodes for source in n.inputs}
    loose = [i for i in range(len(draft.nodes)) if i not in read and draft.nodes[i].kind != "input"]
    draft.add("output", *loose[-4:])
    return draft.build()


def renamed(graph: Snapshot, rng: random.Random) -> tuple[Snapshot, list[int]]:
    """The same graph in another topological order under other names (inputs stay in their order), and the new place of each node."""
    waiting = [len(set(n.inputs)) for n in graph.nodes]
    users: list[set[int]] = [set() for _ in graph.nodes]
    for i, n in enumerate(graph.nodes):
        for source in n.inputs:
            users[source].add(i)
    ready, order = [i for i, n in enumerate(graph.nodes) if not n.inputs and n.kind != "input"], []
    inputs = [i for i, n in enumerate(graph.nodes) if n.kind == "input"]
    while ready or inputs:
        take_input = inputs and (not ready or rng.random() < 0.5)
        i = inputs.pop(0) if take_input else ready.pop(rng.randrange(len(ready)))
        order.append(i)
        for user in sorted(users[i]):
            waiting[user] -= 1
            if not waiting[user]:
                ready.append(user)
    place = [0] * len(order)
    for new, old in enumerate(order):
        place[old] = new
    names = rng.sample(range(10 * len(order)), len(order))
    nodes = [
        dataclasses.replace(graph.nodes[old], name=f"m{name}", inputs=tuple(place[s] for s in graph.nodes[old].inputs))
        for old, name in zip(order, names, strict=True)
    ]
    return dataclasses.replace(graph, nodes=tuple(nodes)), place


def operations(graph: Snapshot) -> list[int]:
    return [i for i, n in enumerate(graph.nodes) if n.kind not in ("input", "output", "constant")]


def removed(graph: Snapshot, at: int, keep: int = 0) -> Snapshot:
    """Without node ``at``; what read it reads its operand ``keep``."""

    def source(old: int) -> int:
        new = graph.nodes[at].inputs[keep] if old == at else old
        return new - (new > at)

    nodes = [dataclasses.replace(n, inputs=tuple(source(s) for s in n.inputs)) for i, n in enumerate(graph.nodes) if i != at]
    return dataclasses.replace(graph, nodes=tuple(nodes))


def inserted(graph: Snapshot, after: int, new: NodeRecord, users: Iterable[tuple[int, int]]) -> Snapshot:
    """With ``new`` directly after node ``after``, read by ``users`` (node, place) instead of that."""
    through = set(users)

    def source(user: int, place: int, old: int) -> int:
        return after + 1 if (user, place) in through else old + (old > after)

    nodes = [dataclasses.replace(n, inputs=tuple(source(i, p, s) for p, s in enumerate(n.inputs))) for i, n in enumerate(graph.nodes)]
    return dataclasses.replace(graph, nodes=(*nodes[: after + 1], dataclasses.replace(new, name="fresh"), *nodes[after + 1 :]))


def with_node(graph: Snapshot, at: int, new: NodeRecord) -> Snapshot:
    return dataclasses.replace(graph, nodes=(*graph.nodes[:at], new, *graph.nodes[at + 1 :]))


def edited(graph: Snapshot, edit: str, rng: random.Random) -> tuple[Snapshot, Edits] | None:
    """One random edit and what a diff has to say; None where the graph has no place for it."""
    make = {
        "remove": _remove,
        "add": _add,
        "rewire": _rewire,
        "swap": _swap,
        "attribute": _attribute,
        "digest": _digest,
        "target": _target,
    }
    return make[edit](graph, rng)


@dataclasses.dataclass(frozen=True)
class Edits:
    """How many nodes of which kinds were added, removed and changed, and of how many nodes operands were rewired."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    rewired: tuple[tuple[str, int], ...] = ()
    moved: int = 0
    groups: int = 0


def _remove(graph: Snapshot, rng: random.Random) -> tuple[Snapshot, Edits]:
    at = rng.choice(operations(graph))
    keep = rng.randrange(len(graph.nodes[at].inputs))
    return removed(graph, at, keep), Edits(removed=(graph.nodes[at].kind,))


def _add(graph: Snapshot, rng: random.Random) -> tuple[Snapshot, Edits]:
    after = rng.choice([i for i, n in enumerate(graph.nodes) if n.kind != "output"])
    users = [(i, p) for i, n in enumerate(graph.nodes) for p, s in enumerate(n.inputs) if s == after]
    chosen = [edge for edge in users if rng.random() < 0.7] or users[:1]
    new = node(rng.choice(UNARY), after)
    if rng.random() < 0.3:
        new = node(rng.choice(BINARY), after, rng.randint(0, after))
    return inserted(graph, after, new, chosen), Edits(added=(new.kind,))


def _rewire(graph: Snapshot, rng: random.Random) -> tuple[Snapshot, Edits] | None:
    at = rng.choice(operations(graph))
    old = graph.nodes[at]
    place = rng.randrange(len(old.inputs))
    others = [i for i in range(at) if i != old.inputs[place]]
    if not others:
        return None
    source = rng.choice(others)
    new = dataclasses.replace(old, inputs=(*old.inputs[:place], source, *old.inputs[place + 1 :]))
    return with_node(graph, at, new), Edits(rewired=((old.kind, 1),))


def _swap(graph: Snapshot, rng: random.Random) -> tuple[Snapshot, Edits] | None:
    places = [i for i in operations(graph) if len(set(graph.nodes[i].inputs)) == 2]
    if not places:
        return None
    at = rng.choice(places)
    new = dataclasses.replace(graph.nodes[at], inputs=graph.nodes[at].inputs[::-1])
    return with_node(graph, at, new), Edits(rewired=((new.kind, 2),))


def _attribute(graph: Snapshot, rng: random.Random) -> tuple[Snapshot, Edits]:
    at = rng.choice(operations(graph))
    old = graph.nodes[at]
    new = dataclasses.replace(old, attributes={**old.attributes, "stride": rng.randint(3, 4)})
    return with_node(graph, at, new), Edits(changed=(old.kind,))


def _digest(graph: Snapshot, rng: random.Random) -> tuple[Snapshot, Edits] | None:
    if not graph.tensors:
        return None
    at = rng.randrange(len(graph.tensors))
    new = dataclasses.replace(graph.tensors[at], digest="f" * 16)
    kind = next(n.kind for n in graph.nodes if at in n.tensors.values())
    return dataclasses.replace(graph, tensors=(*graph.tensors[:at], new, *graph.tensors[at + 1 :])), Edits(changed=(kind,))


def _target(graph: Snapshot, rng: random.Random) -> tuple[Snapshot, Edits]:
    at = rng.choice(operations(graph))
    new = dataclasses.replace(graph.nodes[at], kind="gelu", target="lib.gelu")
    return with_node(graph, at, new), Edits(changed=(graph.nodes[at].kind,))


def told(base: Snapshot, head: Snapshot, matching: Matching) -> Edits:
    """What the matching says was done: an operand is rewired unless nodes of one side only are between it and its partner."""
    head_of, base_of = matching.head_of(), matching.base_of()
    changed, rewired = [], Counter[int]()
    for i, j in head_of.items():
        if _content(base, i) != _content(head, j):
            changed.append(base.nodes[i].kind)
        was, now = base.nodes[i].inputs, head.nodes[j].inputs
        rewired[i] += abs(len(was) - len(now))
        for a, b in zip(was, now, strict=False):
            ours = {head_of[n] for n in _first(base, a, head_of)}
            rewired[i] += not (ours & _first(head, b, base_of) if (a in head_of) != (b in base_of) else a not in head_of or head_of[a] == b)
    return Edits(
        added=tuple(sorted(head.nodes[j].kind for j in matching.added)),
        removed=tuple(sorted(base.nodes[i].kind for i in matching.removed)),
        changed=tuple(sorted(changed)),
        rewired=tuple(sorted((base.nodes[i].kind, count) for i, count in rewired.items() if count)),
        moved=len(matching.moved),
        groups=len(matching.groups),
    )


def _first(graph: Snapshot, start: int, known: dict[int, int]) -> set[int]:
    if start in known:
        return {start}
    return {found for source in graph.nodes[start].inputs for found in _first(graph, source, known)}


def _content(graph: Snapshot, at: int) -> object:
    n = graph.nodes[at]
    return n.kind, n.target, n.attributes, {name: graph.tensors[t].digest for name, t in n.tensors.items()}


def well_formed(base: Snapshot, head: Snapshot, matching: Matching) -> None:
    """Every node is in one place: in a pair, in a group, added or removed."""
    for graph, side, alone in ((base, "base", matching.removed), (head, "head", matching.added)):
        paired = [getattr(pair, side) for pair in matching.pairs]
        grouped = [i for group in matching.groups for i in getattr(group, side)]
        assert len(set(paired)) == len(paired)
        assert len(set(grouped)) == len(grouped)
        assert sorted({*paired, *grouped, *alone}) == list(range(len(graph.nodes)))
        assert not set(alone) & {*paired, *grouped}
    assert set(matching.moved) <= {(pair.base, pair.head) for pair in matching.pairs}
    assert all(0 <= pair.confidence <= 1 for pair in matching.pairs)
    assert all(group.base and group.head for group in matching.groups)
