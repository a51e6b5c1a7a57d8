"""How time and memory of pruning grow with the network.

    python benchmarks/prune_scale.py

Time: chains of blocks of five nodes each, CPU seconds on one thread from the model to the pruned model, without the
proof. Memory: the largest resident size of a process that prunes (without the proof) over that of one that holds the
model and runs it once, both counted from before the model was made, as a multiple of the model's bytes.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
import warnings

import torch
import torchvision
from compress_time import Chain
from tabulate import tabulate

import fxcompress


def seconds(blocks: int) -> float:
    model, x = Chain(blocks).eval(), torch.randn(1, 8, 8, 8)
    began = time.process_time()
    fxcompress.prune(model, x, fxcompress.Prune(0.5, round_to=1), verify=False, measure=False)
    return time.process_time() - began


def peak(name: str, *, prune: bool) -> tuple[float, float]:
    """(megabytes of the model, megabytes that the process has grown by)."""
    x = torch.randn(1, 3, 224, 224)
    fxcompress.prune(torchvision.models.resnet18(weights=None).eval(), torch.randn(1, 3, 64, 64), 0.5, verify=False, measure=False)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model = torchvision.models.get_model(name, weights=None).eval()
    with torch.no_grad():
        model(x)
    if prune:
        fxcompress.prune(model, x, 0.5, verify=False, measure=False)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    return size / 1e6, (after - before) * 1024 / 1e6


def measured(name: str, *, prune: bool) -> tuple[float, float]:
    command = [sys.executable, __file__, "--serve", name, *(["--prune"] if prune else [])]
    first, second = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-2:]
    return float(first), float(second)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--prune", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    if options.serve:
        print(*peak(options.serve, prune=options.prune))
        return
    seconds(20)
    rows = [[5 * blocks, f"{(taken := seconds(blocks)):.2f}", f"{1e3 * taken / (5 * blocks):.2f}"] for blocks in (20, 200, 2000)]
    print(tabulate(rows, ["nodes", "seconds", "ms per node"], tablefmt="github", disable_numparse=True) + "\n")
    rows = []
    for name in ("resnet50", "densenet201", "vit_b_16", "vgg16", "wide_resnet101_2"):
        (size, alone), (_, pruned) = measured(name, prune=False), measured(name, prune=True)
        rows.append([name, f"{size:.0f}", f"{alone:.0f}", f"{pruned:.0f}", f"{(pruned - alone) / size:.2f}"])
    head = ["network", "model MB", "holding and running it MB", "pruning it MB", "more, in models"]
    print(tabulate(rows, head, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
