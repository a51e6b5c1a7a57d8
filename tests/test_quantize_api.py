"""``fxcompress.quantize`` and ``compress(quantize=...)``: what they give back, keep, and refuse."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rewriting import image, randomized
from torch import Tensor, nn
from torch.fx import GraphModule

import fxcompress
from fxcompress import Int8, errors
from fxcompress.api.quantizing import Quantizing
from fxcompress.quant.fake import FakeQuantConv2d, FakeQuantize
from fxcompress.targets.timing import Timing


class Net(nn.Module):
    """A residual network with an inverted bottleneck, a pool and a dict for an output."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True))
        self.first, self.deep, self.second = nn.Conv2d(16, 32, 1), nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.Conv2d(32, 16, 1)
        self.drop, self.head = nn.Dropout(0.3), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.stem(x)
        x = F.relu(self.second(F.relu6(self.deep(F.relu(self.first(x))))) + x)
        x = F.max_pool2d(x, 2)
        return {"logits": self.head(self.drop(x.mean((2, 3))))}


def net() -> Any:
    torch.manual_seed(0)
    model = Net()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(16) * 0.1
            module.running_var = torch.rand(16) + 0.5
    return model.eval()


def data(batches: int = 3, size: int = 12) -> list[Tensor]:
    return [image(4, 3, size, size, seed=seed) for seed in range(batches)]


X = image(2, 3, 12, 12, seed=9)
ALL = Int8(speed="none")  # a small network gains nothing, and stays int8 all the same


def decibels(want: Tensor, got: Tensor) -> float:
    noise = (want.double() - got.double()).square().sum().item()
    return math.inf if noise == 0 else 10 * math.log10(want.double().square().sum().item() / noise)


def quantized(options: Int8 = ALL, **arguments: Any) -> Any:
    return fxcompress.quantize(net(), X, options, **{"calibration": data(), "target": "cpu", **arguments})


class TestResult:
    def test_it_computes_about_the_same_at_any_size(self) -> None:
        q, model = quantized(), net()
        for x in (X, image(1, 3, 12, 12, seed=5), image(7, 3, 9, 16, seed=6)):
            assert decibels(model(x)["logits"].detach(), q(x)["logits"]) > 25
        assert q.report.target == "cpu int8"

    def test_weights_are_small(self, tmp_path: Path) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 128, 3), nn.ReLU(), nn.Conv2d(128, 128, 3), nn.ReLU(), nn.Conv2d(128, 64, 3)).eval()
        q: Any = fxcompress.quantize(model, X, ALL, calibration=data(), target="cpu")
        held = sum(t.numel() * t.element_size() for t in (*q.parameters(), *q.buffers()))
        floats = sum(p.numel() * 4 for p in model.parameters())
        assert floats / held > 3.8
        assert {t.dtype for name, t in q.named_buffers() if name.endswith("weight")} == {torch.int8}
        q.save(tmp_path / "q.fxc")
        torch.save(model.state_dict(), tmp_path / "float.pt")
        assert (tmp_path / "float.pt").stat().st_size / (tmp_path / "q.fxc").stat().st_size > 3.3

    @pytest.mark.parametrize("target", ["cpu", "none"])
    def test_saved_and_loaded_bit_for_bit(self, tmp_path: Path, target: str) -> None:
        q = quantized(target=target)
        q.save(tmp_path / "q.fxc")
        loaded: Any = fxcompress.load(tmp_path / "q.fxc")
        for x in (X, image(3, 3, 8, 10)):
            assert torch.equal(q(x)["logits"], loaded(x)["logits"])
        assert loaded.report == q.report
        assert torch.equal(copy.deepcopy(q)(X)["logits"], q(X)["logits"])

    def test_kernels_give_what_plain_integers_give(self) -> None:
        assert decibels(quantized(target="none")(X)["logits"], quantized()(X)["logits"]) > 100

    def test_the_model_is_not_touched(self) -> None:
        model = net()
        before = {key: value.clone() for key, value in model.state_dict().items()}
        flags = {name: module.training for name, module in model.named_modules()}
        fxcompress.quantize(model, X, ALL, calibration=data(), target="cpu")
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        assert {name: module.training for name, module in model.named_modules()} == flags
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())

    def test_the_same_call_gives_the_same_bits(self) -> None:
        assert torch.equal(quantized()(X)["logits"], quantized()(X)["logits"])

    def test_the_fake_quantized_graph(self, tmp_path: Path) -> None:
        q = quantized()
        fake = q.fake_quantized
        assert isinstance(fake, GraphModule)
        kinds = {type(module) for module in fake.modules()}
        assert {FakeQuantConv2d, FakeQuantize} <= kinds
        assert decibels(fake(X)["logits"].detach(), q(X)["logits"]) > 30
        weight = fake.get_submodule("first").weight / fake.get_submodule("first").weight_scale.reshape(-1, 1, 1, 1)
        assert (weight - weight.round()).abs().max() < 1e-4
        assert not any("fake" in name for name, _ in q.named_modules())
        assert q.fake_quantized is not fake
        q.save(tmp_path / "q.fxc")
        with pytest.raises(errors.InputError, match="no fake-quantized graph"):
            _ = fxcompress.load(tmp_path / "q.fxc").fake_quantized
        with pytest.raises(errors.InputError, match="no fake-quantized graph"):
            _ = fxcompress.compress(net(), X, target="none").fake_quantized

    def test_fewer_bits_are_worse(self) -> None:
        want = net()(X)["logits"].detach()
        found = [decibels(want, quantized(Int8(bits=bits, weight_bits=bits, speed="none"))(X)["logits"]) for bits in (8, 6, 4)]
        assert found[0] > found[1] + 6 > found[2] + 12

    @pytest.mark.parametrize("observer", ["min-max", "moving-average", "percentile", "histogram", "sqnr", "entropy"])
    def test_observers(self, observer: Any) -> None:
        q = quantized(Int8(observer=observer, speed="none"), verify=False)
        assert decibels(net()(X)["logits"].detach(), q(X)["logits"]) > 15

    @pytest.mark.parametrize(
        "more",
        [
            {"equalize": True},
            {"smooth": 0.5},
            {"bias_correction": "none"},
            {"bias_correction": "empirical"},
            {"weight_observer": "mse"},
        ],
    )
    def test_better_accuracy(self, more: dict[str, Any]) -> None:
        q = quantized(Int8(speed="none", **more))
        assert decibels(net()(X)["logits"].detach(), q(X)["logits"]) > 25
        assert next(iter(more)) in q.report.quantized.options


