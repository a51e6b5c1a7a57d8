"""Replay: the bits of the graph, any shape, nothing recorded that depends on values."""

from __future__ import annotations

import copy
import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxcompress.api import REWRITES, compress, trace
from fxcompress.errors import ModeError, TargetError
from fxcompress.ir.inputs import Inputs
from fxcompress.result import load
from fxcompress.targets import replay
from fxcompress.targets.accelerated import FLAG
from fxcompress.targets.cpu import CpuTarget
from fxcompress.targets.cpu_modules import PackedConv, PackedLinear
from fxcompress.targets.replay import Replay

pytestmark = pytest.mark.skipif(replay.replay_missing() is not None, reason="this torch cannot replay")


class Net(nn.Module):
    """Packed layers, lists in and out of operators, views, a residual written over, an index with a gap; outputs in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = PackedConv.of(nn.Conv2d(3, 16, 3, 2, 1))
        self.join = PackedConv.of(nn.Conv2d(16, 16, 1), overwrites_residual=True)
        self.norm = nn.BatchNorm2d(16)
        self.head = PackedLinear.of(nn.Linear(16, 10))
        self.register_buffer("places", torch.tensor([2, 0, 1]))

    def forward(self, x: Tensor) -> dict[str, Any]:
        x = self.stem(x)
        a, b = x.chunk(2, 1)
        y = torch.cat([F.silu(b), a], 1)
        y = self.join(y, self.norm(y))
        z = F.leaky_relu(y, 0.3).add_(1, alpha=2)
        return {"maps": (y, z[:, self.places]), "out": self.head(F.adaptive_avg_pool2d(z, 1).flatten(1)), "last": z.unbind(1)[-1]}


@pytest.fixture
def net() -> nn.Module:
    return Net().eval()


def assert_bits(found: Any, wanted: Any) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)


@torch.no_grad()
def test_the_same_bits_for_several_shapes_and_layouts(net: nn.Module) -> None:
    engine = Replay(net)
    for shape in [(1, 3, 16, 16), (4, 3, 16, 16), (2, 3, 31, 17)]:
        for x in (torch.randn(shape), torch.randn(shape).contiguous(memory_format=torch.channels_last), torch.full(shape, float("nan"))):
            kept = x.clone()
            engine.prepare(x)
            first, second = engine(x), engine(x)
            assert_bits(first, net(x))
            assert_bits(second, first)
            assert_bits(x, kept)
            assert all(a.stride() == b.stride() for a, b in zip(first["maps"], net(x)["maps"], strict=True))
    assert len(engine._compiled) == 4  # the first shapes had to go
    assert not engine.refused


@torch.no_grad()
def test_it_really_replays(net: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, x = Replay(net), torch.randn(1, 3, 16, 16)
    engine.prepare(x)
    wanted = net(x)
    monkeypatch.setattr(Net, "forward", lambda self, x: pytest.fail("the graph ran"))
    assert_bits(engine(x), wanted)


@torch.no_grad()
def test_a_shape_is_recorded_at_its_second_call(net: nn.Module) -> None:
    engine, x = Replay(net), torch.randn(1, 3, 16, 16)
    engine(x)
    assert not engine._compiled
    engine(x)
    assert len(engine._compiled) == 1


@torch.no_grad()
def test_weights_that_change_are_seen(net: nn.Module) -> None:
    engine, x = Replay(net), torch.randn(1, 3, 16, 16)
    held: Any = net
    changes = (
        lambda: held.head.weight.mul_(3),
        lambda: setattr(held.norm, "bias", nn.Parameter(torch.ones(16))),
        lambda: held.load_state_dict({k: v * 0.5 if v.is_floating_point() else v for k, v in held.state_dict().items()}),
        lambda: held.register_buffer("places", torch.tensor([5, 6])),
    )
    for change in changes:
        engine.prepare(x)
        before = engine(x)
        change()
        assert_bits(engine(x), net(x))
        assert not all(torch.equal(a, b) for a, b in zip([*before["maps"], before["out"]], [*net(x)["maps"], net(x)["out"]], strict=True))


@torch.no_grad()
def test_copies_and_files_record_anew(net: nn.Module) -> None:
    engine, x = Replay(net), torch.randn(1, 3, 16, 16)
    engine.prepare(x)
    buffer = io.BytesIO()
    torch.save(engine, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(engine), torch.load(buffer, weights_only=False)):
        assert not other._compiled
        other.prepare(x)
        assert_bits(other(x), engine(x))


class Reading(nn.Module):
    """Decides by a value."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum().item() > 0 else x


