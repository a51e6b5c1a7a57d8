"""Every module class that an archive can hold comes back the same, bit for bit."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule

from fxcompress.errors import ArchiveError
from fxcompress.ir.activation import Activation
from fxcompress.ir.fused import fuse
from fxcompress.ir.ops import table
from fxcompress.storage import load, save
from fxcompress.storage.classes import Allowed
from fxcompress.storage.functions import is_method
from fxcompress.targets.cpu_modules import PackedConv, PackedLinear
from fxcompress.targets.engine import EngineModule, Port
from fxcompress.targets.onnx_export import Axis


def one_module(module: nn.Module, inputs: int = 1) -> GraphModule:
    """A graph that calls one module."""
    graph = Graph()
    nodes = [graph.placeholder(f"x{i}") for i in range(inputs)]
    graph.output(graph.call_module("layer", tuple(nodes)))
    return GraphModule({"layer": module}, graph)


def round_trip(graph: GraphModule, folder: Path, **options: Any) -> GraphModule:
    save(graph, folder / "model.safetensors", **options)
    return load(folder / "model.safetensors", **options)


def assert_same(first: Any, second: Any) -> None:
    torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)


SIGNAL, IMAGE, VOLUME = (2, 4, 12), (2, 4, 8, 8), (1, 4, 5, 6, 7)
SIMPLE = """ReLU ReLU6 Hardtanh Hardswish Hardsigmoid SiLU Mish ELU CELU SELU GELU GLU LeakyReLU Sigmoid Tanh LogSigmoid Softplus
    Softsign Softmax2d Dropout Dropout2d Identity Flatten"""
CASES: list[tuple[nn.Module, tuple[int, ...]]] = [
    (nn.Conv1d(4, 6, 3, padding="same", dilation=2), SIGNAL),
    (nn.Conv2d(4, 8, (3, 2), stride=2, padding=(1, 0), groups=2, bias=False, padding_mode="reflect"), IMAGE),
    (nn.Conv3d(4, 6, 3, padding_mode="circular", padding=1), VOLUME),
    (nn.ConvTranspose1d(4, 6, 3, stride=2, output_padding=1), SIGNAL),
    (nn.ConvTranspose2d(4, 6, 3, groups=2), IMAGE),
    (nn.ConvTranspose3d(4, 2, 2), VOLUME),
    (nn.Linear(8, 3), IMAGE),
    (nn.BatchNorm1d(4, eps=1e-3, momentum=None), SIGNAL),
    (nn.BatchNorm2d(4, affine=False), IMAGE),
    (nn.BatchNorm2d(4, track_running_stats=False), IMAGE),
    (nn.BatchNorm3d(4), VOLUME),
    (nn.SyncBatchNorm(4), IMAGE),
    (nn.InstanceNorm1d(4), SIGNAL),
    (nn.InstanceNorm2d(4, affine=True, track_running_stats=True), IMAGE),
    (nn.LayerNorm((8, 8), bias=False), IMAGE),
    (nn.RMSNorm(8), IMAGE),
    (nn.GroupNorm(2, 4), IMAGE),
    (nn.LocalResponseNorm(3, k=2.0), IMAGE),
    *[
        (getattr(nn, name)(), IMAGE)
        for name in [
            "ReLU",
            "ReLU6",
            "Hardtanh",
            "Hardswish",
            "Hardsigmoid",
            "SiLU",
            "Mish",
            "ELU",
            "CELU",
            "SELU",
            "GELU",
            "GLU",
            "LeakyReLU",
        ]
    ],
    *[
        (getattr(nn, name)(), IMAGE)
        for name in ["Sigmoid", "Tanh", "LogSigmoid", "Softplus", "Softsign", "Softmax2d", "Dropout", "Dropout2d", "Identity", "Flatten"]
    ],
    (nn.ReLU(inplace=True), IMAGE),
    (nn.Hardtanh(-0.5, float("inf")), IMAGE),
    (nn.GELU("tanh"), IMAGE),
    (nn.Softmax(dim=-2), IMAGE),
    (nn.LogSoftmax(1), IMAGE),
    (nn.PReLU(4), IMAGE),
    (nn.MaxPool2d(3, 2, ceil_mode=True), IMAGE),
    (nn.MaxPool3d(2, return_indices=True), VOLUME),
    (nn.AvgPool2d(2, divisor_override=3), IMAGE),
    (nn.AvgPool1d(2), SIGNAL),
    (nn.LPPool2d(2.0, 2), IMAGE),
    (nn.AdaptiveAvgPool2d((None, 3)), IMAGE),
    (nn.AdaptiveMaxPool2d(2), IMAGE),
    (nn.AdaptiveAvgPool3d(1), VOLUME),
    (nn.ZeroPad2d((1, 2, 0, 1)), IMAGE),
    (nn.ReflectionPad2d(1), IMAGE),
    (nn.ReplicationPad3d(1), VOLUME),
    (nn.ConstantPad2d(1, float("-inf")), IMAGE),
    (nn.Upsample(scale_factor=(2.0, 1.5), mode="bilinear", align_corners=False), IMAGE),
    (nn.UpsamplingNearest2d(size=(5, 5)), IMAGE),
    (nn.PixelShuffle(2), IMAGE),
    (nn.PixelUnshuffle(2), IMAGE),
    (nn.ChannelShuffle(2), IMAGE),
    (nn.Unfold(2), IMAGE),
    (nn.Unflatten(1, (2, 2)), IMAGE),
    (nn.Sequential(nn.Conv2d(4, 3, 1), nn.Sequential(nn.ReLU())), IMAGE),
    (nn.LSTM(12, 5, 2, bidirectional=True), SIGNAL),
    (nn.GRU(12, 5, 2, batch_first=True, dropout=0.1), SIGNAL),
    (nn.RNN(12, 5, nonlinearity="relu", bias=False), SIGNAL),
    (nn.LSTMCell(12, 3), (2, 12)),
    (nn.GRUCell(12, 3), (2, 12)),
    (nn.TransformerEncoderLayer(12, 3, 7, batch_first=True, activation="gelu", norm_first=True), SIGNAL),
    (nn.TransformerEncoderLayer(12, 3, 7, activation=nn.SiLU()), SIGNAL),
    (nn.TransformerEncoder(nn.TransformerEncoderLayer(12, 4, 7, batch_first=True), 2, nn.LayerNorm(12)), SIGNAL),
    (fuse(nn.Conv1d(4, 3, 1), Activation("hardtanh", (0.0, 6.0))), SIGNAL),
    (fuse(nn.Conv2d(4, 3, 3), Activation("gelu", ("tanh",))), IMAGE),
    (fuse(nn.Conv3d(4, 3, 3)), VOLUME),
    (fuse(nn.Linear(8, 3), Activation("leaky_relu", (0.2,))), IMAGE),
    (PackedConv.of(fuse(nn.Conv2d(4, 8, 3, padding="same"), Activation("hardswish"))), IMAGE),
    (PackedConv.of(nn.Conv1d(4, 4, 3, padding=1, padding_mode="circular", groups=2, bias=False)), SIGNAL),
    (PackedConv.of(nn.Conv3d(4, 4, 3, stride=2), overwrites_residual=True), VOLUME),
    (PackedLinear.of(fuse(nn.Linear(8, 3, bias=False), Activation("relu"))), IMAGE),
]


@pytest.mark.parametrize(("module", "shape"), CASES, ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "")
def test_module_comes_back_bit_for_bit(module: nn.Module, shape: tuple[int, ...], tmp_path: Path) -> None:
    module = copy.deepcopy(module).eval()
    _spread(module)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    before = {k: v.clone() for k, v in module.state_dict().items()}
    loaded = round_trip(one_module(module), tmp_path)
    with torch.no_grad():
        assert_same(loaded(x.clone()), one_module(module)(x.clone()))
    layer = loaded.get_submodule("layer")
    assert type(layer) is type(module)
    assert repr(layer) == repr(module)
    assert list(layer.state_dict()) == list(before)
    assert [p.requires_grad for p in layer.parameters()] == [p.requires_grad for p in module.parameters()]
    assert_same(dict(module.state_dict()), before)
    copy.deepcopy(loaded)


def _spread(module: nn.Module) -> None:
    """Values that an initialiser would not give, so that a lost buffer shows."""
    generator = torch.Generator().manual_seed(1)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.1)
        else:
            tensor.fill_(7)


def test_every_operation_that_ir_knows_can_be_saved() -> None:
    allowed = Allowed()
    assert [c for c in table().modules if allowed.class_name(c) is None] == []
    assert [f for f in table().functions if allowed.function_name(f) is None] == []
    assert [m for m in table().methods if not is_method(m)] == []


@pytest.mark.parametrize("bias_kv", [False, True])
def test_multihead_attention(bias_kv: bool, tmp_path: Path) -> None:
    for attention in (nn.MultiheadAttention(8, 2, batch_first=True, add_bias_kv=bias_kv), nn.MultiheadAttention(8, 2, kdim=4, vdim=4)):
        attention.eval()
        q = torch.randn(2, 5, 8)
        kv = q if attention.kdim == 8 else torch.randn(2, 5, 4)
        loaded = round_trip(one_module(attention, 3), tmp_path)
        assert_same(loaded(q, kv, kv), attention(q, kv, kv))
        assert list(loaded.get_submodule("layer").state_dict()) == list(attention.state_dict())


@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_lstm_with_projection(tmp_path: Path) -> None:
    module, x = nn.LSTM(12, 5, proj_size=3), torch.randn(SIGNAL)
    assert_same(round_trip(one_module(module), tmp_path)(x), module(x))


def test_bilinear(tmp_path: Path) -> None:
    module, x = nn.Bilinear(3, 3, 2), torch.randn(5, 3)
    assert_same(round_trip(one_module(module, 2), tmp_path)(x, x), module(x, x))


def test_embedding(tmp_path: Path) -> None:
    for module in (nn.Embedding(5, 3, padding_idx=1), nn.EmbeddingBag(5, 3, mode="max")):
        indices = torch.tensor([[0, 4, 1], [2, 2, 3]])
        assert_same(round_trip(one_module(module), tmp_path)(indices), module(indices))


def test_packed_state_survives_use(tmp_path: Path) -> None:
    module = PackedConv.of(nn.Conv2d(4, 8, 3))
    x = torch.randn(IMAGE)
    with torch.no_grad():
        expected = module(x)  # packs
        assert_same(round_trip(one_module(module), tmp_path)(x), expected)


def test_loading_leaves_the_random_state_alone(tmp_path: Path) -> None:
    graph = one_module(nn.LSTM(3, 4))
    state = torch.get_rng_state()
    round_trip(graph, tmp_path)
    assert torch.equal(state, torch.get_rng_state())


def test_engine_module_keeps_its_file(tmp_path: Path) -> None:
    port = Port("x", "float32", (Axis(2, 1), Axis(4)))
    module = EngineModule("openvino", b"\0not a network\xff", (port,), threads=3)
    loaded = round_trip(one_module(module), tmp_path).get_submodule("layer")
    assert isinstance(loaded, EngineModule)
    assert loaded.state() == module.state()
    assert not loaded.training


class Gate(nn.Module):
    """A leaf of somebody else."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor
        self.conv = nn.Conv2d(4, 4, 1)
        self.skip = None

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * self.factor


