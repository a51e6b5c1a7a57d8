"""PackedConv and PackedLinear against float64, and where they must step aside."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fxcompress.errors import ModeError, TargetError
from fxcompress.ir.activation import Activation
from fxcompress.ir.fused import fuse
from fxcompress.targets import cpu_plans
from fxcompress.targets.cpu_kernels import kernels, post_op
from fxcompress.targets.cpu_modules import PackedConv, PackedLinear, lowerable

CONVS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
ACTIVATIONS = [
    None,
    Activation("relu"),
    Activation("hardtanh", (0.0, 6.0)),
    Activation("hardtanh", (-0.5, 0.25)),
    Activation("hardswish"),
    Activation("hardsigmoid"),
    Activation("silu"),
    Activation("gelu", ("none",)),
    Activation("gelu", ("tanh",)),
    Activation("sigmoid"),
    Activation("tanh"),
    Activation("leaky_relu", (0.1,)),
    Activation("elu", (1.5,)),
    Activation("mish"),
]

pytestmark = [
    pytest.mark.skipif(kernels().missing() is not None, reason="this torch has no oneDNN"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel"),  # of the oracle
]


@pytest.fixture(autouse=True)
def _inference() -> Any:
    with torch.no_grad():
        yield


def oracle(layer: nn.Module, x: Tensor, residual: Tensor | None = None) -> Tensor:
    """The fused layer in float64."""
    return copy.deepcopy(layer).double()(x.double(), None if residual is None else residual.double())


def assert_close(found: Tensor, wanted: Tensor) -> None:
    assert found.dtype is torch.float32
    assert found.shape == wanted.shape
    scale = wanted.abs().max().item() if wanted.numel() else 1.0
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=2e-5 * max(scale, 1.0))


def planned(module: PackedConv | PackedLinear) -> int:
    return len(module._plans)


# --- the same function ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("layer", [nn.Conv2d(6, 10, 3, padding=1), nn.Linear(6, 700), nn.Linear(6, 5)], ids=["conv", "linear", "small"])
def test_every_activation_with_and_without_residual(layer: nn.Module, activation: Activation | None) -> None:
    fused = fuse(layer, activation)
    packed: Any = PackedLinear.of(fused) if isinstance(layer, nn.Linear) else PackedConv.of(fused)
    x = torch.randn(2, 6, 9, 7) * 3 if isinstance(layer, nn.Conv2d) else torch.randn(40, 11, 6) * 3
    residual = torch.randn_like(layer(x))
    kept = residual.clone()
    assert_close(packed(x), oracle(fused, x))
    assert_close(packed(x, residual), oracle(fused, x, residual))
    assert torch.equal(residual, kept)
    assert planned(packed) == 1


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    dims = draw(st.sampled_from([1, 2, 2, 2, 3]))
    groups = draw(st.sampled_from([1, 1, 2, 3, 5]))
    depthwise = draw(st.booleans())
    c_in = groups * (1 if depthwise else draw(st.integers(1, 5)))
    c_out = groups * draw(st.integers(1, 4))
    kernel = tuple(draw(st.integers(1, 4)) for _ in range(dims))
    dilation = tuple(draw(st.integers(1, 2)) for _ in range(dims))
    same = draw(st.booleans())
    mode = draw(st.sampled_from(["zeros", "zeros", "circular", "replicate", "reflect"]))
    padding: Any = draw(st.sampled_from(["same", "valid"])) if same else tuple(draw(st.integers(0, 2)) for _ in range(dims))
    stride = (1,) * dims if padding == "same" else tuple(draw(st.integers(1, 3)) for _ in range(dims))
    layer = CONVS[dims](c_in, c_out, kernel, stride, padding, dilation, groups, draw(st.booleans()), mode)
    size = tuple(d * (k - 1) + 3 + draw(st.integers(0, 4)) for d, k in zip(dilation, kernel, strict=True))
    x = torch.randn(draw(st.integers(1, 3)), c_in, *size, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    if dims == 2 and draw(st.booleans()):
        x = x.contiguous(memory_format=torch.channels_last)
    if draw(st.booleans()):
        x = torch.cat([x, x], -1)[..., : size[-1]]
    return layer, x


@settings(max_examples=80, deadline=None)
@given(convolutions(), st.sampled_from(ACTIVATIONS), st.booleans())
def test_any_convolution(case: tuple[nn.Module, Tensor], activation: Activation | None, with_residual: bool) -> None:
    layer, x = case
    with torch.no_grad():
        fused, residual = fuse(layer, activation), torch.randn_like(layer(x)) if with_residual else None
        packed = PackedConv.of(fused)
        assert_close(packed(x, residual), oracle(fused, x, residual))
        assert_close(packed.reference(x, residual), oracle(fused, x, residual))
        assert planned(packed) == 1


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=3),
    st.integers(1, 70),
    st.integers(1, 70),
    st.sampled_from(ACTIVATIONS),
    st.booleans(),
)
def test_any_linear(lead: list[int], c_in: int, c_out: int, activation: Activation | None, bias: bool) -> None:
    with torch.no_grad():
        fused = fuse(nn.Linear(c_in, c_out, bias), activation)
        x = torch.randn(*lead, c_in)
        packed = PackedLinear.of(fused)
        assert_close(packed(x), oracle(fused, x))
        assert_close(packed(x.transpose(0, -1).contiguous().transpose(0, -1)), oracle(fused, x))


@pytest.mark.parametrize("shape", [(2, 8, 5, 5), (1, 8, 5, 5), (2, 8, 1, 1), (2, 1, 5, 5), (8, 5, 5), (5,), (1,), (1, 1, 5, 5)])
@pytest.mark.parametrize("overwrite", [False, True])
def test_residuals_broadcast(shape: tuple[int, ...], overwrite: bool) -> None:
    fused = fuse(nn.Conv2d(4, 8, 1), Activation("relu"))
    packed = PackedConv.of(fused, overwrites_residual=overwrite)
    x, residual = torch.randn(2, 4, 5, 5), torch.randn(shape)
    wanted = oracle(fused, x, residual)
    assert_close(packed(x, residual), wanted)


def test_a_residual_larger_than_the_output_broadcasts_too() -> None:
    fused = fuse(nn.Conv2d(4, 8, 1), Activation("silu"))
    x, residual = torch.randn(1, 4, 5, 5), torch.randn(3, 8, 5, 5)
    assert_close(PackedConv.of(fused)(x, residual), oracle(fused, x, residual))


def test_overwriting_happens_only_where_it_is_allowed_and_safe() -> None:
    fused = fuse(nn.Conv2d(8, 8, 3, padding=1), Activation("relu"))
    packed = PackedConv.of(fused, overwrites_residual=True)
    x = torch.randn(1, 8, 6, 6).contiguous(memory_format=torch.channels_last)
    residual = torch.randn(1, 8, 6, 6).contiguous(memory_format=torch.channels_last)
    wanted = oracle(fused, x, residual)
    y = packed(x, residual)
    assert_close(y, wanted)
    assert y.data_ptr() == residual.data_ptr()
    kept = x.clone()
    assert_close(packed(x, x), oracle(fused, kept, kept))  # the residual is the input itself: not overwritten
    assert torch.equal(x, kept)
    wide = torch.randn(1, 1, 6, 6).expand(1, 8, 6, 6)
    assert_close(packed(x, wide), oracle(fused, x, wide))


# --- sizes ---------------------------------------------------------------------------------------------------------------------


def test_any_batch_and_size_after_the_first() -> None:
    fused = fuse(nn.Conv2d(16, 32, 3, 2, 1), Activation("relu"))
    packed = PackedConv.of(fused)
    for shape in [(1, 16, 8, 8), (8, 16, 8, 8), (3, 16, 33, 9), (1, 16, 64, 64), (1, 16, 8, 8)]:
        x = torch.randn(shape)
        assert_close(packed(x), oracle(fused, x))
    assert planned(packed) == 4
    for side in range(3, 40):
        packed(torch.randn(1, 16, side, side))
    assert planned(packed) <= 16


@pytest.mark.parametrize("shape", [(0, 4, 5, 5), (4, 5, 5)])
def test_empty_batches_and_single_images_take_the_reference(shape: tuple[int, ...]) -> None:
    fused = fuse(nn.Conv2d(4, 6, 3), Activation("relu"))
    x = torch.randn(shape)
    packed = PackedConv.of(fused)
    assert_close(packed(x), oracle(fused, x))
    assert planned(packed) == 0


def test_squeezed_images_are_a_matmul() -> None:
    fused = fuse(nn.Conv2d(24, 6, 1), Activation("silu"))
    for batch in (1, 8):
        x, residual = torch.randn(batch, 24, 1, 1), torch.randn(batch, 6, 1, 1)
        assert_close(PackedConv.of(fused)(x), oracle(fused, x))
        assert_close(PackedConv.of(fused)(x, residual), oracle(fused, x, residual))
    padded = fuse(nn.Conv2d(24, 6, 1, padding=1), None)
    x = torch.randn(1, 24, 1, 1)
    assert_close(PackedConv.of(padded)(x), oracle(padded, x))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(4, 6, 3), (1, 5, 8, 8)),
        (nn.Conv2d(4, 6, 9), (1, 4, 3, 3)),
        (nn.Linear(4, 6), (2, 5)),
    ],
)
def test_wrong_shapes_give_the_error_of_torch(layer: nn.Module, shape: tuple[int, ...]) -> None:
    packed: Any = PackedLinear.of(layer) if isinstance(layer, nn.Linear) else PackedConv.of(layer)
    with pytest.raises(RuntimeError):
        packed(torch.randn(shape))


# --- values --------------------------------------------------------------------------------------------------------------------

EXTREME = [0.0, -0.0, 1e38, -1e38, 1e-40, -1e-40, 1e-30, 88.7, -104.0, math.inf, -math.inf, 3.0, -3.0, 1e4, -1e4, 0.5]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("kind", ["pointwise", "depthwise", "linear"])
def test_extreme_values(kind: str, activation: Activation | None) -> None:
    values = torch.tensor(EXTREME)
    if kind == "linear":
        layer: nn.Module = nn.Linear(1, 16, bias=False)
        x = values.view(-1, 1)
    else:
        layer = nn.Conv2d(1 if kind == "pointwise" else 16, 16, 1, groups=1 if kind == "pointwise" else 16, bias=False)
        x = values.view(1, 1, 1, -1).expand(1, layer.in_channels, 1, -1)
    nn.init.ones_(layer.weight)  # type: ignore[arg-type]
    packed: Any = PackedLinear.of(fuse(layer, activation)) if kind == "linear" else PackedConv.of(fuse(layer, activation))
    wanted = values if activation is None else activation.apply(values)
    found = packed(x)[:, 0] if kind == "linear" else packed(x)[0, 0, 0]
    if activation is not None and activation.name == "hardswish":  # torch overflows at 1e38, oneDNN does not
        wanted = torch.where(values == 1e38, found, wanted)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_nan_comes_out_as_nan_but_for_three_clamping_kernels(activation: Activation | None) -> None:
    packed = PackedConv.of(fuse(nn.Conv2d(3, 16, 3, padding=1), activation))
    y = packed(torch.full((1, 3, 5, 5), math.nan))
    clamped = activation is not None and activation.name in ("relu", "hardtanh", "hardsigmoid")
    assert bool(y.isnan().all()) is not clamped
    if clamped:
        assert y.isfinite().all()


# --- state ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [nn.Conv2d(3, 5, 3), nn.Linear(7, 9), nn.Linear(7, 9, bias=False)], ids=repr)
def test_state_survives_copy_pickle_and_load(layer: nn.Module) -> None:
    packed: Any = PackedLinear.of(layer) if isinstance(layer, nn.Linear) else PackedConv.of(layer)
    x = torch.randn(2, 3, 6, 6) if isinstance(layer, nn.Conv2d) else torch.randn(50, 7)
    y = packed(x)
    assert list(packed.state_dict()) == list(layer.state_dict())
    buffer = io.BytesIO()
    torch.save(packed, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(packed), copy.copy(packed), torch.load(buffer, weights_only=False)):
        assert planned(other) == 0
        assert torch.equal(other(x), y)
    doubled = {k: 2 * v for k, v in packed.state_dict().items()}
    clone = copy.deepcopy(packed)
    clone(x)
    clone.load_state_dict(doubled)
    assert_close(clone(x), 2 * y.double())
    clone.load_state_dict(packed.state_dict(), assign=True)
    assert torch.equal(clone(x), y)
    clone.weight.mul_(0)  # an edit in place is noticed
    assert_close(clone(x), (clone.reference(x)).double())


def test_weights_made_in_inference_mode() -> None:
    with torch.inference_mode():
        packed = PackedConv.of(nn.Conv2d(3, 5, 3))
        x = torch.randn(1, 3, 6, 6)
        y = packed(x)
        packed.load_state_dict({k: -v for k, v in packed.state_dict().items()})
        assert torch.equal(packed(x), -y)
    assert torch.equal(packed(x), -y)


def test_other_dtypes_take_the_reference() -> None:
    fused = fuse(nn.Conv2d(3, 5, 3), Activation("gelu", ("none",)))
    packed = PackedConv.of(fused)
    x = torch.randn(1, 3, 6, 6)
    packed(x)
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        moved = copy.deepcopy(packed).to(dtype)
        assert torch.equal(moved(x.to(dtype)), moved.reference(x.to(dtype)))
        assert planned(moved) == 0
    assert_close(packed.double().float()(x), oracle(fused, x))
    assert packed.to("meta")(x.to("meta")).shape == (1, 5, 4, 4)


def test_autocast_compile_tracing_and_modes_take_the_reference() -> None:
    packed = PackedConv.of(fuse(nn.Conv2d(3, 5, 3), Activation("relu")))
    x = torch.randn(1, 3, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        assert packed(x).dtype is torch.bfloat16
    seen = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        seen.append(str(graph.graph))
        return graph

    torch.testing.assert_close(torch.compile(packed, backend=keep)(x), packed(x))
    assert "conv2d" in seen[0]
    exported = torch.export.export(packed.eval(), (x,))
    assert "conv2d" in str(exported.graph)
    traced = torch.fx.symbolic_trace(packed, concrete_args={"residual": None})
    torch.testing.assert_close(traced(x), packed(x))
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        packed(x)
    assert counter.get_total_flops() == 2 * 5 * 4 * 4 * 27
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert packed(mode.from_tensor(x)).shape == (1, 5, 4, 4)
    batched = torch.vmap(packed)(x.expand(3, *x.shape))
    torch.testing.assert_close(batched[1], packed(x))


def test_training_and_gradients_are_refused() -> None:
    packed = PackedConv.of(nn.Conv2d(3, 5, 3))
    assert packed.eval() is packed
    assert not any(p.requires_grad for p in packed.buffers())
    with pytest.raises(ModeError, match="compress it again"):
        packed.train()
    with pytest.raises(ModeError):
        nn.Sequential(packed).train()
    x = torch.randn(1, 3, 6, 6, requires_grad=True)
    packed(x)  # no_grad is on
    with torch.enable_grad():
        with pytest.raises(ModeError, match="no_grad"):
            packed(x)
        with pytest.raises(ModeError, match="no_grad"):
            packed(x.detach(), torch.randn(1, 5, 4, 4, requires_grad=True))
        assert not packed(x.detach()).requires_grad


# --- what can be lowered -------------------------------------------------------------------------------------------------------


def test_lowerable_gives_reasons() -> None:
    assert lowerable(nn.Conv1d(3, 4, 1)) is None
    assert lowerable(fuse(nn.Linear(3, 4), Activation("mish"))) is None
    assert "float64" in str(lowerable(nn.Linear(3, 4).double()))
    assert "meta" in str(lowerable(nn.Linear(3, 4, device="meta")))
    assert "ReLU" in str(lowerable(nn.ReLU()))
    assert "ConvTranspose2d" in str(lowerable(nn.ConvTranspose2d(3, 4, 1)))
    assert "no weights" in str(lowerable(nn.LazyLinear(4)))
    with pytest.raises(TargetError, match="float64"):
        PackedConv.of(nn.Conv2d(3, 4, 1).double())
    with pytest.raises(TargetError):
        PackedLinear.of(nn.Conv2d(3, 4, 1))


def test_post_ops_are_known_to_the_kernel() -> None:
    assert post_op(Activation("mish")) is None
    assert post_op(Activation("elu", (1.0,))) is None
    for activation in ACTIVATIONS:
        found = post_op(activation)
        if found is not None:
            y = kernels().linear(torch.ones(1, 2), torch.ones(3, 2), None, found.attr, list(found.scalars), found.algorithm)
            assert y.shape == (1, 3)


def test_without_kernels_everything_is_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    from fxcompress.targets import cpu_kernels, cpu_modules

    none = cpu_kernels.CpuKernels(*[None] * 8)
    for module in (cpu_modules, cpu_plans):
        monkeypatch.setattr(module, "kernels", lambda: none)
    conv, x = nn.Conv2d(3, 5, 3), torch.randn(1, 3, 6, 6)
    packed = PackedConv(conv.weight, conv.bias, stride=(1, 1), padding=(0, 0), dilation=(1, 1))
    assert torch.equal(packed(x), conv(x))
    assert planned(packed) == 0
    assert "oneDNN" in str(lowerable(conv))
