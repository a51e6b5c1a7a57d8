"""Layers with small weights, the passes ``weight-only`` and ``dynamic``, against arithmetic written here."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rewriting import kinds, missed, randomized
from torch import Tensor, nn

import fxcompress
from fxcompress import Inputs, Int8, Pipeline, errors
from fxcompress.api import REWRITES
from fxcompress.ir.activation import Activation
from fxcompress.ir.fused import fuse
from fxcompress.quant.dynamic import QuantizeRows
from fxcompress.quant.patterns import fits
from fxcompress.quant.stored import narrowed, stored, why_not_stored


def rounded(weight: Tensor, storage: str) -> Tensor:
    """The weights in float64 after they were stored."""
    if storage in ("float16", "bfloat16"):
        return weight.to(getattr(torch, storage)).double()
    limit = 127 if storage == "int8" else 7
    axes = tuple(range(1, weight.dim()))
    scale = (weight.double().abs().amax(axes, keepdim=True) / limit).float().double()
    return (weight.double() / scale).nan_to_num().round() * scale


STORAGES = ["int8", "int4", "float16", "bfloat16"]
LAYERS: list[tuple[Any, tuple[int, ...]]] = [
    (nn.Linear(9, 5), (2, 3, 9)),
    (nn.Linear(9, 5, bias=False), (9,)),
    (nn.Conv1d(4, 6, 3, padding="same", dilation=2), (2, 4, 11)),
    (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (2, 4, 8, 7)),
    (nn.Conv2d(4, 6, (3, 1), bias=False), (4, 8, 7)),
    (nn.Conv3d(2, 3, 2), (1, 2, 4, 5, 6)),
    (fuse(nn.Linear(9, 5), Activation("relu")), (2, 9)),
    (fuse(nn.Conv2d(4, 6, 1), Activation("hardtanh", (0.0, 6.0))), (1, 4, 5, 5)),
    (nn.LSTM(7, 5, 2, bidirectional=True), (4, 3, 7)),
    (nn.LSTM(7, 5, proj_size=3, batch_first=True), (4, 3, 7)),
    (nn.GRU(7, 5, 2, batch_first=True, dropout=0.2), (4, 3, 7)),
    (nn.RNN(7, 5, nonlinearity="relu", bias=False), (4, 7)),
]


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "")
def test_a_layer_computes_with_its_rounded_weights(layer: Any, shape: tuple[int, ...], storage: Any) -> None:
    layer = randomized(copy.deepcopy(layer))
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    x = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    exact = copy.deepcopy(layer).double()
    with torch.no_grad():
        for name, parameter in exact.named_parameters():
            if parameter.dim() > 1:
                parameter.copy_(rounded(before[name], storage))
        small = stored(layer, storage)
        torch.testing.assert_close(small(x), torch.utils._pytree.tree_map(Tensor.float, exact(x.double())), rtol=1e-5, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    floats = sum(t.numel() * t.element_size() for t in before.values())
    assert sum(t.numel() * t.element_size() for t in small.state_dict().values()) < floats
    assert not list(small.parameters())


@pytest.mark.parametrize("storage", STORAGES)
def test_an_embedding(storage: Any) -> None:
    layer = nn.Embedding(20, 6, padding_idx=3)
    index = torch.tensor([[0, 3, 19], [7, 7, 1]])
    got = stored(layer, storage)(index)
    assert got.dtype is torch.float32
    torch.testing.assert_close(got.double(), rounded(layer.weight.detach(), storage)[index], rtol=1e-6, atol=1e-6)
    zero = stored(layer, storage)(torch.tensor(3))
    assert not zero.any()


def test_residuals_are_added_before_the_activation() -> None:
    layer: Any = fuse(nn.Conv2d(4, 6, 1), Activation("relu"))
    x, residual = torch.randn(2, 4, 5, 5), torch.randn(2, 6, 5, 5)
    small: Any = stored(layer, "int8")
    plain = nn.Conv2d(4, 6, 1)
    plain.load_state_dict(layer.state_dict())
    with torch.no_grad():
        plain.weight.copy_(rounded(plain.weight, "int8"))
        torch.testing.assert_close(small(x, residual), F.relu(plain(x) + residual), rtol=1e-5, atol=1e-5)


def test_extreme_weights() -> None:
    weight = torch.tensor([[1e30, -1e30], [0.0, 0.0], [1e-38, 3e-39]])
    integers, scale = narrowed(weight, "int8")
    assert scale is not None
    assert integers.tolist()[:2] == [[127, -127], [0, 0]]
    assert torch.isfinite(integers * scale[:, None]).all()
    with pytest.raises(errors.InputError, match="too large for float16"):
        narrowed(weight, "float16")


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"), "reflect"),
        (nn.Embedding(3, 2, max_norm=1.0), "max_norm"),
        (nn.ConvTranspose2d(2, 2, 3), "ConvTranspose2d"),
        (nn.ReLU(), "ReLU"),
    ],
)
def test_what_has_no_small_form(layer: nn.Module, words: str) -> None:
    assert words in (why_not_stored(layer) or "")


def test_patterns() -> None:
    assert fits("layer1.0.conv", ("layer1",))
    assert fits("layer1.0.conv", ("*.conv",))
    assert fits("layer1.0.conv", ("layer[12].*",))
    assert not fits("layer1.0.conv", ("conv", "layer2", "layer"))
    assert not fits("layer1", ())


class Text(nn.Module):
    """An embedding, recurrent layers and linears."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.read = nn.Embedding(50, 16), nn.LSTM(16, 24, batch_first=True, bidirectional=True)
        self.hidden, self.head = nn.Linear(48, 33), nn.Linear(33, 5)

    def forward(self, index: Tensor) -> Tensor:
        x, _ = self.read(self.words(index))
        return self.head(torch.relu(self.hidden(x)))


