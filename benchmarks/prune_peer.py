"""Pruning at ratio 0.5 beside Torch-Pruning: how long it takes, and how fast the result runs at the same MACs.

    python benchmarks/prune_peer.py time
    python benchmarks/prune_peer.py latency

``time``: one thread, from the model to the pruned model (capture, dependencies, plan, slicing); every tool and network
in a process of its own, stopped after ``--limit`` seconds. ``latency``: two threads, batch 1; Torch-Pruning's ratio is
chosen so that its network has the same MACs as ours, and both are fused and lowered by ``compress(target="cpu")``, so
that only the widths differ; its network as it is (eager, channels_last) stands beside.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import subprocess
import sys
import time
import warnings

import torch
from latency import NETWORKS, network
from tabulate import tabulate
from torch import nn

TIMED = [*NETWORKS, "densenet201", "maxvit_t", "regnet_y_16gf", "efficientnet_b4", "googlenet", "resnext50_32x4d"]


def peer(model: nn.Module, x: torch.Tensor, ratio: float) -> nn.Module:
    """The model pruned by Torch-Pruning: L2 magnitude, one ratio, what makes the output protected."""
    import torch_pruning

    outputs = [
        m
        for m in model.modules()
        if isinstance(m, (nn.Linear, nn.Conv2d)) and getattr(m, "out_features", getattr(m, "out_channels", 0)) in (1000, 21)
    ]
    pruner = torch_pruning.pruner.MetaPruner(
        model, x, importance=torch_pruning.importance.MagnitudeImportance(p=2), pruning_ratio=ratio, ignored_layers=outputs
    )
    pruner.step()
    return model


def ours(model: nn.Module, x: torch.Tensor, ratio: float) -> nn.Module:
    import fxcompress

    return fxcompress.prune(model, x, ratio, verify=False, measure=False)


TOOLS = {"fxcompress": ours, "torch-pruning": peer}


def serve(tool: str, name: str) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    TOOLS[tool](network("resnet18"), torch.randn(1, 3, 64, 64), 0.5)  # imports and first calls
    model, x = network(name), torch.randn(1, 3, 224, 224)
    began = time.perf_counter()
    TOOLS[tool](model, x, 0.5)
    print(json.dumps(time.perf_counter() - began))


def timed(tool: str, name: str, limit: float) -> float | str:
    command = [sys.executable, __file__, "time", "--serve", tool, "--networks", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return f"> {limit:.0f} s"
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return f"fails: {lines[-1][:60] if lines else ''}"
    return float(json.loads(done.stdout.strip().splitlines()[-1]))


def time_table(names: list[str], limit: float) -> None:
    rows, ratios = [], []
    for name in names:
        seconds = {tool: timed(tool, name, limit) for tool in TOOLS}
        mine, theirs = seconds["fxcompress"], seconds["torch-pruning"]
        ratio = theirs / mine if isinstance(mine, float) and isinstance(theirs, float) else None
        ratios += [] if ratio is None else [ratio]
        rows.append([name, *(f"{s:.2f}" if isinstance(s, float) else s for s in seconds.values()), "" if ratio is None else f"{ratio:.1f}"])
        print(*rows[-1], file=sys.stderr, flush=True)
    if ratios:
        rows.append(["geometric mean", "", "", f"{math.exp(statistics.fmean(map(math.log, ratios))):.1f}"])
    print(tabulate(rows, ["network", *TOOLS, "times faster"], tablefmt="github", disable_numparse=True))


def macs(model: nn.Module, x: torch.Tensor) -> float:
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x)
    return counter.get_total_flops() / 2


def peer_at(name: str, x: torch.Tensor, wanted: float) -> nn.Module | None:
    """Torch-Pruning's network with at most the wanted MACs, as near as its ratio allows."""
    low, high, best = 0.2, 0.8, None
    for _ in range(7):
        ratio = (low + high) / 2
        candidate = peer(network(name), x, ratio)
        if macs(candidate, x) <= wanted:
            best, high = candidate, ratio
        else:
            low = ratio
    return best


def latency_row(name: str) -> list[object]:
    import fxcompress
    from fxcompress.targets.timing import interleaved

    model, x = network(name), torch.randn(1, 3, 224, 224)
    small = fxcompress.prune(model, x, 0.5, verify=False, measure=False)
    wanted = macs(small, x)
    fast = fxcompress.compress(model, x, prune=0.5, target="cpu", verify=False)
    forms = {"original": lambda: model(x), "ours": lambda: fast(x)}
    try:
        theirs = peer_at(name, x, 1.01 * wanted)
    except Exception as error:  # what the peer raises has no common class
        theirs, note = None, f"fails: {type(error).__name__}"
    else:
        note = "" if theirs is not None else "no ratio reaches the MACs"
    if theirs is not None:
        last = copy.deepcopy(theirs).to(memory_format=torch.channels_last)
        lowered = fxcompress.compress(theirs.eval(), x, target="cpu", verify=False)
        forms |= {"theirs, eager": lambda: last(x.contiguous(memory_format=torch.channels_last)), "theirs, lowered": lambda: lowered(x)}
    taken = {form: timing.median for form, timing in interleaved(forms, seconds=1.0).items()}
    gain = taken["theirs, lowered"] / taken["ours"] if theirs is not None else None
    share = macs(theirs, x) / wanted if theirs is not None else None
    cells = [f"{taken[f]:.2f}" if f in taken else note for f in ("original", "ours", "theirs, eager", "theirs, lowered")]
    return [name, f"{wanted / macs(model, x):.2f}", *cells, "" if share is None else f"{share:.2f}", "" if gain is None else f"{gain:.2f}"]


def latency_table(names: list[str]) -> None:
    torch.set_num_threads(2)
    warnings.filterwarnings("ignore")
    rows = []
    for name in names:
        rows.append(latency_row(name))
        print(*rows[-1], file=sys.stderr, flush=True)
    head = ["network", "MACs", "original ms", "ours ms", "theirs eager ms", "theirs lowered ms", "their MACs / ours", "times faster"]
    print(tabulate(rows, head, tablefmt="github", disable_numparse=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["time", "latency"])
    parser.add_argument("--networks", nargs="+")
    parser.add_argument("--limit", type=float, default=120.0)
    parser.add_argument("--serve", choices=list(TOOLS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.networks[0])
    elif options.what == "time":
        time_table(options.networks or TIMED, options.limit)
    else:
        latency_table(options.networks or NETWORKS)


if __name__ == "__main__":
    main()
