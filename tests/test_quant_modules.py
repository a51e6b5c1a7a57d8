"""The integer modules against integer and rational arithmetic written here."""

from __future__ import annotations

import copy
import io
import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fxcompress.ir.activation import Activation
from fxcompress.quant.affine import QParams
from fxcompress.quant.float_order import LINEAR_ACTIVATIONS, activate, fused_multiply_add
from fxcompress.quant.modules import Dequantize, QuantConv, Quantize, QuantLinear, Requantize

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


def to_float32(exact: Fraction) -> float:
    """The float32 number next to a rational one, halves to even."""
    near = np.float32(float(exact))
    candidates = [np.nextafter(near, np.float32(-np.inf)), near, np.nextafter(near, np.float32(np.inf))]
    finite = [float(c) for c in candidates if np.isfinite(c)]
    even = {float(c): int(c.view(np.uint32)) & 1 for c in candidates}
    return min(finite, key=lambda c: (abs(Fraction(c) - exact), even[c]))


@given(floats, floats, floats)
def test_fused_multiply_add_rounds_once(a: float, b: float, c: float) -> None:
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    if abs(exact) > Fraction(3e38):
        return
    found = fused_multiply_add(torch.tensor([a]), torch.tensor([b]), torch.tensor([c])).item()
    assert found == to_float32(exact)
    assert fused_multiply_add(torch.tensor([a]), b, c).item() == found


def test_fused_multiply_add_where_rounding_twice_is_wrong() -> None:
    a, b = 1 + 2.0**-23, 1 - 2.0**-23  # the product is 1 - 2**-46
    for c in (2.0**-24, 2.0**30, -(2.0**30), 2.0**24, 3.0):
        found = fused_multiply_add(torch.tensor([a]), b, torch.tensor([c])).item()
        assert found == to_float32(Fraction(a) * Fraction(b) + Fraction(c))
    # 2**-54 decides between two halves, and float64 cannot hold it beside 1
    assert fused_multiply_add(torch.tensor([2.0**-27]), 2.0**-27, torch.tensor([1.0])).item() == 1.0
    tie = 1 + 2.0**-23
    assert fused_multiply_add(torch.tensor([2.0**-12 + 2.0**-35]), 2.0**-12, torch.tensor([tie])).item() == to_float32(
        (Fraction(2) ** -12 + Fraction(2) ** -35) * Fraction(2) ** -12 + Fraction(tie)
    )


@pytest.mark.parametrize("name", sorted(LINEAR_ACTIVATIONS))
def test_activations_are_what_their_names_say(name: str) -> None:
    arguments: dict[str, tuple[float, ...]] = {"hardtanh": (-1.0, 2.0), "leaky_relu": (0.1,)}
    activation = Activation(name, arguments.get(name, ()))
    y = torch.cat([torch.linspace(-120, 120, 9999), torch.tensor([0.0, -0.0, 1e-30, -1e-30, 3.0, -3.0])])
    found, wanted = activate(activation, y), activation.apply(y.double())
    assert found.dtype is torch.float32
    torch.testing.assert_close(found.double(), wanted, rtol=2e-6, atol=2e-6)


# --- layers ----------------------------------------------------------------------------------------------------------------------


