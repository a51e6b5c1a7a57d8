"""``fxcompress.prune``, ``fxcompress.plan`` and ``compress(prune=...)``: what they give back, keep, and refuse."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracle import same
from rewriting import image, randomized
from torch import nn

import fxcompress
from fxcompress import Budget, Prune, PruningPlan, errors


class Net(nn.Module):
    """A residual network with in-place activations, dropout, a frozen stem and a tied pair of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(4, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(inplace=True))
        self.first, self.second = nn.Conv2d(32, 48, 3, padding=1), nn.Conv2d(48, 32, 1)
        self.norm, self.drop = nn.BatchNorm2d(48), nn.Dropout(0.3)
        self.head = nn.Linear(32, 7)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.stem(x)
        x = F.relu(self.second(self.drop(F.relu(self.norm(self.first(x))))) + x)
        features = x.mean((2, 3))
        return {"logits": self.head(features), "energy": features.square().sum(1)}


def net() -> Any:
    return randomized(Net())


class TestPrune:
    def test_the_result(self) -> None:
        model = net()
        small: Any = fxcompress.prune(model, image(), ratio=0.5)
        assert [small.stem.get_submodule("0").out_channels, small.first.out_channels, small.head.in_features] == [16, 24, 16]
        assert set(small(image(3, 4, 9, 9))) == {"logits", "energy"}
        assert small(image(3, 4, 9, 9))["logits"].shape == (3, 7)
        assert set(small.state_dict()) == set(model.state_dict())
        assert all(type(small.get_submodule(name)) is type(model.get_submodule(name)) for name in ("stem.0", "norm", "drop", "head"))

    def test_weights_are_those_of_the_model(self) -> None:
        model = net()
        small: Any = fxcompress.prune(model, image())
        fresh = small.plan.apply_to(copy.deepcopy(model))
        for name, tensor in small.state_dict().items():
            assert torch.equal(tensor, fresh.state_dict()[name]), name
            assert not any(tensor.data_ptr() == p.data_ptr() for p in model.parameters())

    def test_it_is_the_masked_network(self) -> None:
        model = net().double()
        small: Any = fxcompress.prune(model, image().double())
        masked = small.plan.masked(model)
        same(masked(image().double()), small(image().double()), 1e-12)
        same(masked(image(1, 4, 11, 6).double()), small(image(1, 4, 11, 6).double()), 1e-12)

    def test_the_users_model_is_untouched(self) -> None:
        model = net()
        model.stem[0].weight.grad = torch.ones_like(model.stem[0].weight)
        before, code = copy.deepcopy(model.state_dict()), repr(model)
        fxcompress.prune(model, image())
        assert repr(model) == code
        assert not model.training
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())

    def test_training_flags_are_kept(self) -> None:
        model = net().train()
        model.norm.eval()
        small: Any = fxcompress.prune(model, image())
        assert small.training
        assert small.drop.training
        assert not small.norm.training
        assert small.get_submodule("stem.1").training
        assert model.training
        assert torch.equal(model.stem[1].running_mean, net().stem[1].running_mean)
        assert small.report.accuracy.relative64 < 1e-12

    def test_requires_grad_is_kept(self) -> None:
        model = net()
        model.stem.requires_grad_(False)
        small: Any = fxcompress.prune(model, image())
        assert [p.requires_grad for p in small.parameters()] == [p.requires_grad for p in model.parameters()]

    def test_inside_inference_mode_the_result_can_be_trained(self) -> None:
        with torch.inference_mode():
            small: Any = fxcompress.prune(net(), image())
        small(image())["logits"].sum().backward()
        assert small.head.weight.grad is not None

    def test_ways_to_ask(self) -> None:
        plans = [
            fxcompress.prune(net(), image(), *args, measure=False, **options).plan
            for args, options in (((), {}), ((0.5,), {}), ((Prune(ratio=0.5),), {}), ((), {"ratio": 0.5}))
        ]
        assert all(plan == plans[0] for plan in plans)

    def test_all_options_arrive(self) -> None:
        asked = Prune(0.25, criterion="l1", ignore=("stem.0",), round_to=1, ratios=(("first", 0.75),))
        plan = fxcompress.prune(net(), image(), asked).plan
        assert {group.name: group.remaining for group in plan.groups} == {"stem.0": 32, "first": 12}
        assert "l1" in plan.options

    def test_a_budget(self) -> None:
        report = fxcompress.prune(net(), image(), Prune(budget=Budget(macs="-40%"), round_to=1)).report
        assert 0.5 * report.before.macs < report.after.macs <= 0.6 * report.before.macs

    def test_steps_are_told(self) -> None:
        said: list[str] = []
        fxcompress.prune(net(), image(), on_step=said.append)
        assert said == ["capture", "prune-select", "prune-apply", "measure"]


