"""Engines as targets: same numbers, same signature, other sizes, clear refusals."""

from __future__ import annotations

import collections
import copy
import operator
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxcompress.errors import InputError, ModeError, TargetError
from fxcompress.ir.activation import Activation
from fxcompress.ir.fused import FusedConv2d, FusedLinear, fuse
from fxcompress.ir.guards import expect_constant
from fxcompress.ir.inputs import Inputs
from fxcompress.targets.base import Target
from fxcompress.targets.engine import EngineModule
from fxcompress.targets.onnxruntime import OnnxRuntimeTarget
from fxcompress.targets.openvino import OpenVinoTarget

TARGETS = [OpenVinoTarget(threads=1), OnnxRuntimeTarget(threads=1)]


@pytest.fixture(params=TARGETS, ids=lambda target: target.name)
def target(request: pytest.FixtureRequest) -> Any:
    lacking = request.param.missing()
    if lacking:
        pytest.skip(lacking)
    return request.param


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def same(expected: Any, actual: Any, tolerance: float = 2e-5) -> None:
    a, b = torch.utils._pytree.tree_leaves(expected), torch.utils._pytree.tree_leaves(actual)
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.dtype == y.dtype
        torch.testing.assert_close(y, x, rtol=tolerance, atol=tolerance)


def lowered(target: Any, module: nn.Module, *inputs: Tensor, tracer: fx.Tracer | None = None) -> tuple[fx.GraphModule, fx.GraphModule]:
    module = module.eval()
    graph = fx.GraphModule(module, tracer.trace(module)) if tracer else fx.symbolic_trace(module)
    return graph, target.lower(graph, Inputs.of(inputs))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        x = F.relu(self.norm(self.conv(x)))
        x = x + F.hardswish(self.depthwise(x))
        return self.head(x.mean((2, 3))) * scale


def test_targets_are_targets() -> None:
    assert all(isinstance(target, Target) for target in TARGETS)


@pytest.mark.parametrize("shape", [(1, 3, 16, 16), (3, 3, 16, 16), (2, 3, 23, 18)])
def test_numbers_at_the_example_and_at_other_sizes(target: Any, shape: tuple[int, ...]) -> None:
    graph, fast = lowered(target, Net(), torch.randn(1, 3, 16, 16))
    x = torch.randn(shape)
    with torch.no_grad():
        same(graph(x), fast(x))
        same(graph(x), fast(x.to(memory_format=torch.channels_last)))


def test_signature_defaults_and_guards_are_kept(target: Any) -> None:
    graph, fast = lowered(target, Net(), torch.randn(1, 3, 8, 8))
    placeholders = [(n.target, n.args) for n in fast.graph.nodes if n.op == "placeholder"]
    assert placeholders == [("x", ()), ("scale", (1.0,))]
    assert [n.target for n in fast.graph.nodes if n.op == "call_module"] == ["engine"]
    x = torch.randn(1, 3, 8, 8)
    same(graph(x), fast(x=x, scale=1.0))
    with pytest.raises(InputError, match="scale"):
        fast(x, 2.0)


@pytest.mark.parametrize(
    "activation",
    [
        None,
        Activation("relu"),
        Activation("hardtanh", (0.0, 6.0)),
        Activation("hardswish"),
        Activation("hardsigmoid"),
        Activation("silu"),
        Activation("gelu", ("none",)),
        Activation("gelu", ("tanh",)),
        Activation("sigmoid"),
        Activation("tanh"),
        Activation("leaky_relu", (0.2,)),
        Activation("elu", (1.3,)),
        Activation("mish"),
    ],
    ids=str,
)
def test_fused_layers(target: Any, activation: Activation | None) -> None:
    class Leaves(fx.Tracer):
        def is_leaf_module(self, module: nn.Module, name: str) -> bool:
            return isinstance(module, FusedConv2d | FusedLinear) or super().is_leaf_module(module, name)

    class Fused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = fuse(nn.Conv2d(4, 4, 3, padding="same"), activation)
            self.linear = fuse(nn.Linear(4, 4), activation)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x, x).flatten(2).transpose(1, 2)
            return self.linear(y, y)

    graph, fast = lowered(target, Fused(), torch.randn(2, 4, 5, 6), tracer=Leaves())
    x = torch.randn(3, 4, 7, 6)
    with torch.no_grad():
        same(graph(x), fast(x))


