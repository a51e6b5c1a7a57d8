"""Graphs made by hand: what an operand, a group, a moved node, the contract and the costs have to say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from compare_graphs import Draft, inserted, node, snapshot_of
from diffing import both, said

from fxcompress.compare.diff import diff
from fxcompress.compare.matching import GroupMatch, Matching, Pair
from fxcompress.compare.schema import Contract, Port, Snapshot, Value
from fxcompress.report.difference import Place


def chain(*kinds: str) -> Snapshot:
    draft = Draft()
    for at, kind in enumerate(kinds):
        draft.add(kind, *([at - 1] if at else []))
    return draft.build()


def by_hand(pairs: list[tuple[int, int]], removed: tuple[int, ...], added: tuple[int, ...], **more: Any) -> Matching:
    rest = {"moved": (), "groups": (), **more}
    return Matching(tuple(Pair(i, j, 1.0, "test") for i, j in pairs), removed, added, **rest)


def test_operands_behind_nodes_that_came_or_went_are_not_rewired() -> None:
    base, head = chain("input", "relu", "sigmoid", "output"), chain("input", "relu", "tanh", "dropout", "sigmoid", "output")
    matching = by_hand([(0, 0), (1, 1), (2, 4), (3, 5)], (), (2, 3))
    found = diff(base, head, matching=matching)
    assert said(found) == {"added": ["tanh", "dropout"]}
    assert said(diff(head, base, matching=matching.inverse())) == {"removed": ["tanh", "dropout"]}


def test_one_node_in_the_place_of_another_rewires_nothing() -> None:
    base, head = chain("input", "relu", "sigmoid", "output"), chain("input", "relu", "tanh", "output")
    found = diff(base, head, matching=by_hand([(0, 0), (1, 1), (3, 3)], (2,), (2,)))
    assert said(found) == {"added": ["tanh"], "removed": ["sigmoid"]}


def test_a_node_that_reads_past_an_added_one_is_rewired() -> None:
    """What was added reads something else than the operand that it stands in for."""
    draft, other = Draft(), Draft()
    for d in (draft, other):
        d.add("input")
        d.add("relu", 0)
        d.add("tanh", 0)
    draft.add("sigmoid", 1)
    other.add("gelu", 2)
    other.add("sigmoid", 3)
    found = diff(draft.build(), other.build(), matching=by_hand([(0, 0), (1, 1), (2, 2), (3, 4)], (), (3,)))
    assert said(found) == {"added": ["gelu"], "rewired": ["sigmoid: 0"]}


def test_a_moved_node_is_told_once() -> None:
    base, head = chain("input", "relu", "tanh", "sigmoid", "output"), chain("input", "tanh", "sigmoid", "relu", "output")
    matching = by_hand([(0, 0), (1, 3), (2, 1), (3, 2), (4, 4)], (), (), moved=((1, 3),))
    found = diff(base, head, matching=matching)
    assert said(found) == {"moved": ["relu"]}
    (moved,) = found.moved
    assert ([p.kind for p in moved.after_base], [p.kind for p in moved.after_head]) == (["input"], ["sigmoid"])


def test_a_group_is_told_with_the_changes_of_its_anchor_and_its_operands_are_compared_as_a_whole() -> None:
    draft, other, third = Draft(), Draft(), Draft()
    for d in (draft, other, third):
        d.add("input")
        d.add("relu", 0)
    draft.add("conv", 0, weight="a" * 16)
    draft.add("batch_norm", 2)
    draft.add("add", 3, 1)
    draft.add("output", 4)
    other.add("conv", 0, 1, weight="b" * 16)
    other.add("output", 2)
    matching = by_hand([(0, 0), (1, 1), (2, 2), (5, 3)], (), (), groups=(GroupMatch((2, 3, 4), (2,), 0.9),))
    found = diff(draft.build(), other.build(), matching=matching)
    assert said(found) == {"groups": ["conv + batch_norm + add -> conv"]}
    assert [c.name for c in found.groups[0].changes] == ["weight"]
    third.add("conv", 0, 0, weight="b" * 16)  # it does not add what was added
    third.add("output", 2)
    assert said(diff(draft.build(), third.build(), matching=matching))["rewired"] == ["conv: 0"]


def test_an_operand_of_a_concatenation_that_is_gone_is_one_rewired_operand() -> None:
    draft, other = Draft(), Draft()
    for d in (draft, other):
        d.add("input")
        d.add("relu", 0)
        d.add("tanh", 0)
    draft.add("cat", 0, 1, 2, dim=1)
    other.add("cat", 0, 2, dim=1)
    base, head = draft.build(), other.build()
    matching = by_hand([(0, 0), (1, 1), (2, 2), (3, 3)], (), ())
    (one,) = diff(base, head, matching=matching).rewired
    assert one.was is not None
    assert (one.operand, one.was.kind, one.now) == (1, "relu", None)
    (back,) = diff(head, base, matching=matching.inverse()).rewired
    assert back.now == one.was
    assert back.was is None


def test_a_shape_that_only_follows_is_told_at_its_source() -> None:
    def sized(size: int, stride: int) -> Snapshot:
        nodes = [node("input"), node("conv", 0, stride=stride), node("relu", 1), node("linear", 2), node("output", 3)]
        shapes = [(1, 3, 8, 8), (1, 3, size, size), (1, 3, size, size), (1, 5), (1, 5)]
        made = [replace(n, name=f"n{i}", outputs=(Value("float32", s),)) for i, (n, s) in enumerate(zip(nodes, shapes, strict=True))]
        return snapshot_of(made)

    assert said(both(sized(8, 1), sized(4, 2))) == {"changed": ["conv: attribute stride", "conv: shape"]}


def test_attributes_are_compared_by_type_too() -> None:
    for old, new in ((1, True), (1, 1.0), ([1, 2], [1, 3]), ({"a": 1}, {"a": 2}), (None, 0), ("$0", "$1"), ("x", "y")):
        base = snapshot_of([node("input", name="a"), node("clamp", 0, name="b", value=old)])
        head = snapshot_of([node("input", name="a"), node("clamp", 0, name="b", value=new)])
        assert said(diff(base, head, matching=by_hand([(0, 0), (1, 1)], (), ()))) == {"changed": ["clamp: attribute value"]}, (old, new)
    base, head = (snapshot_of([node("input"), node("clamp", 0, name="b", value=value)]) for value in ({"a": 1, "b": 2}, {"b": 2, "a": 1}))
    assert diff(base, head, matching=by_hand([(0, 0), (1, 1)], (), ())).same_function  # files sort the keys


def ported(inputs: list[tuple[str, str, tuple[int, ...]]], signature: str = "(x)") -> Snapshot:
    ports = tuple(Port(name, "", dtype, shape) for name, dtype, shape in inputs)
    return replace(snapshot_of([node("input")]), contract=Contract(ports, (), signature))


def test_every_part_of_the_contract_is_compared() -> None:
    base = ported([("x", "float32", (1, 3)), ("mask", "bool", (1,))])
    cases = {
        "input name": ported([("x", "float32", (1, 3)), ("valid", "bool", (1,))]),
        "input shape": ported([("x", "float32", (2, 3)), ("mask", "bool", (1,))]),
        "input dtype": ported([("x", "float16", (1, 3)), ("mask", "bool", (1,))]),
        "input count": ported([("x", "float32", (1, 3))]),
        "signature structure": ported([("x", "float32", (1, 3)), ("mask", "bool", (1,))], "(x, mask=None)"),
    }
    for want, head in cases.items():
        assert [f"{c.where} {c.what}" for c in both(base, head).contract] == [want]
    gone = diff(base, cases["input count"]).contract[0]
    assert (gone.name, gone.base, gone.head) == ("mask", "bool 1", None)


def test_costs_are_told_where_they_differ() -> None:
    base = snapshot_of([node("input")])
    head = replace(base, cost=replace(base.cost, macs=5, peak_bytes=7))
    assert [(c.name, c.base, c.head) for c in both(base, head).cost] == [("macs", 0, 5), ("peak_bytes", 0, 7)]


def test_an_insertion_between_is_one_added_node() -> None:
    graph = chain("input", "relu", "sigmoid", "tanh", "output")
    head = inserted(graph, 1, node("gelu", 1), [(2, 0)])
    assert said(both(graph, head)) == {"added": ["gelu"]}
    assert both(graph, head).added == (Place("fresh", "gelu", index=2),)
