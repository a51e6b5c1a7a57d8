"""Times of layers in float32 and int8: measured, remembered, or from a table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from fxcompress.errors import InputError
from fxcompress.ir.activation import Activation
from fxcompress.ir.fused import fuse
from fxcompress.targets import int8_speed, int8_table
from fxcompress.targets.int8_kernels import int8_kernels
from fxcompress.targets.int8_speed import Int8Speed, LayerForm, form_of
from fxcompress.targets.int8_table import Table

DENSE = LayerForm((1, 64, 56, 56), 64, (3, 3), (1, 1), (1, 1), (1, 1))
DEPTHWISE = LayerForm((1, 144, 56, 56), 144, (3, 3), (1, 1), (1, 1), (1, 1), 144)
EXCITE = LayerForm((1, 240, 1, 1), 10, (1, 1), (1, 1), (0, 0), (1, 1))
needs_kernels = pytest.mark.skipif(int8_kernels().missing() is not None, reason="this torch has no int8 kernels")


def test_the_form_of_a_layer() -> None:
    conv = nn.Conv2d(16, 32, (3, 5), stride=2, padding=(1, 2), groups=4, dilation=(1, 2))
    form = form_of(conv, (2, 16, 20, 30))
    assert (form.inputs, form.outputs, form.kernel, form.padding, form.groups) == (16, 32, (3, 5), (1, 2), 4)
    y = conv(torch.zeros(2, 16, 20, 30))
    assert form.pixels == 2 * y.shape[2] * y.shape[3]
    assert form.macs == form.pixels * 32 * 4 * 15
    assert form_of(nn.Linear(5, 7), (2, 3, 5)).macs == 6 * 35
    fused = fuse(nn.Conv1d(4, 6, 3, padding="same"), Activation("relu"))
    assert form_of(fused, (1, 4, 9)).activation == Activation("relu")
    assert form_of(fused, (1, 4, 9)).pixels == 9
    with pytest.raises(InputError, match="ReLU"):
        form_of(nn.ReLU(), (1, 4))


def test_names_tell_all_forms_apart() -> None:
    forms = [DENSE, DEPTHWISE, EXCITE, LayerForm((1, 64), 10), LayerForm((1, 64), 10, activation=Activation("relu"))]
    assert len({str(form) for form in forms}) == len(forms)


@pytest.mark.parametrize("rates", [int8_table._VNNI, int8_table._AVX2], ids=["vnni", "avx2"])
def test_the_table_knows_what_pays(rates: tuple[int8_table.Rates, int8_table.Rates]) -> None:
    table = Table(*rates)
    ratios = {form: table.seconds(form)[0] / table.seconds(form)[1] for form in (DENSE, DEPTHWISE, EXCITE)}
    assert ratios[DENSE] > 1.8
    assert ratios[DEPTHWISE] < 1.05
    assert ratios[EXCITE] < 0.5
    grouped = LayerForm((1, 48, 28, 28), 48, (3, 3), (1, 1), (1, 1), (1, 1), 8)
    in_float, in_int8 = table.seconds(grouped)
    assert (in_int8 > 10 * in_float) == (rates is int8_table._AVX2)  # the reference kernel


def test_threads_share_the_work_and_not_the_call() -> None:
    one, four = (Table(*int8_table._VNNI, threads=n).seconds(DENSE) for n in (1, 4))
    assert all(a / 4 < b < a / 2 for a, b in zip(one, four, strict=True))
    big = LayerForm((1, 64), 10)
    assert Table(*int8_table._VNNI, threads=4).seconds(big)[1] > 30e-6


def test_an_empty_batch_takes_no_time_to_compute() -> None:
    for speed in (Int8Speed("table"), Int8Speed("measure")):
        assert all(0 < t < 1e-4 for t in speed(nn.Conv2d(3, 4, 3), (0, 3, 8, 8)))
        assert all(0 < t < 1e-4 for t in speed(nn.Linear(3, 4), (0, 3)))


@needs_kernels
def test_measured_times_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "int8.json"
    speed = Int8Speed("measure", cache=path)
    layer = fuse(nn.Conv2d(64, 64, 3, padding=1), Activation("relu"))
    first = speed(layer, (1, 64, 28, 28))
    assert speed.measured == 1
    assert speed(layer, (1, 64, 28, 28)) == first
    assert speed.measured == 1
    assert speed(nn.Linear(32, 8), (4, 32)) != first
    speed.store()
    again = Int8Speed("measure", cache=path)
    assert again(layer, (1, 64, 28, 28)) == first
    assert again.measured == 0
    assert not again.remarks
    (machine,) = json.loads(path.read_text())["seconds"]
    assert torch.__version__ in machine
    assert f"{torch.get_num_threads()} threads" in machine


@needs_kernels
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(8, 8, 3, padding="same"), (1, 8, 20)),
        (nn.Conv3d(4, 8, 3), (1, 4, 5, 6, 7)),
        (nn.Conv2d(16, 16, 3, groups=16), (2, 16, 9, 9)),
        (nn.Conv2d(16, 16, 3, padding=(2, 1), dilation=2, groups=2), (2, 16, 9, 9)),
        (fuse(nn.Linear(16, 16), Activation("gelu", ("none",))), (2, 3, 16)),
        (fuse(nn.Conv2d(3, 8, 1), Activation("mish")), (1, 3, 4, 4)),
    ],
    ids=str,
)
def test_every_kind_of_layer_can_be_measured(layer: nn.Module, shape: tuple[int, ...]) -> None:
    speed = Int8Speed("measure")
    assert all(t > 0 for t in speed(layer, shape))
    assert speed.measured == 1


def test_without_time_left_the_table_answers() -> None:
    speed = Int8Speed("measure", budget=0.0)
    assert speed.of(DENSE) == Int8Speed("table").of(DENSE)
    assert speed.measured == 0


def test_a_damaged_cache_is_told_and_not_used(tmp_path: Path) -> None:
    path = tmp_path / "int8.json"
    path.write_text("{")
    speed = Int8Speed("measure", cache=path)
    assert speed.remarks


def test_other_modes_are_refused() -> None:
    with pytest.raises(InputError, match="write 'measure' or 'table'"):
        Int8Speed("guess")  # type: ignore[arg-type]


@needs_kernels
def test_the_kernels_that_are_raced_are_those_that_will_run() -> None:
    built = int8_speed._built(DENSE)
    assert built is not None
    assert built[0]().dtype is torch.float32
    assert built[1]().dtype is torch.uint8
    assert built[0]().shape == built[1]().shape
