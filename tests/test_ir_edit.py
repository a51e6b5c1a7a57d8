"""Edits of graphs that respect sharing; lint, snapshots, fingerprints, and example inputs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from counterexamples import KNOWN
from networks import trace
from torch import fx, nn

from fxcompress.errors import InputError
from fxcompress.ir.edit import Editor, own, provenance, set_parameter
from fxcompress.ir.guards import expect_constant
from fxcompress.ir.inputs import Inputs
from fxcompress.ir.snapshot import fingerprint, snapshot
from fxcompress.ir.verify import neighbourhood, source_line, verify


def nodes(module: fx.GraphModule) -> dict[str, fx.Node]:
    return {node.name: node for node in module.graph.nodes}


def test_a_shared_module_is_copied_before_it_is_changed() -> None:
    module = trace(KNOWN["one conv called twice, one norm"].build())
    editor = Editor(module)
    first, second = [n for n in module.graph.nodes if n.target == "m0"]
    old = module.m0
    private = own(first, editor)
    assert first.target == "m0_1"
    assert second.target == "m0"
    assert private is module.get_submodule("m0_1") is not old
    assert private.weight is old.weight  # shared until it is set
    set_parameter(private, "weight", torch.zeros_like(old.weight))
    assert old.weight.any()
    assert own(second, editor) is module.m0 is not old
    editor.finish()
    verify(module)


def test_a_changed_parameter_keeps_requires_grad_and_spares_its_other_owners() -> None:
    layer = nn.Linear(2, 2, bias=False)
    layer.weight.requires_grad_(False)
    old = layer.weight
    set_parameter(layer, "weight", torch.ones(2, 2))
    assert not layer.weight.requires_grad
    assert layer.weight is not old
    set_parameter(layer, "bias", torch.ones(2))
    assert not layer.bias.requires_grad
    set_parameter(layer, "bias", None)
    assert layer.bias is None


def test_new_names_do_not_hide_old_ones() -> None:
    module = trace(KNOWN["repvgg"].build())
    editor = Editor(module)
    names = [editor.add_module("m0", nn.Identity()), editor.add_module("m0", nn.Identity()), editor.add_module("train", nn.Identity())]
    assert names == ["m0_1", "m0_2", "train_1"]
    assert editor.add_module("deep.er", nn.Identity()) == "deep.er"
    assert editor.add_module("deep", nn.Identity()) != "deep"


def test_new_nodes_carry_meta_and_provenance() -> None:
    module = trace(KNOWN["repvgg"].build())
    by_name = nodes(module)
    by_name["m0"].meta["stack_trace"] = 'File "a.py", line 3, in forward'
    editor = Editor(module)
    new = editor.call_function(torch.relu, (by_name["m1"],), before=by_name["m2"], of=[by_name["m0"], by_name["m1"]])
    assert source_line(new) == "a.py:3"
    assert provenance(new) == ("m0", "m1")
    editor.absorb(new, by_name["m2"])
    editor.absorb(new, by_name["m0"])
    assert provenance(new) == ("m0", "m1", "m2")
    assert provenance(by_name["m3"]) == ("m3",)
    editor.replace(by_name["m2"], new)
    editor.finish()
    verify(module)
    assert not hasattr(module, "m2")


def test_finish_drops_only_what_nobody_reads() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
            self.same = self.block["a"]
            self.scale = nn.Parameter(torch.ones(2))
            self.register_buffer("unread", torch.ones(2))

        def forward(self, x):
            return self.block["a"](x) * self.scale + self.block["b"](x)

    module = fx.symbolic_trace(Nested())
    module.register_buffer("unread", torch.ones(2))
    editor = Editor(module)
    last = nodes(module)["add"]
    editor.replace(last, last.args[0])
    editor.erase(nodes(module)["block_b"])
    editor.finish()
    assert sorted(dict(module.named_parameters())) == ["block.a.bias", "block.a.weight", "scale"]
    assert not list(module.buffers())
    module(torch.randn(1, 2))


# -- lint, snapshot, fingerprint ----------------------------------------------------------------------------------------


def test_lint_accepts_traced_graphs() -> None:
    for net in KNOWN.values():
        verify(trace(net.build()))


def test_neighbourhood_marks_the_node() -> None:
    module = trace(KNOWN["repvgg"].build())
    text = neighbourhood(nodes(module)["m4"], before=1, after=1)
    assert [line[0] for line in text.splitlines()] == [" ", ">", " "]


Change = Callable[[fx.GraphModule], object]


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.m0.weight.data.add_(1e-12),
        lambda m: setattr(m.m0, "stride", (2, 2)),
        lambda m: setattr(m.m1, "eps", 1e-3),
        lambda m: m.m1.train(),
        lambda m: m.m1.running_mean.add_(1),
        lambda m: m.m0.weight.requires_grad_(False),
        lambda m: setattr(nodes(m)["add"], "target", torch.sub),
        lambda m: setattr(nodes(m)["add_1"], "args", nodes(m)["add_1"].args[::-1]),
    ],
)
def test_fingerprints_see_every_change(change: Change) -> None:
    module = trace(KNOWN["repvgg"].build())
    before = fingerprint(module)
    assert fingerprint(trace(KNOWN["repvgg"].build())) == before
    change(module)
    assert fingerprint(module) != before


def test_snapshot_and_fingerprint_are_the_same_in_every_process() -> None:
    imports = f"import sys; sys.path[:0] = {sys.path!r}\nfrom test_ir_edit import *"
    code = imports + "\nm = trace(KNOWN['repvgg'].build()); print(snapshot(m)); print(fingerprint(m))"
    said = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout for _ in range(2)}
    module = trace(KNOWN["repvgg"].build())
    assert said == {f"{snapshot(module)}\n{fingerprint(module)}\n"}


# -- inputs -------------------------------------------------------------------------------------------------------------


def test_inputs_are_read_in_one_way() -> None:
    def forward(x, mask=None):
        return x

    x = torch.randn(2)
    assert Inputs.of(x).args == (x,)
    assert Inputs.of((x, x)).args == (x, x)
    assert Inputs.of({"x": x}, forward).kwargs == {"x": x}
    assert Inputs.of({"other": x}, forward).args == ({"other": x},)
    assert Inputs.of([x, x]).args == ([x, x],)
    given = Inputs((x,), {"mask": x})
    assert Inputs.of(given) is given
    assert len(given.tensors()) == 2
    assert given.map_tensors(torch.neg).args[0].equal(-x)
    assert given.clone().args[0] is not x


@pytest.mark.parametrize("wrong", [None, (), {}, 3, "x", (1, 2), [[]]])
def test_inputs_without_a_tensor(wrong: object) -> None:
    with pytest.raises(InputError, match="example_inputs is"):
        Inputs.of(wrong)


def test_inputs_that_forward_does_not_take() -> None:
    with pytest.raises(InputError, match="do not fit forward"):
        Inputs.of((torch.ones(1),) * 2, lambda x: x)


def test_guards() -> None:
    expect_constant(None, None, "mask")
    expect_constant(2, 2, "n")
    for value, expected in ((torch.ones(1), None), (2, 3), (True, 1), (None, 0)):
        with pytest.raises(InputError, match="'mask'"):
            expect_constant(value, expected, "mask")
