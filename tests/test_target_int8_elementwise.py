"""Fast forms of operations on uint8 give the integers of their definitions, bit for bit, on every layout and instruction set."""

from __future__ import annotations

import copy
import os
import random
import subprocess
import sys
import warnings

import pytest
import torch
from torch import Tensor, nn

from fxcompress.errors import ModeError
from fxcompress.ir.activation import Activation
from fxcompress.quant.affine import QParams
from fxcompress.quant.elementwise import QuantActivation, QuantAdd, QuantMean, QuantMul
from fxcompress.quant.pooling import QuantAdaptiveAvgPool, QuantAvgPool, QuantMaxPool
from fxcompress.targets import int8_bridge, int8_elementwise, int8_pooling
from fxcompress.targets.int8_elementwise import FastActivation, FastAdd, FastMul, fast_form

FIRST = torch.arange(256, dtype=torch.uint8).repeat_interleave(256)
SECOND = torch.arange(256, dtype=torch.uint8).repeat(256)
ACTIVATIONS = [None, Activation("relu"), Activation("hardtanh", (0.0, 6.0)), Activation("hardtanh", (-0.5, 0.25)), Activation("silu")]
ALL = [
    *[Activation(name) for name in ("relu", "hardswish", "hardsigmoid", "silu", "sigmoid", "tanh", "mish")],
    Activation("gelu", ("none",)),
    Activation("gelu", ("tanh",)),
    Activation("leaky_relu", (0.1,)),
    Activation("elu", (1.0,)),
    Activation("hardtanh", (0.0, 6.0)),
]


def _params(seed: int, count: int, spread: float = 3.0) -> list[QParams]:
    numbers = random.Random(seed)
    zeros = (0, 255, numbers.randrange(256), numbers.randrange(256))
    return [QParams(2.0 ** numbers.uniform(-6 - spread, spread), numbers.choice(zeros)) for _ in range(count)]


def _fast(module: nn.Module) -> nn.Module:
    found = fast_form(module)
    assert found is not None
    return found


def _same(module: nn.Module, *inputs: Tensor) -> None:
    """Also for a copy of the inputs that no vector instruction reads at once."""
    scattered = [torch.stack([x, x], -1)[..., 0] for x in inputs]
    fast = _fast(module)
    expected = module(*inputs)
    for arguments in (inputs, scattered):
        got = fast(*arguments)
        assert got.dtype is expected.dtype
        assert torch.equal(got, expected)


def _images(*shape: int, seed: int = 0) -> list[Tensor]:
    """The same numbers in several layouts: contiguous, channels_last, transposed, a slice of channels, at an odd offset."""
    x = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    wide = torch.cat([x, x], 1).to(memory_format=torch.channels_last)
    shifted = torch.cat([torch.zeros(1, dtype=torch.uint8), x.flatten()])[1:].view(shape)
    return [x, x.to(memory_format=torch.channels_last), x.transpose(2, 3).contiguous().transpose(2, 3), wide[:, : shape[1]], shifted]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("kind", [QuantAdd, QuantMul])
@pytest.mark.parametrize("seed", range(8))
def test_every_pair_of_bytes(seed: int, kind: type[QuantAdd] | type[QuantMul], activation: Activation | None) -> None:
    a, b, out = _params(seed, 3)
    _same(kind(a, b, out, activation), FIRST, SECOND)


@pytest.mark.parametrize("kind", [QuantAdd, QuantMul])
def test_every_pair_of_bytes_at_scales_far_apart_and_in_few_bits(kind: type[QuantAdd] | type[QuantMul]) -> None:
    for scales in ((2.0**-90, 2.0**-90, 2.0**40), (2.0**60, 2.0**60, 2.0**-90), (2.0**20, 1.0, 1.0), (1.0, 2.0**-30, 1.0)):
        _same(kind(*(QParams(s, z) for s, z in zip(scales, (3, 7, 100), strict=True))), FIRST, SECOND)
    few = [x % 16 for x in (FIRST, SECOND)]
    for activation in ACTIVATIONS:
        _same(kind(QParams(0.1, 3, 4), QParams(0.1, 15, 4), QParams(0.05, 7, 4), activation), *few)


@pytest.mark.parametrize("kind", [QuantAdd, QuantMul])
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_float_operands_and_results(kind: type[QuantAdd] | type[QuantMul], activation: Activation | None) -> None:
    a, b, out = _params(5, 3, 1.0)
    other = torch.randn(65536) * 2
    simple = activation if activation is None or activation.name != "silu" else Activation("leaky_relu", (0.1,))
    _same(kind(a, None, out, simple), FIRST, other)
    _same(kind(a, None, None, simple), FIRST, other)
    _same(kind(a, b, None, simple), FIRST, SECOND)


