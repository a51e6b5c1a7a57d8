"""A pruned network is an ordinary module: it trains, copies, exports, compiles, distributes and is saved like any other."""

from __future__ import annotations

import copy
import io
import socket
import warnings
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracle import same
from rewriting import randomized
from torch import nn

import fxcompress


class Block(nn.Module):
    """The basic block of a resnet."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.down = nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width)) if stride > 1 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += self.down(x)
        return self.relu(y)


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.layers = nn.Sequential(Block(16, 16, 1), Block(16, 32, 2))
        self.drop, self.fc = nn.Dropout(0.1), nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layers(F.relu(self.bn(self.conv(x))))
        return self.fc(self.drop(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)))


class Layer(nn.Module):
    """An encoder layer with torch's own attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), nn.MultiheadAttention(width, heads, dropout=0.1, batch_first=True)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(0.1), nn.Linear(2 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 4, 4)
        self.token, self.position = nn.Parameter(torch.zeros(1, 1, 32)), nn.Parameter(torch.zeros(1, 5, 32))
        self.layers = nn.Sequential(Layer(32, 4), Layer(32, 4))
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        return self.head(self.norm(self.layers(x))[:, 0])


MODELS = {"resnet": ResNet, "vit": ViT}


def images(batch: int = 4) -> torch.Tensor:
    return torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(5))


@cache
def _pruned(name: str) -> Any:
    torch.manual_seed(0)
    model = MODELS[name]()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            randomized(module, 3)
    return fxcompress.prune(model.train(), images(), ratio=0.5, measure=False)


@pytest.fixture(params=sorted(MODELS))
def small(request: pytest.FixtureRequest) -> Any:
    """A pruned network in training mode."""
    result = copy.deepcopy(_pruned(request.param))
    assert result.report.after.params < 0.45 * result.report.before.params
    return result


