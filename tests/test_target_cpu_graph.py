"""OneDnnGraph: same numbers, any shape, nothing compiled in its state."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxcompress.api import compress
from fxcompress.api.tracing import trace
from fxcompress.errors import ModeError, TargetError
from fxcompress.ir.activation import Activation
from fxcompress.ir.fused import fuse
from fxcompress.ir.inputs import Inputs
from fxcompress.targets import cpu, cpu_graph
from fxcompress.targets.cpu_graph import OneDnnGraph, onednn_graph_missing
from fxcompress.targets.cpu_modules import PackedConv, PackedLinear

pytestmark = pytest.mark.skipif(onednn_graph_missing() is not None, reason="this torch has no oneDNN Graph")


class Net(nn.Module):
    """Depthwise block with squeeze and excite, a residual used twice, hardsigmoid and a linear; outputs in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = PackedConv.of(fuse(nn.Conv2d(3, 16, 3, 2, 1), Activation("hardswish")))
        self.depth = PackedConv.of(fuse(nn.Conv2d(16, 16, 3, 1, 1, groups=16), Activation("silu")))
        self.squeeze = PackedConv.of(fuse(nn.Conv2d(16, 4, 1), Activation("relu")))
        self.excite = PackedConv.of(fuse(nn.Conv2d(4, 16, 1), None))
        self.join = PackedConv.of(fuse(nn.Conv2d(16, 16, 1), Activation("relu")), overwrites_residual=False)
        self.norm = nn.BatchNorm2d(16)
        self.head = PackedLinear.of(nn.Linear(16, 10))

    def forward(self, x: Tensor) -> dict[str, Any]:
        x = self.stem(x)
        y = self.depth(x)
        y = y * F.hardsigmoid(self.excite(self.squeeze(F.adaptive_avg_pool2d(y, 1))))
        z = self.join(y, x) + x
        z = torch.cat([F.max_pool2d(z, 2), F.avg_pool2d(self.norm(z), 2)], 1)[:, 4:20]
        return {"maps": (x, z), "out": self.head(F.adaptive_avg_pool2d(z, 1).flatten(1))}


@pytest.fixture(autouse=True)
def _inference() -> Any:
    with torch.no_grad():
        yield


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


def assert_same(found: Any, wanted: Any) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_the_same_numbers_for_several_shapes(net: nn.Module) -> None:
    engine = OneDnnGraph(net)
    for shape in [(1, 3, 16, 16), (4, 3, 16, 16), (2, 3, 31, 17)]:
        engine.prepare(torch.randn(shape))
        for x in (torch.randn(shape), torch.randn(shape).contiguous(memory_format=torch.channels_last), torch.ones(shape)):
            kept = x.clone()
            first, second = engine(x), engine(x)
            assert_same(first, net(x))
            assert_same(second, first)
            assert torch.equal(x, kept)
    assert len(engine._compiled) == 3
    assert not engine.refused


def test_the_graph_really_runs_in_partitions(net: nn.Module) -> None:
    engine = OneDnnGraph(net)
    x = torch.randn(1, 3, 16, 16)
    engine.prepare(x)
    with torch.profiler.profile() as profile:
        engine(x)
    names = {event.name for event in profile.events()}
    assert any(name.startswith("LlgaPartition") for name in names), names
    assert not names & {"aten::conv2d", "aten::hardsigmoid", "aten::adaptive_avg_pool2d", "mkldnn::_convolution_pointwise"}


def test_a_shape_is_compiled_at_its_second_call_and_only_some_are_kept(net: nn.Module) -> None:
    engine = OneDnnGraph(net)
    x = torch.randn(1, 3, 16, 16)
    engine(x)
    assert not engine._compiled
    engine(x)
    assert len(engine._compiled) == 1
    for side in (18, 20, 22, 24, 26):
        for _ in range(2):
            assert_same(engine(torch.ones(1, 3, side, side)), net(torch.ones(1, 3, side, side)))
    assert len(engine._compiled) == 4


