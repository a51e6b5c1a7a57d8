"""fold-scale against the modules themselves, in float64."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from algebra import CONV, TRANSPOSED, applied, execute, image, operations, outputs, randomise, reasons, relative, rewritten, sample
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn


class Fn(nn.Module):
    """``fn(layer, x, c)`` with a parameter ``c`` of the given shape."""

    def __init__(self, layer: nn.Module, fn: Callable[[nn.Module, Tensor, Tensor], Tensor], *shape: int) -> None:
        super().__init__()
        self.layer, self.fn, self.c = layer, fn, nn.Parameter(torch.empty(shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(self.layer, x, self.c)


def folded(module: nn.Module, *inputs: Tensor, left: int = 1, **kwargs: Any) -> Any:
    """Rewrite and check how many operations are left."""
    run = rewritten(module, "fold-scale", *inputs, **kwargs)
    assert operations(run.module) == left, reasons(run)
    return run


def refused(module: nn.Module, *inputs: Tensor, verify: bool = True) -> str:
    run = execute(module, "fold-scale", *inputs, verify=verify)
    assert applied(run) == 0
    return reasons(run)


NUMBERS: list[Callable[[nn.Module, Tensor, Tensor], Tensor]] = [
    lambda f, x, c: f(x) * 3,
    lambda f, x, c: 0.5 * f(x),
    lambda f, x, c: f(x) / 7,
    lambda f, x, c: f(x) + 2,
    lambda f, x, c: 2 + f(x),
    lambda f, x, c: f(x) - 2.5,
    lambda f, x, c: 2.5 - f(x),
    lambda f, x, c: f(x) * 0,
    lambda f, x, c: torch.add(f(x), 3, alpha=2),
    lambda f, x, c: torch.sub(f(x), 3, alpha=2),
    lambda f, x, c: f(x).mul(2).add(1).div(3),
    lambda f, x, c: torch.true_divide(f(x), 3),
]
PARAMETERS: list[Callable[[nn.Module, Tensor, Tensor], Tensor]] = [
    lambda f, x, c: f(x) * c,
    lambda f, x, c: c * f(x),
    lambda f, x, c: f(x) / c,
    lambda f, x, c: f(x) + c,
    lambda f, x, c: c - f(x),
    lambda f, x, c: f(x) - c,
    lambda f, x, c: torch.add(c, f(x), alpha=2),
    lambda f, x, c: torch.sub(c, f(x), alpha=2),
    lambda f, x, c: torch.sub(f(x), c, alpha=-2),
]


@pytest.mark.parametrize("fn", NUMBERS)
def test_numbers_after(fn: Callable[..., Tensor]) -> None:
    folded(randomise(Fn(nn.Conv2d(3, 4, 3, padding=1), fn, 1)), image(2, 3))
    folded(randomise(Fn(nn.Linear(5, 4, bias=False), fn, 1)), sample(2, 3, 5))


@pytest.mark.parametrize("fn", PARAMETERS)
@pytest.mark.parametrize("shape", [(4, 1, 1), (1, 4, 1, 1), (1, 1, 1), (), (1,)])
def test_parameters_after_conv(fn: Callable[..., Tensor], shape: tuple[int, ...]) -> None:
    folded(randomise(Fn(nn.Conv2d(2, 4, 3, padding=1, groups=2), fn, *shape)), image(2, 2), more=((image(2, 2, 3),),))


@pytest.mark.parametrize("fn", PARAMETERS)
@pytest.mark.parametrize("shape", [(4,), (1, 4), (1, 1, 4)])
def test_parameters_after_linear(fn: Callable[..., Tensor], shape: tuple[int, ...]) -> None:
    folded(randomise(Fn(nn.Linear(5, 4), fn, *shape)), sample(2, 3, 5))


@pytest.mark.parametrize("fn", PARAMETERS)
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_parameters_after_conv_transpose(fn: Callable[..., Tensor], axes: int) -> None:
    folded(randomise(Fn(TRANSPOSED[axes](4, 6, 3, stride=2, groups=2), fn, 6, *[1] * axes)), image(axes, 4))


def test_unbatched() -> None:
    folded(randomise(Fn(nn.Conv2d(3, 4, 3), lambda f, x, c: f(x) * c, 4, 1, 1)), sample(3, 7, 5))
    folded(randomise(Fn(nn.Linear(5, 4), lambda f, x, c: f(x) * c, 4)), sample(5))
    assert "shape" in refused(randomise(Fn(nn.Conv2d(3, 4, 3), lambda f, x, c: f(x) * c, 1, 4, 1, 1)), sample(3, 7, 5))


class LayerScale(nn.Module):
    """The end of a ConvNeXt block: linear, permute, one factor per channel."""

    def __init__(self, shape: tuple[int, ...], moves: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.linear, self.scale, self.moves = nn.Linear(5, 4), nn.Parameter(torch.empty(shape)), moves

    def forward(self, x: Tensor) -> Tensor:
        return self.moves(self.linear(x)) * self.scale


@pytest.mark.parametrize(
    ("shape", "moves", "left"),
    [
        ((4, 1, 1), lambda y: y.permute(0, 3, 1, 2), 2),
        ((4, 1, 1), lambda y: torch.permute(y, [0, -1, 1, 2]), 2),
        ((4, 1, 1), lambda y: y.transpose(1, 3), 2),
        ((1, 4, 1), lambda y: y.transpose(-1, -2), 2),
        ((4, 1, 1, 1), lambda y: y.permute(3, 2, 1, 0).transpose(1, 2).contiguous(), 4),
        ((1, 4, 1, 1), lambda y: y.permute(0, 3, 1, 2).transpose(0, 0), 3),
    ],
)
def test_through_moves(shape: tuple[int, ...], moves: Callable[[Tensor], Tensor], left: int) -> None:
    folded(randomise(LayerScale(shape, moves)), sample(2, 3, 6, 5), left=left)


def test_along_another_axis_is_refused() -> None:
    assert "varies along axis 3" in refused(randomise(LayerScale((4,), lambda y: y.permute(0, 1, 3, 2))), sample(2, 3, 4, 5))
    assert "varies along axis 1" in refused(randomise(LayerScale((3, 6, 1), lambda y: y)), sample(2, 3, 6, 5))
    assert "varies along axis 0" in refused(randomise(LayerScale((2, 1, 1, 1), lambda y: y)), sample(2, 3, 6, 5))
    assert "shape" in refused(randomise(LayerScale((2, 1, 1, 1), lambda y: y)), sample(1, 3, 6, 5))
    assert "shape" in refused(randomise(LayerScale((1, 1, 1, 1, 4), lambda y: y)), sample(1, 3, 6, 5))


def test_other_readers_are_refused() -> None:
    assert "also read by" in refused(randomise(Fn(nn.Linear(5, 5), lambda f, x, c: (y := f(x)) * c + torch.relu(y), 5)), sample(2, 5))
    moved = Fn(nn.Linear(5, 5), lambda f, x, c: (y := f(x).transpose(0, 1)) * 2 + torch.relu(y), 5)
    assert "also read by" in refused(randomise(moved), sample(2, 5))


BEFORE: list[Callable[[nn.Module, Tensor, Tensor], Tensor]] = [
    lambda f, x, c: f(x * c),
    lambda f, x, c: f(c * x),
    lambda f, x, c: f(x / c),
    lambda f, x, c: f(x * 3),
    lambda f, x, c: f(x / 255),
]
SHIFTS: list[Callable[[nn.Module, Tensor, Tensor], Tensor]] = [
    lambda f, x, c: f(x + c),
    lambda f, x, c: f((x - c) / 3),
    lambda f, x, c: f((x - 0.5) / c),
    lambda f, x, c: f(1 - x),
]


@pytest.mark.parametrize("fn", BEFORE)
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_scale_before(fn: Callable[..., Tensor], axes: int) -> None:
    folded(randomise(Fn(CONV[axes](4, 6, 3, padding=1, groups=2), fn, 4, *[1] * axes)), image(axes, 4))
    folded(randomise(Fn(TRANSPOSED[axes](4, 6, 3, stride=2, padding=1, groups=2), fn, 1, 4, *[1] * axes)), image(axes, 4))


@pytest.mark.parametrize("fn", SHIFTS)
def test_shift_before(fn: Callable[..., Tensor]) -> None:
    folded(randomise(Fn(nn.Conv2d(4, 6, 3, groups=2, bias=False), fn, 4, 1, 1)), image(2, 4))
    folded(randomise(Fn(nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), fn, 4, 1, 1)), image(2, 4))
    run = rewritten(randomise(Fn(nn.Conv2d(4, 6, 3, padding=1), fn, 4, 1, 1)), "fold-scale", image(2, 4))
    assert operations(run.module) == 2
    assert "zeros" in reasons(run)
    run = rewritten(randomise(Fn(nn.ConvTranspose2d(4, 6, 3), fn, 4, 1, 1)), "fold-scale", image(2, 4))
    assert "transposed" in reasons(run)


@pytest.mark.parametrize("fn", [*BEFORE, *SHIFTS])
def test_before_linear(fn: Callable[..., Tensor]) -> None:
    folded(randomise(Fn(nn.Linear(5, 4), fn, 5)), sample(2, 3, 5))
    folded(randomise(Fn(nn.Linear(5, 4), fn, 1, 5)), sample(2, 5))


def test_before_several_layers() -> None:
    folded(randomise(Fn(nn.Linear(5, 4), lambda f, x, c: (f(y := x * c), f(y)), 5)), sample(2, 5), left=2)
    assert "also read by" in refused(randomise(Fn(nn.Linear(5, 5), lambda f, x, c: f(y := x * c) + y, 5)), sample(2, 5))


@pytest.mark.parametrize(
    ("fn", "reason"),
    [
        (lambda f, x, c: f(x) * True, "bool"),
        (lambda f, x, c: f(x) / 0, "not finite"),
        (lambda f, x, c: f(x) * float("inf"), "not finite"),
        (lambda f, x, c: f(x) + float("nan"), "not finite"),
        (lambda f, x, c: f(x) * 1j, "dtype"),
        (lambda f, x, c: torch.div(f(x), 2, rounding_mode="floor"), "rounds (floor)"),
    ],
)
def test_constants_that_are_refused(fn: Callable[..., Tensor], reason: str) -> None:
    assert reason in refused(randomise(Fn(nn.Linear(5, 4), fn, 4)), sample(2, 5), verify=False)


def test_a_zero_in_a_divisor_is_refused() -> None:
    module: Any = randomise(Fn(nn.Linear(5, 4), lambda f, x, c: f(x) / c, 4))
    module.c.data[1] = 0
    assert "not finite" in refused(module, sample(2, 5))


class WithBuffer(nn.Module):
    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.register_buffer("value", value)

    def forward(self, x: Tensor) -> Any:
        return self.linear(x) * self.value


@pytest.mark.parametrize(("value", "fires"), [([1, -2, 3, 4], True), ([True, False, True, True], True), ([1j, 0, 2, 1], False)])
def test_constants_of_other_types(value: list[Any], fires: bool) -> None:
    module = WithBuffer(torch.tensor(value)).double().eval() if fires else WithBuffer(torch.tensor(value))
    x = sample(2, 3) if fires else torch.randn(2, 3)
    run = execute(module, "fold-scale", x)
    assert applied(run) == fires
    assert relative(module(x).abs(), run.module(x).abs()) < 1e-6


def test_a_constant_that_widens_is_refused() -> None:
    x = torch.randn(2, 3)
    assert "dtype" in refused(WithBuffer(torch.ones(4, dtype=torch.float64)), x)
    run = execute(WithBuffer(torch.tensor(2.0, dtype=torch.float64)), "fold-scale", x)  # no axes: float32 stays
    assert applied(run) == 1
    assert run.module(x).dtype == torch.float32


def test_an_integer_image_is_not_a_float_image() -> None:
    module = Fn(nn.Conv2d(3, 4, 3), lambda f, x, c: f(x / 255), 1)
    assert "dtype" in refused(module, torch.randint(0, 255, (1, 3, 8, 8), dtype=torch.uint8))


class Shared(nn.Module):
    """A layer called twice and a factor that is used twice, and read by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.c = nn.Linear(4, 4), nn.Parameter(torch.empty(4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.linear(torch.relu(self.linear(x)) * self.c)) * self.c + self.c


def test_shared_layers_and_constants() -> None:
    folded(randomise(Shared()), sample(2, 4), left=6)


class Written(nn.Module):
    """The factor is written in place by the network."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.count = nn.Linear(4, 4), nn.Parameter(torch.zeros(4), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x) * self.count
        self.count.add_(1)
        return y


def test_a_written_constant_is_left_alone() -> None:
    assert "written in place" in refused(Written().eval(), torch.randn(2, 4), verify=False)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    module = LayerScale((4, 1, 1), lambda y: y.permute(0, 3, 1, 2)).to(dtype)
    module.scale.data.fill_(0.3)
    x = torch.randn(2, 3, 3, 5).to(dtype)
    run = execute(module, "fold-scale", x)
    assert applied(run) == 1
    with torch.no_grad():
        assert relative(module.double()(x.double()), run.module(x).double()) < 8 * torch.finfo(dtype).eps
    module.to(dtype).scale.data.fill_(1e-6)
    assert applied(execute(module, "fold-scale", x)) == (dtype == torch.bfloat16)


@given(data=st.data())
def test_any_arithmetic(data: st.DataObject) -> None:
    """A chain of arithmetic around a layer; whatever is folded, the values stay."""
    axes, groups = data.draw(st.integers(0, 3)), data.draw(st.sampled_from([1, 2]))
    mode = data.draw(st.sampled_from(["zeros", "replicate"]))
    layer = CONV[axes](4, 4, 3, padding=data.draw(st.integers(0, 1)), groups=groups, padding_mode=mode) if axes else nn.Linear(4, 4)
    step = st.tuples(
        st.sampled_from([operator.add, operator.sub, operator.mul, operator.truediv]),
        st.sampled_from([-3, 2, 0.25, "channel", "scalar"]),
        st.booleans(),
    )
    before, after = data.draw(st.lists(step, max_size=2)), data.draw(st.lists(step, max_size=3))
    shapes = {"channel": (4, *[1] * axes), "scalar": ()}

    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer
            for name, shape in shapes.items():
                self.register_parameter(name, nn.Parameter(torch.empty(shape)))

        def apply_steps(self, x: Tensor, steps: list[Any]) -> Tensor:
            for fn, what, swap in steps:
                constant = getattr(self, what) if isinstance(what, str) else what
                x = fn(constant, x) if swap and fn is not operator.truediv else fn(x, constant)
            return x

        def forward(self, x: Tensor) -> Tensor:
            return self.apply_steps(self.layer(self.apply_steps(x, before)), after)

    module = randomise(Chain(), data.draw(st.integers(0, 20)))
    x = image(axes, 4) if axes else sample(3, 4)
    run = rewritten(module, "fold-scale", x)
    assert operations(run.module) <= 1 + len(before)
    assert outputs(run.module(x))


def test_convnext_layer_scales_go_into_the_linears() -> None:
    torchvision = pytest.importorskip("torchvision")
    module = randomise(torchvision.models.convnext_tiny(weights=None))
    with torch.no_grad():  # random weights of size 1 would blow up through 18 blocks
        for parameter in module.parameters():
            parameter.mul_(0.05)
    run = rewritten(module, "drop-noops,fold-scale", sample(1, 3, 32, 32))
    assert sum(step.rewrites for step in run.steps if step.text == "fold-scale") == 18
    assert not any("layer_scale" in str(node.target) for node in run.module.graph.nodes)
