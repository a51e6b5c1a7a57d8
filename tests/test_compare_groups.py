"""Nodes that became other nodes together."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
import torch
import torchvision
from compare_graphs import Draft, Edits, told, well_formed
from torch import Tensor, nn
from torch.nn import functional as F

from fxcompress.api.comparing import snapshot
from fxcompress.capture import capture
from fxcompress.compare import codec
from fxcompress.compare.matching import GroupMatch, Matching, match
from fxcompress.compare.schema import Snapshot
from fxcompress.pipeline import Pipeline

PASSES = "functionalize,drop-noops,fold-constants,raise-layers,cse,dead-code,fold-norm,fold-norm-before,fold-scale,merge-parallel,fuse"


def checked(base: Snapshot, head: Snapshot) -> Matching:
    found = match(base, head)
    well_formed(base, head, found)
    assert match(head, base) == found.inverse()
    return found


def kinds(base: Snapshot, head: Snapshot, found: Matching) -> Counter[str]:
    """How often which kinds of nodes became which."""
    return Counter(_kind(base, group.base) + " -> " + _kind(head, group.head) for group in found.groups)


def digests(graph: Snapshot, at: int) -> list[str]:
    return [graph.tensors[t].digest for _, t in sorted(graph.nodes[at].tensors.items())]


def _kind(graph: Snapshot, members: tuple[int, ...]) -> str:
    return " + ".join(graph.nodes[i].kind for i in members)


def strange(graph: Snapshot) -> Snapshot:
    """As another process may have written it: without provenance, under other names."""
    nodes = tuple(dataclasses.replace(n, name=f"z{i}", path="", source=None, origins=()) for i, n in enumerate(graph.nodes))
    return codec.decode(codec.encode(dataclasses.replace(graph, nodes=nodes, live=None)))


def rewritten(model: nn.Module, x: Tensor, passes: str, *, numbers: bool) -> tuple[Snapshot, Snapshot]:
    """The model as captured and after passes, with batch norms that do something."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value, low in ((module.running_mean, -1), (module.running_var, 0.5), (module.weight, 0.5), (module.bias, -1)):
                assert value is not None
                value.data.uniform_(low, low + 1)
    base = snapshot(model.eval(), x, numbers=numbers)
    captured = capture(model, x)
    run = Pipeline.parse(passes).execute(captured.module, captured.inputs, verify=False)
    return base, snapshot(run.module, x, numbers=numbers)


@pytest.mark.parametrize("known", ["provenance", "nothing"])
@pytest.mark.parametrize(
    ("name", "folds"), [("densenet121", 59), ("resnet18", 20), ("mobilenet_v2", 52), ("shufflenet_v2_x0_5", 56), ("mobilenet_v3_small", 34)]
)
def test_folded_norms_are_told_as_exactly_the_folds(name: str, folds: int, known: str) -> None:
    model = torchvision.models.get_model(name, weights=None)
    base, head = rewritten(model, torch.randn(1, 3, 64, 64), "functionalize,fold-norm", numbers=False)
    if known == "nothing":
        base, head = strange(base), strange(head)
    found = checked(base, head)
    assert kinds(base, head, found) == {"conv + batch_norm -> conv": folds}
    for group in found.groups:
        conv, norm = group.base
        assert base.nodes[norm].inputs == (conv,)
        assert found.head_of()[conv] == group.head[0]
        assert head.nodes[group.head[0]].tensors.keys() >= {"weight", "bias"}
    assert (found.added, found.removed, found.moved) == ((), (), ())
    inside = {i for group in found.groups for i in group.base}
    for i, j in found.head_of().items():
        assert base.nodes[i].kind == head.nodes[j].kind
        assert i in inside or digests(base, i) == digests(head, j)


@pytest.mark.parametrize("numbers", [True, False])
@pytest.mark.parametrize("known", ["provenance", "nothing"])
def test_fused_resnet(known: str, numbers: bool) -> None:
    base, head = rewritten(torchvision.models.resnet18(weights=None), torch.randn(1, 3, 64, 64), PASSES, numbers=numbers)
    if known == "nothing":
        base, head = strange(base), strange(head)
    found = checked(base, head)
    assert kinds(base, head, found) == {
        "conv + batch_norm + relu -> conv+relu": 9,
        "conv + batch_norm + add + relu -> conv+add+relu": 8,
        "conv + batch_norm -> conv": 3,
    }
    assert (found.added, found.removed, found.moved) == ((), (), ())


class Net(nn.Module):
    """A network whose forward is ``body(self, x)``."""

    def __init__(self, **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)


class Decomposed(Net):
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        return self.out(torch.matmul(torch.softmax(torch.matmul(q, k.transpose(-2, -1)) * 0.5, -1), v))


class Attention(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x), scale=0.5))


def test_attention_that_became_one_node() -> None:
    layers = {name: nn.Linear(4, 4) for name in ("q", "k", "v", "out")}
    x = torch.randn(1, 3, 4)
    base, head = snapshot(Decomposed(**layers), x), snapshot(Attention(**layers), x)
    found = checked(strange(base), strange(head))
    assert list(kinds(base, head, found)) == ["transpose + matmul + mul + softmax + matmul -> attention"]
    assert (found.added, found.removed, found.moved) == ((), (), ())


