"""The one-line call: what it gives back, what it refuses, and that the user's model stays as it was."""

from __future__ import annotations

import copy
import inspect
import re
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from rewriting import image, randomized
from torch import nn

import fxcompress
from fxcompress import Pass, PassResult, RulePass, errors


def small():
    return randomized(
        nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(280, 5))
    )


class Keywords(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, image, scale=2.0, *, mask=None, extra=None):
        y = self.conv(image) * scale
        if mask is not None:
            y = y * mask
        return {"y": y, "both": (y, [y.mean()])}


def test_the_same_function_with_a_report():
    model = small()
    result = fxcompress.compress(model, image(), target="cpu")
    with torch.no_grad():
        torch.testing.assert_close(result(image()), model(image()), rtol=1e-4, atol=1e-4)
        assert result(image(5, 4, 7, 5)).shape == (5, 5)
    assert result.report.accuracy.relative64 < 1e-9
    assert result.report.after.params < result.report.before.params
    assert "fold-norm" in str(result.report)
    assert "<" in result._repr_html_()


def test_the_users_model_is_untouched():
    model = small()
    state, code = copy.deepcopy(model.state_dict()), repr(model)
    fxcompress.compress(model, image(), target="cpu")
    assert repr(model) == code
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    model.train()(image()).sum().backward()
    assert model[0].weight.grad is not None


def test_save_and_load(tmp_path):
    result = fxcompress.compress(small(), image(), target="cpu")
    result.save(tmp_path / "small.fxc")
    loaded = fxcompress.load(tmp_path / "small.fxc")
    with torch.no_grad():
        assert torch.equal(loaded(image()), result(image()))
    assert loaded.report == result.report
    assert set(loaded.state_dict()) == set(result.state_dict())


def test_deepcopy_keeps_report_and_numbers():
    result = fxcompress.compress(small(), image(), target="cpu")
    twin = copy.deepcopy(result)
    with torch.no_grad():
        assert torch.equal(twin(image()), result(image()))
    assert twin.report == result.report


def test_without_lowering_it_can_be_trained():
    result = fxcompress.compress(small(), image(), target="none")
    result.train()
    result(image()).sum().backward()
    assert all(p.grad is not None for p in result.parameters())


def test_keyword_arguments_and_nested_outputs():
    model = randomized(Keywords())
    result = fxcompress.compress(model, {"image": image(), "mask": image(2, 1, 7, 5)}, target="cpu")
    names = list(inspect.signature(model.forward).parameters)
    assert list(inspect.signature(result.forward).parameters) == names
    with torch.no_grad():
        want, got = model(image(), mask=image(2, 1, 7, 5)), result(image(), mask=image(2, 1, 7, 5))
    assert set(got) == {"y", "both"}
    torch.testing.assert_close(got["both"][1][0], want["both"][1][0])
    with pytest.raises(errors.InputError, match="extra"), torch.no_grad():
        result(image(), mask=image(2, 1, 7, 5), extra=image())


def test_a_pass_of_ones_own():
    @dataclass(frozen=True)
    class Nothing(Pass):
        name = "nothing"

        def run(self, module, ctx):
            return PassResult(module, changed=False)

    result = fxcompress.compress(small(), image(), pipeline=fxcompress.Pipeline.of("functionalize", Nothing()), target="none")
    assert [line.text for line in result.report.passes] == ["functionalize", "nothing"]
    assert issubclass(RulePass, Pass)


BAD = {
    "no model": (lambda: fxcompress.compress(3, image()), "not a torch.nn.Module"),
    "no inputs": (lambda: fxcompress.compress(small(), None), "example_inputs"),
    "wrong shape": (lambda: fxcompress.compress(small(), image(2, 3, 7, 5)), "to have 4 channels"),
    "too many inputs": (lambda: fxcompress.compress(small(), (image(), image())), "do not fit"),
    "training mode": (lambda: fxcompress.compress(small().train(), image()), "eval"),
    "zero batch": (lambda: fxcompress.compress(small(), image(0, 4, 7, 5)), "holds no values"),
    "unknown target": (lambda: fxcompress.compress(small(), image(), target="openvin"), "did you mean openvino"),
    "unknown pass": (lambda: fxcompress.compress(small(), image(), pipeline="fold-nrm"), "fold-norm"),
    "impossible order": (lambda: fxcompress.compress(small(), image(), pipeline="fuse"), "functionalize"),
    "wrong dtype": (lambda: fxcompress.compress(small(), image().half()), "Half"),
    "inputs elsewhere": (lambda: fxcompress.compress(small(), image().to("meta")), "move them together"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    call, words = BAD[case]
    with pytest.raises(errors.FxCompressError, match=words) as raised:
        call()
    assert len(str(raised.value).splitlines()) < 20


class Empty(nn.Module):
    def forward(self, x):
        return (x * 2).relu()


ODD = {
    "no parameters": (Empty(), image()),
    "NaN inputs": (small(), torch.full((2, 4, 7, 5), torch.nan)),
    "float64": (small().double(), image().double()),
    "bfloat16": (small().bfloat16(), image().bfloat16()),
    "integer inputs": (randomized(nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 3))), torch.arange(9).reshape(1, 9)),
    "complex": (nn.Sequential(nn.Identity()), torch.randn(2, 3, dtype=torch.complex64)),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_input(case):
    model, x = ODD[case]
    result = fxcompress.compress(model.eval(), x)
    with torch.no_grad():
        torch.testing.assert_close(result(x), model(x), equal_nan=True, rtol=2e-2 if x.dtype == torch.bfloat16 else 1e-4, atol=1e-4)


def test_ctrl_c_leaves_the_model_alone(monkeypatch):
    model = small()
    state = copy.deepcopy(model.state_dict())

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("fxcompress.api.work.race", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fxcompress.compress(model, image(), target="cpu")
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_never_slower(monkeypatch):
    """When every other form loses the race, the graph is given back as it was captured and the report says so."""
    from fxcompress.targets import timing

    def loses(forms, **kwargs):
        return OrderedDict((name, timing.Timing(1.0 if name == "original" else 9.0, 0.0)) for name in forms)

    monkeypatch.setattr("fxcompress.api.work.race", loses)
    result = fxcompress.compress(small(), image(), target="cpu")
    assert result.report.target == "captured"
    assert "nothing tried is faster" in str(result.report)
    with torch.no_grad():
        torch.testing.assert_close(result(image()), small()(image()))


def test_public_names_are_those_of_the_readme():
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    named = set(re.findall(r"(?<!tool\.)fxcompress\.([A-Za-z]\w*)", readme)) - {"passes", "egg", "fxc"}
    assert named - {"errors", "targets"} <= set(fxcompress.__all__), named - set(fxcompress.__all__)
    for public in fxcompress.__all__:
        assert getattr(fxcompress, public) is not None
        assert public in readme, f"{public} is public but not in the README"


def test_no_extra_is_needed(monkeypatch):
    """Where no engine is installed, auto is the native target."""
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name in ("openvino", "onnxruntime", "onnx") else real(name, *a)
    )
    result = fxcompress.compress(small(), image())
    assert result.report.target in ("cpu", "onednn-graph", "rewritten")
    assert "pip install" in str(result.report)


def test_inside_inference_mode():
    with torch.inference_mode():
        model = small()
        result = fxcompress.compress(model, image(), target="cpu")
        torch.testing.assert_close(result(image()), model(image()), rtol=1e-4, atol=1e-4)
        assert fxcompress.trace(model, image()) is not None
    outside = fxcompress.compress(small(), image(), target="none")
    outside.train()(image()).sum().backward()
