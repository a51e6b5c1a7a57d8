"""The modules of quantized graphs in files: they come back bit for bit, and a file cannot make ones that do not fit together."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_storage_modules import one_module, round_trip
from torch import Tensor, nn

from fxcompress.errors import ArchiveError
from fxcompress.ir.activation import Activation
from fxcompress.ir.fused import fuse
from fxcompress.quant.affine import QParams
from fxcompress.quant.dynamic import QuantizeRows, ScaleRows
from fxcompress.quant.elementwise import QuantActivation, QuantAdd, QuantMean, QuantMul
from fxcompress.quant.fake import FakeQuantize, fake_quantized
from fxcompress.quant.modules import Dequantize, QuantConv, Quantize, QuantLinear, Requantize
from fxcompress.quant.pooling import QuantAdaptiveAvgPool, QuantAvgPool, QuantMaxPool
from fxcompress.quant.stored import stored
from fxcompress.storage import load, quantized, save
from fxcompress.storage.container import read_file, write_file
from fxcompress.targets.int8_elementwise import fast_form
from fxcompress.targets.int8_modules import PackedQuantConv, PackedQuantLinear
from fxcompress.targets.int8_values import FastDequantize, FastQuantize, FastQuantizeRows, FastRequantize

GENERATOR = torch.Generator().manual_seed(0)
Q, R = QParams(0.1, 3), QParams(0.2, 70, 7)
INTEGERS = torch.randint(0, 256, (2, 4, 8, 8), dtype=torch.uint8, generator=GENERATOR)
FLOATS = torch.randn(2, 4, 8, 8, generator=GENERATOR)
WEIGHT = torch.randint(-127, 128, (6, 2, 3, 3), dtype=torch.int8, generator=GENERATOR)
SCALE, BIAS = torch.rand(6, generator=GENERATOR) + 0.1, torch.randn(6, generator=GENERATOR)
GEOMETRY: dict[str, Any] = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 2}
CONV = QuantConv(WEIGHT, SCALE, BIAS, **GEOMETRY, source=Q, qparams=R, activation=Activation("relu"))
ADD = QuantConv(WEIGHT, SCALE, None, **GEOMETRY, source=Q, residual=R, qparams=None)
LINEAR = QuantLinear(WEIGHT[:, 0, 0], SCALE, None, source=Q)
MAX, MEAN = QuantMaxPool((2, 2), (2, 2), (0, 0), (1, 1)), QuantMean(Q, None, (-1, -2), True)

CASES: list[tuple[nn.Module, tuple[Tensor, ...]]] = [
    (Quantize(Q), (FLOATS,)),
    (Dequantize(R), (INTEGERS,)),
    (Requantize(Q, R), (INTEGERS,)),
    (FakeQuantize(R), (FLOATS,)),
    (CONV, (INTEGERS,)),
    (ADD, (INTEGERS, INTEGERS[:, :1].repeat(1, 6, 1, 1))),
    (LINEAR, (INTEGERS[..., :3],)),
    (PackedQuantConv.of(CONV), (INTEGERS,)),
    (PackedQuantLinear.of(LINEAR), (INTEGERS[..., :3],)),
    (FastQuantize(Q, channels_last=True), (FLOATS,)),
    (FastDequantize(Q), (INTEGERS,)),
    (FastRequantize(Q, R), (INTEGERS,)),
    (QuantizeRows(), (FLOATS,)),
    (FastQuantizeRows(), (FLOATS,)),
    (ScaleRows(BIAS[:1].repeat(8), activation=Activation("gelu", ("none",))), (FLOATS, FLOATS[..., :1])),
    (fake_quantized(nn.Conv2d(4, 6, 3)), (FLOATS,)),
    (fake_quantized(fuse(nn.Linear(8, 3, bias=False), Activation("relu")), bits=4), (FLOATS,)),
    (stored(nn.Linear(8, 3), "int4"), (FLOATS,)),
    (stored(nn.Conv2d(4, 6, 3, padding="same"), "bfloat16"), (FLOATS,)),
    (stored(nn.Embedding(256, 5), "int8"), (INTEGERS.long(),)),
    (stored(nn.LSTM(8, 5, 2, bidirectional=True), "int8"), (FLOATS[0],)),
    (stored(nn.GRU(8, 5, bias=False), "float16"), (FLOATS[0],)),
]
for plain, inputs in (
    (QuantAdd(Q, R, Q, Activation("relu")), (INTEGERS, INTEGERS)),
    (QuantMul(Q, None, R), (INTEGERS, FLOATS)),
    (QuantActivation(Q, R, Activation("hardswish")), (INTEGERS,)),
    (MEAN, (INTEGERS,)),
    (MAX, (INTEGERS,)),
    (QuantAvgPool(Q, R, (2, 2), (2, 2), (0, 0), ceil_mode=True), (INTEGERS,)),
    (QuantAdaptiveAvgPool(Q, R, (None, 3)), (INTEGERS,)),
):
    fast = fast_form(plain)
    assert fast is not None
    CASES += [(plain, inputs), (fast, inputs)]


@pytest.mark.parametrize(("module", "inputs"), CASES, ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "")
def test_module_comes_back_bit_for_bit(module: nn.Module, inputs: tuple[Tensor, ...], tmp_path: Path) -> None:
    module = module.eval()
    loaded = round_trip(one_module(module, len(inputs)), tmp_path)
    with torch.no_grad():
        want, got = (m(*(t.clone() for t in inputs)) for m in (one_module(module, len(inputs)), loaded))
    torch.testing.assert_close(got, want, rtol=0, atol=0)
    layer = loaded.get_submodule("layer")
    assert type(layer) is type(module)
    assert repr(layer) == repr(module)
    assert list(layer.state_dict()) == list(module.state_dict())
    copy.deepcopy(loaded)


def test_every_class_has_a_case() -> None:
    assert {type(module) for module, _ in CASES} >= set(quantized.CLASSES)


# -- files that were made by somebody else ----------------------------------------------------------------------------------


def setting(name: str, value: Any) -> Callable[[dict[str, Any], dict[str, Tensor]], None]:
    def change(record: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        record["settings"][name] = value

    return change


def tensor(name: str, value: Tensor | None) -> Callable[[dict[str, Any], dict[str, Tensor]], None]:
    def change(record: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        if value is None:
            record["tensors"][name][1] = None
        else:
            tensors[f"layer.{name}"] = value

    return change


def without(name: str) -> Callable[[dict[str, Any], dict[str, Tensor]], None]:
    def change(record: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        record["tensors"].pop(name)

    return change


HOSTILE: dict[str, Callable[[dict[str, Any], dict[str, Tensor]], None]] = {
    "a scale per other channels": tensor("weight_scale", torch.ones(3)),
    "a scale that is not finite": tensor("weight_scale", torch.full((6,), float("nan"))),
    "an integer scale": tensor("weight_scale", torch.ones(6, dtype=torch.int64)),
    "no scale": without("weight_scale"),
    "a bias of another length": tensor("bias", torch.ones(60)),
    "float weights": tensor("weight", torch.ones(6, 2, 3, 3)),
    "a flat weight": tensor("weight", torch.ones(6, dtype=torch.int8)),
    "no weight": tensor("weight", None),
    "a stride of zero": setting("stride", {"tuple": [0, 1]}),
    "a stride for one axis": setting("stride", {"tuple": [1]}),
    "a stride that is text": setting("stride", "11"),
    "negative padding": setting("padding", {"tuple": [-1, 1]}),
    "no groups": setting("groups", 0),
    "groups that do not divide": setting("groups", 4),
    "no quantization": setting("source", None),
    "a scale of zero": setting("source", {"qparams": [0.0, 3, 8]}),
    "a scale that is infinite": setting("source", {"qparams": [{"float": "inf"}, 3, 8]}),
    "a huge scale": setting("source", {"qparams": [1e300, 3, 8]}),
    "a zero point outside": setting("source", {"qparams": [0.1, 256, 8]}),
    "nine bits": setting("source", {"qparams": [0.1, 3, 9]}),
    "a quantization of text": setting("source", {"qparams": "abc"}),
    "another setting": setting("forward", 3),
    "an activation that is text": setting("activation", "relu"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_layers(case: str, tmp_path: Path) -> None:
    save(one_module(CONV), tmp_path / "good.fxc")
    document, tensors = read_file(tmp_path / "good.fxc")
    document = json.loads(json.dumps(document))
    record = next(record for record in document["modules"] if record["path"] == "layer")
    before = dict(tensors)
    HOSTILE[case](record, tensors)
    for row in document["tensors"]:
        found = tensors[row["key"]]
        if found is not before[row["key"]]:
            row.pop("stride", None)
            row.update(dtype=str(found.dtype).removeprefix("torch."), shape=list(found.shape))
    write_file(tmp_path / "bad.fxc", document, tensors)
    with pytest.raises(ArchiveError):
        load(tmp_path / "bad.fxc")


def test_weights_of_a_recurrent_layer_are_checked(tmp_path: Path) -> None:
    save(one_module(stored(nn.GRU(8, 5), "int8")), tmp_path / "good.fxc")
    document, tensors = read_file(tmp_path / "good.fxc")
    record = next(record for record in document["modules"] if record["path"] == "layer")
    for name, value in (("hidden_size", 50), ("kind", "Linear"), ("num_layers", 3), ("num_layers", 10**9), ("has_bias", False)):
        changed = json.loads(json.dumps(document))
        next(r for r in changed["modules"] if r["path"] == "layer")["settings"][name] = value
        assert record["settings"][name] != value
        write_file(tmp_path / "bad.fxc", changed, tensors)
        with pytest.raises(ArchiveError):
            load(tmp_path / "bad.fxc")