def test_parallel_layers_that_became_one() -> None:
    def parallel(merged: bool) -> Snapshot:
        draft = Draft()
        at = draft.add("relu", draft.add("input"))
        if merged:
            whole = draft.add("split", draft.add("conv", at, weight="c" * 16))
            a, b = draft.add("getitem", whole, index=0), draft.add("getitem", whole, index=1)
        else:
            a, b = draft.add("conv", at, weight="a" * 16), draft.add("conv", at, weight="b" * 16)
        draft.add("output", draft.add("add", draft.add("sigmoid", a), draft.add("tanh", b)))
        return draft.build()

    base, head = parallel(False), parallel(True)
    found = checked(base, head)
    assert kinds(base, head, found) == {"conv + conv -> conv + split + getitem + getitem": 1}


def test_layers_in_a_row_that_became_one() -> None:
    model = nn.Sequential(nn.ReLU(), nn.Conv2d(3, 16, 1), nn.Conv2d(16, 4, 1), nn.Sigmoid())
    base, head = rewritten(model, torch.randn(1, 3, 4, 4), "functionalize,merge-chain", numbers=False)
    found = checked(strange(base), strange(head))
    assert kinds(base, head, found) == {"conv + conv -> conv": 1}


def test_a_norm_that_was_folded_into_the_layer_behind_it() -> None:
    model = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1), nn.Sigmoid())
    base, head = rewritten(model, torch.randn(1, 3, 4, 4), "functionalize,fold-norm-before", numbers=False)
    found = checked(strange(base), strange(head))
    assert kinds(base, head, found) == {"batch_norm + conv -> conv": 1}


def graph(*steps: tuple[str, str]) -> Snapshot:
    """A chain of operations; those with a text have weights with that digest."""
    draft = Draft()
    at = draft.add("input")
    for kind, weight in steps:
        at = draft.add(kind, at, weight=weight * 16 if weight else None)
    draft.add("output", at)
    return draft.build()


def test_folds_next_to_each_other_are_told_apart() -> None:
    base = graph(("conv", "a"), ("bn", "b"), ("conv", "c"), ("bn", "d"), ("relu", ""))
    head = graph(("conv", "1"), ("conv", "2"), ("relu", ""))
    assert [(g.base, g.head) for g in checked(base, head).groups] == [((1, 2), (1,)), ((3, 4), (2,))]


def test_a_removed_node_beside_unchanged_ones_is_no_group() -> None:
    base, head = graph(("conv", "a"), ("bn", "b"), ("conv", "c")), graph(("conv", "a"), ("conv", "c"))
    found = checked(base, head)
    assert found.groups == ()
    assert told(base, head, found) == Edits(removed=("bn",))


def test_a_removed_node_far_from_a_changed_one_is_no_group() -> None:
    base = graph(("conv", "a"), ("relu", ""), ("sigmoid", ""), ("conv", "c"))
    head = graph(("conv", "1"), ("relu", ""), ("conv", "c"))
    found = checked(base, head)
    assert found.groups == ()
    assert told(base, head, found) == Edits(removed=("sigmoid",), changed=("conv",))


def test_one_operation_that_became_several() -> None:
    base = graph(("conv", "a"), ("gelu", ""), ("conv", "c"))
    head = graph(("conv", "a"), ("erf", ""), ("mul", ""), ("sqrt", ""), ("conv", "c"))
    assert checked(base, head).groups == (GroupMatch((2,), (2, 3, 4), 0.9),)


def test_provenance_makes_a_group_certain() -> None:
    base, head = rewritten(
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), torch.randn(1, 3, 4, 4), "functionalize,fold-norm", numbers=False
    )
    assert [g.confidence for g in checked(base, head).groups] == [1]
    assert [g.confidence for g in checked(strange(base), strange(head)).groups] == [0.9]


def test_an_operation_that_is_no_longer_in_place_explains_nothing() -> None:
    base, head = graph(("relu", ""), ("dropout", ""), ("conv", "c")), graph(("relu", ""), ("conv", "c"))
    loud = dataclasses.replace(base.nodes[1], attributes={"inplace": True})
    base = dataclasses.replace(base, nodes=(base.nodes[0], loud, *base.nodes[2:]))
    found = checked(base, head)
    assert (found.groups, found.removed) == ((), (2,))


def test_whole_blocks_beside_trained_layers_are_added() -> None:
    base = graph(("conv", "a"), ("bn", "b"), ("relu", ""), ("conv", "c"), ("sigmoid", ""))
    head = graph(("conv", "1"), ("bn", "2"), ("relu", ""), ("conv", "3"), ("bn", "4"), ("relu", ""), ("conv", "5"), ("sigmoid", ""))
    found = checked(base, head)
    assert found.groups == ()
    assert len(found.added) == 3
