"""Where the nodes of a graph are drawn: layers from top to bottom, long edges beside them.

The steps of Sugiyama, Tagawa and Toda 1981: each node gets the layer of its longest path from the inputs; an edge over
several layers passes through one point in each, and all edges of one node share those points, so that a tensor with
many readers is one line with branches; the order in a layer follows the medians of the neighbours; places follow from
least squares under the order, which the pool-adjacent-violators algorithm solves exactly for one layer at a time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from fxcompress.report.model import GraphView, NodeView

BOX_WIDTH, BOX_HEIGHT = 192, 40
PITCH = 64  # from layer to layer
_GAP, _LANE, _MARGIN = 20, 12, 16
_SWEEPS = 6

Item = tuple[str, int]  # a node in its layer, or the point where its edges pass a later layer
Point = tuple[float, float]


@dataclass(frozen=True)
class Wire:
    """An edge between two nodes, with the points that it passes; the first and last are the nodes' centres."""

    source: str
    target: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Drawing:
    """``places``: the centre of each node's box."""

    width: float
    height: float
    places: dict[str, Point]
    wires: tuple[Wire, ...]


def layout(graph: GraphView) -> Drawing:
    """Place all nodes; inputs that are not nodes of the graph are left out."""
    inputs = inputs_of(graph.nodes)
    level = levels(graph.nodes, inputs)
    return _drawing(inputs, level, across_layers(inputs, level))


def inputs_of(nodes: Sequence[NodeView]) -> dict[str, list[str]]:
    """What each node reads, once each, without what is not among the nodes."""
    known = {node.id for node in nodes}
    return {node.id: [i for i in dict.fromkeys(node.inputs) if i in known and i != node.id] for node in nodes}


def across_layers(inputs: dict[str, list[str]], level: dict[str, int]) -> dict[Item, float]:
    """The x of every item under given levels; every node must stand below all that it reads."""
    layers, up = _items(inputs, level)
    down: dict[Item, list[Item]] = defaultdict(list)
    for item, above in up.items():
        for other in above:
            down[other].append(item)
    return _coordinates(_order(layers, up, down), up, down, level)


def levels(nodes: Sequence[NodeView], inputs: dict[str, list[str]]) -> dict[str, int]:
    """Longest path from the inputs; constants, and what is made of constants only, stand right above their first reader."""
    level: dict[str, int] = {}
    readers: dict[str, list[str]] = defaultdict(list)
    moving: set[str] = set()  # nodes that depend on an input
    for node in nodes:
        level[node.id] = 1 + max((level.get(i, -1) for i in inputs[node.id]), default=-1)
        if node.kind == "input" or any(i in moving for i in inputs[node.id]):
            moving.add(node.id)
        for source in inputs[node.id]:
            readers[source].append(node.id)
    for node in reversed(nodes):
        if node.id not in moving and readers[node.id]:
            level[node.id] = max(0, min(level[reader] for reader in readers[node.id]) - 1)
    return level


def _items(inputs: dict[str, list[str]], level: dict[str, int]) -> tuple[list[list[Item]], dict[Item, list[Item]]]:
    """The layers with all points, in the order of the nodes, and each item's neighbours in the layer above."""
    layers: list[list[Item]] = [[] for _ in range(1 + max(level.values(), default=0))]
    up: dict[Item, list[Item]] = {(node, level[node]): [] for node in inputs}
    for node in inputs:
        layers[level[node]].append((node, level[node]))
    for node, sources in inputs.items():
        for source in sources:
            for at in range(level[source] + 1, level[node]):
                if (source, at) not in up:
                    up[(source, at)] = [(source, at - 1)]
                    layers[at].append((source, at))
            up[(node, level[node])].append((source, level[node] - 1))
    return layers, up