def test_a_gate_per_channel() -> None:
    a, b, out = QParams(0.03, 12), QParams(1 / 256, 0), QParams(0.02, 40)
    for q in _images(2, 6, 5, 7):
        gate = torch.rand(2, 6, 1, 1)
        assert torch.equal(_fast(QuantMul(a, None, out))(q, gate), QuantMul(a, None, out)(q, gate))
        small = (gate * 255).to(torch.uint8)
        for kind in (QuantMul, QuantAdd):
            module = kind(a, b, out)
            assert torch.equal(_fast(module)(q, small), module(q, small))
            assert torch.equal(_fast(module)(small, q), module(small, q))
            assert torch.equal(_fast(module)(q, small[0]), module(q, small[0]))
            assert torch.equal(_fast(module)(q[:, :1], small), module(q[:, :1], small))


def test_layouts_and_empty_tensors() -> None:
    module = QuantAdd(QParams(0.1, 3), QParams(0.2, 5), QParams(0.3, 7))
    fast = _fast(module)
    for x in _images(2, 6, 5, 7):
        for y in _images(2, 6, 5, 7, seed=1):
            assert torch.equal(fast(x, y), module(x, y))
    last = _images(2, 6, 5, 7)[1]
    assert fast(last, last).is_contiguous(memory_format=torch.channels_last)
    assert fast(last[:0], last[:0]).shape == (0, 6, 5, 7)
    assert torch.equal(fast(last[:1].expand(2, 6, 5, 7), last), module(last[:1].expand(2, 6, 5, 7), last))


@pytest.mark.parametrize("activation", ALL, ids=str)
@pytest.mark.parametrize("seed", range(6))
def test_every_byte_through_an_activation(seed: int, activation: Activation) -> None:
    source, out = _params(seed, 2, 1.0)
    module = QuantActivation(source, out, activation)
    for x in (torch.arange(256, dtype=torch.uint8), torch.arange(255, dtype=torch.uint8), FIRST.view(4, 8, 32, 64)):
        _same(module, x)
    for x in _images(2, 6, 5, 7):
        assert torch.equal(_fast(module)(x), module(x))
        assert torch.equal(_fast(module)(x[:, :, :, 1:]), module(x[:, :, :, 1:]))
    same = QuantActivation(source, source, activation)
    _same(same, torch.arange(256, dtype=torch.uint8))


def test_activations_of_a_batch_without_images() -> None:
    module = QuantActivation(QParams(0.1), QParams(0.1), Activation("silu"))
    assert _fast(module)(torch.zeros(0, 3, dtype=torch.uint8)).shape == (0, 3)


