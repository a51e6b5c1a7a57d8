"""Variants of graphs that differ by exactly one known thing, or by nothing but names and order."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from fxcompress.compare.schema import NodeRecord, Snapshot
from fxcompress.report.difference import Difference

# -- the same function -------------------------------------------------------------------------------------------------


def renamed(module: GraphModule) -> GraphModule:
    """The same graph with other names of nodes, modules and tensors; inputs and outputs keep theirs."""
    root = nn.Module()
    paths: dict[str, str] = {}
    graph = Graph()
    copies: dict[Node, Node] = {}
    for node in module.graph.nodes:
        copies[node] = copy = graph.node_copy(node, copies.__getitem__)
        if node.op in ("call_module", "get_attr"):
            path = str(node.target)
            if path not in paths:
                paths[path] = f"z{len(paths)}"
                _put(root, paths[path], _found(module, path))
            copy.target = paths[path]
        if node.op not in ("placeholder", "output"):
            copy.name = f"other_{len(copies)}"
    return GraphModule(root, graph).train(module.training)


def _found(module: nn.Module, path: str) -> object:
    parent, _, leaf = path.rpartition(".")
    return getattr(module.get_submodule(parent), leaf)


def _put(root: nn.Module, name: str, value: object) -> None:
    if isinstance(value, (nn.Module, nn.Parameter)):
        setattr(root, name, value)
    else:
        root.register_buffer(name, value)


class Wrapped(nn.Module):
    """A network inside another, so that tracing it gives other paths and names."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, given: Tensor) -> object:
        return self.inner(given)


def reordered(snapshot: Snapshot, draw: random.Random) -> Snapshot:
    """The same nodes in another order in which they can run."""
    nodes = list(snapshot.nodes)
    waits = {place: set(node.inputs) for place, node in enumerate(nodes)}
    ready = [place for place, inputs in waits.items() if not inputs]
    readers: dict[int, list[int]] = {}
    for place, node in enumerate(nodes):
        for source in set(node.inputs):
            readers.setdefault(source, []).append(place)
    order: list[int] = []
    while ready:
        done = ready.pop(draw.randrange(len(ready)))
        order.append(done)
        for reader in readers.get(done, ()):
            waits[reader].discard(done)
            if not waits[reader]:
                ready.append(reader)
    order = _ports_last_and_first(order, nodes)
    return numbered(snapshot, [(place, nodes[place]) for place in order])


def _ports_last_and_first(order: list[int], nodes: list[NodeRecord]) -> list[int]:
    """Inputs keep their order, which callers see, and the output stays the last."""
    inputs = sorted(place for place in order if nodes[place].kind == "input")
    outputs = [place for place in order if nodes[place].kind == "output"]
    return [*inputs, *(place for place in order if nodes[place].kind not in ("input", "output")), *outputs]


def numbered(snapshot: Snapshot, nodes: Iterable[tuple[int, NodeRecord]]) -> Snapshot:
    """A snapshot of nodes with any keys, by which they name their inputs."""
    listed = list(nodes)
    places = {key: place for place, (key, _) in enumerate(listed)}
    return replace(snapshot, nodes=tuple(replace(node, inputs=tuple(places[i] for i in node.inputs)) for _, node in listed), live=None)


# -- single edits ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Edit:
    """One edit: the snapshot after it, and whether a difference tells exactly that."""

    kind: str
    what: str
    head: Snapshot
    is_told: Callable[[Difference], bool]


def removed(base: Snapshot, draw: random.Random) -> Edit | None:
    """One operation less: who read it reads its first operand."""
    places = [i for i, node in enumerate(base.nodes) if node.inputs and node.kind not in ("input", "output")]
    if not places:
        return None
    gone = draw.choice(places)
    head, name = _without(base, gone), base.nodes[gone].name

    def told(found: Difference) -> bool:
        if _counts(found) != (0, 1, 0, 0, 0, 0):
            return False
        return found.removed[0].name == name or canon(_without(base, _place(base, found.removed[0].name))) == canon(head)

    return Edit("removed", name, head, told)


def added(base: Snapshot, draw: random.Random) -> Edit | None:
    """One operation more, on one edge; half of the time one that the graph has elsewhere, too."""
    edges = [(i, k) for i, node in enumerate(base.nodes) for k in range(len(node.inputs))]
    alike = [node for node in base.nodes if len(node.inputs) == 1 and not node.tensors and node.kind not in ("input", "output")]
    reader, operand = draw.choice(edges)
    source = base.nodes[reader].inputs[operand]
    pattern = draw.choice(alike) if alike and draw.random() < 0.5 else NodeRecord("", "erf", "torch.erf", attributes={"input": "$0"})
    new = replace(pattern, name="brand_new", path="", inputs=(source,), outputs=base.nodes[source].outputs, macs=0, source=None, origins=())
    listed = [(i, node) for i, node in enumerate(base.nodes)]
    listed[reader] = (reader, _reads(base.nodes[reader], operand, -1))
    listed.insert(reader, (-1, new))
    head = numbered(base, listed)

    def told(found: Difference) -> bool:
        if _counts(found) != (1, 0, 0, 0, 0, 0):
            return False
        return found.added[0].name == "brand_new" or canon(_without(head, _place(head, found.added[0].name))) == canon(base)

    return Edit("added", f"{base.nodes[source].name} -> {base.nodes[reader].name}", head, told)