def _window(x: Tensor) -> Tensor:
    b, h, w, c = x.shape
    x = F.pad(x, (0, 0, 0, -w % 4, 0, -h % 4))
    x = x.view(b, (h + -h % 4) // 4, 4, (w + -w % 4) // 4, 4, c).permute(0, 1, 3, 2, 4, 5)
    return torch.roll(x.reshape(-1, 16, c), (3, -5), (1, 2))


FUNCTIONS: dict[str, Any] = {
    "arithmetic": lambda x: (1 - x) / (x.abs() + 2) ** 2,
    "alpha": lambda x: torch.add(x, x, alpha=3) + torch.sub(x, x * x, alpha=2),
    "compare": lambda x: torch.where(x > 0.25, x, x * 0.1).masked_fill(x < -1, 3.0),
    "clamp": lambda x: x.clamp(-0.5, 0.5) + x.clamp(min=0.1) + torch.clamp(x, max=0.2) + F.threshold(x, 0.1, 20.0),
    "reductions": lambda x: x.mean() + x.sum((1, 2)) * x.amax((1, 2), keepdim=False) + x.var((1, 2), unbiased=False) + x.max(),
    "maxima": lambda x: x.max(1)[0] + x.min(1).values,
    "indices": lambda x: x.argmax(1),
    "slices": lambda x: x[:, 1:, ::2, None, -1] + x[..., 1:3, 0].sum(),
    "split": lambda x: torch.cat([x.chunk(2, 1)[1] * 2, x.split([1, 3], 1)[1], *(part for part in [x.split(2, 1)[0]])], 1),
    "stack": lambda x: torch.stack(x.unbind(1), dim=-1).flip(1),
    "shuffle": lambda x: F.pixel_unshuffle(F.pixel_shuffle(x, 2), 2) + F.channel_shuffle(x, 2).reshape(x.shape),
    "views": lambda x: x.view(x.size(0), 2, 2, x.shape[2], -1).transpose(1, 2).reshape(x.shape[0], -1, x.shape[3]).unsqueeze(1).squeeze(1),
    "pad": lambda x: (
        F.pad(F.pad(x, (1, 2, 0, 0), mode="replicate"), (1, 0, 2, 1), value=0.5) + F.pad(x, (2, 2, 2, 1), mode="reflect").sum()
    ),
    "resize": lambda x: F.interpolate(x, size=(9, 11), mode="bilinear") + F.interpolate(x, (9, 11), mode="nearest"),
    "scale": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True) + F.interpolate(x, scale_factor=2.0),
    "resize_like": lambda x: F.interpolate(F.avg_pool2d(x, 2), x.shape[-2:], mode="bilinear", align_corners=False),
    "pools": lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True).sum() + F.avg_pool2d(x, 3, 2, 1),
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, 1) + F.adaptive_avg_pool2d(x, (4, 4)).sum() + F.adaptive_avg_pool2d(x, (3, 5)).sum(),
    "norms": lambda x: F.group_norm(x, 2) + F.instance_norm(x) + F.normalize(x) + F.layer_norm(x, (8,)),
    "windows": lambda x: _window(x.permute(0, 2, 3, 1)),
    "attention": lambda x: F.scaled_dot_product_attention(x, x * 2, x + 1),
    "einsum": lambda x: torch.einsum("bchw,bkhw->bck", x, x / 64) @ x.flatten(2),
    "softmax": lambda x: x.softmax(1) + F.log_softmax(x, dim=-1) + F.glu(torch.cat([x, x], 1), 1),
    "in_place": lambda x: (x + 1).relu_().mul_(2).add_(x),
    "filled": lambda x: x + torch.ones_like(x) * x.new_zeros(x.shape[0], 1, 1, 1),
    "topk": lambda x: x.flatten(1).topk(3)[0],
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_operations(target: Any, name: str) -> None:
    function = FUNCTIONS[name]

    class Module(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return function(x)

    graph, fast = lowered(target, Module(), torch.randn(2, 4, 8, 8))
    axes = fast.engine.ports[0].axes
    x = torch.randn(*(5 if i == 0 and a.step else a.size + (6 if i > 1 and a.step == 1 else 0) for i, a in enumerate(axes)))
    for each in (torch.randn(2, 4, 8, 8), x):
        with torch.no_grad():
            same(graph(each), fast(each))


def test_attention_layer(target: Any) -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.token = nn.Parameter(torch.randn(1, 1, 8))

        def forward(self, x: Tensor, memory: Tensor) -> Tensor:
            x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
            y = self.attention(x, x, x, need_weights=False)[0]
            z, weights = self.attention(y, memory, memory)
            return z + weights.sum(-1, keepdim=True)

    graph, fast = lowered(target, Attention(), torch.randn(2, 5, 8), torch.randn(2, 7, 8))
    inputs = (torch.randn(3, 6, 8), torch.randn(3, 9, 8))
    with torch.no_grad():
        same(graph(*inputs), fast(*inputs))


def test_nested_inputs_and_outputs(target: Any) -> None:
    Pair = collections.namedtuple("Pair", ["low", "high"])
    graph = fx.Graph()
    batch, flag = graph.placeholder("batch"), graph.placeholder("flag", default_value=None)
    graph.call_function(expect_constant, (flag, None, "flag"))
    images = graph.call_function(operator.getitem, (batch, "images"))
    first = graph.call_function(operator.getitem, (images, 0))
    second = graph.call_function(operator.getitem, (images, 1))
    total = graph.call_function(torch.add, (first, second))
    pair = graph.call_function(Pair, (), {"low": total, "high": graph.call_function(torch.relu, (total,))})
    graph.output({"pair": pair, "again": (total, first)})
    gm = fx.GraphModule(nn.Module(), graph)
    make = lambda n: {"images": [torch.randn(n, 3), torch.randn(n, 3)]}  # noqa: E731
    fast = target.lower(gm, Inputs((make(2),)))
    values = make(4)
    out = fast(values)
    same(gm(values), out)
    assert isinstance(out["pair"], Pair)
    with pytest.raises(InputError, match="flag"):
        fast(values, 1)


def test_fixed_sizes_are_named_in_the_error(target: Any) -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3 * 8 * 8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x.flatten(1))

    graph, fast = lowered(target, Fixed(), torch.randn(1, 3, 8, 8))
    x = torch.randn(4, 3, 8, 8)
    same(graph(x).detach(), fast(x))
    with pytest.raises(InputError, match=r"\(1, 3, 9, 8\); this engine takes float32 \(any, 3, 8, 8\)"):
        fast(torch.randn(1, 3, 9, 8))