class TestData:
    def loader(self) -> list[list[torch.Tensor]]:
        return [[image(seed=seed), torch.tensor([1, 4])] for seed in range(3)]

    def test_a_loader_with_targets(self) -> None:
        def loss(output: dict[str, torch.Tensor], targets: torch.Tensor) -> torch.Tensor:
            return F.cross_entropy(output["logits"], targets)

        plan = fxcompress.prune(net(), image(), Prune(criterion="taylor"), calibration=self.loader(), loss=loss).plan
        assert plan.removed == 16 + 24

    @pytest.mark.parametrize("form", [lambda x, y: x, lambda x, y: (x,), lambda x, y: [x, y], lambda x, y: (x, y)])
    def test_batches_without_a_loss(self, form: Any) -> None:
        batches = [form(x, y) for x, y in self.loader()]
        plan = fxcompress.prune(net(), image(), Prune(criterion="activation"), calibration=batches, measure=False).plan
        want = fxcompress.prune(
            net(), image(), Prune(criterion="activation"), calibration=[x for x, _ in self.loader()], measure=False
        ).plan
        assert plan == want

    def test_compensation(self) -> None:
        batches = [image(8, 4, 9, 9, seed=seed) for seed in range(4)]
        plain = fxcompress.prune(net(), image(), measure=False).report
        better = fxcompress.prune(net(), image(), Prune(compensate=True), calibration=batches, measure=False).report
        assert better.accuracy.relative < plain.accuracy.relative
        assert better.accuracy.relative64 < 1e-9
        assert "prune-apply{compensate=True}" in str(better)


class TestReport:
    def test_before_and_after(self) -> None:
        report = fxcompress.prune(net(), image()).report
        assert (report.before.params, report.after.params) == (sum(p.numel() for p in net().parameters()), 4655)
        assert report.after.macs < 0.4 * report.before.macs
        assert report.after.weight_bytes < report.before.weight_bytes
        assert report.before.latency_ms > 0 < report.after.latency_ms
        assert report.accuracy.relative > 1e-2
        assert report.accuracy.relative64 < 1e-12
        assert [(line.name, line.channels, line.kept) for line in report.pruned] == [("stem.0", 32, 16), ("first", 48, 24)]
        assert report.pruned[1].producers == ("first.weight",)
        assert report.pruned[1].consumers == ("second.weight",)
        assert report.changed == ()
        assert any(line.node == "head.weight" and "output" in line.why for line in report.missed)

    def test_all_forms(self) -> None:
        report = fxcompress.prune(net(), image(), measure=False, name="mine").report
        assert type(report).from_json(report.to_json()) == report
        assert report.title == "mine pruned"
        for text in (str(report), report.to_markdown(), report.to_html()):
            assert "stem.0" in text
            assert "channels of" in text
        assert max(map(len, report.to_text(80).splitlines())) <= 80
        assert report.before.latency_ms is None
        assert report.race == ()

    def test_statistics_that_change(self) -> None:
        model = randomized(nn.Sequential(nn.Linear(5, 32), nn.LayerNorm(32), nn.Linear(32, 5)))
        report = fxcompress.prune(model, torch.randn(3, 5)).report
        assert [(line.node, line.axis) for line in report.changed] == [("_1", 1)]
        assert "the function itself changes" in str(report)


class TestPlan:
    def test_a_plan_is_carried_out_later(self, tmp_path: Any) -> None:
        model = net()
        plan = fxcompress.plan(model, image(), ratio=0.25)
        plan.save(tmp_path / "plan.json")
        small: Any = fxcompress.prune(model, image(), PruningPlan.load(tmp_path / "plan.json"))
        assert small.plan == plan
        assert small.first.out_channels == 40
        assert small.report.accuracy.relative64 < 1e-12
        same(plan.apply(model)(image()), small(image()), None)

    def test_mask_train_slice(self) -> None:
        model = net()
        plan = fxcompress.plan(model, image())
        masked = plan.masked(model).train()
        optimizer = torch.optim.SGD(masked.parameters(), 0.01, momentum=0.9)
        masked(image())["logits"].square().mean().backward()
        optimizer.step()
        small = plan.apply(masked.eval(), optimizer)
        same(masked(image())["logits"].detach(), small(image())["logits"].detach(), 1e-5)
        small(image())["logits"].square().mean().backward()
        optimizer.step()

    def test_save_and_load(self, tmp_path: Any) -> None:
        small: Any = fxcompress.prune(net(), image())
        small.save(tmp_path / "small.fxc")
        loaded: Any = fxcompress.load(tmp_path / "small.fxc")
        assert loaded.plan == small.plan
        assert loaded.report == small.report
        same(small(image()), loaded(image()), None)

    def test_without_pruning_there_is_none(self) -> None:
        assert fxcompress.compress(net(), image(), target="none").plan is None