@pytest.mark.parametrize("shape", [(2, 5, 7, 9), (1, 64, 112, 112), (1, 3, 300, 300)], ids=str)
def test_means(shape: tuple[int, ...]) -> None:
    for x in [*_images(*shape), torch.full(shape, 255, dtype=torch.uint8)]:
        for source in (QParams(0.1, 0), QParams(0.07, 255), QParams(0.3, 99)):
            for out in (None, QParams(0.05, 120)):
                for dims, keepdim in (((-2, -1), True), ((2, 3), False), ((1,), False)):
                    module = QuantMean(source, out, dims, keepdim)
                    assert torch.equal(_fast(module)(x), module(x))


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("kernel", [(3, 2, 1), (2, 2, 0), (3, 1, 1), (5, 3, 2), (1, 2, 0), (3, 3, 0), (13, 1, 6)], ids=str)
@pytest.mark.parametrize("native", [True, False])
def test_pools(kernel: tuple[int, int, int], ceil_mode: bool, native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not native:
        monkeypatch.setattr(int8_pooling, "bridge", lambda *tensors: None)
    k, _, p = kernel
    for dims in (1, 2, 3):
        shape = (2, 3, 14, 13, 6)[: dims + 2]
        q = torch.randint(0, 256, shape, dtype=torch.uint8)
        numbers = [(n,) * dims for n in kernel]
        if dims == 3 and k > 6:
            continue
        for dilation in (1, 2, 3):
            if all(n + 2 * p > dilation * (k - 1) for n in shape[2:]):
                module = QuantMaxPool(*numbers, (dilation,) * dims, ceil_mode)
                assert torch.equal(_fast(module)(q), module(q))
        for include_pad in (False, True):
            for out in (None, QParams(0.09, 20), QParams(0.9, 3, 4)):
                pool = QuantAvgPool(QParams(0.1, 200), out, *numbers, ceil_mode=ceil_mode, count_include_pad=include_pad)
                fast = _fast(pool)
                assert torch.equal(fast(q), pool(q))
                assert torch.equal(fast(q[:1]), pool(q[:1]))  # the second call


def test_max_pools_of_every_layout() -> None:
    module = QuantMaxPool((3, 3), (2, 2), (1, 1), (1, 1))
    for x in _images(2, 6, 9, 7):
        assert torch.equal(_fast(module)(x), module(x))
    last = _images(2, 6, 9, 7)[1]
    assert _fast(module)(last).is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(_fast(module)(last[0]), module(last[0]))


@pytest.mark.parametrize("size", [(1, 1), (4, 3), (8, 6), (3, 4), (8, None), (2, None), (None, None)], ids=str)
def test_adaptive_pools(size: tuple[int | None, int | None]) -> None:
    source = QParams(0.1, 200)
    for x in _images(2, 6, 8, 6):
        for out in (None, source, QParams(0.09, 20)):
            module = QuantAdaptiveAvgPool(source, out, size)
            assert torch.equal(_fast(module)(x), module(x))


def test_without_the_kernels_the_definition_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (int8_elementwise, int8_pooling):
        monkeypatch.setattr(module, "bridge", lambda *tensors: None)
    a, b, out = QParams(0.1, 3), QParams(0.2, 5), QParams(0.3, 7)
    for module in (QuantAdd(a, b, out), QuantMul(a, b, out)):
        _same(module, FIRST, SECOND)
    _same(QuantMul(a, None, out), FIRST, torch.rand(65536))
    _same(QuantActivation(a, out, Activation("hardswish")), FIRST)
    image = _images(2, 6, 8, 6)[1]
    for module in (QuantAdaptiveAvgPool(a, out, (4, 3)), QuantAvgPool(a, out, (2, 2), (2, 2), (0, 0)), QuantMean(a, None, (2, 3))):
        assert torch.equal(_fast(module)(image), module(image))


def test_another_engine_for_quantized_tensors_is_not_used() -> None:
    before = torch.backends.quantized.engine
    try:
        torch.backends.quantized.engine = "qnnpack"
        assert int8_bridge.bridge() is None
    finally:
        torch.backends.quantized.engine = before
    assert int8_bridge.bridge() is not None


def test_nothing_is_said_about_deprecated_tensors() -> None:
    code = (
        "import warnings; warnings.simplefilter('error'); import torch\n"
        "from fxcompress.quant.affine import QParams; from fxcompress.targets.int8_elementwise import FastAdd\n"
        "q = torch.zeros(4, dtype=torch.uint8); FastAdd(QParams(0.1), QParams(0.1), QParams(0.1))(q, q)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_fast_forms_are_copied_and_refuse_training() -> None:
    fast = FastActivation(QParams(0.1), QParams(0.2), Activation("silu"))
    expected = fast(FIRST)
    twin = copy.deepcopy(fast)
    assert twin._pairs is None
    assert torch.equal(twin(FIRST), expected)
    assert not fast.state_dict()
    with pytest.raises(ModeError):
        FastAdd(QParams(0.1), QParams(0.1), QParams(0.1)).train()
    assert not any(m.training for m in (fast, FastMul(QParams(0.1), None, None), _fast(QuantMean(QParams(0.1), None, (1,)))))
    assert fast_form(nn.ReLU()) is None


def test_compiled_and_traced() -> None:
    module = QuantAdd(QParams(0.1, 3), QParams(0.2, 5), QParams(0.3, 7))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(_fast(module), backend="eager", fullgraph=True)
        assert torch.equal(compiled(FIRST, SECOND), module(FIRST, SECOND))
    torch._dynamo.reset()
    with torch._subclasses.FakeTensorMode():
        fake = torch.empty(4, dtype=torch.uint8)
        assert _fast(module)(fake, fake).shape == (4,)


@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_other_instruction_sets(capability: str) -> None:
    """The tests above once more, in a process that may not use newer instructions."""
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability, "OMP_NUM_THREADS": "1"}
    wanted = "every_pair or float_operands or gate or every_byte or means or pools"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__, "-k", wanted]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
