"""What capture refuses: each message is short and names the user's line and what to do."""

from __future__ import annotations

from typing import Any

import capture_models as cm
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from fxcompress.capture import capture
from fxcompress.errors import FxCompressError, InputError, UnsupportedModelError

X = torch.ones(2, 4)


def refused(model: Any, inputs: Any = X, error: type[FxCompressError] = UnsupportedModelError, **options: Any) -> str:
    with pytest.raises(error) as caught:
        capture(model, inputs, **options)
    text = str(caught.value)
    assert len(text.splitlines()) < 20
    assert "->" in text
    return text


def hook(*args: Any) -> None:
    """A hook that does nothing."""


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks(register: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4)).eval()
    getattr(model[0], register)(hook)
    text = refused(model)
    assert "test_capture_refusals.py:" in text
    assert "'0'" in text


def weight_normed() -> nn.Module:
    return nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4)), parametrizations.spectral_norm(nn.Linear(4, 4))).eval()


def old_norms() -> nn.Module:
    with pytest.warns(FutureWarning):
        first = torch.nn.utils.weight_norm(nn.Linear(4, 4))
    return nn.Sequential(first, torch.nn.utils.spectral_norm(nn.Linear(4, 4))).eval()


def pruned() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval()
    prune.random_unstructured(model[0], "weight", 0.5)
    return model


@pytest.mark.parametrize("make", [weight_normed, old_norms, pruned])
def test_computed_weights_are_refused_or_baked(make: Any) -> None:
    model = make()
    assert "bake=True" in refused(model)
    x = torch.randn(3, 4)
    with torch.no_grad():
        expected = model(x)
    keys = set(model.state_dict())
    captured = capture(model, X, bake=True)
    torch.testing.assert_close(captured.module(x), expected)
    assert {"0.weight", "0.bias"} <= set(captured.module.state_dict())
    assert set(model.state_dict()) == keys
    with torch.no_grad():
        assert torch.equal(model(x), expected)  # torch takes a parametrization away from the class, not from the instance


def test_functional_dropout_with_a_baked_flag() -> None:
    assert "capture_models.py:" in refused(cm.FunctionalDropout().train())
    assert "capture_models.py:" in refused(cm.FunctionalDropout(always=True).eval())
    capture(cm.FunctionalDropout().eval(), X)


def test_a_data_dependent_branch_that_no_step_passes() -> None:
    text = refused(cm.DataDependent().eval())
    assert "capture_models.py:" in text
    assert "torch.where" in text


def test_wrappers() -> None:
    assert "model.module" in refused(nn.DataParallel(nn.Linear(4, 4)))
    assert "_orig_mod" in refused(torch.compile(nn.Linear(4, 4)))
    assert "not a torch.nn.Module" in refused(lambda x: x)
    assert "run the model once" in refused(nn.Sequential(nn.LazyLinear(3)))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_torchscript() -> None:
    assert "TorchScript" in refused(torch.jit.script(nn.Linear(4, 4)))


def test_devices() -> None:
    assert "meta" in refused(nn.Linear(4, 4, device="meta"))
    text = refused(nn.Linear(4, 4), torch.ones(2, 4, device="meta"), InputError)
    assert "cpu" in text
    assert "meta" in text


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        (torch.ones(0, 4), "holds no values"),
        (torch.ones(2, 5), "fails on the example inputs"),
        (torch.ones(2, 4, dtype=torch.float16), "fails on the example inputs"),
        (None, "example_inputs is None"),
        ((X, X), "do not fit"),
    ],
)
def test_bad_inputs(inputs: Any, expected: str) -> None:
    assert expected in refused(nn.Linear(4, 4).eval(), inputs, InputError)


def test_what_cannot_be_copied() -> None:
    class Stubborn(nn.Linear):
        def __deepcopy__(self, memo: Any) -> Any:
            raise RuntimeError("no copies")

    assert "no copies" in refused(Stubborn(4, 4), X, FxCompressError)