class Attention(nn.Module):
    """Attention of torch.nn between two linears."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attention, self.head = nn.Linear(6, 32), nn.MultiheadAttention(32, 4, batch_first=True), nn.Linear(32, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        return self.head(x + self.attention(x, x, x, need_weights=False)[0])


def test_heads_of_torch_attention_are_pruned() -> None:
    model, x = randomized(Attention()), torch.randn(2, 5, 6)
    small: Any = fxcompress.prune(model, x)
    assert small.report.accuracy.relative64 < 1e-12
    assert small.report.after.params < 0.4 * small.report.before.params
    assert small.embed.out_features == 16
    again: Any = fxcompress.prune(model, x, small.plan)
    same(small(x), again(x), None)
    masked = small.plan.masked(model)
    same(masked(x), small(x), 1e-5)
    same(small.plan.apply(masked)(x), small(x), None)
    same(small.plan.apply(model)(x), small(x), None)


class Branching(nn.Module):
    """Data-dependent control flow between two parts that can be captured."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(4, 32, 3), nn.ReLU(), nn.Conv2d(32, 8, 1))
        self.tail = nn.Sequential(nn.Conv2d(8, 32, 1), nn.ReLU(), nn.Conv2d(32, 2, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.body(x)
        return self.tail(y) if y.sum() < 1e9 else y[:, :2]


class TestParts:
    def test_every_part_has_its_plan(self) -> None:
        model = randomized(Branching()).train()
        small: Any = fxcompress.prune(model, image())
        assert isinstance(small, Branching)
        assert small.training
        assert small.get_submodule("body.0").out_channels == small.get_submodule("tail.0").out_channels == 16
        assert [part.path for part in small.plan.parts] == ["body", "tail"]
        assert [line.name for line in small.report.pruned] == ["body.0", "tail.0"]
        assert small.report.accuracy.relative64 < 1e-12
        small(image()).sum().backward()

    def test_names_are_those_of_the_whole(self) -> None:
        small: Any = fxcompress.prune(randomized(Branching()), image(), Prune(ignore=("body.0",), ratios=(("tail.*", 0.75),)))
        assert (small.get_submodule("body.0").out_channels, small.get_submodule("tail.0").out_channels) == (32, 8)

    @pytest.mark.parametrize(
        ("pattern", "kept"), [("*.0", (32, 32)), ("body*", (32, 16)), ("*.0.weight", (32, 32)), ("tail.?", (16, 32)), ("*", (32, 32))]
    )
    def test_patterns(self, pattern: str, kept: tuple[int, int]) -> None:
        plan = fxcompress.plan(randomized(Branching()), image(), Prune(ignore=(pattern,)))
        assert tuple(group.remaining for group in plan.groups) == kept

    def test_a_pattern_that_fits_no_part(self) -> None:
        with pytest.raises(errors.InputError, match=r"'bodi\.0'"):
            fxcompress.plan(randomized(Branching()), image(), Prune(ignore=("bodi.0",)))

    def test_its_plan_is_carried_out_again(self) -> None:
        model = randomized(Branching())
        plan = fxcompress.plan(model, image())
        small: Any = fxcompress.prune(model, image(), plan)
        assert small.plan == plan
        same(plan.apply(model, example_inputs=image())(image()), small(image()), None)

    def test_data_reaches_the_parts(self) -> None:
        batches = [image(seed=seed) for seed in range(4)]
        small: Any = fxcompress.prune(randomized(Branching()), image(), Prune(criterion="activation", compensate=True), calibration=batches)
        assert small.report.accuracy.relative64 < 1e-9
        with pytest.raises(errors.InputError, match="captured in parts"):
            fxcompress.prune(
                randomized(Branching()),
                image(),
                Prune(criterion="taylor"),
                calibration=[(x, x) for x in batches],
                loss=lambda output, target: output.sum(),
            )


class TestCompress:
    def test_first_pruned_then_rewritten(self) -> None:
        model = net()
        fast: Any = fxcompress.compress(model, image(), prune=0.5, target="none")
        small: Any = fxcompress.prune(model, image(), 0.5)
        same(small(image()), fast(image()), 1e-5)
        texts = [line.text for line in fast.report.passes]
        assert texts[:3] == ["prune-select", "prune-apply", "functionalize"]
        assert fast.plan == small.plan
        assert fast.report.pruned == small.report.pruned
        assert fast.report.accuracy.relative64 < 1e-12
        assert fast.report.before.params == sum(p.numel() for p in model.parameters())
        assert fast.report.title == "Net pruned and compressed"

    def test_lowered(self, tmp_path: Any) -> None:
        small: Any = fxcompress.prune(net(), image(), 0.5)
        fast: Any = fxcompress.compress(net(), image(), prune=Prune(0.5), target="cpu")
        with torch.no_grad():
            same(small(image()), fast(image()), 1e-4)
        assert fast.plan == small.plan
        fast.save(tmp_path / "fast.fxc")
        loaded: Any = fxcompress.load(tmp_path / "fast.fxc")
        assert loaded.plan == fast.plan

    def test_what_was_pruned_stays_pruned(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Also when nothing is faster than the original."""
        from fxcompress.targets import timing

        def loses(forms: Any, **kwargs: Any) -> Any:
            return {name: timing.Timing(1.0 if name == "original" else 9.0, 0.0) for name in forms}

        monkeypatch.setattr("fxcompress.api.work.race", loses)
        fast: Any = fxcompress.compress(net(), image(), prune=0.5, target="cpu")
        assert fast.report.target == "rewritten"
        assert fast.first.out_channels == 24

    def test_in_parts(self) -> None:
        fast: Any = fxcompress.compress(randomized(Branching()), image(), prune=0.5, target="none")
        assert [part.path for part in fast.plan.parts] == ["body", "tail"]
        assert fast.report.after.params < fast.report.before.params

    def test_with_a_plan(self) -> None:
        plan = fxcompress.plan(net(), image(), 0.25)
        fast: Any = fxcompress.compress(net(), image(), prune=plan, target="none")
        assert fast.plan == plan


BAD = {
    "no model": (lambda: fxcompress.prune(3, image()), "not a torch.nn.Module"),
    "ratio": (lambda: fxcompress.prune(net(), image(), ratio=1.0), "not a share"),
    "a text": (lambda: fxcompress.prune(net(), image(), "0.5"), "cannot prune by '0.5'"),
    "twice": (lambda: fxcompress.prune(net(), image(), Prune(), ratio=0.5), "both options and ratio"),
    "criterion": (lambda: fxcompress.prune(net(), image(), Prune(criterion="l3")), "no criterion 'l3'"),
    "no data": (lambda: fxcompress.prune(net(), image(), Prune(criterion="taylor")), "needs data"),
    "no data to compensate with": (lambda: fxcompress.prune(net(), image(), Prune(compensate=True)), "calibration"),
    "a batch": (lambda: fxcompress.prune(net(), image(), calibration=[[1, 2, 3]]), "not of the form of example_inputs"),
    "no targets": (lambda: fxcompress.prune(net(), image(), calibration=[image()], loss=F.mse_loss), "no targets"),
    "a pattern": (lambda: fxcompress.prune(net(), image(), Prune(ignore=("haed.*",))), "haed"),
    "inputs": (lambda: fxcompress.prune(net(), image(1, 3, 7, 5)), "4 channels"),
    "budget": (lambda: fxcompress.prune(net(), image(), Prune(budget=Budget(params="1"))), "reach"),
    "a plan for another model": (
        lambda: fxcompress.prune(randomized(Branching().body), image(), fxcompress.plan(net(), image())),
        "another network",
    ),
    "compress with a text": (lambda: fxcompress.compress(net(), image(), prune="half"), "cannot prune by 'half'"),
    "compress in training mode": (lambda: fxcompress.compress(net().train(), image(), prune=0.5), "training mode"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_refused(case: str) -> None:
    call, words = BAD[case]
    with pytest.raises(errors.FxCompressError, match=re.escape(words)) as raised:
        call()
    assert raised.value.hint
    assert len(str(raised.value).splitlines()) < 6


def test_a_model_without_weights_is_pruned_by_its_structure() -> None:
    """On the meta device shapes follow as on any other; nothing is claimed of numbers that are not there."""
    model, x = net(), image()
    small = fxcompress.prune(copy.deepcopy(model).to("meta"), x.to("meta"), Prune(criterion="random"))
    real = fxcompress.prune(model, x, Prune(criterion="random"), measure=False)
    assert {k: v.shape for k, v in small.state_dict().items()} == {k: v.shape for k, v in real.state_dict().items()}
    assert small.report.accuracy is None
    assert small.report.after.macs == real.report.after.macs
    with pytest.raises(errors.UnsupportedModelError, match="no values"):
        fxcompress.compress(copy.deepcopy(model).to("meta"), x.to("meta"), prune=Prune(criterion="random"))
