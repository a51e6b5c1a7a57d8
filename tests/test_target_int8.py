"""PackedQuantConv and PackedQuantLinear against their reference, bit for bit, and where they must step aside."""

from __future__ import annotations

import copy
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import int8_cases
import pytest
import torch
from torch import Tensor, nn

from fxcompress.errors import ModeError, TargetError
from fxcompress.ir.activation import Activation
from fxcompress.ir.inputs import Inputs
from fxcompress.quant.affine import QParams
from fxcompress.quant.dynamic import QuantizeRows
from fxcompress.quant.float_order import CONV_ACTIVATIONS, LINEAR_ACTIVATIONS
from fxcompress.quant.modules import Dequantize, QuantConv, Quantize, QuantLinear, Requantize
from fxcompress.targets import int8_kernels as kernels_module
from fxcompress.targets import int8_plans
from fxcompress.targets.cpu import CpuTarget
from fxcompress.targets.int8_kernels import Int8Kernels, fused_post_op, int8_kernels
from fxcompress.targets.int8_modules import PackedQuantConv, PackedQuantLinear, int8_lowerable
from fxcompress.targets.int8_values import FastDequantize, FastQuantize, FastQuantizeRows, FastRequantize
from fxcompress.targets.saturation import saturation

pytestmark = pytest.mark.skipif(int8_kernels().missing() is not None, reason="this torch has no int8 kernels of oneDNN")

LIMIT = 63 if saturation().pairs or saturation().taps else 127
"""The largest weight that is exact on this machine whatever its neighbours are."""


@pytest.fixture(autouse=True)
def _inference() -> Any:
    with torch.no_grad():
        yield


