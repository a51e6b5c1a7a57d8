"""Asks the real int8 kernels of this process what saturates; prints JSON. Run by test_target_saturation.py in processes that
may not use VNNI."""

from __future__ import annotations

import itertools
import json
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fxcompress.targets.int8_kernels import int8_kernels
from fxcompress.targets.safe_weights import safe_weights
from fxcompress.targets.saturation import ANYWHERE, saturation


class Shape(NamedTuple):
    """A layer: weights (outputs, inputs per group, ...); one without kernel is a linear, with ``rows`` rows."""

    outputs: int
    inputs: int
    kernel: tuple[int, ...] = ()
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1
    rows: int = 1
    size: int = 9


SHAPES = {
    "1x1": Shape(16, 16, (1, 1)),
    "1x1 wide": Shape(64, 48, (1, 1), size=14),
    "1x1 strided": Shape(32, 32, (1, 1), stride=2),
    "1x1 odd": Shape(10, 17, (1, 1)),
    "3x3": Shape(16, 16, (3, 3), padding=1),
    "3x3 wide": Shape(64, 64, (3, 3), padding=1, size=14),
    "3x3 odd": Shape(5, 7, (3, 3), padding=1),
    "3x3 dilated": Shape(16, 16, (3, 3), padding=2, dilation=2),
    "3x3 strided": Shape(24, 24, (3, 3), padding=1, stride=2),
    "stem 7x7": Shape(64, 3, (7, 7), padding=3, stride=2, size=23),
    "stem 3x3": Shape(32, 3, (3, 3), padding=1, stride=2, size=17),
    "stem 4x4": Shape(48, 3, (4, 4), stride=4, size=16),
    "grouped 8": Shape(32, 8, (3, 3), padding=1, groups=4),
    "grouped 16": Shape(32, 16, (1, 1), groups=2),
    "grouped odd": Shape(24, 5, (3, 3), padding=1, groups=3),
    "grouped 4": Shape(64, 4, (3, 3), padding=1, groups=16),
    "depthwise 3x3": Shape(16, 1, (3, 3), padding=1, groups=16),
    "depthwise 5x5": Shape(24, 1, (5, 5), padding=2, groups=24, stride=2),
    "depthwise odd": Shape(7, 1, (3, 3), padding=1, groups=7),
    "depthwise multiplied": Shape(16, 1, (3, 3), padding=1, groups=8),
    "one channel": Shape(16, 1, (3, 3), padding=1),
    "one channel 7x7": Shape(16, 1, (7, 7), stride=2, size=15),
    "1d": Shape(16, 16, (3,), padding=1),
    "1d odd": Shape(16, 5, (5,)),
    "3d": Shape(16, 4, (3, 3, 3), padding=1, size=5),
    "linear": Shape(64, 128),
    "linear rows": Shape(40, 64, rows=197),
    "linear odd": Shape(10, 511, rows=7),
    "linear small": Shape(3, 3, rows=2),
}
_CONVS: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def kernel(shape: Shape, weight: Tensor, x: Tensor) -> Tensor:
    """The sums as the kernels give them, float32."""
    found, scale = int8_kernels(), torch.ones(shape.outputs)
    plain = (scale, torch.zeros(shape.outputs, dtype=torch.int32), None)
    raw = (1.0, 0, torch.float32, "none", [], "")
    if not shape.kernel:
        return found.linear(x, 1.0, 0, found.pack_linear(weight, None), *plain, *raw)
    if len(shape.kernel) == 1:
        where = ([1, shape.stride], [0, shape.padding], [1, shape.dilation], shape.groups)
        packed = found.pack_conv(weight.unsqueeze(2), scale, 1.0, 0, *where, None)
        return found.conv(x.unsqueeze(2), 1.0, 0, packed, *plain, *where, *raw).squeeze(2)
    where = tuple([n] * len(shape.kernel) for n in (shape.stride, shape.padding, shape.dilation))
    packed = found.pack_conv(weight, scale, 1.0, 0, *where, shape.groups, None)
    return found.conv(x, 1.0, 0, packed, *plain, *where, shape.groups, *raw)


def exact(shape: Shape, weight: Tensor, x: Tensor) -> Tensor:
    """The true sums, float64."""
    if not shape.kernel:
        return F.linear(x.double(), weight.double())
    conv = _CONVS[len(shape.kernel)]
    return conv(x.double(), weight.double(), None, shape.stride, shape.padding, shape.dilation, shape.groups)


