"""PackedSelfAttention against nn.MultiheadAttention in float64."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from fxcompress.errors import ModeError, TargetError
from fxcompress.targets.cpu_attention import PackedSelfAttention, lowerable_attention
from fxcompress.targets.cpu_kernels import kernels

pytestmark = pytest.mark.skipif(kernels().missing() is not None, reason="this torch has no oneDNN")


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(2, 17, 24), (1, 1, 24), (9, 24), (0, 5, 24), (3, 200, 24)])
def test_against_float64(shape: tuple[int, ...], bias: bool, batch_first: bool) -> None:
    layer = nn.MultiheadAttention(24, 4, bias=bias, batch_first=batch_first).eval()
    packed = PackedSelfAttention.of(layer)
    x = torch.randn(shape) * 3
    with torch.no_grad():
        exact = copy.deepcopy(layer).double()
        wanted = exact(x.double(), x.double(), x.double(), need_weights=False)[0] if x.numel() else x.double()
        torch.testing.assert_close(packed(x).double(), wanted, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(copy.deepcopy(packed).double()(x.double()), wanted)


def test_state() -> None:
    layer = nn.MultiheadAttention(24, 4, batch_first=True).eval()
    packed = PackedSelfAttention.of(layer)
    assert set(packed.state_dict()) == set(layer.state_dict())
    x = torch.randn(2, 5, 24)
    with torch.no_grad():
        y = packed(x)
        for other in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
            assert torch.equal(other(x), y)
        other = nn.MultiheadAttention(24, 4, batch_first=True).eval()
        for assign in (False, True):
            clone = copy.deepcopy(packed)
            clone(x)
            clone.load_state_dict(copy.deepcopy(other.state_dict()), assign=assign)
            torch.testing.assert_close(clone(x), other(x, x, x, need_weights=False)[0])
        before = packed(x)
        packed.in_proj_weight.mul_(2)
        assert not torch.allclose(packed(x), before)


def test_refusals() -> None:
    packed = PackedSelfAttention.of(nn.MultiheadAttention(24, 4))
    with pytest.raises(ModeError):
        packed.train()
    with pytest.raises(ModeError):
        packed(torch.randn(2, 5, 24, requires_grad=True))
    assert "width" in str(lowerable_attention(nn.MultiheadAttention(24, 4, kdim=8)))
    assert "add_bias_kv" in str(lowerable_attention(nn.MultiheadAttention(24, 4, add_bias_kv=True)))
    assert "float32" in str(lowerable_attention(nn.MultiheadAttention(24, 4).double()))
    with pytest.raises(TargetError, match="Linear"):
        PackedSelfAttention.of(nn.Linear(3, 4))
