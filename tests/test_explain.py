"""The graph's difference after every pass."""

from __future__ import annotations

import copy
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

import fxcompress
from fxcompress import Pass, PassContext, PassResult, Semantics
from fxcompress.errors import DishonestPassError, EquivalenceError, InputError, UnknownPassError


class Net(nn.Module):
    """Two convs with norms, an in-place relu, a residual and a dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second, self.norm2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.drop, self.head = nn.Dropout(), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu_(self.norm1(self.first(x)))
        x = torch.relu(x + self.norm2(self.second(x)))
        return self.head(self.drop(x.mean((2, 3))))


@pytest.fixture
def net() -> nn.Module:
    model = Net()
    for norm in (model.norm1, model.norm2):
        nn.init.uniform_(norm.weight, 0.5, 2)
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    return model.eval()


X = torch.linspace(-2, 2, 2 * 3 * 6 * 6).reshape(2, 3, 6, 6)


def test_each_pass_tells_what_it_did_and_the_whole_adds_up(net: nn.Module) -> None:
    before = copy.deepcopy(net.state_dict())
    found = fxcompress.explain(net, X, "functionalize,drop-noops,cse,fold-norm,fuse")
    assert [step.text for step in found.steps] == ["functionalize", "drop-noops", "cse", "fold-norm", "fuse"]
    assert [step.text for step in found.changes] == ["functionalize", "drop-noops", "fold-norm", "fuse"]
    by_name = {step.text: step.difference for step in found.changes}
    assert [place.kind for place in by_name["drop-noops"].removed] == ["dropout"]
    assert [(len(group.base), len(group.head)) for group in by_name["fold-norm"].groups] == [(2, 1), (2, 1)]
    assert by_name["fold-norm"].base_nodes - by_name["fold-norm"].head_nodes == 2
    for earlier, later in zip(found.changes, found.changes[1:], strict=False):
        assert earlier.difference.head_nodes == later.difference.base_nodes
    (whole,) = found.wholes
    assert (whole.base_nodes, whole.head_nodes) == (found.changes[0].difference.base_nodes, found.changes[-1].difference.head_nodes)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_without_a_pipeline_the_passes_of_compress_are_told(net: nn.Module) -> None:
    found = fxcompress.explain(net, X)
    assert ",".join(step.text for step in found.steps) == fxcompress.api.REWRITES
    text = found.to_text()
    assert text.startswith("Net: ")
    assert "2 x " in text


def test_a_pass_that_changes_nothing_has_no_difference() -> None:
    found = fxcompress.explain(nn.Sequential(nn.Conv2d(3, 4, 1)).eval(), X, "functionalize,cse")
    assert found.changes == found.wholes == ()
    assert "0 of 2 passes" in found.to_text()
    assert "no change: functionalize, cse" in found.to_text()
    assert found.to_html()


def test_numbers_of_lossy_passes_are_told(net: nn.Module) -> None:
    found = fxcompress.explain(net, X, "functionalize,drop-noops,fold-norm,fuse,observe{speed=none},calibrate,lower-int8", calibration=[X])
    by_name = {step.text: step.difference for step in found.changes}
    (output,) = by_name["calibrate"].numbers.outputs
    assert output.max_abs > 0
    assert 10 < output.sqnr_db < 60


def test_pruning_shows_channels_that_are_gone(net: nn.Module) -> None:
    found = fxcompress.explain(net, X, "functionalize,prune-select{ratio=0.5,round_to=1},prune-apply")
    (step,) = (step for step in found.changes if step.text == "prune-apply")
    assert {cost.name for cost in step.difference.cost} >= {"params", "macs", "weight_bytes"}
    assert all(cost.head < cost.base for cost in step.difference.cost)
    assert any("removed" in change.note for node in step.difference.changed for change in node.changes)


def test_a_graph_is_taken_as_it_is(net: nn.Module) -> None:
    graph = fxcompress.trace(net, X)
    names = [node.name for node in graph.graph.nodes]
    found = fxcompress.explain(graph, X, "functionalize,fold-norm")
    assert [node.id for node in found.changes[0].difference.sides.base] == names == [node.name for node in graph.graph.nodes]


class Branching(nn.Module):
    """Can only be captured in parts."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), nn.Sequential(nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        return self.head(x) if float(x.sum()) > -1e9 else x


def test_a_model_in_parts_is_told_part_by_part() -> None:
    found = fxcompress.explain(Branching().eval(), X, "functionalize,fold-norm")
    assert [(step.text, step.part) for step in found.changes] == [("fold-norm", "body"), ("fold-norm", "head")]
    assert len(found.wholes) == 2
    assert "fold-norm in body" in found.to_text()


class Lie(Pass):
    name: ClassVar[str] = "lie"

    def run(self, module, ctx: PassContext) -> PassResult:
        return PassResult(module, changed=True)


class Wrong(Pass):
    name: ClassVar[str] = "wrong"
    semantics: ClassVar[Semantics] = Semantics.CLOSE

    def run(self, module, ctx: PassContext) -> PassResult:
        module.norm1.eps = 1.0
        return PassResult(module, changed=True)


def test_passes_are_held_to_their_promise(net: nn.Module) -> None:
    with pytest.raises(DishonestPassError):
        fxcompress.explain(net, X, Lie())
    with pytest.raises(EquivalenceError):
        fxcompress.explain(net, X, Wrong())


def test_a_pass_that_edits_in_place_does_not_change_what_was_told(net: nn.Module) -> None:
    """The snapshot before a pass is of a copy: else both sides would be the graph after it."""
    first, second = fxcompress.explain(net, X, "functionalize,fold-norm").changes
    assert first.difference.changed
    assert not first.difference.groups
    assert {node.kind for node in first.difference.sides.head} >= {"conv", "batch_norm"}
    assert "batch_norm" not in {node.kind for node in second.difference.sides.head}


def test_wrong_arguments_say_what_to_write(net: nn.Module) -> None:
    with pytest.raises(InputError, match="training mode"):
        fxcompress.explain(copy.deepcopy(net).train(), X)
    with pytest.raises(InputError, match="pipeline is a int"):
        fxcompress.explain(net, X, 3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no passes"):
        fxcompress.explain(net, X, "")
    with pytest.raises(UnknownPassError, match="fold-nrm"):
        fxcompress.explain(net, X, "fold-nrm")
    with pytest.raises(InputError, match=r"not a torch\.nn\.Module"):
        fxcompress.explain("resnet18", X)  # type: ignore[arg-type]
    with pytest.raises(InputError):
        fxcompress.explain(net, torch.zeros(3), "functionalize")


def test_steps_are_announced(net: nn.Module) -> None:
    heard: list[str] = []
    fxcompress.explain(net, X, "functionalize,fold-norm", on_step=heard.append)
    assert heard == ["capture", "functionalize", "fold-norm"]