@pytest.mark.parametrize(
    ("x", "error"),
    [
        (torch.randn(1, 3, 8, 8, dtype=torch.float64), InputError),
        (torch.randn(1, 3, 8, 8).half(), InputError),
        (torch.randn(1, 4, 8, 8), InputError),
        (torch.randn(3, 8, 8), InputError),
        (torch.randn(0, 3, 8, 8), InputError),
        ("text", InputError),
        (torch.randn(1, 3, 8, 8, requires_grad=True), ModeError),
        (torch.empty(1, 3, 8, 8, device="meta"), InputError),
    ],
    ids=["float64", "half", "channels", "rank", "empty", "text", "gradient", "device"],
)
def test_bad_inputs(target: Any, x: Any, error: type[Exception]) -> None:
    _, fast = lowered(target, Net(), torch.randn(1, 3, 8, 8))
    with pytest.raises(error):
        fast(x)


def test_training_and_other_dtypes_are_refused(target: Any) -> None:
    graph, fast = lowered(target, Net(), torch.randn(1, 3, 8, 8))
    with pytest.raises(ModeError):
        fast.train()
    with pytest.raises(TargetError, match="float64"):
        fast.double()
    with pytest.raises(TargetError, match="float64"):
        target.lower(copy.deepcopy(graph).double(), Inputs.of(torch.randn(1, 3, 8, 8).double()))
    assert fast.eval() is fast
    assert fast.float().cpu() is fast


