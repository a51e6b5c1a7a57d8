"""Reading and editing graphs: every form of an operation, what it writes and what memory it shares, edits that respect sharing."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracle import same
from torch import Tensor, fx, nn

from fxcompress.errors import GraphError
from fxcompress.ir.activation import Activation
from fxcompress.ir.effects import effect_of, is_random, may_alias, written_operand
from fxcompress.ir.fused import FUSED, fuse
from fxcompress.ir.guards import expect_constant
from fxcompress.ir.ops import table
from fxcompress.ir.view import activation_of, kind_of, view

X = (2, 4, 4, 4)


def graph_of(target: Any, *args: Any, op: str | None = None, **kwargs: Any) -> tuple[fx.GraphModule, fx.Node]:
    """A graph of one node that applies ``target`` to the placeholder; ``args`` follow it."""
    root = nn.Module()
    graph = fx.Graph()
    x = graph.placeholder("x")
    if isinstance(target, nn.Module):
        root.add_module("layer", target)
        node = graph.call_module("layer", (x, *args), kwargs)
    elif isinstance(target, str):
        node = graph.call_method(target, (x, *args), kwargs)
    elif target is getattr or op is None:
        node = graph.call_function(target, (x, *args), kwargs)
    graph.output(node)
    return fx.GraphModule(root, graph), node


# -- one reading of every form ------------------------------------------------------------------------------------------

SAME: dict[str, list[tuple[Any, ...]]] = {
    "relu": [(nn.ReLU(),), (F.relu,), (torch.relu,), ("relu",), ("relu_",), (nn.ReLU(inplace=True),), (F.relu, True)],
    "add": [(operator.add, 2), (torch.add, 2), ("add", 2), ("add_", 2), (operator.iadd, 2)],
    "flatten": [(nn.Flatten(),), (torch.flatten, 1), ("flatten", 1), (nn.Flatten(1, -1),)],
    "max_pool": [(nn.MaxPool2d(2),), (F.max_pool2d, 2)],
    "sigmoid": [(nn.Sigmoid(),), (torch.sigmoid,), (F.sigmoid,), ("sigmoid",)],
    "softmax": [(nn.Softmax(1),), (F.softmax, 1), (torch.softmax, 1), ("softmax", 1)],
    "dropout": [(nn.Dropout(0.1),), (F.dropout, 0.1), (nn.Dropout2d(0.1),), (F.dropout2d, 0.1)],
    "permute": [("permute", 0, 2, 3, 1), ("permute", (0, 2, 3, 1)), (torch.permute, (0, 2, 3, 1))],
    "view": [("view", 2, -1), ("view", (2, -1))],
    "hardtanh": [(nn.Hardtanh(-2.0, 2.0),), (F.hardtanh, -2.0, 2.0), (F.hardtanh_, -2.0, 2.0)],
}


@pytest.mark.parametrize("kind", SAME)
def test_forms_are_read_alike(kind: str) -> None:
    seen = []
    for target, *args in SAME[kind]:
        _, node = graph_of(target, *args)
        op = view(node)
        assert op is not None
        assert kind_of(node) == op.kind == kind
        assert op.input.name == "x"
        seen.append(
            {k: _plain(v) for k, v in op.operands.items() if k not in ("inplace", "training", "input", "_stacklevel", "dtype", "stride")}
        )
    assert all(other == seen[0] for other in seen), seen


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, (list, torch.Size)) else value


def test_unknown_operations_and_operands_are_not_guessed() -> None:
    assert view(graph_of(torch.special.bessel_j0)[1]) is None
    assert view(graph_of(nn.Bilinear(4, 4, 2), 1)[1]) is None
    assert view(graph_of(torch.relu, nonsense=1)[1]) is None
    assert view(graph_of(torch.relu, 1, 2, 3)[1]) is None
    assert view(graph_of(torch.relu)[1], "sigmoid") is None


def test_subclasses_are_not_the_class() -> None:
    class Doubled(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    assert kind_of(graph_of(Doubled(4, 4, 1))[1]) is None


def test_no_form_is_taught_twice() -> None:
    rows = table()
    for name, row in rows.methods.items():
        assert name in row.methods
    for cls, row in rows.modules.items():
        assert cls in row.modules


ACTIVATIONS = [
    (nn.ReLU(),), (nn.ReLU6(),), (F.relu6,), (nn.Hardtanh(-1.0, 2.0),), (nn.Hardswish(),), (nn.Hardsigmoid(),), (nn.SiLU(),),
    (nn.GELU(),), (nn.GELU("tanh"),), (nn.Sigmoid(),), (nn.Tanh(),), (nn.LeakyReLU(0.2),), (nn.ELU(0.5),), (nn.Mish(),),
    ("clamp", 0.0, 6.0), (torch.clamp, -1, 1), ("relu",), (F.leaky_relu, 0.3), ("tanh",),
]  # fmt: skip


@pytest.mark.parametrize("form", ACTIVATIONS, ids=str)
def test_activations_compute_what_the_node_does(form: tuple[Any, ...]) -> None:
    module, node = graph_of(form[0], *form[1:])
    found = activation_of(node)
    assert found is not None
    x = torch.randn(X) * 5
    same(module(x), found[0].apply(x), None)
    assert found[1].name == "x"
    assert eval(repr(found[0])) == found[0]


@pytest.mark.parametrize(
    "form", [("clamp", 0.0), ("clamp", None, 1.0), (torch.clamp, 2, 1), (nn.Softmax(1),), (nn.PReLU(),), (torch.exp,)], ids=str
)
def test_what_is_no_activation(form: tuple[Any, ...]) -> None:
    assert activation_of(graph_of(form[0], *form[1:])[1]) is None


def test_an_unknown_activation_is_refused() -> None:
    for name, args in (("swiglu", ()), ("relu", (1.0,)), ("hardtanh", (0.0,))):
        with pytest.raises(GraphError):
            Activation(name, args)


@pytest.mark.parametrize("layer", [nn.Conv1d(4, 6, 3), nn.Conv2d(4, 6, 3, bias=False), nn.Conv3d(4, 6, 1), nn.Linear(4, 6)], ids=str)
def test_fused_layers(layer: nn.Module) -> None:
    fused = fuse(layer, Activation("relu"))
    x = torch.randn({1: (2, 4, 5), 2: (2, 4, 5, 5), 3: (2, 4, 3, 3, 3)}.get(layer.weight.dim() - 2, (3, 4)))
    y = layer(x)
    same(F.relu(y), fused(x), None)
    residual = torch.randn_like(y)
    same(F.relu(y + residual), fused(x, residual), None)
    assert type(fused) is FUSED[type(layer)]
    assert fused.weight is layer.weight
    assert list(fused.state_dict()) == list(layer.state_dict())
    fused.weight = nn.Parameter(torch.zeros_like(fused.weight))
    assert layer.weight.any()
    assert "activation=relu" in repr(fused)


# -- memory -------------------------------------------------------------------------------------------------------------

FORMS: list[tuple[Any, ...]] = [
    (torch.relu,), (F.relu, True), (torch.relu_,), ("relu_",), (nn.ReLU(),), (nn.ReLU(True),), (F.hardtanh_,), (F.elu_,),
    (F.leaky_relu_,), (nn.Hardswish(True),), (nn.ELU(inplace=True),), (nn.SiLU(True),), ("clamp_", 0.0), ("add_", 1),
    ("mul_", 2.0), ("sub_", 1), ("div_", 2.0), ("fill_", 0.0), ("zero_",), ("sigmoid_",), ("tanh_",), ("copy_", 1.0),
    ("uniform_",), ("abs_",), ("pow_", 2), ("neg_",), ("exp_",), (operator.iadd, 1), (operator.imul, 2.0), (operator.isub, 1),
    (operator.itruediv, 2.0), (operator.setitem, 0, 5.0), (operator.ipow, 2), (torch.threshold_, 0.1, 0.0),
    (F.dropout, 0.5, True, True), (nn.Dropout(0.5, True),), (nn.AlphaDropout(0.5, True),), (nn.Dropout2d(0.5, True),),
    (nn.FeatureAlphaDropout(0.5, True),), (nn.Identity(),), ("contiguous",), ("clone",), ("detach",), ("double",), ("float",),
    ("to", torch.float32), ("view", 2, -1), ("reshape", 2, -1), (torch.flatten, 1), (nn.Flatten(),), ("permute", 0, 2, 3, 1),
    ("transpose", 1, 2), ("unsqueeze", 1), ("squeeze", 1), ("expand", -1, -1, -1, -1), ("chunk", 2, 1), ("split", 1, 1),
    ("unbind", 1), (torch.tensor_split, 2, 1), ("narrow", 1, 0, 2), (operator.getitem, (slice(None), 0)), (operator.getitem, 0),
    (nn.Unflatten(1, (2, 2)),), ("unfold", 1, 2, 1), ("diagonal",), ("movedim", 1, 2), (getattr, "mT"), (getattr, "T"),
    (getattr, "data"), (getattr, "real"), (getattr, "shape"), ("swapaxes", 1, 2), ("select", 1, 0), ("as_strided", (2,), (1,)),
    (F.pixel_shuffle, 1), (F.channel_shuffle, 1), (nn.ChannelShuffle(1),), (F.pad, (0, 0)), (nn.ZeroPad2d(0),),
    (F.interpolate, (4, 4)), (nn.Upsample(scale_factor=1.0),), ("roll", 0), ("flip", 1), ("repeat", 1, 1, 1, 1),
    (F.adaptive_avg_pool2d, 4), (F.avg_pool2d, 1), (F.max_pool2d, 1), ("sum", 1), ("mean", 1), (F.unfold, 1),
    ("masked_fill", torch.tensor(False), 0.0), (torch.clamp, -99.0), (torch.mul, 1), (F.softmax, 1), (torch.round,),
    ("type_as", torch.ones(1)), (torch.meshgrid,), (torch.atleast_3d,), (torch.tril,), (nn.Hardtanh(inplace=True),),
    (nn.Mish(True),), (nn.CELU(inplace=True),), (nn.SELU(True),),
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.filterwarnings("ignore:torch.meshgrid", "ignore:The use of `x.T`")
def test_writes_and_views_are_known(form: tuple[Any, ...]) -> None:
    """What is written, and what shares memory, in a run of the operation must be known; more may be suspected."""
    target, *args = form
    module, node = graph_of(target, *args)
    module.train()
    x = torch.randn((4,) if target is torch.meshgrid else X) + 0.01
    before = x.clone()
    with torch.no_grad():
        results = [t for t in torch.utils._pytree.tree_leaves(_apply(module, node, x)) if isinstance(t, Tensor)]
    if not torch.equal(before, x):
        assert written_operand(node) is not None, f"{form} writes in place"
        assert effect_of(node) is not None
    if any(t.untyped_storage().data_ptr() == x.untyped_storage().data_ptr() for t in results):
        assert may_alias(node), f"{form} gives a view"


def _apply(module: fx.GraphModule, node: fx.Node, x: Tensor) -> Any:
    target: Any = node.target
    if node.op == "call_module":
        return module.layer(x, *node.args[1:])
    return getattr(x, target)(*node.args[1:], **node.kwargs) if node.op == "call_method" else target(x, *node.args[1:], **node.kwargs)


@pytest.mark.parametrize(
    "form", [(torch.relu,), (F.relu, False), (nn.AlphaDropout(0.5, True),), ("clamp", 0.0), (operator.add, 1), ("__len__",)], ids=str
)
def test_plain_forms_write_nothing(form: tuple[Any, ...]) -> None:
    assert written_operand(graph_of(form[0], *form[1:])[1]) is None


def _unknown(x: Tensor) -> Tensor:
    return x


@pytest.mark.parametrize(
    ("form", "effect"),
    [
        ((torch.relu,), None),
        ((nn.BatchNorm2d(4).eval(),), None),
        ((nn.BatchNorm2d(4),), "running statistics"),
        ((nn.BatchNorm2d(4, track_running_stats=False),), None),
        ((nn.Dropout(),), "random"),
        ((nn.Dropout().eval(),), None),
        ((F.dropout,), "random"),
        ((F.dropout, 0.5, False), None),
        ((torch.rand_like,), "random"),
        ((torch._assert, "never"), "checks"),
        ((expect_constant, None, "x"), "checks"),
        ((_unknown,), "random"),  # it may
        ((torch.special.bessel_j0,), None),
        ((nn.Bilinear(4, 4, 2), 1), "taught"),
    ],
    ids=str,
)
def test_effects(form: tuple[Any, ...], effect: str | None) -> None:
    found = effect_of(graph_of(form[0], *form[1:])[1])
    assert found is None if effect is None else effect in str(found)


def test_attention_with_dropout_is_random() -> None:
    for p in (0.0, 0.1):
        graph = fx.Graph()
        x = graph.placeholder("x")
        node = graph.call_function(F.scaled_dot_product_attention, (x, x, x), {"dropout_p": p})
        graph.output(node)
        fx.GraphModule(nn.Module(), graph)
        assert is_random(node) is (p > 0)