class TestChoice:
    def test_float_where_int8_is_slower(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("fxcompress.api.work.race", paces({"original": 9.0, "onednn-graph": 2.0, "cpu": 2.0, "cpu int8": 3.0}))
        monkeypatch.setattr(Quantizing, "keeps_slower", False)
        q = quantized()
        assert q.report.target in ("onednn-graph", "cpu")
        assert not q.report.quantized.kept
        assert "float was kept: int8 is not faster here" in str(q.report)
        assert q.report.title == "Net compressed"
        assert torch.allclose(q(X)["logits"], net()(X)["logits"], atol=1e-5)
        assert isinstance(q.fake_quantized, GraphModule)

    def test_int8_where_it_is_faster(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("fxcompress.api.work.race", paces({"original": 9.0, "onednn-graph": 4.0, "cpu": 4.0, "cpu int8": 2.0}))
        monkeypatch.setattr(Quantizing, "keeps_slower", False)
        q = quantized()
        assert q.report.target == "cpu int8"
        assert "2.00x as fast as the fastest float form" in " ".join(str(q.report).split())
        assert q.report.title == "Net quantized"

    def test_kept_on_demand(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("fxcompress.api.work.race", paces({"original": 1.0, "onednn-graph": 2.0, "cpu": 2.0, "cpu int8": 3.0}))
        q = quantized()
        assert q.report.target == "cpu int8"
        assert "although it is slower" in " ".join(str(q.report).split())

    def test_patterns(self) -> None:
        q = quantized(Int8(ignore=("stem", "head"), speed="none"), target="none")
        forms = {line.node: line.form for line in q.report.quantized.lines}
        assert forms["stem_0+stem_1+stem_2"] == forms["head"] == "float"
        assert forms["first+relu"] == "int8"
        q = quantized(Int8(only=("first", "deep"), speed="none"), target="none")
        forms = {line.node: line.form for line in q.report.quantized.lines}
        assert [name for name, form in forms.items() if form == "int8"] == ["first+relu", "deep+relu6"]

    def test_a_budget_of_noise(self) -> None:
        free = quantized(target="none")
        floor = free.report.quantized.sqnr_db + 3
        q = quantized(Int8(min_sqnr=floor, speed="none"), target="none")
        assert 0 < sum(line.in_float for line in q.report.quantized.ranking) < 5
        assert [line.cost for line in q.report.quantized.ranking] == sorted((r.cost for r in q.report.quantized.ranking), reverse=True)
        assert f"at least {floor:g} dB" in q.report.quantized.budget
        assert any("most sensitive" in line.why for line in q.report.quantized.lines)
        everything = quantized(Int8(min_sqnr=500.0, speed="none"), target="none")
        assert not everything.report.quantized.kept
        assert "nothing is left in int8 within the budget" in str(everything.report)

    def test_a_budget_of_score(self) -> None:
        want = net()(X)["logits"].detach()
        asked: list[nn.Module] = []

        def score(module: nn.Module) -> Tensor:
            asked.append(module)
            return -(module(X)["logits"] - want).abs().max()

        loss = -float(score(quantized()))
        assert quantized(Int8(evaluate=score, max_drop=2 * loss, speed="none")).report.quantized.ranking == ()
        q = quantized(Int8(evaluate=score, max_drop=0.6 * loss, speed="none"))
        assert -float(score(q)) <= 0.6 * loss
        assert q.report.quantized.kept
        assert "a loss of" in q.report.quantized.budget
        assert len(asked) < 12


def paces(given: dict[str, float]) -> Any:
    def race(forms: Any, **options: Any) -> dict[str, Timing]:
        for form in forms.values():
            form()
        return {name: Timing(given.get(name, 20.0), 0.0) for name in forms}

    return race


class TestReport:
    def test_every_node_has_its_reason(self) -> None:
        report = quantized().report
        found = report.quantized
        assert {line.form for line in found.lines} <= {"int8", "float"}
        assert all(line.why for line in found.lines)
        names = [line.node for line in found.lines]
        assert len(names) == len(set(names)) >= 7
        assert (found.quantizes, found.batches) == (1, 3)
        assert found.float_bytes / found.int8_bytes > 2
        assert found.sqnr_db > 25
        layers = [line for line in found.lines if line.node.startswith(("stem", "first", "deep", "second", "head"))]
        assert len(layers) == 5
        assert all(line.sqnr_db is not None and line.sqnr_db > 20 for line in layers)
        assert not any(line.why.startswith(("int8", "float")) for line in report.missed)

    def test_all_forms(self) -> None:
        report = quantized(name="mine").report
        assert type(report).from_json(report.to_json()) == report
        assert report.title == "mine quantized"
        for text in (str(report), report.to_markdown(), report.to_html()):
            assert "lowest SQNR" in text
            assert "quantize in" in text
        assert max(map(len, report.to_text(80).splitlines())) <= 80

    def test_what_passes_did(self) -> None:
        texts = [line.text for line in quantized().report.passes]
        assert [text.partition("{")[0] for text in texts][-5:] in (
            ["calibrate", "correct-bias", "safe-weights", "lower-int8", "lower"],
            ["observe", "calibrate", "correct-bias", "lower-int8", "lower"],
        )

    def test_much_noise_is_said(self) -> None:
        q = quantized(Int8(bits=2, weight_bits=2, speed="none", observer="min-max", bias_correction="none"), target="none")
        assert "the outputs lose much" in " ".join(str(q.report).split())

    def test_without_quantization_there_is_none(self) -> None:
        assert fxcompress.compress(net(), X, target="none").report.quantized is None

    def test_nothing_to_quantize(self) -> None:
        model = nn.Sequential(nn.ReLU(), nn.Softmax(1)).eval()
        report = fxcompress.quantize(model, X, calibration=data(), target="none").report
        assert not report.quantized.kept
        assert "nothing in it could be quantized" in str(report)


class TestCompress:
    def test_first_pruned_then_quantized(self) -> None:
        q: Any = fxcompress.compress(net(), X, prune=0.5, quantize=ALL, calibration=data(), target="cpu")
        small = fxcompress.prune(net(), X, 0.5)
        assert q.plan.removed > 0
        assert decibels(small(X)["logits"].detach(), q(X)["logits"]) > 25
        assert q.report.title == "Net pruned and quantized"
        assert q.report.pruned
        assert q.report.quantized.kept
        texts = [line.text.partition("{")[0] for line in q.report.passes]
        assert texts.index("prune-apply") < texts.index("fuse") < texts.index("observe")

    def test_by_name(self) -> None:
        q: Any = fxcompress.compress(net(), X, quantize="int8", calibration=data(), target="none")
        assert q.report.quantized.options == ""
        assert q.report.quantized.lines

    def test_a_loader_with_targets(self) -> None:
        pairs = [[x, torch.zeros(4, dtype=torch.int64)] for x in data()]
        q = quantized(calibration=pairs)
        assert torch.equal(q(X)["logits"], quantized()(X)["logits"])

    def test_a_limit_of_batches(self) -> None:
        def endless() -> Iterator[Tensor]:
            while True:
                yield from data()

        q = quantized(Int8(batches=3, speed="none"), calibration=endless())
        assert torch.equal(q(X)["logits"], quantized()(X)["logits"])

    def test_dicts_and_other_batch_sizes(self) -> None:
        batches = [{"x": x} for x in data()] + [{"x": image(1, 3, 10, 14)}]
        q: Any = fxcompress.quantize(net(), {"x": X}, ALL, calibration=batches, target="cpu")
        assert decibels(net()(X)["logits"].detach(), q(x=X)["logits"]) > 25

    def test_inference_mode_of_the_caller(self) -> None:
        with torch.inference_mode():
            q = quantized()
        assert decibels(net()(X)["logits"].detach(), q(X)["logits"]) > 25


class Branching(nn.Module):
    """Data-dependent control flow between two parts that can be captured."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 8, 1))
        self.tail = nn.Sequential(nn.Conv2d(8, 32, 1), nn.ReLU(), nn.Conv2d(32, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return self.tail(y) if y.sum() < 1e9 else y[:, :2]


class TestParts:
    def model(self) -> nn.Module:
        return randomized(Branching())

    def test_every_part_is_quantized(self) -> None:
        q: Any = fxcompress.quantize(self.model(), X, ALL, calibration=data(), target="cpu")
        assert isinstance(q, Branching)
        assert decibels(self.model()(X).detach(), q(X)) > 25
        assert [line.node for line in q.report.quantized.lines] == ["body._0+_1", "body._2", "tail._0+_1", "tail._2"]
        assert set(q.fake_quantized) == {"body", "tail"}
        with pytest.raises(errors.ArchiveError, match="captured in parts"):
            q.save("never")

    def test_names_are_those_of_the_whole(self) -> None:
        q: Any = fxcompress.quantize(self.model(), X, Int8(ignore=("body.0", "tail"), speed="none"), calibration=data(), target="none")
        forms = {line.node: line.form for line in q.report.quantized.lines}
        assert forms == {"body._0+_1": "float", "body._2": "int8", "tail._0+_1": "float", "tail._2": "float"}
        q = fxcompress.quantize(self.model(), X, Int8(only=("tail.*",), speed="none"), calibration=data(), target="none")
        assert {line.node for line in q.report.quantized.lines if line.form == "int8"} == {"tail._0+_1", "tail._2"}

    def test_a_budget(self) -> None:
        free: Any = fxcompress.quantize(self.model(), X, ALL, calibration=data(), target="none").report
        options = Int8(min_sqnr=free.accuracy.sqnr_db + 3, speed="none")
        q: Any = fxcompress.quantize(self.model(), X, options, calibration=data(), target="none")
        assert 0 < sum(line.in_float for line in q.report.quantized.ranking) < 4
        assert {line.node.partition(".")[0] for line in q.report.quantized.ranking} == {"body", "tail"}


def bad_batch(x: Tensor, place: int = 1) -> list[Tensor]:
    return [*data(place), x]


def nan() -> Tensor:
    x = image(4, 3, 12, 12)
    x[1, 2, 3, 4] = math.nan
    return x


class Exploding(nn.Module):
    """Gives infinity inside for large inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.exp(self.first(x) * 1000))


def failing() -> Iterator[Tensor]:
    yield data()[0]
    raise FileNotFoundError("images/7.png")


def call(options: Any = ALL, model: nn.Module | None = None, **arguments: Any) -> Any:
    return lambda: fxcompress.quantize(
        net() if model is None else model, X, options, **{"calibration": data(), "target": "none", **arguments}
    )


BAD = {
    "no data": (call(calibration=()), "needs calibration data", "calibration="),
    "an empty loader": (call(calibration=[]), "needs calibration data", "calibration="),
    "one tensor": (call(calibration=data()[0]), "calibration is a Tensor", "[x1, x2"),
    "a number": (call(calibration=3), "calibration is a int", "list of batches"),
    "None": (call(calibration=None), "calibration is a NoneType", "list of batches"),
    "batches of another form": (call(calibration=[{"y": 1}]), "calibration batch is a dict", "example_inputs"),
    "batches of another rank": (call(calibration=bad_batch(image(3, 12, 12))), "batch 1 has float32[3, 12, 12]", "like example_inputs"),
    "batches of another dtype": (call(calibration=bad_batch(data()[0].double(), 2)), "batch 2 has float64", "like example_inputs"),
    "batches with other channels": (call(calibration=bad_batch(image(4, 1, 12, 12))), "4, 1, 12, 12", "example inputs"),
    "NaN": (call(calibration=bad_batch(nan(), 2)), "calibration batch 2 has NaN", "leave such inputs out"),
    "a loader that fails": (call(calibration=failing()), "raised FileNotFoundError: images/7.png", "iterate"),
    "an overflow inside": (call(model=Exploding().eval()), "inf", ""),
    "training mode": (call(model=net().train()), "training mode", "model.eval()"),
    "no model": (lambda: fxcompress.quantize(3, X, calibration=data()), "not a torch.nn.Module", "pass the module"),  # type: ignore[arg-type]
    "a word": (lambda: fxcompress.compress(net(), X, quantize="int4", calibration=data()), "cannot quantize by 'int4'", "int8"),
    "not options": (call({"bits": 8}), "cannot quantize by", "Int8"),
    "a pattern": (call(Int8(ignore=("haed",))), "called 'haed'", "head"),
    "a pattern of weight_only": (call(Int8(weight_only=("frist",))), "called 'frist'", "first"),
    "a pipeline that does not fuse": (
        lambda: fxcompress.compress(net(), X, quantize="int8", calibration=data(), pipeline="functionalize", target="none"),
        "requires a graph that is FUSED",
        "fuse",
    ),
    "an unknown target": (call(target="tpu"), "tpu", ""),
    "evaluate that fails": (
        call(Int8(evaluate=lambda module: 1 / 0, max_drop=0.1, speed="none")),
        "evaluate raised ZeroDivisionError",
        "higher is better",
    ),
    "evaluate without a number": (
        call(Int8(evaluate=lambda module: "good", max_drop=0.1, speed="none")),
        "evaluate raised",
        "higher is better",
    ),
    "evaluate that gives NaN": (
        call(Int8(evaluate=lambda module: math.nan, max_drop=0.1, speed="none")),
        "evaluate gave NaN",
        "must give a number",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_refused(case: str) -> None:
    refused, words, hint = BAD[case]
    with pytest.raises(errors.FxCompressError, match=re.escape(words)) as raised:
        refused()
    assert raised.value.hint
    assert hint in raised.value.hint
    assert len(str(raised.value).splitlines()) <= 3


OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "observer": ({"observer": "histogramm"}, "did you mean 'histogram'"),
    "weight observer": ({"weight_observer": "l2"}, "min-max, mse"),
    "bits": ({"bits": 9}, "2 to 8"),
    "bits that are no number": ({"bits": True}, "2 to 8"),
    "weight bits": ({"weight_bits": 1}, "2 to 8"),
    "patterns": ({"ignore": "head"}, '("head.*",)'),
    "an empty pattern": ({"only": ("",)}, "only="),
    "speed": ({"speed": "fast"}, "table, measure, none"),
    "smooth": ({"smooth": 2.0}, "0 to 1"),
    "storage": ({"storage": "int3"}, "int4"),
    "bias correction": ({"bias_correction": True}, "analytic"),
    "a flag": ({"equalize": "yes"}, "equalize=True"),
    "batches": ({"batches": 0}, "at least 1"),
    "max_drop without evaluate": ({"max_drop": 0.1}, "evaluate="),
    "evaluate without max_drop": ({"evaluate": print}, "max_drop="),
    "a drop below zero": ({"max_drop": -1, "evaluate": print}, "0.01"),
    "no function": ({"max_drop": 1, "evaluate": 3}, "a function that takes a module"),
    "two budgets": ({"max_drop": 0.1, "evaluate": print, "min_sqnr": 20}, "choose one"),
    "no decibels": ({"min_sqnr": "much"}, "decibels"),
    "nothing": ({"static": False}, "weight_only="),
    "a budget for nothing": ({"static": False, "dynamic": ("*",), "min_sqnr": 20}, "static"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_options_that_make_no_sense(case: str) -> None:
    values, hint = OPTIONS[case]
    with pytest.raises(errors.InputError) as raised:
        Int8(**values)
    assert hint in (raised.value.hint or "")
