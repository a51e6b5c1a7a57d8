"""merge-branches against the modules themselves, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from algebra import CONV, NORM, applied, count, execute, image, operations, outputs, randomise, reasons, rewritten, sample
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fxcompress.analysis import Cost
from fxcompress.ir.inputs import Inputs
from fxcompress.pipeline import Pipeline


class Sum(nn.Module):
    """The sum of branches; ``nn.Identity`` stands for the input itself."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        parts = [x if isinstance(branch, nn.Identity) else branch(x) for branch in self.branches]
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total


def merged(module: nn.Module, *inputs: Tensor, left: int = 1, **kwargs: Any) -> Any:
    run = rewritten(module, "merge-branches", *inputs, **kwargs)
    assert operations(run.module) == left, reasons(run)
    return run


def refused(module: nn.Module, *inputs: Tensor) -> str:
    run = rewritten(module, "merge-branches", *inputs)
    assert applied(run) == 0
    return reasons(run)


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("affine", [True, False])
def test_repvgg(axes: int, groups: int, affine: bool) -> None:
    module = Sum(
        CONV[axes](6, 6, 3, padding=1, groups=groups, bias=False),
        CONV[axes](6, 6, 1, groups=groups),
        NORM[axes](6, affine=affine),
        nn.Identity(),
    )
    merged(randomise(module), image(axes, 6), more=((image(axes, 6, 1),),))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("stride", [1, 2])
