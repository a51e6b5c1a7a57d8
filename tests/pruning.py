"""Small networks and plans for the tests of pruning plans."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rewriting import randomized
from torch import Tensor, nn

from fxcompress.analysis import Analyses
from fxcompress.analysis.channels import ChannelDependencyGraph, Mask
from fxcompress.capture import capture
from fxcompress.ir.inputs import Inputs
from fxcompress.pruning.plan import PruningPlan, make_plan

TIGHT = {"rtol": 0.0, "atol": 1e-12}


class Residual(nn.Module):
    """A convnet with a residual, a concat and a grouped convolution; its forward has no sizes written out."""

    def __init__(self, width: int = 8, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.PReLU(width))
        self.inner = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.mix = nn.Conv2d(2 * width, 12, 1)
        self.head = nn.Linear(12 * 4, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = F.relu(self.norm(self.inner(x)) + x)
        z = torch.sigmoid(self.mix(torch.cat([y, self.depthwise(y)], 1)))
        return self.head(F.adaptive_avg_pool2d(z, 2).flatten(1))


class Written(nn.Module):
    """A network with a written-out view, in front of which channels can be removed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.fc = nn.Linear(6 * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).relu().view(-1, 96))


class Normed(nn.Module):
    """Layer norm and group norm over channels that can be removed; gives a dict, and takes tokens as a keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.norm = nn.LayerNorm(8)
        self.up = nn.Linear(8, 12)
        self.down = nn.Linear(12, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: Tensor, *, scale: Tensor) -> dict[str, Tensor]:
        x = self.embed(tokens)
        x = x + self.down(F.gelu(self.up(self.norm(x))))
        return {"scores": self.head(x.mean(1)), "size": scale * x.pow(2).mean(-1)}


def image(*shape: int) -> Tensor:
    return torch.rand(*(shape or (2, 3, 6, 6)), generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def residual() -> Residual:
    return randomized(Residual()).double()  # type: ignore[return-value]


def written() -> Written:
    return randomized(Written()).double()  # type: ignore[return-value]


def normed() -> Normed:
    return randomized(Normed()).double()  # type: ignore[return-value]


def tokens() -> dict[str, Tensor]:
    return {"tokens": torch.arange(20).reshape(4, 5) % 11, "scale": torch.tensor(1.5, dtype=torch.float64)}


def dependencies(model: nn.Module, inputs: Any = None) -> ChannelDependencyGraph:
    captured = capture(model, image() if inputs is None else inputs)
    (part,) = captured.parts
    return Analyses(part.graph, part.inputs).get(ChannelDependencyGraph)


def halved(deps: ChannelDependencyGraph, seed: int = 0, share: float = 0.5) -> Mask:
    """A random half of every group remains."""
    keep, rng = np.ones(deps.classes, dtype=bool), np.random.default_rng(seed)
    for group in deps.groups:
        keep[rng.permutation(group.classes)[: int(len(group.classes) * share)]] = False
    return keep


def planned(model: nn.Module, inputs: Any = None, seed: int = 0) -> PruningPlan:
    deps = dependencies(model, inputs)
    return make_plan(deps, halved(deps, seed), np.linspace(0, 1, deps.classes), "halved")


def call(module: nn.Module, inputs: Any = None) -> Any:
    with torch.no_grad():
        return Inputs.of(image() if inputs is None else inputs, None if inputs is None else module.forward).call(module)


def close(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, **TIGHT)


def edited(plan: PruningPlan, change: Any) -> str:
    data = json.loads(plan.to_json())
    change(data)
    return json.dumps(data)


def group_of(data: Any, place: int = 0) -> Any:
    return data["plan"]["parts"][0]["groups"][place]