INDEX = torch.randint(0, 50, (3, 11), generator=torch.Generator().manual_seed(2))


def run(text: str) -> Any:
    torch.manual_seed(0)
    graph = fxcompress.trace(Text().eval(), INDEX)
    return Pipeline.parse(f"{REWRITES},{text}").execute(graph, Inputs.of(INDEX))


class TestWeightOnly:
    @pytest.mark.parametrize("storage", STORAGES)
    def test_every_layer(self, storage: str) -> None:
        found = run(f"weight-only{{patterns=['*'],storage={storage}}}")
        assert kinds(found) == ["StoredEmbedding", "StoredRecurrent", "getitem", "StoredLinear", "StoredLinear"]
        assert found.proof.error64.relative < 1e-12
        assert found.proof.note.endswith("against their references")

    def test_by_name(self) -> None:
        found = run("weight-only{patterns=[read,head]}")
        assert kinds(found) == ["Embedding", "StoredRecurrent", "getitem", "FusedLinear", "StoredLinear"]
        assert not run("weight-only").steps[-1].changed

    def test_shared_weights_stay(self) -> None:
        model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
        model[2].weight = model[0].weight
        graph = fxcompress.trace(model.eval(), torch.randn(2, 4))
        found = Pipeline.parse("functionalize,weight-only{patterns=['0']}").execute(graph, Inputs.of(torch.randn(2, 4)))
        assert not found.steps[-1].changed
        assert "shares a weight with '2'" in missed(found)

    def test_the_call(self, tmp_path: Any) -> None:
        model = Text().eval()
        options = Int8(static=False, weight_only=("words", "read"), dynamic=("head",))
        q: Any = fxcompress.quantize(model, INDEX, options, target="cpu")
        forms = {line.node: line.form for line in q.report.quantized.lines}
        assert forms == {"words": "int8 weights", "read": "int8 weights", "head": "int8"}
        q.save(tmp_path / "q.fxc")
        assert torch.equal(fxcompress.load(tmp_path / "q.fxc")(INDEX), q(INDEX))
        assert copy.deepcopy(q)(INDEX[:1]).shape == (1, 11, 5)


class TestDynamic:
    def test_a_linear_and_a_recurrent_layer(self) -> None:
        found = run("dynamic{patterns=['*']}")
        rows = ["QuantizeRows", "getitem", "getitem", "QuantLinear", "ScaleRows"]
        assert kinds(found) == ["Embedding", "StoredRecurrent", "getitem", *rows, *rows]

    def test_against_integer_arithmetic(self) -> None:
        layer = nn.Linear(33, 5)
        x = torch.randn(4, 7, 33) * torch.logspace(-3, 3, 7)[:, None]
        graph = fxcompress.trace(nn.Sequential(layer).eval(), x)
        found = Pipeline.parse("functionalize,dynamic{patterns=['*']}").execute(graph, Inputs.of(x)).module
        w_scale = (layer.weight.detach().double().abs().amax(1) / 127).float()
        integers = (layer.weight.detach().double() / w_scale.double()[:, None]).round().long()
        scale = x.abs().amax(-1, keepdim=True) / 127
        q = (x / scale).round().long()
        want = (q @ integers.T).double() * w_scale.double() * scale.double() + layer.bias.detach().double()
        torch.testing.assert_close(found(x).double(), want, rtol=1e-5, atol=1e-6 * float(want.abs().max()))

    def test_rows_do_not_see_each_other(self) -> None:
        found = run("dynamic{patterns=['*']}").module
        torch.testing.assert_close(found(INDEX)[1:2], found(INDEX[1:2]), rtol=1e-5, atol=1e-6)

    def test_rows_of_zeros_and_extremes(self) -> None:
        x = torch.tensor([[0.0, 0.0], [3e38, -3e38], [1e-40, 0.0]])
        q, scale = QuantizeRows()(x)
        assert q.dtype is torch.uint8
        assert q[0].tolist() == [128, 128]
        assert q[1].tolist() == [255, 1]
        assert torch.isfinite(scale).all()