def test_asymmetric_kernels(order: tuple[int, ...], stride: int) -> None:
    convs = [nn.Conv2d(3, 4, (a, b), stride, padding=(a // 2, b // 2)) for a, b in ((3, 3), (1, 3), (3, 1))]
    merged(randomise(Sum(*(convs[i] for i in order))), image(2, 3), more=((sample(2, 3, 8, 6),),))


@pytest.mark.parametrize("padding", ["same", 4])
@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular"])
def test_dilation_and_padding(padding: Any, mode: str) -> None:
    """A 3x3 with dilation 2 has its taps among those of a 5x5; a kernel of size 1 may have any dilation."""
    five, three = nn.Conv2d(3, 3, 5, padding=2, padding_mode=mode), nn.Conv2d(3, 3, 3, padding=2, dilation=2, padding_mode=mode)
    merged(randomise(Sum(five, three, nn.Conv2d(3, 3, 1, dilation=3), nn.BatchNorm2d(3))), image(2, 3))
    wide = nn.Conv2d(3, 3, 5, padding=padding, dilation=2, padding_mode=mode)
    merged(randomise(Sum(nn.Identity(), wide)), sample(2, 3, 9, 9))


def test_groups_inside_groups() -> None:
    """What has finer groups goes into what has coarser ones."""
    parts = [nn.Conv2d(8, 16, 3, padding=1, groups=groups) for groups in (1, 2, 4, 8)]
    merged(randomise(Sum(*reversed(parts))), image(2, 8))
    merged(randomise(Sum(parts[1], parts[2], nn.Conv2d(8, 16, 1, groups=8))), image(2, 8))
    assert "groups are not parts" in refused(randomise(Sum(nn.Conv2d(6, 6, 3, groups=2), nn.Conv2d(6, 6, 3, groups=3))), image(2, 6))
    assert "does not fit" in refused(randomise(Sum(nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 3, padding=1, groups=16))), image(2, 16))


def test_padding_that_is_not_there_needs_no_common_mode() -> None:
    merged(randomise(Sum(nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"), nn.Conv2d(3, 3, 1), nn.Identity())), image(2, 3))
    other = nn.Conv2d(3, 3, (1, 3), padding=(0, 1))
    assert "padding modes" in refused(randomise(Sum(nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"), other)), image(2, 3))


@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_even_kernels() -> None:
    same = nn.Conv2d(3, 3, 4, padding="same")
    merged(randomise(Sum(same, nn.Conv2d(3, 3, 1), nn.Identity(), nn.Conv2d(3, 3, 2, padding="same"))), image(2, 3))
    assert "one size for every input" in refused(
        randomise(Sum(nn.Conv2d(3, 3, 2, stride=2), nn.Conv2d(3, 3, 1, stride=2))), sample(1, 3, 8, 8)
    )


@pytest.mark.parametrize("shape", [(5,), (2, 5), (2, 3, 5)])
def test_linears(shape: tuple[int, ...]) -> None:
    merged(randomise(Sum(nn.Linear(5, 5), nn.Linear(5, 5, bias=False), nn.Identity(), nn.Identity())), sample(*shape))
    merged(randomise(Sum(nn.Linear(5, 4), nn.Linear(5, 4))), sample(*shape))


def test_linear_and_norm() -> None:
    merged(randomise(Sum(nn.Linear(5, 5), nn.BatchNorm1d(5))), sample(3, 5))
    assert "channels of" in refused(randomise(Sum(nn.Linear(5, 5), nn.BatchNorm1d(3))), sample(2, 3, 5))


def test_unbatched() -> None:
    merged(randomise(Sum(nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1), nn.Identity())), sample(3, 7, 5))
    assert "channels of" in refused(randomise(Sum(nn.Conv1d(3, 3, 3, padding=1), nn.BatchNorm1d(7))), sample(3, 7))


class Rest(nn.Module):
    """Branches among other addends, with one more reader of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return torch.relu(x) + (self.a(x) + z + (self.b(x) + self.c(z))) + x


def test_other_addends_stay() -> None:
    merged(randomise(Rest()), image(2, 3), image(2, 3, seed=5), left=5, more=((image(2, 3), sample(1, 3, 1, 1)),))


@pytest.mark.parametrize(
    ("branches", "reason"),
    [
        ((nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=2, dilation=2)), "kernels with other places"),
        ((nn.Conv2d(3, 1, 3, padding=1), nn.Conv2d(3, 3, 1)), ""),  # the sum broadcasts
        ((nn.Conv2d(3, 3, 3, padding=1), nn.ConvTranspose2d(3, 3, 1)), ""),
        ((nn.Conv2d(3, 3, 3, stride=9), nn.Conv2d(3, 3, 3, stride=8)), "strides"),
    ],
)
def test_refusals(branches: tuple[nn.Module, ...], reason: str) -> None:
    assert reason in refused(randomise(Sum(*branches)), image(2, 3))


def test_broadcast_residual_is_not_an_identity() -> None:
    assert refused(randomise(Sum(nn.Conv2d(1, 4, 3, padding=1), nn.Identity())), image(2, 1)) == ""


def test_norms_that_are_not_fixed_are_refused() -> None:
    norm = nn.BatchNorm2d(3, track_running_stats=False)
    assert "no running statistics" in refused(randomise(Sum(nn.Conv2d(3, 3, 1), norm)), image(2, 3))
    module: Any = randomise(Sum(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)))
    module.branches[1].train()
    assert "training mode" in reasons(execute(module, "merge-branches", image(2, 3)))


class Alpha(Sum):
    def forward(self, x: Tensor) -> Tensor:
        return torch.add(self.branches[0](x), self.branches[1](x), alpha=2)


def test_alpha_is_no_plain_sum() -> None:
    assert refused(randomise(Alpha(nn.Linear(5, 5), nn.Linear(5, 5))), sample(2, 5)) == ""


class Other(Sum):
    """A branch has another reader."""

    def forward(self, x: Tensor) -> Any:
        a, b = self.branches[0](x), self.branches[1](x)
        return a + b, b


def test_another_reader_is_refused() -> None:
    for branches in ((nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)), (nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 3, padding=1))):
        assert "also read by output" in refused(randomise(Other(*branches)), image(2, 3))


class Shared(nn.Module):
    """One convolution in two branches and in another sum, one with a tied weight, a norm that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.a(x) + self.a(x) + self.b(x) + self.norm(x))
        z = self.a(y)
        return self.b(torch.relu(z + z + self.norm(y) + (y + y)))


def test_shared_modules_and_repeated_addends() -> None:
    merged(randomise(Shared()), image(2, 3), left=5)


class Written(Sum):
    def forward(self, x: Tensor) -> Tensor:
        x = x + 1
        y = self.branches[0](x)
        x[:, 0].mul_(2)
        return y + self.branches[1](x)


def test_an_overwritten_input_is_left_alone() -> None:
    assert "written in place" in refused(randomise(Written(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))), image(2, 3))


class RepVGGBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.wide = nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, groups=groups, bias=False), nn.BatchNorm2d(outputs))
        self.narrow = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, groups=groups, bias=False), nn.BatchNorm2d(outputs))
        self.identity = nn.BatchNorm2d(outputs) if inputs == outputs and stride == 1 else None
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        rest = 0 if self.identity is None else self.identity(x)
        return self.act(self.wide(x) + self.narrow(x) + rest)


class RepVGG(nn.Sequential):
    def __init__(self) -> None:
        blocks = [RepVGGBlock(3, 8, 2), RepVGGBlock(8, 8, groups=2), RepVGGBlock(8, 16, 2), RepVGGBlock(16, 16)]
        super().__init__(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))


