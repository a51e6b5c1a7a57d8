"""How long ``compress`` takes, verification included: on resnet50, and per node as graphs grow.

python benchmarks/compress_time.py
"""

from __future__ import annotations

import time

import torch
import torchvision
from tabulate import tabulate
from torch import nn

import fxcompress


class Chain(nn.Module):
    """``blocks`` times conv, norm, relu and residual: four nodes each."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(blocks))
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(blocks))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = x + torch.relu(norm(conv(x))) * 0.1
        return x


def seconds(model: nn.Module, x: torch.Tensor, *, verify: bool) -> tuple[float, fxcompress.Report]:
    began = time.perf_counter()
    small = fxcompress.compress(model.eval(), x, target="cpu", verify=verify)
    return time.perf_counter() - began, small.report


def main() -> None:
    x = torch.randn(1, 3, 224, 224)
    fxcompress.compress(torchvision.models.resnet18(weights=None).eval(), x, target="cpu")  # imports and first calls
    rows = []
    for verify in (True, False):
        taken = sorted(seconds(torchvision.models.resnet50(weights=None), x, verify=verify)[0] for _ in range(3))
        rows.append(["resnet50", 175, verify, f"{taken[1]:.2f}", ""])
    for blocks in (20, 200, 2000):
        taken_once, _ = seconds(Chain(blocks), torch.randn(1, 8, 8, 8), verify=True)
        nodes = 5 * blocks
        rows.append([f"chain of {blocks} blocks", nodes, True, f"{taken_once:.2f}", f"{1e3 * taken_once / nodes:.2f}"])
    print(tabulate(rows, ["network", "nodes", "verified", "seconds", "ms per node"], tablefmt="github"))


if __name__ == "__main__":
    main()
