"""8-bit weights on CPUs without VNNI: which sums saturate, asked of the real kernels, and weights with which none does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from saturating import SHAPES
from torch import Tensor

from fxcompress.targets.int8_kernels import int8_kernels
from fxcompress.targets.safe_weights import safe_weights
from fxcompress.targets.saturation import ANYWHERE, NOWHERE, Saturation, saturation, violations

needs_kernels = pytest.mark.skipif(int8_kernels().missing() is not None, reason="this torch has no int8 kernels")
SETS = ["SSE41", "AVX2", "AVX512_CORE"]
EVERY = [(isa, name) for isa in SETS for name in SHAPES]


@cache
def _answers(isa: str) -> dict[str, Any]:
    """What the kernels do in a process that may use no newer instructions."""
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": isa, "OMP_NUM_THREADS": "1"}
    script = Path(__file__).with_name("saturating.py")
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    answers: dict[str, Any] = json.loads(done.stdout)
    return answers


@needs_kernels
@pytest.mark.parametrize("isa", SETS)
def test_the_kernels_are_asked_and_not_the_name_of_the_cpu(isa: str) -> None:
    assert _answers(isa)["saturation"][0] is True


@needs_kernels
@pytest.mark.parametrize(("isa", "name"), EVERY)
def test_only_neighbouring_channels_at_one_tap_meet_in_16_bits(isa: str, name: str) -> None:
    answer, shape = _answers(isa)["shapes"][name], SHAPES[name]
    if shape.inputs == 1:
        depthwise = shape.outputs == shape.groups
        assert not answer["meeting"] or (_answers(isa)["saturation"][1] and not depthwise)
        return
    for first, second in answer["meeting"]:
        (channel, tap), (other, other_tap) = divmod(first, answer["taps"]), divmod(second, answer["taps"])
        assert channel % 2 == 0
        assert (other, other_tap) == (channel + 1, tap)


@needs_kernels
@pytest.mark.parametrize(("isa", "name"), EVERY)
def test_safe_weights_are_exact_for_the_worst_inputs(isa: str, name: str) -> None:
    answer = _answers(isa)["shapes"][name]
    assert all(answer["safe"].values()), answer["safe"]
    assert all(answer["portable"].values()), answer["portable"]


@needs_kernels
@pytest.mark.parametrize("name", ["1x1", "3x3 odd", "stem 7x7", "stem 3x3", "grouped 8", "1d", "3d", "linear", "linear odd"])
def test_the_same_inputs_show_saturation_where_weights_are_not_safe(name: str) -> None:
    raw = _answers("AVX2")["shapes"][name]["raw"]
    assert not raw["largest"]
    assert not raw["smallest"]
    assert not raw["uniform"]


@needs_kernels
def test_depthwise_is_exact_with_all_8_bits() -> None:
    for isa in SETS:
        for name in ("depthwise 3x3", "depthwise 5x5", "depthwise odd"):
            assert all(_answers(isa)["shapes"][name]["raw"].values())


def test_this_process_is_exact_where_it_says_so() -> None:
    weight = torch.full((16, 16), 127, dtype=torch.int8)
    assert isinstance(saturation(), Saturation)
    if saturation() == NOWHERE:
        assert safe_weights(weight, torch.ones(16), found=saturation()).reason is None


# -- the arithmetic of the rule, against the rule written out ---------------------------------------------------------


def _breaks(integers: Tensor, limit: int = 128) -> list[bool]:
    rows = integers.flatten(2).tolist() if integers.dim() > 2 else integers.unsqueeze(2).tolist()
    found = []
    for row in rows:
        bad = False
        for i in range(0, len(row) - 1, 2):
            for a, b in zip(row[i], row[i + 1], strict=True):
                bad |= max(a, 0) + max(b, 0) > limit or min(a, 0) + min(b, 0) < -limit
        found.append(bad)
    return found


@pytest.mark.parametrize("size", [(8, 6, 3, 3), (8, 7, 1, 1), (5, 9), (4, 3, 5), (3, 2, 2, 2, 2)], ids=str)
@pytest.mark.parametrize("limit", [60, 70, 127])
def test_violations_are_those_of_the_rule(size: tuple[int, ...], limit: int) -> None:
    integers = torch.randint(-limit, limit + 1, size, dtype=torch.int8, generator=torch.Generator().manual_seed(limit))
    assert violations(integers, 1, ANYWHERE).tolist() == _breaks(integers)
    assert not violations(integers, 1, NOWHERE).any()
    assert not violations(integers, 1, ANYWHERE, high=127).any()
    safe = safe_weights(integers, torch.ones(size[0]), found=ANYWHERE)
    assert not any(_breaks(safe.integers))
    assert int(safe.integers.abs().max()) <= 127


def test_the_bound_itself_is_allowed() -> None:
    assert not violations(torch.tensor([[64, 64], [-64, -64], [127, 1], [-127, 127]], dtype=torch.int8), 1, ANYWHERE).any()
    assert violations(torch.tensor([[64, 65], [-64, -65], [127, 2], [-127, -2]], dtype=torch.int8), 1, ANYWHERE).all()


def test_one_channel_per_group() -> None:
    taps = torch.tensor([[[100, 1, 29]], [[100, 1, 28]], [[-100, 20, -29]], [[-100, 127, -28]]], dtype=torch.int8)
    assert violations(taps, 1, ANYWHERE).tolist() == [True, False, True, False]
    assert not violations(taps, 1, Saturation(pairs=True, taps=False)).any()
    assert not violations(taps, 4, ANYWHERE).any()  # depthwise
    safe = safe_weights(taps, torch.ones(4), found=ANYWHERE)
    assert int(safe.integers[[0, 2]].abs().max()) <= 64
    assert torch.equal(safe.integers[[1, 3]], taps[[1, 3]])
    assert safe.channels == safe.coarser == 2
    assert 7 <= safe.bits < 7.1


def test_what_is_safe_stays_as_it_is() -> None:
    integers, scale = torch.randint(-64, 65, (8, 6, 3, 3), dtype=torch.int8), torch.rand(8)
    safe = safe_weights(integers, scale, found=ANYWHERE)
    assert safe.integers is integers
    assert safe.scale is scale
    assert safe.reason is None
    assert safe.bits == 8.0


def test_one_offending_pair_is_moved_and_nothing_else() -> None:
    integers = torch.randint(-60, 61, (4, 64, 3, 3), dtype=torch.int8)
    integers[2, 10:12, 1, 1] = torch.tensor([70, 65])
    integers[2, 0, 0, 0] = 127
    integers[2, 1, 0, 0] = 0
    safe = safe_weights(integers, torch.full((4,), 0.5), found=ANYWHERE)
    changed = (safe.integers != integers).nonzero().tolist()
    assert changed == [[2, 10, 1, 1], [2, 11, 1, 1]]
    assert safe.integers[2, 10:12, 1, 1].sum() == 128
    assert (safe.integers[2, 10:12, 1, 1] - integers[2, 10:12, 1, 1]).abs().max() == 4
    assert (safe.nudged, safe.coarser, safe.channels) == (2, 0, 1)
    assert torch.equal(safe.scale, torch.full((4,), 0.5))
    assert safe.reason is not None
    assert "1 of 4 output channels" in safe.reason


@pytest.mark.parametrize("kind", ["gauss", "laplace", "uniform"])
def test_less_is_lost_than_by_seven_bits(kind: str) -> None:
    torch.manual_seed(0)
    real = {"gauss": torch.randn, "uniform": lambda *s: torch.rand(*s) * 2 - 1}.get(kind, lambda *s: torch.randn(*s) * torch.randn(*s))(
        64, 64, 3, 3
    )
    scale = real.abs().flatten(1).amax(1) / 127
    view = scale.view(-1, 1, 1, 1)
    safe = safe_weights((real / view).round().to(torch.int8), scale, found=ANYWHERE, weight=real)
    error = float((safe.integers * safe.scale.view(-1, 1, 1, 1) - real).square().sum())
    seven = ((real / view * 63 / 127).round() * view * 127 / 63 - real).square().sum()
    assert error < float(seven) * (1.02 if kind == "uniform" else 0.6)


def test_the_integers_that_somebody_chose_count_where_no_float_weights_are_given() -> None:
    chosen = torch.randint(-50, 51, (2, 8, 3, 3), dtype=torch.int8)
    chosen[0, 0:2, 0, 0] = torch.tensor([90, 40])
    safe = safe_weights(chosen, torch.ones(2), found=ANYWHERE)
    assert int((safe.integers != chosen).sum()) == 2
