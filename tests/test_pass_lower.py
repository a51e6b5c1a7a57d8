"""Lowering to the native CPU kernels keeps numbers, shapes, layouts and what a module can do."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from rewriting import image, kinds, randomized
from test_pass_functionalize import Apply
from torch import fx, nn

from fxcompress.errors import ModeError, OrderError, TargetError
from fxcompress.ir.inputs import Inputs
from fxcompress.pipeline import Pipeline

PASSES = "functionalize,drop-noops,fold-norm,fuse,lower"


def lowered(model, x):
    return Pipeline.parse(PASSES).execute(fx.symbolic_trace(randomized(model)), Inputs.of(x)).module


def close(model, module, x):
    with torch.no_grad():
        want, got = model(x), module(x)
    assert want.shape == got.shape
    assert want.is_contiguous() == got.is_contiguous()
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))


def block():
    conv = nn.Conv2d(4, 4, 3, padding=1)
    return Apply(
        lambda m, x: F.relu(m.norm(m.conv(x)) + x),
        conv=conv,
        norm=nn.BatchNorm2d(4),
    )


def test_other_batch_and_image_sizes():
    model = block()
    module = lowered(model, image())
    for shape in [(1, 4, 7, 5), (5, 4, 9, 3), (2, 4, 7, 5), (1, 4, 1, 1)]:
        close(model, module, image(*shape))


def test_views_of_channels_last_tensors():
    def forward(m, x):
        y = m.conv(x)
        y = y.view(y.size(0), 2, 4, y.size(2), y.size(3)).transpose(1, 2).contiguous().view(y.size(0), 8, y.size(2), y.size(3))
        return m.head(y.view(y.size(0), -1))

    model = Apply(forward, conv=nn.Conv2d(4, 8, 3, padding=1), head=nn.Linear(8 * 35, 3))
    close(model, lowered(model, image()), image())


def test_a_shared_layer_stays_one():
    model = Apply(lambda m, x: m.conv(m.conv(x)), conv=nn.Conv2d(4, 4, 3, padding=1))
    module = lowered(model, image())
    assert kinds_of(module) == ["PackedConv", "PackedConv", "contiguous"]
    assert sum(b.numel() for b in module.buffers()) == 4 * 4 * 9 + 4
    close(model, module, image())


def kinds_of(module):
    class Run:
        pass

    run = Run()
    run.module = module
    return kinds(run)


def test_a_residual_that_is_read_again_is_not_overwritten():
    def forward(m, x):
        y = m.a(x)
        return m.b(y) + y, y * 2

    model = Apply(forward, a=nn.Conv2d(4, 4, 1), b=nn.Conv2d(4, 4, 1))
    module = lowered(model, image())
    with torch.no_grad():
        for want, got in zip(model(image()), module(image()), strict=True):
            torch.testing.assert_close(got, want)


def test_the_users_input_is_not_overwritten():
    model = Apply(lambda m, x: m.a(x) + x, a=nn.Conv2d(4, 4, 1))
    module, x = lowered(model, image()), image().to(memory_format=torch.channels_last)
    before = x.clone()
    with torch.no_grad():
        module(x)
    assert torch.equal(x, before)


def test_copies_and_state():
    model = block()
    module = lowered(model, image())
    with torch.no_grad():
        want = module(image())
        copied = copy.deepcopy(module)
        assert torch.equal(copied(image()), want)
        state = {k: v.clone() for k, v in module.state_dict().items()}
        assert set(state) == {"conv.weight", "conv.bias"}
        for value in module.state_dict().values():
            value.zero_()
        assert not torch.equal(module(image()), want)
        module.load_state_dict(state)
        assert torch.equal(module(image()), want)


def test_training_and_gradients_are_refused():
    module = lowered(block(), image())
    with pytest.raises(ModeError, match="lowered for inference"):
        module.train()
    with pytest.raises(ModeError):
        module(image().requires_grad_())


def test_it_may_be_called_without_no_grad():
    """Parameters of layers that stay as they are (norms) would otherwise make later layers see an input that requires a gradient."""
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 3)).eval()
    module = lowered(model, image())
    assert not module(image()).requires_grad
    assert all(p.requires_grad for p in model.parameters())


def test_order_and_unknown_targets():
    with pytest.raises(OrderError, match="functionalize"):
        Pipeline.parse("lower")
    with pytest.raises(OrderError, match="lower"):
        Pipeline.parse("functionalize,lower,fold-norm")
    with pytest.raises(TargetError, match="did you mean cpu"):
        Pipeline.parse("functionalize,lower{target=cpuu}").execute(fx.symbolic_trace(block().eval()), Inputs.of(image()))


def test_a_model_in_training_mode_is_left_alone():
    run = Pipeline.parse("functionalize,lower").execute(fx.symbolic_trace(block().train()), Inputs.of(image()))
    assert not run.steps[-1].changed
    assert "training mode" in str(run.steps[-1].remarks[0])


class Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)

    def forward(self, x):
        y = self.norm(x)
        return x + self.attention(y, y, y, need_weights=False)[0]


def test_self_attention_and_the_file(tmp_path):
    from fxcompress.storage import load, save

    model, x = Attends(), image(3, 5, 8)
    module = lowered(model, x)
    assert "PackedSelfAttention" in kinds_of(module)
    assert set(module.state_dict()) == set(model.state_dict())
    close(model, module, x)
    save(module, tmp_path / "attention.fxc")
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "attention.fxc")(x), module(x))


def test_cross_attention_stays():
    class Crosses(Attends):
        def forward(self, x):
            return self.attention(x, x + 1, x)[0]

    model, x = Crosses(), image(3, 5, 8)
    module = lowered(model, x)
    assert "MultiheadAttention" in kinds_of(module)
    close(model, module, x)


def accelerated(model, x):
    text = PASSES + "{target=onednn-graph}"
    return Pipeline.parse(text).execute(fx.symbolic_trace(randomized(model)), Inputs.of(x)).module


def test_onednn_graph_keeps_state_and_follows_it():
    model = block()
    module = accelerated(model, image())
    assert set(module.state_dict()) == {"conv.weight", "conv.bias"}
    for shape in [(2, 4, 7, 5), (1, 4, 9, 3), (1, 4, 9, 3), (1, 4, 9, 3)]:
        close(model, module, image(*shape))
    with torch.no_grad():
        copied = copy.deepcopy(module)
        assert torch.equal(copied(image()), module(image()))
        before = module(image())
        module.load_state_dict({k: v * 2 for k, v in module.state_dict().items()})
        for _ in range(3):
            assert not torch.equal(module(image()), before)
        assert torch.equal(copied(image()), before)
        torch.testing.assert_close(module(x=image()), module(image()))


def test_onednn_graph_refuses_what_it_cannot_do():
    with pytest.raises(TargetError):
        accelerated(nn.Sequential(nn.Embedding(4, 4), nn.Linear(4, 4)).double(), torch.arange(4))
