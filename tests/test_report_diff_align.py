"""Both graphs of a difference under common rows."""

from __future__ import annotations

import itertools

from diff_samples import of_pair, stack
from hypothesis import given
from hypothesis import strategies as st
from report_samples import pair_of

from fxcompress.report.diff_align import Aligned, align, anchors
from fxcompress.report.difference import Difference, Group, Match, Moved, Place, SideNode, Sides
from fxcompress.report.layout import BOX_WIDTH


@st.composite
def differences(draw: st.DrawFn) -> Difference:
    """Two random graphs whose nodes are matched at random, so that most unions have cycles."""
    sides = []
    for letter in "bh":
        nodes = []
        for place in range(draw(st.integers(0, 14))):
            inputs = draw(st.lists(st.integers(0, place - 1), max_size=3)) if place else []
            nodes.append(SideNode(f"{letter}{place}", "", "relu" if inputs else "input", inputs=tuple(f"{letter}{i}" for i in inputs)))
        sides.append(tuple(nodes))
    base, head = sides
    pairs = draw(st.lists(st.tuples(st.integers(0, 15), st.integers(0, 15)), max_size=20))
    matches = tuple(Match(f"b{i}", f"h{j}", 1.0, "") for i, j in pairs)
    return Difference("b", "h", len(base), len(head), 0, sides=Sides(base, head, matches))


def check(difference: Difference) -> Aligned:
    """Partners at one height, every node below all that it reads, no two boxes over each other."""
    sides = difference.sides
    assert sides is not None
    found = align(difference, sides)
    assert found is not None
    assert all(found.base.row[one] == found.head.row[other] for one, other in found.couples)
    assert {row for column in (found.base, found.head) for row in column.row.values()} == set(range(found.rows))
    for nodes, column in ((sides.base, found.base), (sides.head, found.head)):
        rows: dict[int, list[float]] = {}
        for node in nodes:
            assert all(column.row[i] < column.row[node.id] for i in node.inputs)
            rows.setdefault(column.row[node.id], []).append(column.x[node.id])
            last = max((column.row[n.id] for n in nodes if node.id in n.inputs), default=column.row[node.id])
            assert len(column.via[node.id]) == max(0, last - column.row[node.id] - 1)
        for xs in rows.values():
            assert all(right - left > BOX_WIDTH for left, right in itertools.pairwise(sorted(xs)))
    return found


@given(differences())
def test_any_matching_can_be_drawn(difference: Difference) -> None:
    found = check(difference)
    for side in (0, 1):
        names = [couple[side] for couple in found.couples]
        assert len(set(names)) == len(names)


def test_every_match_of_a_real_network_stands_at_one_height() -> None:
    difference = of_pair(pair_of("resnet18"))
    assert difference.sides is not None
    found = check(difference)
    heads = {head for _, head in found.couples}
    assert heads == {node.id for node in difference.sides.head}  # each group has a node that stands for it
    folded = dict(found.couples)
    assert folded["conv1"] == next(node.id for node in difference.sides.head if node.name == "conv1")


def test_a_removed_node_leaves_a_gap() -> None:
    difference = stack(3)
    found = check(difference)
    assert found.rows == 26 + 1 - 1  # the new node and the one that is gone share a row


def test_only_the_matches_that_contradict_are_dropped() -> None:
    names = "abcde"
    base = tuple(SideNode(n, n, "relu", inputs=(names[i - 1],) if i else ()) for i, n in enumerate(names))
    order = "acbde"  # two neighbours have changed their places
    head = tuple(SideNode(n, n, "relu", inputs=(order[i - 1],) if i else ()) for i, n in enumerate(order))
    matches = tuple(Match(n, n, 1.0, "") for n in names)
    found = check(Difference("a", "b", 5, 5, 5, sides=Sides(base, head, matches)))
    assert len(found.couples) == 4
    moved = Moved(Place("b", "relu"), Place("b", "relu"), (), ())
    found = check(Difference("a", "b", 5, 5, 5, moved=(moved,), sides=Sides(base, head, matches)))
    assert [one for one, _ in found.couples] == ["a", "c", "d", "e"]


def test_who_stands_for_a_group() -> None:
    def places(*kinds: str) -> tuple[Place, ...]:
        return tuple(Place(f"{kind}{at}", kind) for at, kind in enumerate(kinds))

    assert anchors(Group(places("bn", "conv", "relu"), places("conv+relu"), "", 1.0)) == [("conv1", "conv+relu0")]
    assert anchors(Group(places("mul", "add"), places("batch_norm"), "", 1.0)) == [("mul0", "batch_norm0")]
    assert anchors(Group(places("conv", "conv"), places("conv", "cat"), "", 1.0)) == [("conv0", "conv0")]
    assert anchors(Group((), places("conv"), "", 1.0)) == anchors(Group(places("conv"), (), "", 1.0)) == []


def test_tangles_are_not_drawn() -> None:
    nodes = tuple(SideNode(str(i), str(i), "add", inputs=tuple(str(j) for j in range(i))) for i in range(700))
    assert align(Difference("a", "b", 700, 0, 0), Sides(nodes, (), ())) is None