def rewired(base: Snapshot, draw: random.Random) -> Edit | None:
    """One operand comes from another node of equal shape."""
    places = [(i, k) for i, node in enumerate(base.nodes) for k in range(len(node.inputs)) if node.kind != "output"]
    for reader, operand in draw.sample(places, min(len(places), 20)):
        old = base.nodes[reader].inputs[operand]
        fitting = [i for i in range(reader) if i != old and base.nodes[i].outputs == base.nodes[old].outputs]
        if fitting:
            return _wired(base, reader, operand, draw.choice(fitting))
    return None


def _wired(base: Snapshot, reader: int, operand: int, source: int) -> Edit | None:
    nodes = list(base.nodes)
    nodes[reader] = _reads(nodes[reader], operand, source)
    head, name = replace(base, nodes=tuple(nodes), live=None), nodes[reader].name
    if canon(head) == canon(base):
        return None  # the other node computes the same

    def told(found: Difference) -> bool:
        return _counts(found) == (0, 0, 0, 1, 0, 0) and (found.rewired[0].base.name, found.rewired[0].operand) == (name, operand)

    return Edit("rewired", f"operand {operand} of {name}", head, told)


def swapped(base: Snapshot, draw: random.Random) -> Edit | None:
    """The first two operands of one node change places."""
    places = [i for i, node in enumerate(base.nodes) if len(node.inputs) > 1 and node.inputs[0] != node.inputs[1]]
    if not places:
        return None
    place = draw.choice(places)
    nodes = list(base.nodes)
    first, second, *rest = nodes[place].inputs
    nodes[place] = replace(nodes[place], inputs=(second, first, *rest))
    head = replace(base, nodes=tuple(nodes), live=None)
    if canon(head) == canon(base):
        return None
    name = nodes[place].name

    def told(found: Difference) -> bool:
        return _counts(found) == (0, 0, 0, 2, 0, 0) and {wire.base.name for wire in found.rewired} == {name}

    return Edit("swapped", name, head, told)


def attribute(base: Snapshot, draw: random.Random) -> Edit | None:
    """One setting of one node has another value."""
    places = [(i, key) for i, node in enumerate(base.nodes) for key, value in node.attributes.items() if _is_setting(value)]
    if not places:
        return None
    place, key = draw.choice(places)
    nodes = list(base.nodes)
    value = nodes[place].attributes[key]
    other = not value if isinstance(value, bool) else value + 1 if isinstance(value, (int, float)) else "something else"
    nodes[place] = replace(nodes[place], attributes={**nodes[place].attributes, key: other})

    def told(found: Difference) -> bool:
        if _counts(found) != (0, 0, 1, 0, 0, 0) or found.changed[0].base.name != base.nodes[place].name:
            return False
        return [(change.what, change.name) for change in found.changed[0].changes] == [("attribute", key)]

    return Edit("attribute", f"{key} of {nodes[place].name}", replace(base, nodes=tuple(nodes), live=None), told)


def _is_setting(value: object) -> bool:
    return not (isinstance(value, str) and value.startswith("$")) and not isinstance(value, (list, dict))


def weights(base: Snapshot, draw: random.Random) -> Edit | None:
    """One tensor has other values, by a thousandth."""
    used = sorted({place for node in base.nodes for place in node.tensors.values()})
    if not used:
        return None
    place = draw.choice(used)
    old = base.tensors[place]
    sketch = replace(
        old.sketch, norm=old.sketch.norm * 1.001, max_abs=old.sketch.max_abs * 1.001, buckets=tuple(b * 1.001 for b in old.sketch.buckets)
    )
    tensors = list(base.tensors)
    tensors[place] = replace(old, digest=hashlib.sha256(old.digest.encode()).hexdigest()[:16], sketch=sketch)
    readers = {node.name for node in base.nodes if place in node.tensors.values()}

    def told(found: Difference) -> bool:
        only_tensors = all(change.what == "tensor" for node in found.changed for change in node.changes)
        return _counts(found) == (0, 0, len(readers), 0, 0, 0) and {n.base.name for n in found.changed} == readers and only_tensors

    return Edit("weights", old.name, replace(base, tensors=tuple(tensors), live=None), told)


EDITS = (removed, added, rewired, swapped, attribute, weights)


def _counts(found: Difference) -> tuple[int, ...]:
    return tuple(map(len, (found.added, found.removed, found.changed, found.rewired, found.moved, found.groups)))


def _place(snapshot: Snapshot, name: str) -> int:
    return next(place for place, node in enumerate(snapshot.nodes) if node.name == name)


def _reads(node: NodeRecord, operand: int, source: int) -> NodeRecord:
    return replace(node, inputs=(*node.inputs[:operand], source, *node.inputs[operand + 1 :]))


def _without(snapshot: Snapshot, gone: int) -> Snapshot:
    source = snapshot.nodes[gone].inputs[0]
    kept = [(i, node) for i, node in enumerate(snapshot.nodes) if i != gone]
    return numbered(snapshot, [(i, replace(n, inputs=tuple(source if p == gone else p for p in n.inputs))) for i, n in kept])


def canon(snapshot: Snapshot) -> Counter[str]:
    """What every node computes from the inputs, without names: equal for graphs that are one and the same."""
    seen: list[str] = []
    inputs = 0
    for node in snapshot.nodes:
        content = [node.kind, node.target, node.attributes, {k: snapshot.tensors[p].digest for k, p in node.tensors.items()}]
        if node.kind == "input":
            content.append(inputs)
            inputs += 1
        text = json.dumps([*content, [seen[p] for p in node.inputs]], sort_keys=True, default=str)
        seen.append(hashlib.sha256(text.encode()).hexdigest())
    return Counter(seen)