def conv(c_in: int = 8, c_out: int = 12, k: int = 3, *, padding: int = 1, stride: int = 1, groups: int = 1, **settings: Any) -> QuantConv:
    settings.setdefault("source", QParams(0.03, 5))
    settings.setdefault("qparams", QParams(0.05, 9))
    weight = torch.randint(-LIMIT, LIMIT + 1, (c_out, c_in // groups, k, k), dtype=torch.int8)
    geometry = {"stride": (stride,) * 2, "padding": (padding,) * 2, "dilation": (1, 1), "groups": groups}
    return QuantConv(weight, torch.rand(c_out) * 0.01 + 1e-3, torch.randn(c_out), **geometry, **settings)  # type: ignore[arg-type]


def linear(c_in: int = 16, c_out: int = 12, **settings: Any) -> QuantLinear:
    settings.setdefault("source", QParams(0.03, 5))
    settings.setdefault("qparams", QParams(0.05, 9))
    weight = torch.randint(-LIMIT, LIMIT + 1, (c_out, c_in), dtype=torch.int8)
    return QuantLinear(weight, torch.rand(c_out) * 0.01 + 1e-3, torch.randn(c_out), **settings)


def random_bytes(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


# --- the same numbers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*int8_cases.CONVS, *int8_cases.LINEARS])
def test_bit_for_bit(name: str) -> None:
    assert int8_cases.compare(name, LIMIT) == []


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["SSE41", "AVX2", "AVX512_CORE"])
def test_bit_for_bit_on_other_instruction_sets(isa: str) -> None:
    script = Path(int8_cases.__file__)
    run = subprocess.run(
        [sys.executable, str(script), "63"], env={**os.environ, "ONEDNN_MAX_CPU_ISA": isa}, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("bits", [2, 4, 7])
def test_fewer_bits(bits: int) -> None:
    for layer in (conv(qparams=QParams(0.01, 1, bits)), linear(qparams=QParams(0.01, 1, bits))):
        q = random_bytes(2, 8, 6, 6) if isinstance(layer, QuantConv) else random_bytes(9, 16)
        y = int8_cases.packed(layer)(q)
        assert torch.equal(y, layer(q))
        assert y.max().item() == 2**bits - 1


def test_sizes_of_real_networks() -> None:
    for c_in, c_out, k, size, stride, groups in [
        (64, 64, 3, 28, 1, 1),
        (256, 512, 1, 14, 2, 1),
        (3, 64, 7, 64, 2, 1),
        (96, 96, 5, 28, 2, 96),
    ]:
        layer = conv(c_in, c_out, k, padding=k // 2, stride=stride, groups=groups, activation=Activation("silu"))
        q = random_bytes(1, c_in, size, size)
        assert torch.equal(PackedQuantConv.of(layer)(q), layer(q))


def test_every_fused_activation_is_really_fused() -> None:
    arguments: dict[str, tuple[float, ...]] = {"hardtanh": (0.0, 6.0), "leaky_relu": (0.1,)}
    for name in LINEAR_ACTIVATIONS:
        assert fused_post_op(Activation(name, arguments.get(name, ())), linear=True) is not None
    for name in CONV_ACTIVATIONS:
        assert fused_post_op(Activation(name, arguments.get(name, ())), linear=False) is not None
    assert fused_post_op(Activation("leaky_relu", (0.1,)), linear=False) is None
    assert fused_post_op(Activation("gelu", ("none",)), linear=True) is None


# --- residuals -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("contiguous", [False, True])
def test_a_residual_is_written_over_only_where_that_is_allowed(k: int, contiguous: bool) -> None:
    layer = conv(12, 12, k, padding=k // 2, residual=QParams(0.04, 77), activation=Activation("relu"))
    q, residual = random_bytes(2, 12, 5, 5), random_bytes(2, 12, 5, 5)
    if not contiguous:
        residual = residual.contiguous(memory_format=torch.channels_last)
    wanted, kept = layer(q, residual), residual.clone()
    assert torch.equal(PackedQuantConv.of(layer)(q, residual), wanted)
    assert torch.equal(residual, kept)
    owner = PackedQuantConv.of(layer, overwrites_residual=True)
    wanted_own = layer(kept, kept)
    assert torch.equal(owner(residual, residual), wanted_own)
    assert torch.equal(residual, kept)  # the input itself is not written over
    assert torch.equal(owner(q, residual), wanted)


def test_residuals_that_broadcast_or_have_another_type_take_the_slow_way() -> None:
    layer = conv(residual=QParams(0.04, 77), activation=Activation("relu"))
    q = random_bytes(2, 8, 5, 5)
    for shape in ((1, 12, 5, 5), (12, 1, 1), (2, 12, 1, 5), (5,)):
        residual = random_bytes(*shape)
        assert torch.equal(PackedQuantConv.of(layer)(q, residual), layer(q, residual))
    floating = linear(qparams=None)
    q = random_bytes(4, 16)
    for residual in (torch.randn(12), torch.randn(4, 1), torch.randn(3, 4, 12), torch.randn(12, 4).t(), torch.randn(4, 12).double()):
        assert torch.equal(PackedQuantLinear.of(floating)(q, residual), floating(q, residual))


def test_with_and_without_residual_in_turn() -> None:
    for k in (1, 3):
        layer = conv(8, 8, k, padding=k // 2, residual=QParams(0.04, 77), activation=Activation("relu"))
        fast, q, residual = PackedQuantConv.of(layer), random_bytes(1, 8, 4, 4), random_bytes(1, 8, 4, 4)
        for given in (residual, None, residual):
            assert torch.equal(fast(q, given), layer(q, given))


# --- sizes and layouts -----------------------------------------------------------------------------------------------------------


def test_any_batch_and_size_after_the_first() -> None:
    layer = conv(16, 32, 3, stride=2)
    fast = PackedQuantConv.of(layer)
    for shape in [(1, 16, 8, 8), (8, 16, 8, 8), (3, 16, 33, 9), (1, 16, 1, 1), (1, 16, 8, 8)]:
        q = random_bytes(*shape)
        y = fast(q)
        assert torch.equal(y, layer(q))
        assert y.is_contiguous(memory_format=torch.channels_last)
    for side in range(3, 40):
        fast(random_bytes(1, 16, side, side))
    assert len(fast._plans) <= 16


def test_strided_inputs() -> None:
    layer, fast = conv(), PackedQuantConv.of(conv())
    fast = PackedQuantConv.of(layer)
    wide = random_bytes(2, 16, 12, 12)
    for q in (wide[:, :8], wide[:, ::2, ::2, ::3], wide[:, 4:12].transpose(2, 3), wide[:, :1].expand(2, 8, 12, 12)):
        assert torch.equal(fast(q), layer(q))
    rows = linear()
    for q in (random_bytes(16, 9).t(), random_bytes(16), random_bytes(2, 3, 4, 16), random_bytes(9, 32)[:, ::2]):
        assert torch.equal(PackedQuantLinear.of(rows)(q), rows(q))


def test_empty_batches_and_single_images_take_the_reference() -> None:
    layer = conv()
    fast = PackedQuantConv.of(layer)
    for shape in ((0, 8, 5, 5), (8, 5, 5)):
        q = random_bytes(*shape)
        assert torch.equal(fast(q), layer(q))
        assert not fast._plans
    assert PackedQuantLinear.of(linear())(random_bytes(0, 16)).shape == (0, 12)


@pytest.mark.parametrize("shape", [(1, 5, 8, 8), (1, 8, 0, 3)])
def test_wrong_shapes_give_the_error_of_torch(shape: tuple[int, ...]) -> None:
    with pytest.raises(RuntimeError):
        PackedQuantConv.of(conv(padding=0))(random_bytes(*shape))
    with pytest.raises(RuntimeError):
        PackedQuantLinear.of(linear())(random_bytes(2, 5))


# --- state -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [conv(), linear(), linear(qparams=None)], ids=["conv", "linear", "to float"])
def test_state_survives_copy_pickle_and_load(layer: Any) -> None:
    fast: Any = int8_cases.packed(layer)
    q = random_bytes(2, 8, 6, 6) if isinstance(layer, QuantConv) else random_bytes(5, 16)
    y = fast(q)
    assert list(fast.state_dict()) == list(layer.state_dict())
    buffer = io.BytesIO()
    torch.save(fast, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(fast), copy.copy(fast), torch.load(buffer, weights_only=False)):
        assert not other._plans
        assert torch.equal(other(q), y)
    negated = {k: -v if k != "weight_scale" else v for k, v in fast.state_dict().items()}
    clone, mirror = copy.deepcopy(fast), copy.deepcopy(layer)
    clone(q)
    for assign in (False, True):
        clone.load_state_dict(negated, assign=assign)
        mirror.load_state_dict(negated, assign=assign)
        assert torch.equal(clone(q), mirror(q))
        clone.load_state_dict(fast.state_dict(), assign=assign)
        assert torch.equal(clone(q), y)
    for name in ("weight", "weight_scale", "bias"):  # an edit in place is noticed
        edited = copy.deepcopy(fast)
        edited(q)
        getattr(edited, name).zero_()
        assert torch.equal(edited(q), edited.reference(q))


def test_weights_made_in_inference_mode() -> None:
    with torch.inference_mode():
        fast = PackedQuantConv.of(conv())
        q = random_bytes(1, 8, 6, 6)
        y = fast(q)
        state = fast.state_dict()
        fast.load_state_dict({k: torch.zeros_like(v) for k, v in state.items()})
        assert torch.equal(fast(q), torch.full_like(y, 9))
    assert torch.equal(fast(q.clone()), torch.full_like(y, 9))


def test_the_weights_are_int8_only() -> None:
    fast = PackedQuantConv.of(conv(64, 64))
    size = sum(t.numel() * t.element_size() for t in fast.state_dict().values())
    assert size < 64 * 64 * 9 * 1.05
    assert not list(fast.parameters())


# --- modes -----------------------------------------------------------------------------------------------------------------------


def test_tracing_and_modes_take_the_reference() -> None:
    from torch._subclasses import FakeTensorMode

    layer = conv(activation=Activation("relu"))
    fast, q = PackedQuantConv.of(layer), random_bytes(1, 8, 5, 5)
    y = fast(q)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert fast(mode.from_tensor(q)).shape == y.shape
    with torch.autocast("cpu", torch.bfloat16):
        assert fast(q).dtype is torch.uint8
    exported = torch.export.export(fast, (q,))
    assert torch.equal(exported.module()(q), y)
    compiled = torch.compile(fast, backend="eager", fullgraph=True)
    assert torch.equal(compiled(q), y)
    assert copy.deepcopy(fast).to("meta")(q.to("meta")).shape == y.shape


def test_training_and_gradients_are_refused() -> None:
    fast = PackedQuantLinear.of(linear(qparams=None))
    assert fast.eval() is fast
    with pytest.raises(ModeError, match="compress it again"):
        fast.train()
    with torch.enable_grad(), pytest.raises(ModeError, match="no_grad"):
        fast(random_bytes(2, 16), torch.randn(2, 12, requires_grad=True))
    with torch.enable_grad(), pytest.raises(ModeError, match="no_grad"):
        FastQuantize(QParams(0.1))(torch.randn(2, requires_grad=True))


def test_without_kernels_everything_is_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    from fxcompress.targets import int8_modules

    none = Int8Kernels(*[None] * 6)
    fast, q = PackedQuantConv.of(conv()), random_bytes(1, 8, 5, 5)
    wanted = fast.reference(q)
    for module in (int8_modules, int8_plans, kernels_module):
        monkeypatch.setattr(module, "int8_kernels", lambda: none)
    assert torch.equal(fast(q), wanted)
    assert not fast._plans
    assert "no int8 kernels" in str(int8_lowerable(conv()))


def test_an_activation_whose_kernel_disagrees_is_not_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels_module, "_agrees", lambda activation: False)
    layer = conv(activation=Activation("silu"))
    q = random_bytes(1, 8, 5, 5)
    assert torch.equal(PackedQuantConv.of(layer)(q), layer(q))


def test_lowerable_gives_reasons() -> None:
    assert int8_lowerable(conv()) is None
    assert "ReLU" in str(int8_lowerable(nn.ReLU()))
    assert "meta" in str(int8_lowerable(conv().to("meta")))
    assert "not int8" in str(int8_lowerable(QuantLinear(torch.ones(2, 2), torch.ones(2), None, source=QParams(1.0))))
    assert "not float32" in str(int8_lowerable(linear().double()))
    big = QuantLinear(torch.full((1, 70_000), 127, dtype=torch.int8), torch.ones(1), None, source=QParams(1.0))
    assert "32 bits" in str(int8_lowerable(big))
    with pytest.raises(TargetError, match="another kind"):
        PackedQuantConv.of(linear())  # type: ignore[arg-type]
    with pytest.raises(TargetError, match="32 bits"):
        PackedQuantLinear.of(big)


# --- values ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [3, 8])
@pytest.mark.parametrize("scale", [1.0, 0.037, 1e-4, 3.1e4, 2.0**-90])
@pytest.mark.parametrize("end", [0, 1])
def test_fast_values_are_those_of_the_definition(scale: float, bits: int, end: int) -> None:
    params, other = QParams(scale, end * (2**bits - 1), bits), QParams(scale * 0.83, (1 - end) * 255)
    ties = (torch.arange(-600, 600) / 2) * params.scale
    extreme = torch.tensor([2.0**30 * params.scale, -(2.0**30) * params.scale, 1e-44, -0.0]).repeat(11)
    for x in (
        ties,
        torch.randn(7, 1003) * 99 * params.scale,
        extreme,
        torch.randn(64, 9)[:, ::2] * 99 * params.scale,
        torch.empty(0),
        torch.tensor(params.scale),
    ):
        q = FastQuantize(params)(x)
        assert q.dtype is torch.uint8
        assert torch.equal(q, Quantize(params)(x))
        assert torch.equal(FastDequantize(params)(q), Dequantize(params)(q))
        assert torch.equal(FastRequantize(params, other)(q), Requantize(params, other)(q))


def test_quantize_brings_images_into_channels_last() -> None:
    x = torch.randn(2, 3, 5, 7)
    q = FastQuantize(QParams(0.02, 99), channels_last=True)(x)
    assert q.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(q, Quantize(QParams(0.02, 99))(x))
    assert torch.equal(FastQuantize(QParams(0.02, 99), channels_last=True)(x[0]), Quantize(QParams(0.02, 99))(x[0]))


def test_rows_are_quantized_as_by_the_definition() -> None:
    x = torch.randn(3, 5, 40) * torch.logspace(-20, 20, 40)
    x[0, 0] = 0.0
    for found, wanted in zip(FastQuantizeRows()(x), QuantizeRows()(x), strict=True):
        assert torch.equal(found, wanted)


# --- graphs ----------------------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """A residual block between a quantize and a linear with float32 output."""

    def __init__(self) -> None:
        super().__init__()
        relu, here = Activation("relu"), QParams(0.05, 0)
        self.quantize = Quantize(QParams(0.02, 128))
        self.stem = conv(3, 8, 3, source=QParams(0.02, 128), qparams=here, activation=relu)
        self.first = conv(8, 8, 3, source=here, qparams=here, activation=relu)
        self.second = conv(8, 8, 1, padding=0, source=here, qparams=here, residual=here, activation=relu)
        self.shortcut = conv(8, 8, 3, source=here, qparams=here, residual=here)
        self.head = linear(8, 5, source=here, qparams=None)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a = self.stem(self.quantize(x))
        b = self.second(self.first(a), a)
        c = self.shortcut(a.transpose(2, 3), b)
        return self.head(c.permute(0, 2, 3, 1)), b


class _Leaves(torch.fx.Tracer):
    def is_leaf_module(self, m: nn.Module, name: str) -> bool:
        return True


def test_the_target_packs_a_graph() -> None:
    model = Block().eval()
    graph = torch.fx.GraphModule(model, _Leaves().trace(model))
    x = torch.randn(1, 3, 10, 10)
    lowered = CpuTarget().lower(graph, Inputs((x,)))
    kinds = {name: type(module) for name, module in lowered.named_children()}
    assert kinds["quantize"] is FastQuantize
    assert kinds["head"] is PackedQuantLinear
    assert {kinds[name] for name in ("stem", "first", "second", "shortcut")} == {PackedQuantConv}
    assert lowered.quantize.channels_last
    # `a` is read again after the second convolution, and `b` is an output
    assert not lowered.second.overwrites_residual
    assert not lowered.shortcut.overwrites_residual
    for size in (10, 15):
        x = torch.randn(2, 3, size, size)
        for found, wanted in zip(lowered(x), graph(x), strict=True):
            assert torch.equal(found, wanted)


def test_a_residual_that_is_read_for_the_last_time_gives_its_memory() -> None:
    class Chain(Block):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            a = self.stem(self.quantize(x))
            b = self.second(self.first(a), a)
            return self.head(self.shortcut(b, b).permute(0, 2, 3, 1))

    model = Chain().eval()
    graph = torch.fx.GraphModule(model, _Leaves().trace(model))
    lowered = CpuTarget().lower(graph, Inputs((torch.randn(1, 3, 10, 10),)))
    assert lowered.second.overwrites_residual
    assert not lowered.shortcut.overwrites_residual  # it is its input too
    x = torch.randn(2, 3, 9, 9)
    assert torch.equal(lowered(x), graph(x))