def _order(layers: list[list[Item]], up: dict[Item, list[Item]], down: dict[Item, list[Item]]) -> list[list[Item]]:
    place = {item: float(at) for layer in layers for at, item in enumerate(layer)}
    for sweep in range(_SWEEPS):
        near = up if sweep % 2 == 0 else down
        for layer in layers if sweep % 2 == 0 else reversed(layers):
            key = {item: median(place[n] for n in near[item]) if near.get(item) else place[item] for item in layer}
            layer.sort(key=key.__getitem__)
            place.update((item, float(at)) for at, item in enumerate(layer))
    return layers


def _coordinates(
    layers: list[list[Item]], up: dict[Item, list[Item]], down: dict[Item, list[Item]], level: dict[str, int]
) -> dict[Item, float]:
    def width(item: Item) -> float:
        return BOX_WIDTH + _GAP if level[item[0]] == item[1] else _LANE

    offsets: dict[Item, float] = {}
    for layer in layers:
        at = 0.0
        for left, item in zip([None, *layer], layer, strict=False):
            at += (width(left) + width(item)) / 2 if left is not None else 0.0
            offsets[item] = at
    across = dict(offsets)
    for sweep in range(2 * _SWEEPS + 1):  # the last one goes down, so that a chain stands straight below its head
        near = up if sweep % 2 == 0 else down
        for layer in layers if sweep % 2 == 0 else reversed(layers):
            pulls = [_pull(item, near.get(item, []), across, level) for item in layer]
            wanted = [x - offsets[item] for item, (x, _) in zip(layer, pulls, strict=True)]
            settled = isotonic(wanted, [weight for _, weight in pulls])
            across.update((item, x + offsets[item]) for item, x in zip(layer, settled, strict=True))
    return _aligned(layers, across)


def _aligned(layers: list[list[Item]], across: dict[Item, float]) -> dict[Item, float]:
    """Everything below a layer with a single item moved so that all such items stand below each other: no slow drift."""
    spine = shift = 0.0
    moved: dict[Item, float] = {}
    for layer in layers:
        if len(layer) == 1:
            shift = spine - across[layer[0]]
        moved.update((item, across[item] + shift) for item in layer)
    return moved


def _pull(item: Item, near: list[Item], across: dict[Item, float], level: dict[str, int]) -> tuple[float, float]:
    """Where the neighbours want an item, and how much. Boxes count more than lines that pass; a line stays straight."""
    if not near:
        return across[item], 0.1
    boxes = [n for n in near if level[n[0]] == n[1]] or near
    weight = 8.0 if level[item[0]] != item[1] else 4.0
    return sum(across[n] for n in boxes) / len(boxes), weight


def isotonic(values: list[float], weights: list[float]) -> list[float]:
    """The non-decreasing sequence nearest to ``values`` in weighted least squares (pool adjacent violators)."""
    blocks: list[tuple[float, float, int]] = []  # mean, weight, length
    for value, weight in zip(values, weights, strict=True):
        blocks.append((value, weight, 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (a, wa, na), (b, wb, nb) = blocks[-2:]
            blocks[-2:] = [((a * wa + b * wb) / (wa + wb), wa + wb, na + nb)]
    return [mean for mean, _, length in blocks for _ in range(length)]


def _drawing(inputs: dict[str, list[str]], level: dict[str, int], across: dict[Item, float]) -> Drawing:
    halves = {item: BOX_WIDTH / 2 if level[item[0]] == item[1] else 0.0 for item in across}
    left = min((x - halves[item] for item, x in across.items()), default=0.0)
    right = max((x + halves[item] for item, x in across.items()), default=0.0)

    def point(item: Item) -> Point:
        return round(across[item] - left + _MARGIN, 1), _MARGIN + BOX_HEIGHT / 2 + item[1] * PITCH

    places = {node: point((node, level[node])) for node in inputs}
    wires = tuple(
        Wire(source, node, (*(point((source, at)) for at in range(level[source], level[node])), places[node]))
        for node, sources in inputs.items()
        for source in sources
    )
    height = 2 * _MARGIN + BOX_HEIGHT + PITCH * max(level.values(), default=0)
    return Drawing(round(right - left + 2 * _MARGIN, 1), height, places, wires)