def integer_conv(q: Tensor, weight: Tensor, zero_point: int, stride: int, padding: int, dilation: int, groups: int) -> Tensor:
    """Sums of (q - zero_point) * w in int64, for (N, C, H, W), one tap at a time."""
    x = F.pad(q.long() - zero_point, [padding] * 4)
    n, _, height, width = x.shape
    outputs, depth, k, _ = weight.shape
    rows, columns = ((size - dilation * (k - 1) - 1) // stride + 1 for size in (height, width))
    sums = torch.zeros(n, outputs, rows, columns, dtype=torch.int64)
    per_group = outputs // groups
    for o, c, i, j in itertools.product(range(outputs), range(depth), range(k), range(k)):
        taps = x[:, (o // per_group) * depth + c, i * dilation :, j * dilation :][:, ::stride, ::stride][:, :rows, :columns]
        sums[:, o] += taps * int(weight[o, c, i, j])
    return sums


def real_values(sums: Tensor, layer: Any, axis: int) -> Tensor:
    """What the integers stand for, in float64, before residual and activation."""
    shape = [1] * sums.dim()
    shape[axis] = -1
    y = sums.double() * (layer.weight_scale.double() * layer.source.scale).reshape(shape)
    return y if layer.bias is None else y + layer.bias.double().reshape(shape)


def conv(
    c_in: int,
    c_out: int,
    k: int,
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
    bias: bool = True,
    **settings: Any,
) -> QuantConv:
    return QuantConv(
        torch.randint(-127, 128, (c_out, c_in // groups, k, k), dtype=torch.int8),
        torch.rand(c_out) * 0.01 + 1e-4,
        torch.randn(c_out) if bias else None,
        stride=(stride,) * 2,
        padding=(padding,) * 2,
        dilation=(dilation,) * 2,
        groups=groups,
        **settings,
    )


GEOMETRIES: dict[str, dict[str, Any]] = {
    "1x1": {"c_in": 6, "c_out": 5, "k": 1},
    "3x3": {"c_in": 4, "c_out": 5, "k": 3, "padding": 1},
    "7x7 stem": {"c_in": 3, "c_out": 4, "k": 7, "padding": 3, "stride": 2},
    "dilated": {"c_in": 2, "c_out": 3, "k": 3, "padding": 2, "dilation": 2},
    "grouped": {"c_in": 6, "c_out": 9, "k": 3, "padding": 1, "groups": 3},
    "depthwise": {"c_in": 5, "c_out": 5, "k": 3, "padding": 1, "groups": 5},
}


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
@pytest.mark.parametrize("zero_point", [0, 131, 255])
@pytest.mark.parametrize("bias", [False, True])
def test_a_convolution_is_integer_arithmetic(geometry: dict[str, Any], zero_point: int, bias: bool) -> None:
    layer = conv(**geometry, bias=bias, source=QParams(0.03, zero_point))
    q = torch.randint(0, 256, (2, geometry["c_in"], 9, 8), dtype=torch.uint8)
    sums = integer_conv(q, layer.weight, zero_point, layer.stride[0], layer.padding[0], layer.dilation[0], layer.groups)
    wanted = real_values(sums, layer, 1)
    found = layer(q)
    assert found.dtype is torch.float32
    largest = 255 * 127 * layer.weight[0].numel() * (layer.weight_scale * 0.03).max().item() + 4
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=largest * 2.0**-22)
    alone = layer(q[0])  # an image without a batch
    assert torch.equal(alone, found[0])


def exact_finish(total: int, scale: float, bias: float | None) -> np.float32:
    y = np.float32(total) * np.float32(scale)
    return y if bias is None else y + np.float32(bias)


@pytest.mark.parametrize("zero_point", [0, 255])
def test_the_order_of_roundings_of_a_linear(zero_point: int) -> None:
    """Every step in numpy float32, the sum and the bias in exact fractions."""
    source, qparams, residual_params = QParams(0.031, zero_point), QParams(0.7, 255 - zero_point), QParams(0.02, 255 - zero_point)
    weight = torch.randint(-127, 128, (7, 5), dtype=torch.int8)
    layer = QuantLinear(
        weight, torch.rand(7) * 0.1, torch.randn(7), source=source, qparams=qparams, residual=residual_params, activation=Activation("relu")
    )
    q, residual = torch.randint(0, 256, (40, 5), dtype=torch.uint8), torch.randint(0, 256, (40, 7), dtype=torch.uint8)
    found, in_float = layer(q, residual), copy.copy(layer)
    in_float.qparams = in_float.residual = in_float.activation = None
    assert layer.bias is not None
    for n, o in itertools.product(range(40), range(7)):
        scale = np.float32(layer.weight_scale[o].item()) * np.float32(source.scale)
        surplus = int(weight[o].long().sum()) * zero_point * Fraction(float(scale))
        bias = to_float32(Fraction(layer.bias[o].item()) - surplus)
        total = int((q[n].long() * weight[o].long()).sum())
        y = exact_finish(total, float(scale), bias)
        assert in_float(q)[n, o].item() == float(y)
        centred = int(residual[n, o]) - residual_params.zero_point
        y = np.float32(max(to_float32(centred * Fraction(residual_params.scale) + Fraction(float(y))), 0.0))
        quotient = np.float32(y * (np.float32(1) / np.float32(qparams.scale))) + np.float32(qparams.zero_point)
        assert int(found[n, o]) == min(max(round(Fraction(float(quotient))), 0), 255)


@pytest.mark.parametrize("name", ["relu", "hardtanh", "hardswish", "silu", "gelu", "tanh", "leaky_relu", "sigmoid", "mish"])
@pytest.mark.parametrize("kind", ["conv", "linear"])
@pytest.mark.parametrize("residual", ["none", "uint8", "float32"])
@pytest.mark.parametrize("to", ["uint8", "float32"])
def test_activations_and_residuals(name: str, kind: str, residual: str, to: str) -> None:
    arguments: dict[str, tuple[Any, ...]] = {"hardtanh": (0.0, 6.0), "leaky_relu": (0.1,), "gelu": ("none",)}
    activation = Activation(name, arguments.get(name, ()))
    settings: dict[str, Any] = {
        "source": QParams(0.02, 99),
        "qparams": QParams(0.05, 40) if to == "uint8" else None,
        "residual": QParams(0.03, 201) if residual == "uint8" else None,
        "activation": activation,
    }
    if kind == "conv":
        layer: Any = conv(3, 6, 3, padding=1, **settings)
        q = torch.randint(0, 256, (2, 3, 7, 6), dtype=torch.uint8)
        wanted = real_values(integer_conv(q, layer.weight, 99, 1, 1, 1, 1), layer, 1)
    else:
        layer = QuantLinear(torch.randint(-127, 128, (6, 9), dtype=torch.int8), torch.rand(6) * 0.01, torch.randn(6), **settings)
        q = torch.randint(0, 256, (2, 4, 9), dtype=torch.uint8)
        wanted = real_values((q.long() - 99) @ layer.weight.long().T, layer, -1)
    given = None
    if residual == "uint8":
        given = torch.randint(0, 256, wanted.shape, dtype=torch.uint8)
        wanted = wanted + (given.double() - 201) * settings["residual"].scale
    elif residual == "float32":
        given = torch.randn(wanted.shape)
        wanted = wanted + given.double()
    found, wanted = layer(q, given), activation.apply(wanted)
    assert found.shape == wanted.shape
    if to == "float32":
        assert found.dtype is torch.float32
        torch.testing.assert_close(found.double(), wanted, rtol=2e-5, atol=2e-5)
        return
    assert found.dtype is torch.uint8
    real = wanted / settings["qparams"].scale + 40
    assert ((found.double() - real.clamp(0, 255)).abs() <= 0.5 + 1e-3).all()


@pytest.mark.parametrize("dims", [1, 3])
def test_lines_and_volumes(dims: int) -> None:
    weight = torch.randint(-127, 128, (4, 3, *[3] * dims), dtype=torch.int8)
    layer = QuantConv(
        weight, torch.rand(4), stride=(2,) * dims, padding=(1,) * dims, dilation=(1,) * dims, source=QParams(1.0, 17), qparams=None
    )
    q = torch.randint(0, 256, (2, 3, *[5] * dims), dtype=torch.uint8)
    convolve: Any = F.conv1d if dims == 1 else F.conv3d
    sums = convolve(q.double() - 17, weight.double(), stride=2, padding=1)
    wanted = real_values(sums, layer, 1)
    torch.testing.assert_close(layer(q).double(), wanted, rtol=0, atol=wanted.abs().max().item() * 2.0**-20)


@pytest.mark.parametrize("bits", [2, 5, 8])
def test_fewer_bits_are_clamped_earlier(bits: int) -> None:
    layer = conv(4, 8, 1, source=QParams(0.1, 3), qparams=QParams(0.005, 1, bits))
    y = layer(torch.randint(0, 256, (1, 4, 9, 9), dtype=torch.uint8))
    assert y.max().item() == 2**bits - 1
    assert y.min().item() == 0


# --- values ----------------------------------------------------------------------------------------------------------------------


def test_quantize_dequantize_requantize() -> None:
    a, b = QParams(0.1, 7), QParams(0.03, 200)
    x = torch.randn(3, 4)
    q = Quantize(a)(x)
    assert torch.equal(q, a.quantize(x))
    assert torch.equal(Dequantize(a)(q), (q.float() - 7) * a.scale)
    wanted = (((q.double() - 7) * a.scale / b.scale).round() + 200).clamp(0, 255)
    assert ((Requantize(a, b)(q).double() - wanted).abs() <= 1).all()
    assert torch.equal(Requantize(a, a)(q), q)


# --- state -----------------------------------------------------------------------------------------------------------------------


def test_state_is_int8_and_survives_copy_and_pickle() -> None:
    layer = conv(64, 64, 3, padding=1, source=QParams(0.1, 3), qparams=QParams(0.2, 5), activation=Activation("silu"))
    assert {k: v.dtype for k, v in layer.state_dict().items()} == {
        "weight": torch.int8,
        "weight_scale": torch.float32,
        "bias": torch.float32,
    }
    q = torch.randint(0, 256, (1, 64, 5, 5), dtype=torch.uint8)
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    assert buffer.tell() < 64 * 64 * 9 * 1.5
    buffer.seek(0)
    for other in (copy.deepcopy(layer), torch.load(buffer, weights_only=False)):
        assert torch.equal(other(q), layer(q))
    assert not any(math.isnan(v) for v in layer(q).float().flatten().tolist())
    assert not list(layer.parameters())


def test_shapes_follow_in_fake_mode_and_on_meta() -> None:
    from torch._subclasses import FakeTensorMode

    layer = conv(
        3, 8, 3, padding=1, source=QParams(0.1, 3), qparams=QParams(0.2, 5), residual=QParams(0.1, 9), activation=Activation("relu")
    )
    q, r = torch.zeros(1, 3, 5, 5, dtype=torch.uint8), torch.zeros(1, 8, 5, 5, dtype=torch.uint8)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        found = layer(mode.from_tensor(q), mode.from_tensor(r))
        assert (found.shape, found.dtype) == ((1, 8, 5, 5), torch.uint8)
        assert Quantize(QParams(0.1, 3))(mode.from_tensor(torch.zeros(2))).dtype is torch.uint8
    moved = copy.deepcopy(layer).to("meta")
    assert moved(q.to("meta"), r.to("meta")).shape == (1, 8, 5, 5)