def test_what_an_engine_cannot_do_names_the_node(target: Any) -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.rfft(x).real

    with pytest.raises(TargetError, match="fft_rfft"):
        lowered(target, Odd(), torch.randn(2, 8))


def test_state_copy_pickle_and_threads(target: Any) -> None:
    _, fast = lowered(target, Net(), torch.randn(1, 3, 8, 8))
    x = torch.randn(2, 3, 8, 8)
    expected = fast(x)
    engine = fast.engine
    state = engine.state()
    assert all(isinstance(value, str | int | bytes) for value in state.values())
    assert torch.equal(EngineModule.from_state(state)(x)[0], expected)
    assert torch.equal(copy.deepcopy(fast)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(engine))(x)[0], expected)
    engine.threads = 2
    same(expected, fast(x))
    assert engine.state()["threads"] == 2
    with pytest.raises(InputError):
        engine.threads = 0
    for broken in ({}, {**state, "ports": "["}, {**state, "engine": "other"}, {**state, "model": "text"}):
        with pytest.raises(TargetError):
            EngineModule.from_state(broken)
    with pytest.raises(TargetError, match="network"):
        EngineModule.from_state({**state, "model": b"not a network"})(x)


def test_more_shapes_than_are_compiled_one_by_one(target: Any) -> None:
    graph, fast = lowered(target, Net(), torch.randn(1, 3, 8, 8))
    for batch in (1, 2, 3, 4, 5, 6, 1, 6):
        x = torch.randn(batch, 3, 8, 8)
        same(graph(x).detach(), fast(x))


def test_outputs_are_fresh(target: Any) -> None:
    _, fast = lowered(target, Net(), torch.randn(1, 3, 8, 8))
    a, b = torch.randn(1, 3, 8, 8), torch.randn(1, 3, 8, 8)
    first = fast(a)
    kept = first.clone()
    fast(b)
    assert torch.equal(first, kept)
    first.zero_()
    assert torch.equal(fast(a), kept)


def test_the_graph_that_came_in_is_not_touched(target: Any) -> None:
    net = Net()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    graph, _ = lowered(target, net, torch.randn(1, 3, 8, 8))
    assert all(torch.equal(before[key], value) for key, value in graph.state_dict().items())
    graph.graph.lint()


def test_silence(target: Any, capfd: pytest.CaptureFixture[str]) -> None:
    _, fast = lowered(target, Net(), torch.randn(1, 3, 8, 8))
    fast(torch.randn(2, 3, 9, 8))
    assert capfd.readouterr() == ("", "")


def test_a_missing_engine_says_what_to_install(target: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install fxcompress[engines]" in target.missing()
    with pytest.raises(TargetError, match="not installed"):
        lowered(target, Net(), torch.randn(1, 3, 8, 8))


def _transformer(torchvision: Any) -> nn.Module:
    return torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=7
    )


def _windows(torchvision: Any) -> nn.Module:
    return torchvision.models.SwinTransformer([4, 4], 16, [2, 2], [2, 4], [4, 4], num_classes=7)


NETWORKS: dict[str, Any] = {
    "mobilenet_v3_small": lambda tv: tv.models.mobilenet_v3_small(),
    "shufflenet_v2_x0_5": lambda tv: tv.models.shufflenet_v2_x0_5(),
    "vit": _transformer,
    "swin": _windows,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_torchvision(target: Any, name: str) -> None:
    torch.manual_seed(0)
    model = NETWORKS[name](pytest.importorskip("torchvision", reason="torchvision is not installed")).eval()
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    graph, fast = lowered(target, model, torch.randn(1, 3, 32, 32))
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = graph(x)
        same(expected / expected.abs().max(), fast(x) / expected.abs().max(), 1e-4)


def test_weights_in_other_files_are_refused() -> None:
    onnx = pytest.importorskip("onnx")
    tensor = onnx.TensorProto(name="w", data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    graph = onnx.helper.make_graph([], "g", [], [], initializer=[tensor])
    stolen = EngineModule("onnxruntime", onnx.helper.make_model(graph).SerializeToString(), ())
    with pytest.raises(TargetError, match="other files"):
        stolen()
