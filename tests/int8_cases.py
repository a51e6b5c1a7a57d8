"""Integer layers of every shape class, compared with their reference bit for bit: ``python tests/int8_cases.py 63`` for one machine.

The argument is the largest weight. Run with ``ONEDNN_MAX_CPU_ISA=AVX2`` in the environment it uses the kernels of such a machine.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fxcompress.ir.activation import Activation
from fxcompress.quant.affine import QParams
from fxcompress.quant.modules import QuantConv, QuantLinear
from fxcompress.targets.int8_modules import PackedQuantConv, PackedQuantLinear

# name -> channels in and out, kernel, stride, padding, dilation, groups; the kernel has 1 to 3 dimensions
CONVS: dict[str, tuple[int, int, tuple[int, ...], int, int, int, int]] = {
    "1x1": (16, 24, (1, 1), 1, 0, 1, 1),
    "1x1 strided": (16, 32, (1, 1), 2, 0, 1, 1),
    "1x1 padded": (8, 8, (1, 1), 1, 1, 1, 1),
    "1x1 odd": (13, 17, (1, 1), 1, 0, 1, 1),
    "3x3": (16, 24, (3, 3), 1, 1, 1, 1),
    "3x3 odd": (13, 17, (3, 3), 1, 1, 1, 1),
    "stem 7x7": (3, 32, (7, 7), 2, 3, 1, 1),
    "stem 3x3": (3, 16, (3, 3), 2, 1, 1, 1),
    "one channel": (1, 1, (3, 3), 1, 1, 1, 1),
    "dilated": (8, 16, (3, 3), 1, 2, 2, 1),
    "grouped": (16, 32, (3, 3), 1, 1, 1, 4),
    "groups of 3": (12, 20, (3, 3), 2, 1, 1, 4),
    "depthwise": (32, 32, (3, 3), 1, 1, 1, 32),
    "depthwise 5x5": (24, 24, (5, 5), 2, 2, 1, 24),
    "depthwise odd": (13, 13, (3, 3), 1, 1, 1, 13),
    "rectangle": (8, 8, (1, 5), 1, 1, 1, 1),
    "line": (8, 12, (3,), 1, 1, 1, 1),
    "line strided": (6, 5, (4,), 2, 3, 1, 1),
    "volume": (4, 8, (3, 3, 3), 1, 1, 1, 1),
}
LINEARS = {"wide": (64, 96), "odd": (13, 17), "classifier": (96, 10), "one": (1, 3)}
ACTIVATIONS = [
    None,
    Activation("relu"),
    Activation("hardtanh", (0.0, 6.0)),
    Activation("hardswish"),
    Activation("silu"),
    Activation("gelu", ("none",)),
    Activation("gelu", ("tanh",)),
    Activation("leaky_relu", (0.1,)),
    Activation("sigmoid"),
]
ENDS: list[tuple[int, int | None]] = [(0, 0), (131, 255), (255, 113), (255, None), (0, None)]
"""Zero points of input and output; None is a float32 output."""
RESIDUALS = ["none", "uint8", "float32"]
INPUTS = ["random", "largest", "smallest", "alternating", "one tap"]
WEIGHTS = ["random", "largest", "smallest", "alternating", "one tap"]


def activations_of(kind: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """uint8 inputs of one kind."""
    q = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    if kind in ("largest", "smallest"):
        return torch.full_like(q, 255 if kind == "largest" else 0)
    if kind == "alternating":
        return (torch.arange(q.numel()).remainder(2) * 255).to(torch.uint8).view(shape)
    if kind == "one tap":
        single = torch.zeros_like(q)
        single.view(-1)[q.numel() // 2] = 255
        return single
    return q


def weights_of(kind: str, shape: tuple[int, ...], limit: int, generator: torch.Generator) -> Tensor:
    """int8 weights of one kind, within +-limit."""
    w = torch.randint(-limit, limit + 1, shape, dtype=torch.int8, generator=generator)
    if kind in ("largest", "smallest"):
        return torch.full_like(w, limit if kind == "largest" else -limit)
    if kind == "alternating":
        return (torch.arange(w.numel()).remainder(2) * 2 * limit - limit).to(torch.int8).view(shape)
    if kind == "one tap":
        single = torch.zeros_like(w)
        single.flatten(1)[:, w[0].numel() // 2] = limit
        return single
    return w


def layer(name: str, weight: Tensor, generator: torch.Generator, *, bias: bool = True, **settings: Any) -> QuantConv | QuantLinear:
    """A layer of a shape class whose output about fills the range of a scale of 0.05."""
    rows = weight.flatten(1).float().norm(dim=1).clamp_min(1.0)
    scale = (torch.rand(len(rows), generator=generator) + 0.5) / rows
    shift = torch.randn(len(rows), generator=generator) if bias else None
    if name in LINEARS:
        return QuantLinear(weight, scale, shift, **settings)
    _, _, kernel, stride, padding, dilation, groups = CONVS[name]
    geometry = {"stride": (stride,) * len(kernel), "padding": (padding,) * len(kernel), "dilation": (dilation,) * len(kernel)}
    return QuantConv(weight, scale, shift, **geometry, groups=groups, **settings)


def shapes(name: str, batch: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of the weight and of an input."""
    if name in LINEARS:
        c_in, c_out = LINEARS[name]
        return (c_out, c_in), (batch, 5, c_in)
    c_in, c_out, kernel, *_, groups = CONVS[name]
    return (c_out, c_in // groups, *kernel), (batch, c_in, *(9, 10, 7)[: len(kernel)])


def packed(reference: QuantConv | QuantLinear, **options: Any) -> PackedQuantConv | PackedQuantLinear:
    """The packed form."""
    return PackedQuantConv.of(reference, **options) if isinstance(reference, QuantConv) else PackedQuantLinear.of(reference)  # type: ignore[arg-type]


def settings_of(zero_in: int, zero_out: int | None, residual: str, activation: Activation | None) -> dict[str, Any]:
    """Quantization of input, output and residual."""
    return {
        "source": QParams(0.031, zero_in),
        "qparams": None if zero_out is None else QParams(0.053, zero_out),
        "residual": QParams(0.027, 255 - zero_in) if residual == "uint8" else None,
        "activation": activation,
    }


def differing(name: str, limit: int, seed: int, kinds: tuple[str, str], settings: dict[str, Any], residual: str) -> int:
    """How many elements of the packed layer's output differ from the reference."""
    generator = torch.Generator().manual_seed(seed)
    weight_shape, input_shape = shapes(name, 1 + seed % 2)
    weight = weights_of(kinds[0], weight_shape, limit, generator)
    q = activations_of(kinds[1], input_shape, generator)
    if q.dim() == 4 and seed % 3:
        q = q.contiguous(memory_format=torch.channels_last)
    reference = layer(name, weight, generator, bias=seed % 4 > 0, **settings)
    wanted, given = reference(q), None
    if residual != "none":
        floats = torch.randn(wanted.shape, generator=generator)
        given = floats if residual == "float32" else activations_of("random", tuple(wanted.shape), generator)
        wanted = reference(q, given)
    kept = None if given is None else given.clone()
    found = packed(reference)(q, given)
    assert found.shape == wanted.shape
    assert found.dtype is wanted.dtype
    assert given is None or torch.equal(given, kept)
    return int((found != wanted).sum())


def cases(name: str) -> Iterator[tuple[tuple[str, str], dict[str, Any], str]]:
    """Random values with everything, and adversarial values with a plain end."""
    for activation, (zero_in, zero_out), residual in itertools.product(ACTIVATIONS, ENDS, RESIDUALS):
        yield ("random", "random"), settings_of(zero_in, zero_out, residual, activation), residual
    for kinds, (zero_in, zero_out) in itertools.product(itertools.product(WEIGHTS, INPUTS), ((0, 77), (255, None))):
        yield kinds, settings_of(zero_in, zero_out, "none", Activation("relu")), "none"


def compare(name: str, limit: int) -> list[str]:
    """What differs for one shape class, as text."""
    wrong = []
    for seed, (kinds, settings, residual) in enumerate(cases(name)):
        count = differing(name, limit, seed, kinds, settings, residual)
        if count:
            wrong.append(f"{name} {kinds} {settings} residual={residual}: {count} differ")
    return wrong


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = [line for name in (*CONVS, *LINEARS) for line in compare(name, int(sys.argv[1]))]
    print("\n".join(found))
    sys.exit(bool(found))
