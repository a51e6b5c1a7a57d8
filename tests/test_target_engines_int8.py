"""Fake-quantized graphs in engines: standard QDQ, computed in integers, with the numbers of the graph."""

from __future__ import annotations

import collections
import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxcompress.errors import TargetError
from fxcompress.ir.activation import Activation
from fxcompress.ir.fused import fuse
from fxcompress.ir.inputs import Inputs
from fxcompress.quant.affine import QParams
from fxcompress.quant.fake import FakeQuantize, fake_quantized
from fxcompress.storage import load, save
from fxcompress.targets import engine as engine_module
from fxcompress.targets import onnx_ranges
from fxcompress.targets.engine import EngineModule
from fxcompress.targets.onnx_movers import is_mover
from fxcompress.targets.onnxruntime import OnnxRuntimeTarget
from fxcompress.targets.openvino import OpenVinoTarget
from fxcompress.targets.saturation import ANYWHERE, NOWHERE

onnx = pytest.importorskip("onnx")
TARGETS = [OpenVinoTarget(threads=1), OnnxRuntimeTarget(threads=1)]
INPUT = QParams(0.02, 128)
RELUS = [Activation("relu"), Activation("hardtanh", (0.0, 6.0))]
GELU = Activation("gelu", ("none",))
CURVES = [Activation("hardswish"), Activation("silu"), GELU, Activation("sigmoid"), Activation("leaky_relu", (0.1,))]


