"""The structure of a graph: the same where only weights, names and modes differ, and a clear word where it does not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import pytest
import torch
from torch import Tensor, fx, nn

from fxcompress.errors import ArchiveError
from fxcompress.ir.plain import from_plain, to_plain
from fxcompress.ir.snapshot import Structure


class Net(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, width, 3), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.norm(self.conv(x)), x[:, :, 1:-1, 1:-1]], dim=1)


def traced(width: int = 4) -> fx.GraphModule:
    return fx.symbolic_trace(Net(width))


def test_weights_modes_and_names_do_not_matter() -> None:
    first, second = traced(), traced().eval()
    for number, node in enumerate(second.graph.nodes):
        if node.op != "output":
            node.name = f"n{number}"
    assert Structure.of(first) == Structure.of(second) == Structure.of(copy.deepcopy(first))
    assert Structure.of(first).fingerprint == Structure.of(second).fingerprint
    assert Structure.of(first).difference(Structure.of(second)) is None


def _stride(module: fx.GraphModule) -> None:
    module.conv.stride = (2, 2)


def _dim(module: fx.GraphModule) -> None:
    next(node for node in module.graph.nodes if node.target is torch.cat).kwargs = {"dim": 2}


def _operand(module: fx.GraphModule) -> None:
    cat = next(node for node in module.graph.nodes if node.target is torch.cat)
    cat.args = (list(reversed(cat.args[0])),)


def _half(module: fx.GraphModule) -> None:
    module.conv.half()


def _buffer(module: fx.GraphModule) -> None:
    module.register_buffer("extra", torch.zeros(2))


def _tie(module: fx.GraphModule) -> None:
    module.norm.bias = module.norm.weight


def _call(module: fx.GraphModule) -> None:
    next(node for node in module.graph.nodes if node.target is torch.cat).target = torch.stack


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_stride, "node 1, conv, has other operands or settings"),
        (_dim, "cat, has other operands"),
        (_operand, "cat, has other operands"),
        (_half, "the parameter or buffer 'conv.bias' is float16[4] instead of float32[4]"),
        (_buffer, "the parameter or buffer 'extra' is new"),
        (_tie, "the parameter or buffer 'norm.weight' is = norm.bias instead of float32[4]"),
        (_call, "is stack instead of cat"),
    ],
)
def test_what_differs_is_said(change: Callable[[fx.GraphModule], None], words: str) -> None:
    module = traced()
    before = Structure.of(module)
    change(module)
    after = Structure.of(module)
    assert before.fingerprint != after.fingerprint
    assert words in str(before.difference(after))


def test_graphs_of_other_lengths() -> None:
    short, long = fx.symbolic_trace(nn.Sequential(nn.ReLU())), fx.symbolic_trace(nn.Sequential(nn.ReLU(), nn.Tanh()))
    assert "node 2 is 1 instead of output" in str(Structure.of(short).difference(Structure.of(long)))
    assert "node 2 is output instead of 1" in str(Structure.of(long).difference(Structure.of(short)))


# -- plain data -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Leaf:
    kind: Literal["a", "b"]
    value: bool | int | float | str | None = None
    pair: tuple[int, str] = (0, "")


@dataclass(frozen=True)
class Tree:
    leaves: tuple[Leaf, ...]
    size: int | tuple[int, ...]
    number: float = 0.0
    children: tuple[Tree, ...] = ()


def _fail(why: str) -> ArchiveError:
    return ArchiveError(why)


def test_plain_data_round_trips() -> None:
    tree = Tree((Leaf("a", True), Leaf("b", 1), Leaf("a", 1.5), Leaf("b", "text"), Leaf("a")), (1, 2), float("inf"), (Tree((), 3),))
    for sparse in (False, True):
        again = from_plain(to_plain(tree, sparse=sparse), Tree, "tree", _fail)
        assert again == tree
        assert [type(leaf.value) for leaf in again.leaves] == [bool, int, float, str, type(None)]
    assert "children" not in to_plain(Tree((), 3), sparse=True)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"leaves": [], "size": 1.5}, "tree.size is 1.5"),
        ({"leaves": [], "size": True}, "tree.size is true"),
        ({"leaves": [{"kind": "c"}], "size": 1}, r"tree.leaves\[0\].kind is \"c\""),
        ({"leaves": [{"kind": "a", "pair": [1]}], "size": 1}, "has 1 entries instead of 2"),
        ({"leaves": [{"kind": "a", "value": [1]}], "size": 1}, r"value is \[1\]"),
        ({"leaves": {}, "size": 1}, "tree.leaves is {}"),
        ({"leaves": []}, "tree lacks parts of a Tree"),
        ({"leaves": [], "size": 1, "extra": 1}, "tree is no Tree"),
        ([], "tree is no Tree"),
    ],
)
def test_other_data_is_refused(data: object, words: str) -> None:
    with pytest.raises(ArchiveError, match=words):
        from_plain(data, Tree, "tree", _fail)