class Escaping(nn.Module):
    """Computes outside of torch, where nothing can be recorded."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.from_numpy(x.numpy() * 2)


class Writing(nn.Module):
    """Counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.calls.add_(1)


class Sizes(nn.Module):
    """Gives a number beside a tensor."""

    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        return x + 1, x.shape[0]


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (Reading(), "is read from its tensors"),
        (Escaping(), "more than the shapes"),
        (Writing(), "own buffers|more than"),
        (Sizes(), "not a tensor"),
    ],
)
@torch.no_grad()
def test_what_is_not_a_list_of_calls_is_refused(model: nn.Module, why: str) -> None:
    engine, x = Replay(model), torch.tensor([[1.0, -3.0, 5.0]])
    with pytest.raises(TargetError, match=why):
        engine.prepare(x)
    twin = copy.deepcopy(model)
    for value in (x, -x, x):
        assert_bits(engine(value), twin(value))


@torch.no_grad()
def test_trying_does_not_count_as_a_call() -> None:
    graph = trace(Writing(), torch.ones(2))
    with pytest.raises(TargetError, match=r"own buffers|more than"):
        Replay(graph).prepare(torch.ones(2))
    assert int(graph.calls) == 0
    CpuTarget().lower(graph, Inputs((torch.ones(2),)))
    assert int(graph.calls) == 0


@torch.no_grad()
def test_random_numbers_stay_random() -> None:
    """Other numbers in every run: that is more than the shapes of the inputs."""
    engine = Replay(trace(nn.Sequential(nn.Linear(4, 64)), torch.randn(1, 4)))
    engine.prepare(torch.randn(1, 4))
    assert not engine.refused
    noisy = Replay(nn.Dropout(0.5))
    noisy.graph.train()
    with pytest.raises(TargetError):
        noisy.prepare(torch.ones(64))


def test_modes(net: nn.Module) -> None:
    engine, x = Replay(net), torch.randn(1, 3, 16, 16)
    with torch.inference_mode():
        engine.prepare(x)  # recorded here, and run in every other mode
        wanted = net(x)
    with pytest.raises(ModeError):
        engine.train()
    with pytest.raises(ModeError):
        engine(x.clone().requires_grad_())
    for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with mode():
            found = engine(x)
            assert_bits(found, wanted)
            assert not found["out"].requires_grad
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert engine(x)["out"].dtype is torch.bfloat16
    with torch.no_grad():
        assert engine(torch.randn(0, 3, 16, 16))["out"].shape == (0, 10)


@torch.no_grad()
def test_threads_share_a_recording(net: nn.Module) -> None:
    engine = Replay(net)
    inputs = [torch.randn(1, 3, 16, 16) for _ in range(16)]
    engine.prepare(inputs[0])
    wanted = [net(x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for found, expected in zip(pool.map(engine, inputs * 4), wanted * 4, strict=True):
            assert_bits(found, expected)


def test_the_interpreters_switch_is_put_back(net: nn.Module) -> None:
    before = torch._C._get_graph_executor_optimize()
    Replay(net).prepare(torch.randn(1, 3, 16, 16))
    assert torch._C._get_graph_executor_optimize() is before


def test_the_cpu_target_replays_and_a_file_does_so_again(tmp_path: Any) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)).eval()
    x = torch.randn(2, 3, 8, 8)
    lowered = CpuTarget().lower(trace(model, x), Inputs((x,)))
    assert lowered.meta[FLAG] == "replay"
    fast: Any = compress(model, x, pipeline=f"{REWRITES},lower{{target=cpu}}")
    fast.save(tmp_path / "model.fxc")
    again = load(tmp_path / "model.fxc")
    assert again.meta[FLAG] == "replay"
    for _ in range(3):
        assert_bits(again(x), fast(x))


def test_models_that_cannot_be_replayed_run_as_they_are() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, given: dict[str, Tensor]) -> Tensor:
            return self.layer(given["x"])

    model, given = Pair().eval(), {"x": torch.randn(2, 4)}
    fast: Any = compress(model, (given,), target="cpu")
    assert fast.meta.get(FLAG) != "replay"
    with torch.no_grad():
        torch.testing.assert_close(fast(given), model(given))