@pytest.fixture(params=TARGETS, ids=lambda target: target.name)
def target(request: pytest.FixtureRequest) -> Any:
    lacking = request.param.missing()
    if lacking:
        pytest.skip(lacking)
    return request.param


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Leaves(fx.Tracer):
    """Every module but the outermost is one node."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return True


def graph_of(module: nn.Module) -> fx.GraphModule:
    return fx.GraphModule(module.eval(), Leaves().trace(module))


def layer(plain: nn.Module, activation: Activation | None = None) -> Any:
    return fake_quantized(fuse(plain, activation))


class One(nn.Module):
    """A layer between grids; ``residual``: its input (Identity), or what another layer makes of it, is added."""

    def __init__(self, middle: Any, after: QParams | None, residual: nn.Module | None = None, source: QParams = INPUT) -> None:
        super().__init__()
        self.source, self.layer, self.residual, self.branch = FakeQuantize(source), middle, residual, FakeQuantize(QParams(0.02, 120))
        self.after = nn.Identity() if after is None else FakeQuantize(after)

    def forward(self, x: Tensor) -> Tensor:
        q = self.source(x)
        if self.residual is None:
            return self.after(self.layer(q))
        return self.after(self.layer(q, q if isinstance(self.residual, nn.Identity) else self.branch(self.residual(q))))


def steps_apart(target: Any, module: One, x: Tensor) -> Tensor:
    """By how many steps of the last grid the engine's output differs from the graph's."""
    graph = graph_of(module)
    fast = target.lower(graph, Inputs.of((x,)))
    onnx.checker.check_model(fast.engine.model, full_check=True)
    with torch.no_grad():
        expected, actual = graph(x), fast(x)
    scale = module.after.qparams.scale if isinstance(module.after, FakeQuantize) else 0.02
    return ((actual - expected) / scale).abs()


def grid_of(module: One, x: Tensor) -> QParams:
    with torch.no_grad():
        y = graph_of(module)(x)
    return QParams.of_range(y.min().item(), y.max().item())


def with_grid(module: One, x: Tensor) -> One:
    module.after = FakeQuantize(grid_of(module, x))
    return module


CONVS = {
    "1x1": lambda: nn.Conv2d(16, 24, 1),
    "3x3": lambda: nn.Conv2d(16, 24, 3, padding=1),
    "stem": lambda: nn.Conv2d(3, 16, 7, stride=2, padding=3),
    "odd": lambda: nn.Conv2d(7, 9, 3, padding=1),
    "dilated": lambda: nn.Conv2d(8, 8, 3, padding=2, dilation=2),
    "grouped": lambda: nn.Conv2d(16, 24, 3, padding=1, groups=4),
    "depthwise": lambda: nn.Conv2d(16, 16, 3, padding=1, groups=16),
    "no bias": lambda: nn.Conv2d(8, 8, 3, bias=False),
    "1d": lambda: nn.Conv1d(8, 12, 3, padding=1),
}


def example(conv: nn.Module, size: int = 14) -> Tensor:
    channels = conv.in_channels if hasattr(conv, "in_channels") else conv.in_features
    return torch.randn(2, int(channels), *[size] * (1 if isinstance(conv, nn.Conv1d) else 2))


@pytest.mark.parametrize("activation", [None, *RELUS], ids=str)
@pytest.mark.parametrize("kind", CONVS)
def test_convolutions_are_exact_but_for_ties(target: Any, kind: str, activation: Activation | None) -> None:
    conv = CONVS[kind]()
    x = example(conv)
    apart = steps_apart(target, with_grid(One(layer(conv, activation), None), x), x)
    assert apart.max() < 1.01
    assert (apart > 0.5).double().mean() < 5e-3


@pytest.mark.parametrize("source", [QParams(0.02, 0), QParams(0.02, 255), QParams(0.1, 7, bits=4)], ids=str)
def test_zero_points_at_both_ends_and_fewer_bits(target: Any, source: QParams) -> None:
    x = torch.randn(1, 8, 9, 9) * 3
    apart = steps_apart(target, with_grid(One(layer(nn.Conv2d(8, 8, 3, padding=1)), None, source=source), x), x)
    assert apart.max() < 1.01
    assert (apart > 0.5).double().mean() < 5e-3


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_sums(target: Any, sign: int) -> None:
    """All activations 255 against all weights +-127: 16-bit sums of two products would saturate."""
    conv = layer(nn.Conv2d(32, 8, 3, bias=False))
    conv.set_integers(torch.full_like(conv.integers(), 127 * sign))
    x = torch.full((1, 32, 6, 6), 100.0)
    apart = steps_apart(target, with_grid(One(conv, None, source=QParams(0.02, 0)), x), x)
    assert apart.max() < 1.01


@pytest.mark.parametrize("activation", CURVES, ids=str)
def test_other_activations(target: Any, activation: Activation) -> None:
    x = torch.randn(2, 16, 10, 10)
    conv = nn.Conv2d(16, 24, 3, padding=1)
    conv.weight.data *= 6
    apart = steps_apart(target, with_grid(One(layer(conv, activation), None), x), x)
    assert apart.max() < (1.01 if target.name == "openvino" else 3.01)
    assert apart.mean() < (0.01 if target.name == "openvino" else 0.8)


@pytest.mark.parametrize("activation", [None, Activation("relu"), Activation("silu")], ids=str)
@pytest.mark.parametrize("branch", ["itself", "a layer"])
def test_residuals(target: Any, branch: str, activation: Activation | None) -> None:
    x = torch.randn(2, 16, 10, 10)
    other = nn.Identity() if branch == "itself" else layer(nn.Conv2d(16, 16, 1))
    apart = steps_apart(target, with_grid(One(layer(nn.Conv2d(16, 16, 3, padding=1), activation), None, other), x), x)
    assert apart.max() < (1.01 if target.name == "openvino" and branch == "itself" else 3.01)


@pytest.mark.parametrize("shape", [(5, 16), (2, 7, 16)])
@pytest.mark.parametrize("activation", [None, Activation("relu"), GELU], ids=str)
def test_linears(target: Any, shape: tuple[int, ...], activation: Activation | None) -> None:
    x = torch.randn(shape)
    apart = steps_apart(target, with_grid(One(layer(nn.Linear(16, 12), activation), None), x), x)
    assert apart.max() < 1.01


def test_float_outputs(target: Any) -> None:
    x = torch.randn(3, 16)
    assert steps_apart(target, One(layer(nn.Linear(16, 12)), None), x).max() < 1e-3


def test_a_large_bias_beside_small_weights(target: Any) -> None:
    conv = nn.Conv2d(4, 4, 1)
    conv.weight.data[0] = 1e-12
    conv.bias.data[0] = 3.0  # type: ignore[union-attr]
    x = torch.randn(1, 4, 5, 5)
    assert steps_apart(target, with_grid(One(layer(conv), None), x), x).max() < 1.01


# ---- whole networks


class Net(nn.Module):
    """A stem, pooling, a residual block, a branch with concatenation, and a head."""

    def __init__(self) -> None:
        super().__init__()
        relu = Activation("relu")
        self.input = FakeQuantize(INPUT)
        self.stem, self.g1 = layer(nn.Conv2d(3, 16, 3, stride=2, padding=1), relu), FakeQuantize(QParams(0.015))
        self.a, self.g2 = layer(nn.Conv2d(16, 16, 3, padding=1), relu), FakeQuantize(QParams(0.008))
        self.b, self.g3 = layer(nn.Conv2d(16, 16, 3, padding=1), relu), FakeQuantize(QParams(0.015))
        self.c = layer(nn.Conv2d(16, 16, 1), relu)
        self.g4, self.head = FakeQuantize(QParams(0.005)), layer(nn.Linear(32, 10))

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        x = F.max_pool2d(self.g1(self.stem(self.input(x))), 2)
        x = self.g3(self.b(self.g2(self.a(x)), x))
        x = torch.cat([x, self.g3(self.c(x))], 1)
        return self.head(self.g4(x.mean((2, 3))).flatten(1)) * scale


def lowered(target: Any, size: int = 32) -> tuple[fx.GraphModule, fx.GraphModule, Tensor]:
    x = torch.randn(1, 3, size, size)
    graph = graph_of(Net())
    return graph, target.lower(graph, Inputs.of((x,))), x


@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (4, 3, 32, 32), (2, 3, 45, 38)])
def test_signature_and_other_sizes(target: Any, shape: tuple[int, ...]) -> None:
    graph, fast, _ = lowered(target)
    assert [(n.target, n.args) for n in fast.graph.nodes if n.op == "placeholder"] == [("x", ()), ("scale", (1.0,))]
    x = torch.randn(shape)
    with torch.no_grad():
        expected, actual = graph(x), fast(x, scale=1.0)
    assert (actual - expected).norm() < 0.05 * expected.norm()


def test_the_file_holds_int8_weights(target: Any) -> None:
    _, fast, _ = lowered(target)
    network = onnx.load_model_from_string(fast.engine.model)
    sizes: collections.Counter[int] = collections.Counter()
    for tensor in network.graph.initializer:
        sizes[tensor.data_type] += len(tensor.raw_data)
    assert sizes[onnx.TensorProto.INT8] > 0.7 * sum(sizes.values())
    assert {node.domain for node in network.graph.node} == {""}


def test_copies_and_state(target: Any) -> None:
    _, fast, x = lowered(target)
    with torch.no_grad():
        expected = fast(x)
        assert torch.equal(copy.deepcopy(fast)(x), expected)
        assert torch.equal(EngineModule.from_state(fast.engine.state())(x)[0], fast.engine(x)[0])


def test_archive(target: Any, tmp_path: Path) -> None:
    _, fast, x = lowered(target)
    save(fast, tmp_path / "net.fxc")
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "net.fxc")(x), fast(x))


def test_openvino_computes_in_integers() -> None:
    target = OpenVinoTarget(threads=1)
    if target.missing():
        pytest.skip("openvino is not installed")
    _, fast, x = lowered(target)
    fast(x)
    (request,) = fast.engine._runner._requests.values()
    ran = collections.Counter()
    for op in request.get_compiled_model().get_runtime_model().get_ops():
        info = op.get_rt_info()
        ran[str(info["layerType"].astype(str)), str(info["runtimePrecision"].astype(str))] += 1
    assert ran["Convolution", "u8"] == 4
    assert ran["FullyConnected", "u8"] == 1
    assert not any(kind in ("Eltwise", "FakeQuantize") for kind, _ in ran)  # the residual is inside of its convolution
    assert sum(count for (kind, _), count in ran.items() if kind == "Subgraph") <= 1  # the input's quantization


def test_onnxruntime_computes_in_integers(tmp_path: Path) -> None:
    if OnnxRuntimeTarget(threads=1).missing():
        pytest.skip("onnxruntime is not installed")
    import onnxruntime

    _, fast, x = lowered(OnnxRuntimeTarget(threads=1))
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "optimized.onnx"), 4
    for axis, size in enumerate(x.shape):
        options.add_free_dimension_override_by_name(f"d0_{axis}", size)
    onnxruntime.InferenceSession(fast.engine.model, options, providers=["CPUExecutionProvider"])
    ran = collections.Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert ran["QLinearConv"] == 4
    assert ran["QLinearAdd"] == 1
    assert ran["QLinearConcat"] == 1
    assert ran["QGemm"] == 1
    assert not ran["Conv"] + ran["Gemm"] + ran["Add"] + ran["Concat"] + ran["Relu"]
    assert ran["QuantizeLinear"] + ran["DequantizeLinear"] <= 3


# ---- CPUs without VNNI


def weights_of(fast: fx.GraphModule) -> list[Tensor]:
    network = onnx.load_model_from_string(fast.engine.model)
    arrays = [onnx.numpy_helper.to_array(t) for t in network.graph.initializer if t.data_type == onnx.TensorProto.INT8]
    return [torch.from_numpy(array.copy()) for array in arrays if array.ndim > 1]


def test_weights_are_safe_where_the_machine_saturates(target: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "saturation", lambda: ANYWHERE)
    graph, fast, x = lowered(target)
    assert not fast.engine.wants_vnni
    with torch.no_grad():
        expected = graph(x)
        assert (fast(x) - expected).norm() < 0.1 * expected.norm()


def neighbours(weight: Tensor, engine: str) -> Tensor:
    """(..., 2): weights whose products are added in 16 bits. ONNX Runtime: neighbours in the order (tap, channel)."""
    flat = weight.flatten(2) if weight.dim() > 2 else weight.unsqueeze(2)
    rows = flat.transpose(1, 2).flatten(1) if engine == "onnxruntime" else flat.transpose(1, 2)
    return F.pad(rows.int(), (0, rows.shape[-1] % 2)).unflatten(-1, (-1, 2))


@pytest.mark.parametrize("shape", [(16, 8, 3, 3), (16, 3, 7, 7), (16, 5, 2, 2), (16, 1, 3, 3)], ids=str)
def test_pairs_of_each_engine(target: Any, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Full weights in every layout: no two that meet may exceed 16 bits with the largest activations."""
    monkeypatch.setattr(engine_module, "saturation", lambda: ANYWHERE)
    plain = nn.Conv2d(shape[1], shape[0], shape[2:])
    plain.weight.data.uniform_(-1, 1)
    fast = target.lower(graph_of(One(layer(plain), QParams(0.1, 128))), Inputs.of((torch.randn(1, shape[1], 9, 9),)))
    (weight,) = weights_of(fast)
    pairs = neighbours(weight, target.name)
    assert pairs.clamp_min(0).sum(-1).max() * 255 <= 32767
    assert pairs.clamp_max(0).sum(-1).min() * 255 >= -32768