def empty(shape: Shape, batch: int, fill: int = 0) -> Tensor:
    if not shape.kernel:
        return torch.full((max(batch, shape.rows), shape.inputs), fill, dtype=torch.uint8)
    size = max(shape.size, (max(shape.kernel) - 1) * shape.dilation + 1)
    return torch.full((batch, shape.inputs * shape.groups, *[size] * len(shape.kernel)), fill, dtype=torch.uint8)


def aimed(shape: Shape, weight: Tensor, sign: int) -> Tensor:
    """Inputs of which the n-th is 255 exactly where the n-th output channel has weights of this sign: the worst for each pair."""
    wanted = ((weight.sign() == sign) * 255).to(torch.uint8)
    x = empty(shape, shape.outputs)
    if not shape.kernel:
        x[: shape.outputs] = wanted
        return x
    for n in range(shape.outputs):
        group = n // (shape.outputs // shape.groups)
        channels = slice(group * shape.inputs, (group + 1) * shape.inputs)
        window = tuple(slice(0, (k - 1) * shape.dilation + 1, shape.dilation) for k in shape.kernel)
        start = tuple(slice(w.start + shape.stride, w.stop + shape.stride, w.step) for w in window) if _fits(shape) else window
        x[(n, channels, *start)] = wanted[n]
    return x


def _fits(shape: Shape) -> bool:
    return shape.padding == 0 and shape.size > (max(shape.kernel) - 1) * shape.dilation + shape.stride


def inputs(shape: Shape, weight: Tensor) -> list[Tensor]:
    chequered = empty(shape, 2)
    chequered.view(-1)[::2] = 255
    return [
        empty(shape, 2, 255),
        chequered,
        torch.randint(0, 256, empty(shape, 2).shape, dtype=torch.uint8),
        aimed(shape, weight, 1),
        aimed(shape, weight, -1),
    ]


def weights(shape: Shape) -> dict[str, Tensor]:
    size = (shape.outputs, shape.inputs, *shape.kernel)
    laplace = torch.distributions.Laplace(0.0, 1.0).sample(size)
    alternating = torch.full(size, 127, dtype=torch.int8)
    alternating.view(-1)[::3] = -127
    return {
        "largest": torch.full(size, 127, dtype=torch.int8),
        "smallest": torch.full(size, -127, dtype=torch.int8),
        "alternating": alternating,
        "uniform": torch.randint(-127, 128, size, dtype=torch.int8),
        "laplace": (laplace / laplace.abs().flatten(1).amax(1).view(-1, *[1] * (len(size) - 1)) * 127).round().to(torch.int8),
    }


def right(shape: Shape, weight: Tensor) -> bool:
    return all(torch.equal(kernel(shape, weight, x).double(), exact(shape, weight, x)) for x in inputs(shape, weight))


def meeting(shape: Shape, most: int = 500) -> list[tuple[int, int]]:
    """Pairs of positions (channel * taps + tap) in a row of the weight that the kernel adds in 16 bits."""
    positions = shape.inputs * int(torch.Size(shape.kernel).numel())
    pairs = list(itertools.combinations(range(positions), 2))
    taps = positions // shape.inputs
    near = [p for p in pairs if p[1] - p[0] in (1, taps, 2 * taps)]
    pairs = sorted({*pairs[:: -(-len(pairs) // most)], *near[:: -(-len(near) // most)]})
    shape, per = shape._replace(padding=0), shape.outputs // shape.groups
    x, found = empty(shape, 1, 255), []
    for start in range(0, len(pairs), per):
        part = pairs[start : start + per]
        weight = torch.zeros(shape.groups, per, positions, dtype=torch.int8)
        for row, pair in enumerate(part):
            weight[:, row, list(pair)] = 127
        weight = weight.view(shape.outputs, shape.inputs, *shape.kernel)
        wrong = kernel(shape, weight, x) != exact(shape, weight, x)
        by_channel = wrong.movedim(-1 if not shape.kernel else 1, 0).flatten(1).any(1).view(shape.groups, per).any(0)
        found += [pair for row, pair in enumerate(part) if by_channel[row]]
    return found


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    found = saturation()
    answers: dict[str, Any] = {"saturation": [found.pairs, found.taps], "shapes": {}}
    for name, shape in SHAPES.items():
        answer: dict[str, Any] = {
            "taps": int(torch.Size(shape.kernel).numel()),
            "meeting": meeting(shape),
            "raw": {},
            "safe": {},
            "portable": {},
        }
        for kind, weight in weights(shape).items():
            for key, machine in (("safe", found), ("portable", ANYWHERE)):
                safe = safe_weights(weight, torch.ones(shape.outputs), found=machine, groups=shape.groups)
                answer[key][kind] = right(shape, safe.integers)
            answer["raw"][kind] = right(shape, weight)
        answers["shapes"][name] = answer
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
