"""expand-attention against ``nn.MultiheadAttention`` itself, in float64; and what can be pruned afterwards."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from algebra import applied, execute, outputs, randomise, reasons, relative, rewritten, sample
from torch import Tensor, nn

from fxcompress import load, save
from fxcompress.analysis import Analyses
from fxcompress.analysis.channels import ChannelDependencyGraph
from fxcompress.capture import capture
from fxcompress.ir import numbers
from fxcompress.ir.inputs import Inputs
from fxcompress.pipeline import Pipeline
from fxcompress.pruning.mask import masked
from fxcompress.pruning.slicing import sliced

PASS = "expand-attention"


class Self(nn.Module):
    """Self-attention; ``options`` of the layer, ``call`` of its forward."""

    def __init__(self, width: int = 8, heads: int = 2, call: dict[str, Any] | None = None, **options: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, **options)
        self.call = call or {}

    def forward(self, x: Tensor) -> Any:
        return self.attention(x, x, x, **self.call)


class First(Self):
    def forward(self, x: Tensor) -> Any:
        return self.attention(x, x, x, **self.call)[0]


class Cross(Self):
    def forward(self, x: Tensor, y: Tensor, z: Tensor) -> Any:
        result, weights = self.attention(x, y, z, **self.call)
        return {"result": result, "weights": weights}


class Masked(Self):
    """The masks are inputs; ``keys`` names those that are given, in order."""

    keys = ("attn_mask",)

    def forward(self, x: Tensor, first: Tensor) -> Any:
        return self.attention(x, x, x, **{self.keys[0]: first}, **self.call)[0]


class Padded(Masked):
    keys = ("key_padding_mask",)


class Both(Masked):
    def forward(self, x: Tensor, first: Tensor, second: Tensor) -> Any:
        return self.attention(x, x, x, attn_mask=first, key_padding_mask=second, **self.call)[0]


def expanded(model: nn.Module, *inputs: Tensor, **kwargs: Any) -> Any:
    """The run; no attention layer is called any more, and the keys of the state_dict are those of the model."""
    run = rewritten(model, PASS, *inputs, **kwargs)
    assert applied(run) >= 1, reasons(run)
    called = [run.module.get_submodule(str(n.target)) for n in run.module.graph.nodes if n.op == "call_module"]
    assert not any(isinstance(m, nn.MultiheadAttention) for m in called)
    assert set(run.module.state_dict()) == set(model.state_dict())
    return run


def targets(run: Any) -> list[Any]:
    return [node.target for node in run.module.graph.nodes]


def refused(model: nn.Module, *inputs: Tensor) -> str:
    run = execute(model, PASS, *inputs)
    assert applied(run) == 0
    return reasons(run)


WEIGHTS = [{}, {"average_attn_weights": False}, {"need_weights": False}]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("shape", [(3, 5, 8), (5, 8)])
@pytest.mark.parametrize("call", WEIGHTS)
def test_self_attention(bias: bool, batch_first: bool, shape: tuple[int, ...], call: dict[str, Any]) -> None:
    model = randomise(Self(call=call, bias=bias, batch_first=batch_first))
    expanded(model, sample(*shape), more=((sample(*[n + 2 for n in shape[:-1]], 8),),))


def test_one_fused_kernel_where_nobody_reads_the_weights() -> None:
    model = randomise(First(batch_first=True))
    run = expanded(model, sample(3, 5, 8), more=((sample(1, 7, 8),),))
    assert targets(run).count(F.scaled_dot_product_attention) == 1
    assert targets(run).count(F.linear) == 1
    assert torch.softmax not in targets(run)


class Unpacked(Self):
    def forward(self, x: Tensor) -> Any:
        result, _ = self.attention(x, x, x)
        return result + x


def test_weights_that_are_unpacked_and_dropped_are_not_computed() -> None:
    assert torch.softmax not in targets(expanded(randomise(Unpacked()), sample(5, 3, 8)))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("widths", [(8, 8), (6, 8), (8, 3), (6, 3)])
@pytest.mark.parametrize("call", WEIGHTS)
def test_cross_attention(bias: bool, batch_first: bool, widths: tuple[int, int], call: dict[str, Any]) -> None:
    model = randomise(Cross(8, 4, call=call, bias=bias, batch_first=batch_first, kdim=widths[0], vdim=widths[1]))
    for batch in ((), (3,)):
        lengths = [(*batch, n) if batch_first else (n, *batch) for n in (5, 7, 7)]
        x, y, z = (sample(*length, width, seed=i) for i, (length, width) in enumerate(zip(lengths, (8, *widths), strict=True)))
        expanded(model, x, y, z)


def mask(*shape: int, boolean: bool, seed: int = 3) -> Tensor:
    """Some places are forbidden, never a whole row."""
    values = sample(*shape, seed=seed)
    forbidden = values > 0.5
    forbidden[..., 0] = False
    return forbidden if boolean else values.masked_fill(forbidden, -torch.inf)


@pytest.mark.parametrize("boolean", [True, False])
@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("call", WEIGHTS)
def test_attention_masks(boolean: bool, rank: int, batched: bool, call: dict[str, Any]) -> None:
    for first in (True, False):
        model = randomise(Masked(8, 2, call=call, batch_first=first))
        x = sample(*((3, 5) if first else (5, 3)), 8) if batched else sample(5, 8)
        expanded(model, x, mask(*[(3 if batched else 1) * 2][: rank - 2], 5, 5, boolean=boolean))


@pytest.mark.parametrize("boolean", [True, False])
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("call", WEIGHTS)
def test_padding_masks(boolean: bool, batched: bool, call: dict[str, Any]) -> None:
    x = sample(3, 5, 8) if batched else sample(5, 8)
    padding = mask(*[3][: int(batched)], 5, boolean=boolean)
    expanded(randomise(Padded(8, 2, call=call, batch_first=True)), x, padding)


@pytest.mark.filterwarnings("ignore:Support for mismatched")
@pytest.mark.parametrize(("one", "other"), list(itertools.product([True, False], repeat=2)))
@pytest.mark.parametrize("call", WEIGHTS)
def test_both_masks(one: bool, other: bool, call: dict[str, Any]) -> None:
    model = randomise(Both(8, 2, call=call, batch_first=True))
    expanded(model, sample(3, 5, 8), mask(5, 5, boolean=one), mask(3, 5, boolean=other, seed=5))


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("weights", [True, False])
def test_causal(padded: bool, weights: bool) -> None:
    causal = torch.ones(5, 5).triu(1).bool()
    call = {"is_causal": True, "need_weights": weights}
    if padded:
        padding = torch.tensor([[False] * 5, [False] * 4 + [True], [False, True] * 2 + [False]])
        expanded(randomise(Both(8, 2, call=call, batch_first=True)), sample(3, 5, 8), causal, padding)
        return
    run = expanded(randomise(Masked(8, 2, call=call, batch_first=True)), sample(3, 5, 8), causal)
    fused = [n for n in run.module.graph.nodes if n.target is F.scaled_dot_product_attention]
    assert [n.kwargs.get("is_causal") for n in fused] == ([] if weights else [True])


# -- what is left alone -------------------------------------------------------------------------------------------------


def test_refusals() -> None:
    x = sample(5, 3, 8)
    assert "add_bias_kv" in refused(randomise(First(add_bias_kv=True)), x)
    assert "add_zero_attn" in refused(randomise(First(add_zero_attn=True)), x)
    assert "is_causal" in refused(randomise(First(batch_first=True, call={"is_causal": True})), x)
    assert "drops 0.1" in refused(randomise(First(dropout=0.1)).train(), x)


class Whole(Self):
    def forward(self, x: Tensor) -> Any:
        return self.attention(x, x, x)[:1]


def test_a_slice_of_the_pair_is_refused() -> None:
    assert "as a whole" in refused(randomise(Whole()), sample(5, 3, 8))


class Shared(nn.Module):
    """One layer, called twice; the second call may be one that is refused."""

    def __init__(self, refused: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2)
        self.refused = refused

    def forward(self, x: Tensor) -> Tensor:
        y = self.attention(x, x, x)[0]
        return y + (self.attention(x, y, y)[:1][0] if self.refused else self.attention(x, y, y)[0])


@pytest.mark.parametrize("some", [True, False])
def test_a_shared_layer(some: bool) -> None:
    model = randomise(Shared(some))
    run = rewritten(model, PASS, sample(5, 3, 8))
    assert applied(run) == (1 if some else 2)
    assert set(run.module.state_dict()) == set(model.state_dict())
    assert type(model.attention.out_proj) is not nn.Linear


# -- training -----------------------------------------------------------------------------------------------------------


def test_training_mode_and_gradients() -> None:
    model = randomise(First(batch_first=True)).train()
    x = sample(3, 5, 8)
    run = expanded(model, x)
    assert all(m.training for m in run.module.modules())
    for module in (model, run.module):
        module.zero_grad()
        module(x).square().sum().backward()
    wanted = dict(model.named_parameters())
    for name, parameter in run.module.named_parameters():
        assert relative(wanted[name].grad, parameter.grad) < 1e-12


def test_dropout_follows_the_mode() -> None:
    model, x = randomise(First(batch_first=True, dropout=0.5)), sample(3, 5, 8)
    run = expanded(model, x)
    graph = run.module
    assert torch.equal(graph(x), graph(x))
    graph.train()
    assert not torch.equal(graph(x), graph(x))
    rates = [m.p for m in graph.modules() if isinstance(m, nn.Dropout)]
    assert rates == [0.5]
    assert torch.nn.Dropout not in [type(m) for m in execute(graph.eval(), "drop-noops", x).module.modules()]


def test_half_precision_frozen_and_meta() -> None:
    model = First(batch_first=True).eval().bfloat16().requires_grad_(False)
    run = execute(model, PASS, torch.randn(3, 5, 8).bfloat16(), verify=False)
    assert not any(p.requires_grad for p in run.module.parameters())
    assert run.module(torch.randn(3, 5, 8).bfloat16()).dtype == torch.bfloat16
    with torch.device("meta"):
        graph = torch.fx.symbolic_trace(First(batch_first=True).eval())
        run = Pipeline.parse(f"functionalize,{PASS}").execute(graph, Inputs((torch.ones(1, 3, 8),)), verify=False)
    assert F.scaled_dot_product_attention in targets(run)


def test_the_result_is_stored(tmp_path: Path) -> None:
    x = sample(3, 5, 8)
    module = expanded(randomise(First(batch_first=True, dropout=0.1)), x).module
    save(module, tmp_path / "attention.fxc")
    loaded = load(tmp_path / "attention.fxc")
    assert torch.equal(loaded(x), module(x))
    assert list(loaded.state_dict()) == list(module.state_dict())


# -- pruning ------------------------------------------------------------------------------------------------------------


def pruned(model: nn.Module, x: Tensor, seed: int = 0) -> tuple[ChannelDependencyGraph, nn.Module]:
    """Remove a random half of every group from the expanded model: sliced must be masked."""
    captured = capture(model, (x,))
    assert len(captured.parts) == 1
    part = captured.parts[0]
    run = Pipeline.parse(f"functionalize,{PASS}").execute(part.graph, part.inputs, verify=True)
    assert applied(run) > 0, reasons(run)
    deps = Analyses(run.module, part.inputs).get(ChannelDependencyGraph)
    keep, rng = np.ones(deps.classes, dtype=bool), np.random.default_rng(seed)
    for group in deps.groups:
        keep[rng.permutation(group.classes)[: len(group.classes) // 2]] = False
    small = sliced(deps, keep)
    want, got, whole = (numbers.evaluate(m, part.inputs) for m in (masked(deps, keep), small, run.module))
    assert numbers.compare(want, got).relative <= 1e-12
    assert numbers.compare(whole, got).relative > 1e-3
    return deps, small


def slot(deps: ChannelDependencyGraph, name: str, axis: int) -> set[int]:
    """The removable classes of an axis of a parameter."""
    return {int(c) for c in deps.slots[next(k for k in deps.slots if k[0].endswith(name) and k[1] == axis)] if c >= 0}


class Layer(nn.Module):
    """A transformer encoder layer (norm first) between a linear and a classifier."""

    def __init__(self, width: int = 16, heads: int = 4, **options: Any) -> None:
        super().__init__()
        self.stem = nn.Linear(6, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, **options)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + self.narrow(F.gelu(self.wide(self.norm2(x))))
        return self.head(x)


@pytest.mark.parametrize("options", [{"batch_first": True}, {}, {"bias": False}, {"dropout": 0.2, "batch_first": True}])
@pytest.mark.parametrize("seed", [0, 1])
def test_prune_an_encoder_layer(options: dict[str, Any], seed: int) -> None:
    deps, small = pruned(randomise(Layer(**options)), sample(3, 5, 6), seed)
    heads, stream = slot(deps, "out_proj.weight", 1), slot(deps, "out_proj.weight", 0)
    assert len(heads) == 4, "whole heads can be removed"
    assert stream == slot(deps, "in_proj_weight", 1) == slot(deps, "stem.weight", 0)
    assert len(stream) == 16
    assert heads <= slot(deps, "in_proj_weight", 0)
    x = sample(2, 7, 6)
    assert small(x).shape == (2, 7, 3)


class Decoder(nn.Module):
    """Cross-attention whose keys and values have widths of their own."""

    def __init__(self, kdim: int, vdim: int) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(6, 16), nn.Linear(6, kdim), nn.Linear(6, vdim)
        self.attention = nn.MultiheadAttention(16, 4, kdim=kdim, vdim=vdim, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.pad(x, (0, 0, 1, 1))
        return self.head(self.attention(self.q(x), self.k(y), self.v(y))[0])


@pytest.mark.parametrize("widths", [(16, 16), (12, 16), (12, 10)])
def test_prune_cross_attention(widths: tuple[int, int]) -> None:
    deps, _ = pruned(randomise(Decoder(*widths)), sample(3, 5, 6))
    assert len(slot(deps, "out_proj.weight", 1)) == 4
    assert len(slot(deps, "k.weight", 0)) == widths[0]
    assert len(slot(deps, "v.weight", 0)) == widths[1]


def test_prune_a_vision_transformer() -> None:
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=48, num_classes=5
    )
    model = randomise(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.3)
    x = sample(2, 3, 32, 32)
    deps, small = pruned(model, x)
    assert len(slot(deps, "encoder_layer_0.self_attention.out_proj.weight", 1)) == 4
    assert len(slot(deps, "conv_proj.weight", 0)) == 32
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model, small))
    assert after < 0.4 * before
    small = copy.deepcopy(small).train()
    small(x).sum().backward()
    assert all(p.grad is not None for p in small.parameters())
    assert len(outputs(small(sample(1, 3, 32, 32)))) == 1
