"""Places of nodes in a drawing."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st
from report_samples import pair_of

from fxcompress.report import GraphView, NodeView
from fxcompress.report.layout import BOX_HEIGHT, BOX_WIDTH, isotonic, layout


@st.composite
def graphs(draw: st.DrawFn) -> GraphView:
    nodes = []
    for place in range(draw(st.integers(0, 25))):
        inputs = draw(st.lists(st.integers(0, place - 1), max_size=3)) if place else []
        kind = draw(st.sampled_from(["input", "constant", "relu"])) if not inputs else "relu"
        nodes.append(NodeView(str(place), f"n{place}", kind, inputs=tuple(map(str, inputs))))
    return GraphView(tuple(nodes))


def check(graph: GraphView) -> None:
    drawing = layout(graph)
    assert set(drawing.places) == {node.id for node in graph.nodes}
    rows: dict[float, list[float]] = {}
    for x, y in drawing.places.values():
        rows.setdefault(y, []).append(x)
        assert BOX_WIDTH / 2 <= x <= drawing.width - BOX_WIDTH / 2
        assert BOX_HEIGHT / 2 <= y <= drawing.height - BOX_HEIGHT / 2
    for xs in rows.values():
        xs.sort()
        assert all(right - left >= BOX_WIDTH - 0.2 for left, right in itertools.pairwise(xs))
    for wire in drawing.wires:
        assert wire.points[0] == drawing.places[wire.source]
        assert wire.points[-1] == drawing.places[wire.target]
        assert [y for _, y in wire.points] == sorted({y for _, y in wire.points})
    for wire in drawing.wires:  # no line runs through a box
        for x, y in wire.points[1:-1]:
            assert all(abs(x - other) > BOX_WIDTH / 2 for other in rows.get(y, []))


@given(graphs())
def test_boxes_and_lines_do_not_overlap(graph: GraphView) -> None:
    check(graph)


def test_real_networks() -> None:
    for view in (pair_of("resnet18").before, pair_of("resnet18").after):
        check(view)
        assert layout(view).width < 600


def test_a_chain_is_straight() -> None:
    chain = [NodeView("0", "x", "input")] + [NodeView(str(i), f"n{i}", "relu", inputs=(str(i - 1),)) for i in range(1, 50)]
    assert len({x for x, _ in layout(GraphView(tuple(chain))).places.values()}) == 1


def test_unknown_inputs_and_repeated_inputs() -> None:
    nodes = (NodeView("a", "a", "input", inputs=("nowhere", "a")), NodeView("b", "b", "add", inputs=("a", "a")))
    assert len(layout(GraphView(nodes)).wires) == 1


def test_empty_graph() -> None:
    assert layout(GraphView()).places == {}


@given(st.lists(st.tuples(st.floats(-100, 100), st.floats(0.1, 10)), max_size=12))
def test_isotonic_regression(pairs: list[tuple[float, float]]) -> None:
    values, weights = [p[0] for p in pairs], [p[1] for p in pairs]
    found = isotonic(values, weights)
    assert all(a <= b + 1e-9 for a, b in itertools.pairwise(found))
    assert abs(sum(w * (f - v) for f, v, w in zip(found, values, weights, strict=True))) < 1e-6  # the mean is kept