def test_a_whole_repvgg() -> None:
    run = rewritten(randomise(RepVGG()), "fold-norm,merge-branches,fold-scale", sample(2, 3, 33, 31), more=((sample(1, 3, 64, 64),),))
    assert count(run.module, nn.Conv2d) == 4
    assert count(run.module, nn.BatchNorm2d) == 0
    assert operations(run.module) == 4 * 2 + 3


class MobileOneBlock(nn.Module):
    """Several equal branches, summed in a loop that starts with 0."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.skip = nn.BatchNorm2d(width)
        self.scale = nn.Sequential(nn.Conv2d(width, width, 1, groups=width, bias=False), nn.BatchNorm2d(width))
        self.convs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, 1, 1, groups=width, bias=False), nn.BatchNorm2d(width)) for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Any = 0
        for conv in self.convs:
            out += conv(x)
        return torch.relu(self.scale(x) + self.skip(x) + out)


def test_a_mobileone_block() -> None:
    run = rewritten(randomise(MobileOneBlock(6)), "fold-norm,fold-scale,merge-branches", image(2, 6))
    assert operations(run.module) == 2


def test_meta_tensors() -> None:
    with torch.device("meta"):
        graph = torch.fx.symbolic_trace(Sum(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Identity()).eval())
        run = Pipeline.parse("functionalize,merge-branches").execute(graph, Inputs((torch.ones(1, 3, 8, 8),)), verify=False)
    assert operations(run.module) == 1


def test_parameters_keep_what_the_user_gave_them() -> None:
    module = (
        Sum(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)).eval().to(memory_format=torch.channels_last)
    )
    conv: Any = execute(module.requires_grad_(False).bfloat16(), "merge-branches", torch.randn(1, 4, 8, 8).bfloat16()).module.branches
    conv = conv.get_submodule("0")
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert (conv.weight.dtype, conv.bias.dtype) == (torch.bfloat16, torch.bfloat16)
    assert not any(p.requires_grad for p in conv.parameters())


@given(data=st.data())
def test_any_branches(data: st.DataObject) -> None:
    """Random branches that add up without broadcasting; multiply-adds never grow."""
    axes, stride = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 2))
    branches: list[nn.Module] = []
    for _ in range(data.draw(st.integers(2, 4))):
        kind = data.draw(st.sampled_from(["conv", "conv", "identity", "norm"]))
        if kind == "conv" or stride > 1:
            kernel, dilation = [data.draw(st.sampled_from([1, 3, 5])) for _ in range(axes)], data.draw(st.integers(1, 2))
            padding = tuple(dilation * (k - 1) // 2 for k in kernel)
            mode = data.draw(st.sampled_from(["zeros", "zeros", "replicate"]))
            groups, bias = data.draw(st.sampled_from([1, 2, 4])), data.draw(st.booleans())
            branches.append(CONV[axes](4, 4, tuple(kernel), stride, padding, dilation, groups, bias, mode))
        else:
            branches.append(nn.Identity() if kind == "identity" else NORM[axes](4))
    module, x = randomise(Sum(*branches), data.draw(st.integers(0, 99))), image(axes, 4)
    run = rewritten(module, "merge-branches", x)
    before, after = (Cost.of(graph, Inputs((x,))) for graph in (torch.fx.symbolic_trace(module), run.module))
    assert after.macs <= before.macs
    assert outputs(run.module(x))
