"""Small models with one difficulty each, for the tests of capture."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, namedtuple
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Pair = namedtuple("Pair", "left right")


@dataclasses.dataclass
class Result:
    logits: Tensor
    aux: Tensor | None = None


def seeded(cls: type[nn.Module], *args: Any) -> nn.Module:
    torch.manual_seed(0)
    return cls(*args).eval()


class ShapeBranches(nn.Module):
    """Everything a shape can be asked in Python."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(x, torch.Tensor) or x.dim() != 4 or x.dtype != torch.float32 or x.is_cuda:
            raise ValueError("wrong input")
        b, c, h, w = x.shape
        if b > 0 and c == 3 and len(x.shape) == 4:
            x = self.conv(x)
        y = F.interpolate(x, size=x.shape[-2:], mode="nearest")
        first, second = y.chunk(2, dim=1)
        total = sum(part for part in torch.split(torch.cat((first, second), 1), 4, dim=1))
        tokens = torch.cat((total, total), 1).reshape(b, 8, h * w).transpose(1, 2)
        tokens = tokens * float(h) / max(float(w), 1.0) + torch.zeros(b, tokens.size(1), 1)
        return self.fc(tokens.mean(1)).view(int(x.shape[0]), -1)


class InPlace(nn.Module):
    """In-place arithmetic, on a value and through a view."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        y += x
        y.mul_(2).relu_()
        z = y.clone()
        z[:, 0] = 1.0
        half = z[:, 2:]
        half.add_(3.0)
        return z


class Functional(nn.Module):
    """Layers written as functions over own parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.kernel = nn.Parameter(torch.randn(4, 8, 1, 1))
        self.scale = nn.Parameter(torch.ones(4))
        self.shift = nn.Parameter(torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.conv.weight, self.conv.bias, stride=2)
        x = F.batch_norm(x, self.norm.running_mean, self.norm.running_var, self.norm.weight, self.norm.bias, self.norm.training)
        x = F.conv2d(x, self.kernel)
        return F.layer_norm(x.permute(0, 2, 3, 1), (4,), self.scale, self.shift)


class Signature(nn.Module):
    """All kinds of parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor, *more: Tensor, scale: float = 2.0, mask: Tensor | None = None, **named: Tensor) -> Tensor:
        y = self.fc(x) * scale
        for other in more:
            y = y + other
        if mask is not None:
            y = y * mask
        return y - sum(named.values()) if named else y


class Nested(nn.Module):
    """A dict of a list in, everything nested out."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.kind = kind

    def forward(self, batch: dict[str, Any]) -> Any:
        x, (y, factor) = batch["x"], batch["rest"]
        z = self.fc(x) + y * factor
        outputs: dict[str, Any] = {
            "dict": {"z": z, "list": [z + 1, (x, None)]},
            "ordered": OrderedDict(out=z, aux=x),
            "named": Pair(z, x),
            "dataclass": Result(z),
            "size": (z, z.shape[0]),
        }
        return outputs[self.kind]


class DataDependent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        if y.sum() > 0:  # the branch that stops every step
            y = -y
        return self.second(y)


class DataDependentOutside(nn.Module):
    """The same branch between two blocks that can be captured; the second block is called with two shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())

    def forward(self, x: Tensor) -> list[Tensor]:
        y = self.body(x)
        if y.mean() > 1000:
            y = y * 0
        return [self.head(y), self.head(y[..., ::2, ::2])]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 4)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.table.weight
        self.act = nn.ReLU()

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.act(self.act(self.table(ids))))


class BakedLoop(nn.Module):
    """The batch size becomes a number of Python iterations."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.fc(row) for row in x])


class FunctionalDropout(nn.Module):
    def __init__(self, always: bool = False) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.always = always

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.fc(x), 0.5) if self.always else F.dropout(self.fc(x), 0.5, training=self.training)


class Cache(nn.Module):
    """Fills a dict of its own in the first run."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.ones(4))
        self.cache: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        if "bias" not in self.cache:
            self.cache["bias"] = self.bias * 2
        return x + self.cache["bias"]


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class CustomFunction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.conv(x)), inplace=True)
        y = Square.apply(y)
        return self.fc(y.mean((2, 3)).view(x.shape[0], -1))


class Masked(nn.Module):
    """An output whose shape depends on values: torch.export has a symbol for it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = F.relu(self.conv(self.norm(x)), inplace=True).permute(0, 2, 3, 1)
        flat = y.reshape(y.size(0) * y.size(1), -1, 4)[:, 1:].flatten(0, 1)
        out = self.fc(F.dropout(flat, 0.1, self.training))
        return {"out": out.t(), "chosen": out[out[:, 0] > 0]}


class Chain(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) if i % 2 == 0 else nn.ReLU() for i in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x) + 1
        return x