class Holder(nn.Module):
    def __init__(self, thing: object) -> None:
        super().__init__()
        self.thing = thing

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_foreign_module_needs_allow_on_both_sides(tmp_path: Path) -> None:
    graph, path = one_module(Gate(0.25)), tmp_path / "m.safetensors"
    with pytest.raises(ArchiveError, match=r"module 'layer' is a .*Gate"):
        save(graph, path)
    save(graph, path, allow=(Gate,))
    with pytest.raises(ArchiveError, match="Gate"):
        load(path)
    x = torch.randn(IMAGE)
    assert_same(load(path, allow=(Gate,))(x), graph(x))


def test_foreign_module_with_an_attribute_that_is_no_data(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match=r"attribute 'layer.thing': a builtins.object"):
        save(one_module(Holder(object())), tmp_path / "m", allow=(Holder,))


def test_subclass_of_a_known_class_is_not_taken_for_it(tmp_path: Path) -> None:
    class Odd(nn.ReLU):
        def forward(self, input: Tensor) -> Tensor:
            return -input

    with pytest.raises(ArchiveError, match="Odd"):
        save(one_module(Odd()), tmp_path / "m")


def test_hooks_and_replaced_methods_are_refused(tmp_path: Path) -> None:
    hooked, replaced = nn.ReLU(), nn.ReLU()
    hooked.register_forward_hook(lambda module, args, out: out + 1)
    replaced.forward = lambda input: -input  # type: ignore[method-assign]
    with pytest.raises(ArchiveError, match="hooks"):
        save(one_module(hooked), tmp_path / "m")
    with pytest.raises(ArchiveError, match="'forward'"):
        save(one_module(replaced), tmp_path / "m")
    wrapped = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    with pytest.raises(ArchiveError, match="ParametrizedLinear"):
        save(one_module(wrapped), tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_marks_that_nobody_reads_are_dropped(tmp_path: Path) -> None:
    module = nn.Linear(8, 2)
    module._is_hf_initialized = True  # type: ignore[assignment]
    assert not hasattr(round_trip(one_module(module), tmp_path).get_submodule("layer"), "_is_hf_initialized")