def test_state_copies_and_changes_of_weights(net: nn.Module) -> None:
    engine = OneDnnGraph(net)
    x = torch.randn(1, 3, 16, 16)
    engine.prepare(x)
    y = engine(x)
    assert set(engine.state_dict()) == {f"graph.{k}" for k in net.state_dict()}
    buffer = io.BytesIO()
    torch.save(engine, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(engine), torch.load(buffer, weights_only=False)):
        assert not other._compiled
        other.prepare(x)
        assert_same(other(x), y)
    engine.load_state_dict({k: v * 0.5 if v.is_floating_point() else v for k, v in engine.state_dict().items()})
    assert_same(engine(x), net(x))
    engine.prepare(x)
    net.head.weight.mul_(3)  # type: ignore[operator,union-attr]
    assert_same(engine(x), net(x))
    assert not torch.allclose(engine(x)["out"], y["out"])
    assert engine.double()(x.double())["out"].dtype is torch.float64


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_inputs_take_the_graph(net: nn.Module, dtype: torch.dtype) -> None:
    engine = OneDnnGraph(copy.deepcopy(net).to(dtype))
    x = torch.randn(1, 3, 16, 16, dtype=dtype)
    for _ in range(3):
        assert engine(x)["out"].dtype is dtype
    assert not engine._compiled
    with pytest.raises(TargetError, match="not float32"):
        engine.prepare(x)


def test_empty_batch_autocast_and_export_take_the_graph(net: nn.Module) -> None:
    engine = OneDnnGraph(net)
    assert engine(torch.randn(0, 3, 16, 16))["out"].shape == (0, 10)
    x = torch.randn(1, 3, 16, 16)
    engine.prepare(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert engine(x)["out"].dtype is torch.bfloat16
    assert "conv2d" in str(torch.export.export(engine, (x,)).graph)
    with torch.inference_mode():
        assert_same(engine(x), net(x))


def test_refusals(net: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(1, 3, 16, 16)
    engine = OneDnnGraph(net)
    with pytest.raises(ModeError):
        engine.train()
    with torch.enable_grad(), pytest.raises(ModeError):
        engine(x.requires_grad_())
    monkeypatch.setattr(cpu_graph, "onednn_graph_missing", lambda: "it is gone")
    with pytest.raises(TargetError, match="it is gone"):
        engine.prepare(x.detach())
    assert_same(engine(x.detach()), net(x.detach()))


def test_a_wrong_compiled_form_is_not_used(net: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    right = cpu_graph._compile

    def wrong(graph: nn.Module, tensors: list[Tensor]) -> Any:
        run = right(graph, tensors)
        return lambda *args: {**run(*args), "out": run(*args)["out"] * 1.1}

    monkeypatch.setattr(cpu_graph, "_compile", wrong)
    engine = OneDnnGraph(net)
    x = torch.randn(1, 3, 16, 16)
    with pytest.raises(TargetError, match="off by"):
        engine.prepare(x)
    assert_same(engine(x), net(x))


def test_the_fusion_switch_and_the_flags_of_modules_are_put_back(net: nn.Module) -> None:
    before = torch.jit.onednn_fusion_enabled()
    net.norm.training = True  # type: ignore[union-attr]
    flags = [m.training for m in net.modules()]
    engine = OneDnnGraph(copy.deepcopy(net))
    engine.graph.norm.eval()  # type: ignore[union-attr]
    engine.prepare(torch.randn(2, 3, 16, 16))
    assert torch.jit.onednn_fusion_enabled() is before
    assert [m.training for m in net.modules()] == flags


def test_nan_inputs_do_not_stop_it(net: nn.Module) -> None:
    engine = OneDnnGraph(net)
    engine.prepare(torch.full((1, 3, 16, 16), float("nan")))
    x = torch.randn(1, 3, 16, 16)
    assert_same(engine(x), net(x))


def test_graphs_that_would_take_long_to_compile_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling takes time that grows with the square of the nodes; the packed modules alone run such a graph."""
    model, x = nn.Sequential(*[nn.Conv2d(3, 3, 3, padding=1) for _ in range(8)]).eval(), torch.randn(1, 3, 4, 4)
    monkeypatch.setattr(cpu, "MOST_NODES", 8)
    with pytest.raises(TargetError, match="10 nodes"):
        cpu.OneDnnGraphTarget().lower(trace(model, x), Inputs((x,)))
    assert compress(model, x, target="cpu").report.target != "onednn-graph"
