"""``torch.compile(model, backend="fxcompress")``."""

from __future__ import annotations

import pytest
import torch
from rewriting import image
from test_api import small


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_other_sizes_compile_again():
    model = small()[:4]
    compiled = torch.compile(model, backend="fxcompress")
    with torch.no_grad():
        for shape in [(2, 4, 7, 5), (3, 4, 7, 5), (1, 4, 9, 9)]:
            torch.testing.assert_close(compiled(image(*shape)), model(image(*shape)), rtol=1e-4, atol=1e-4)


def test_options():
    model = small()
    compiled = torch.compile(
        model, backend="fxcompress", options={"pipeline": "functionalize,fold-norm", "target": "none", "verify": False}
    )
    with torch.inference_mode():
        torch.testing.assert_close(compiled(image()), model(image()), rtol=1e-4, atol=1e-4)


def test_it_lowers(monkeypatch):
    from fxcompress.targets.cpu_modules import PackedConv

    calls = []
    original = PackedConv.forward
    monkeypatch.setattr(PackedConv, "forward", lambda self, *args: (calls.append(1), original(self, *args))[1])
    compiled = torch.compile(small(), backend="fxcompress")
    with torch.no_grad():
        compiled(image())
    assert calls


def test_it_is_listed():
    assert "fxcompress" in torch._dynamo.list_backends()


@pytest.mark.parametrize(("options", "words"), [({"tarket": "cpu"}, "tarket"), ({"target": "cpuu"}, "did you mean cpu")])
def test_bad_options(options, words):
    compiled = torch.compile(small(), backend="fxcompress", options=options)
    with torch.no_grad(), pytest.raises(Exception, match=words):
        compiled(image())


def test_gradients_are_refused():
    with pytest.raises(Exception, match="no_grad"):
        torch.compile(small(), backend="fxcompress")(image())
