"""Which node is which: renamed, reordered, edited and unrelated graphs."""

from __future__ import annotations

import dataclasses
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from compare_graphs import (
    EDITS,
    Draft,
    Edits,
    edited,
    inserted,
    node,
    random_graph,
    removed,
    renamed,
    snapshot_of,
    told,
    well_formed,
    with_node,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Net, step
from torch import nn

from fxcompress.api.comparing import snapshot
from fxcompress.compare.matching import Matching, match
from fxcompress.compare.schema import Sketch, Snapshot

NOTHING = Edits()


def checked(base: Snapshot, head: Snapshot) -> Matching:
    """The matching, with all that holds for any two graphs."""
    found = match(base, head)
    well_formed(base, head, found)
    assert match(head, base) == found.inverse()
    assert found.inverse().inverse() == found
    return found


def chain(*kinds: str) -> Snapshot:
    draft = Draft()
    at = draft.add("input")
    for kind in kinds:
        at = draft.add(kind, at)
    draft.add("output", at)
    return draft.build()


@given(st.integers(0, 10**9), st.integers(1, 60), st.sampled_from(["own", "few"]))
@settings(max_examples=60, deadline=None)
def test_a_renamed_and_reordered_graph_is_matched_completely(seed: int, size: int, weights: str) -> None:
    rng = random.Random(seed)
    graph = random_graph(rng, size, weights=weights)
    other, place = renamed(graph, rng)
    found = checked(graph, other)
    assert len(found.pairs) == len(graph.nodes)
    assert told(graph, other, found) == NOTHING
    assert all(pair.confidence == 1 for pair in found.pairs)
    read = {source for n in graph.nodes for source in n.inputs}
    assert all(pair.head == place[pair.base] for pair in found.pairs if pair.base in read)  # unread nodes may be equal in all


def test_random_single_edits_are_told_exactly() -> None:
    wrong, empty, count = Counter[str](), 0, 0
    for seed in range(40):
        for edit in EDITS:
            for weights in ("own", "few"):
                rng = random.Random(f"{seed} {edit} {weights}")
                graph = random_graph(rng, rng.choice([3, 10, 40]), weights=weights)
                made = edited(graph, edit, rng)
                if made is None:
                    continue
                head, _ = renamed(made[0], rng)
                said = told(graph, head, checked(graph, head))
                count += 1
                wrong[edit] += said != made[1]
                empty += said == NOTHING
    assert count > 500
    assert wrong.total() <= 0.01 * count, wrong
    assert empty <= 1  # a swap of the operands of add(a, b) where a and b are one and the same computation


@given(st.integers(0, 10**9), st.integers(2, 6))
@settings(max_examples=40, deadline=None)
def test_several_edits_leave_the_rest_matched(seed: int, edits: int) -> None:
    rng = random.Random(seed)
    base = head = random_graph(rng, 60)
    for _ in range(edits):
        made = edited(head, rng.choice(EDITS), rng)
        head = made[0] if made else head
    found = checked(base, renamed(head, rng)[0])
    assert len(found.removed) + len(found.added) <= 2 * edits
    assert len(found.pairs) >= len(base.nodes) - 2 * edits


@given(st.integers(0, 10**9), st.integers(0, 30), st.integers(0, 30))
@settings(max_examples=40, deadline=None)
def test_any_two_graphs_are_matched_somehow(seed: int, a: int, b: int) -> None:
    rng = random.Random(seed)
    checked(random_graph(rng, a, weights="few"), random_graph(rng, b, weights="few"))


def test_the_same_graph_is_itself_whatever_its_nodes_are() -> None:
    draft = Draft()
    x = draft.add("input")
    for _ in range(3):
        draft.add("relu", x)  # unread and equal in all
    draft.add("output", x)
    graph = draft.build()
    assert [(p.base, p.head) for p in checked(graph, graph).pairs] == [(i, i) for i in range(5)]


def test_empty_graphs() -> None:
    assert checked(snapshot_of([]), snapshot_of([])) == Matching((), (), (), (), ())
    assert checked(snapshot_of([]), chain("relu")) == Matching((), (), (0, 1, 2), (), ())


def test_names_say_nothing() -> None:
    base = chain("relu", "sigmoid")
    swapped = [dataclasses.replace(n, name=base.nodes[3 - i].name, path="x", source="y:1") for i, n in enumerate(base.nodes)]
    assert [(p.base, p.head) for p in checked(base, snapshot_of(swapped)).pairs] == [(0, 0), (1, 1), (2, 2), (3, 3)]


@pytest.mark.parametrize("at", [1, 4, 8])
def test_one_of_many_like_nodes_is_missing(at: int) -> None:
    base = chain(*["relu"] * 8)
    found = checked(base, removed(base, at))
    assert told(base, removed(base, at), found) == Edits(removed=("relu",))


def test_a_like_node_in_front_of_another_is_the_only_one_added() -> None:
    draft = Draft()
    x, y = draft.add("input"), draft.add("input")
    at = draft.add("relu", draft.add("add", x, y))
    draft.add("output", at)
    base = draft.build()
    head = inserted(base, 2, node("add", 2, 1), [(3, 0)])
    assert told(base, head, checked(base, head)) == Edits(added=("add",))


def test_an_operation_in_the_place_of_another_is_its_partner() -> None:
    base, head = chain("relu", "sigmoid", "relu"), chain("relu", "tanh", "relu")
    pair = checked(base, head).pairs[2]
    assert (pair.base, pair.head, pair.how) == (2, 2, "place")
    assert pair.confidence < 0.6


def test_confidence_falls_with_what_is_not_the_same() -> None:
    base = chain("conv", "relu", "conv", "sigmoid")
    attribute = checked(base, with_node(base, 3, dataclasses.replace(base.nodes[3], attributes={"stride": 2})))
    assert attribute.pairs[3].confidence < attribute.pairs[1].confidence == 1


def test_inputs_are_known_by_their_place_in_the_signature() -> None:
    def difference(first: int, second: int) -> Snapshot:
        draft = Draft()
        inputs = draft.add("input"), draft.add("input")
        draft.add("output", draft.add("sub", inputs[first], inputs[second]))
        return draft.build()

    base, head = difference(0, 1), difference(1, 0)
    assert told(base, head, checked(base, head)) == Edits(rewired=(("sub", 2),))


def test_one_more_input_in_front_does_not_move_the_others() -> None:
    base = chain("relu", "sigmoid")
    draft = Draft()
    new, old = draft.add("input"), draft.add("input")
    draft.add("output", draft.add("add", draft.add("sigmoid", draft.add("relu", old)), new))
    head = draft.build()
    assert told(base, head, checked(base, head)) == Edits(added=("add", "input"))


def layered(order: str, weights: dict[str, str]) -> Snapshot:
    draft = Draft()
    at = draft.add("input")
    for name in order:
        at = draft.add("conv", at, weight=weights[name] * 16) if name in weights else draft.add("relu", at)
    draft.add("output", at)
    return draft.build()


def test_a_layer_at_another_place_has_moved_alone() -> None:
    weights = {"a": "a", "b": "b", "c": "c"}
    base, head = layered("abrcr", weights), layered("bracr", weights)
    assert checked(base, head).moved == ((1, 3),)
    assert checked(base, layered("abrcr", weights)).moved == ()


def test_of_two_layers_that_changed_places_one_has_moved() -> None:
    weights = {"a": "a", "b": "b"}
    found = checked(layered("rabr", weights), layered("rbar", weights))
    assert len(found.moved) == 1
    assert len(found.pairs) == 6


def test_a_layer_that_reads_another_node_has_not_moved() -> None:
    draft = Draft()
    x = draft.add("input")
    a = draft.add("conv", x, weight="a" * 16)
    b = draft.add("relu", a)
    draft.add("output", draft.add("conv", b, weight="b" * 16))
    base = draft.build()
    head = with_node(base, 3, dataclasses.replace(base.nodes[3], inputs=(1,)))
    found = checked(base, head)
    assert found.moved == ()
    assert told(base, head, found) == Edits(rewired=(("conv", 1),))


@pytest.mark.parametrize("edit", EDITS)
def test_retrained_graphs_are_matched_by_their_structure(edit: str) -> None:
    rng = random.Random(edit)
    graph = random_graph(rng, 60)
    made = edited(graph, edit, rng)
    assert made is not None
    trained = tuple(dataclasses.replace(t, digest="e" + t.digest[1:]) for t in made[0].tensors)
    head = renamed(dataclasses.replace(made[0], tensors=trained), rng)[0]
    found = checked(graph, head)
    assert len(found.pairs) >= len(graph.nodes) - 1


def test_origins_of_two_captures_that_use_names_otherwise_are_not_believed() -> None:
    base = chain("conv", "relu", "conv", "relu", "conv")
    head = removed(base, 1)
    names = ["", "a", "b", "c", "d", "e", ""]
    lies = [dataclasses.replace(n, origins=(f"{i}",)) for i, n in enumerate(base.nodes)]
    more = [dataclasses.replace(n, origins=(f"{len(names) - i}",)) for i, n in enumerate(head.nodes)]
    base, head = snapshot_of(lies), snapshot_of(more)
    assert told(base, head, checked(base, head)) == Edits(removed=("conv",))


def test_equal_values_find_layers_that_structure_cannot_tell() -> None:
    """Three equal branches in another order: only the numbers that come out say which is which."""

    def branches(order: list[int], fused: bool) -> Snapshot:
        draft = Draft()
        x = draft.add("input")
        ends = []
        for value in order:
            at = draft.add("conv+relu" if fused else "conv", x, weight=f"{value + 10 * fused:016x}")
            draft.nodes[at] = dataclasses.replace(draft.nodes[at], print=_print(value + (0 if fused else 0.5)))
            if not fused:
                at = draft.add("relu", at)
                draft.nodes[at] = dataclasses.replace(draft.nodes[at], print=_print(value))
            ends.append(at)
        draft.add("output", *ends)
        return draft.build()

    base, head = branches([1, 2, 3], False), branches([3, 1, 2], True)
    pairs = checked(base, head).head_of()
    assert [pairs[i] for i in (1, 3, 5)] == [2, 3, 1]


def _print(value: float) -> Sketch:
    return Sketch(10 + value, value, 100, (value, 10.0))


@pytest.mark.parametrize("edits", [0, 20])
def test_ten_thousand_nodes_take_less_than_two_seconds(edits: int) -> None:
    rng = random.Random(1)
    base = head = random_graph(rng, 10_000, near=20)
    for _ in range(edits):
        made = edited(head, rng.choice(EDITS), rng)
        head = made[0] if made else head
    head = renamed(head, rng)[0]
    start = time.process_time()
    found = match(base, head)
    assert time.process_time() - start < 2
    assert len(found.pairs) >= 10_000 - edits


def test_a_node_that_everybody_reads_costs_no_more() -> None:
    def hub(count: int) -> Snapshot:
        draft = Draft()
        at = x = draft.add("input")
        size = draft.add("size", x)
        for _ in range(count):
            at = draft.add("view", at, size)
        draft.add("output", at)
        return draft.build()

    start = time.process_time()
    found = match(hub(5000), hub(4990))
    assert time.process_time() - start < 2
    assert len(found.removed) == 10


def test_the_same_in_every_process() -> None:
    text = (
        "import random\nfrom compare_graphs import *\nfrom fxcompress.compare.matching import match\n"
        "rng = random.Random(3)\nbase = random_graph(rng, 40, weights='few')\nprint(match(base, random_graph(rng, 40, weights='few')))"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", text],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parent)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "77")
    }
    assert len(said) == 1


class _Renamed(nn.Module):
    """The same network as ``first``, written with other module paths."""

    def __init__(self, first: nn.Sequential) -> None:
        super().__init__()
        self.stem, self.rest = first[0], nn.ModuleDict({"z": first[1], "a": first[2]})
        self.last = nn.Sequential(first[3])

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        hidden = self.rest["z"](self.stem(image))
        return self.last(self.rest["a"](hidden))


def test_a_network_that_is_written_otherwise_is_the_same() -> None:
    first = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3)).eval()
    x = torch.randn(1, 3, 8, 8)
    base, head = snapshot(first, x), snapshot(_Renamed(first).eval(), x)
    assert told(base, head, checked(base, head)) == NOTHING


def test_random_networks_without_one_step() -> None:
    steps = (step("act", 0, kind="relu"), step("act", 1, kind="sigmoid"), step("act", 2, kind="relu"), step("binary", 3, 1, name="add"))
    base = snapshot(Net(((4,),), steps, 4).build(), torch.randn(2, 4, dtype=torch.float64), numbers=False)
    shorter = (steps[0], step("act", 1, kind="relu"), step("binary", 2, 1, name="add"))
    head = snapshot(Net(((4,),), shorter, 3).build(), torch.randn(2, 4, dtype=torch.float64), numbers=False)
    assert told(base, head, checked(base, head)) == Edits(removed=("sigmoid",))