def test_full_weights_refuse_a_machine_that_saturates(target: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "saturation", lambda: NOWHERE)
    _, fast, x = lowered(target)
    assert fast.engine.wants_vnni
    again = EngineModule.from_state(fast.engine.state())
    assert again.wants_vnni
    monkeypatch.setattr(engine_module, "saturation", lambda: ANYWHERE)
    with pytest.raises(TargetError, match="VNNI"):
        again(x)


# ---- grids inside of a layer


@pytest.mark.parametrize("activation", [None, *RELUS, *CURVES], ids=str)
def test_what_lies_outside_of_an_inner_grid_does_not_matter(activation: Activation | None) -> None:
    after, residual = QParams(0.02, 20), QParams(0.03, 100)
    low, high = onnx_ranges.inner_grid(activation, after, residual).range
    y = torch.linspace(-60, 60, 20001, dtype=torch.float64)
    for r in residual.range:
        exact, clamped = y + r, y.clamp(low, high) + r
        if activation is not None:
            exact, clamped = activation.apply(exact), activation.apply(clamped)
        apart = (after.quantize(exact).int() - after.quantize(clamped).int()).abs()
        assert apart.max() <= 1


def test_clamps() -> None:
    relu, relu6 = RELUS
    assert onnx_ranges.clamps(relu, QParams(0.1, 0))
    assert not onnx_ranges.clamps(relu, QParams(0.1, 1))
    assert onnx_ranges.clamps(relu6, QParams(6 / 255, 0))
    assert not onnx_ranges.clamps(relu6, QParams(6.2 / 255, 0))
    assert not onnx_ranges.clamps(Activation("silu"), QParams(0.1, 0))


def test_moved_values_keep_their_grid() -> None:
    assert is_mover("max_pool2d", (), {})
    assert is_mover("pad", (None, (1, 1)), {})
    assert is_mover("pad", (None, (1, 1)), {"value": 0.0})
    assert not is_mover("pad", (None, (1, 1), "constant", 1.0), {})
    assert is_mover("interpolate", (None,), {"scale_factor": 2})
    assert not is_mover("interpolate", (None,), {"mode": "bilinear"})
    assert not is_mover("avg_pool2d", (), {})