def step(module: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    """One step on a fixed batch; the loss before it."""
    torch.manual_seed(1)
    loss = F.cross_entropy(module(images(8)), torch.arange(8) % 4)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


OPTIMIZERS = {"sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=1e-4), "adam": lambda p: torch.optim.AdamW(p, 1e-2)}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_training_lowers_the_loss(small: Any, kind: str) -> None:
    optimizer = OPTIMIZERS[kind](small.parameters())
    losses = [step(small, optimizer) for _ in range(40)]
    assert losses[-1] < 0.7 * losses[0]
    assert all(p.grad is not None and p.grad.shape == p.shape for p in small.parameters())


def test_modes(small: Any) -> None:
    assert small.training
    assert all(module.training for module in small.modules())
    torch.manual_seed(0)
    first, second = small(images()), small(images())
    assert not torch.equal(first, second)  # dropout is alive
    small.eval()
    same(small(images()), small(images()), None)
    small.train()
    assert all(module.training for module in small.modules())


def test_batch_statistics_move() -> None:
    small = copy.deepcopy(_pruned("resnet"))
    before = small.bn.running_mean.clone()
    small(images())
    assert small.bn.running_mean.shape == (8,)
    assert not torch.equal(before, small.bn.running_mean)
    assert int(small.bn.num_batches_tracked) > 0


def test_gradients_are_those_of_the_masked_network() -> None:
    """Training the small network does what training the masked one does."""
    torch.manual_seed(0)
    model = randomized(ResNet()).double()
    small: Any = fxcompress.prune(model, images().double(), measure=False)
    masked = small.plan.masked(model)
    before = {name: p.detach().clone() for name, p in small.named_parameters()}
    for module in (small, masked):
        F.cross_entropy(module(images().double()), torch.arange(4)).backward()
        torch.optim.SGD(module.parameters(), 0.1).step()
    want = dict(small.plan.apply(masked).named_parameters())
    for name, got in small.named_parameters():
        same(want[name].detach(), got.detach(), 1e-9, name)
        assert not torch.equal(got, before[name])


def test_state_dict_round_trip(small: Any) -> None:
    other = copy.deepcopy(small)
    with torch.no_grad():
        for p in other.parameters():
            p.normal_()
    stream = io.BytesIO()
    torch.save(small.state_dict(), stream)
    stream.seek(0)
    other.load_state_dict(torch.load(stream, weights_only=True), strict=True)
    same(small.eval()(images()), other.eval()(images()), None)


def test_optimizer_state_round_trip(small: Any) -> None:
    optimizer = torch.optim.AdamW(small.parameters(), 1e-3)
    step(small, optimizer)
    other = copy.deepcopy(small)
    again = torch.optim.AdamW(other.parameters(), 1e-3)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step(small, optimizer)
    step(other, again)
    same(small.eval()(images()), other.eval()(images()), None)


def test_deepcopy(small: Any) -> None:
    twin = copy.deepcopy(small)
    step(twin, torch.optim.SGD(twin.parameters(), 0.1))
    assert not torch.equal(next(iter(twin.parameters())), next(iter(small.parameters())))
    assert twin.plan == small.plan
    assert twin.report == small.report
    assert type(twin).__name__ == type(small).__name__


def test_save_and_load_are_bit_exact(small: Any, tmp_path: Any) -> None:
    step(small, torch.optim.SGD(small.parameters(), 0.1))
    small.save(tmp_path / "small.fxc")
    loaded: Any = fxcompress.load(tmp_path / "small.fxc")
    assert {k: v.tolist() for k, v in loaded.state_dict().items()} == {k: v.tolist() for k, v in small.state_dict().items()}
    assert loaded.training
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in small.parameters()]
    torch.manual_seed(2)
    want = small(images())
    torch.manual_seed(2)
    same(want, loaded(images()), None)
    assert loaded.plan == small.plan
    optimizer = torch.optim.SGD(loaded.parameters(), 0.05)
    assert step(loaded, optimizer) > step(loaded, optimizer)


@pytest.fixture
def process_group() -> Iterator[None]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without it")
@pytest.mark.usefixtures("process_group")
def test_distributed_data_parallel(small: Any) -> None:
    alone = copy.deepcopy(small)
    parallel = nn.parallel.DistributedDataParallel(small)
    ours, theirs = torch.optim.SGD(alone.parameters(), 0.05), torch.optim.SGD(parallel.parameters(), 0.05)
    for _ in range(2):
        assert step(alone, ours) == pytest.approx(step(parallel, theirs), rel=1e-5)
    same(alone.eval()(images()).detach(), parallel.module.eval()(images()).detach(), 1e-5)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_torch_compile(small: Any, backend: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(small, backend=backend, fullgraph=True)
    small.eval()
    same(small(images()).detach(), compiled(images()).detach(), 1e-5)
    small.train()
    losses = [step(compiled, optimizer) for optimizer in [torch.optim.SGD(small.parameters(), 0.05)] for _ in range(6)]
    assert losses[-1] < losses[0]


def test_torch_export(small: Any) -> None:
    small.eval()
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(small, (images(),), dynamic_shapes=({0: batch},))
    for count in (2, 7):
        same(small(images(count)).detach(), program.module()(images(count)).detach(), 1e-5)


def test_onnx_export(small: Any, tmp_path: Any) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    small.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter itself
        torch.onnx.export(small, (images(),), tmp_path / "small.onnx", dynamo=True, verbose=False)
    session = runtime.InferenceSession(tmp_path / "small.onnx", providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: images().numpy()})[0]
    same(small(images()).detach(), torch.from_numpy(found), 1e-4)


def test_moves_and_casts(small: Any) -> None:
    small.eval()
    want = small(images()).detach()
    same(want, copy.deepcopy(small).double()(images().double()).detach().float(), 1e-5)
    same(want, copy.deepcopy(small).to(memory_format=torch.channels_last)(images()).detach(), 1e-5)
    assert copy.deepcopy(small).to("meta")(images().to("meta")).shape == want.shape


def test_pruned_again_after_training(small: Any) -> None:
    step(small, torch.optim.SGD(small.parameters(), 0.05))
    smaller: Any = fxcompress.prune(small, images(), fxcompress.Prune(0.5, round_to=4), measure=False)
    assert smaller.report.after.params < small.report.after.params
    assert smaller.report.accuracy.relative64 < 1e-12
    assert smaller.training
    assert smaller(images(2)).shape == (2, 4)


def test_compressed_after_training(small: Any) -> None:
    step(small, torch.optim.SGD(small.parameters(), 0.05))
    small.eval()
    fast = fxcompress.compress(small, images(), target="cpu")
    with torch.no_grad():
        same(small(images()), fast(images()), 1e-4)
