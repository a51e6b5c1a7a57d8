"""The two forms of the native target against eager channels_last, in one process, blocks interleaved.

python benchmarks/native.py --batch 8
"""

from __future__ import annotations

import argparse

import torch
from latency import NETWORKS, network
from tabulate import tabulate

import fxcompress
from fxcompress.api import NATIVE, REWRITES
from fxcompress.targets.timing import interleaved


def row(name: str, batch: int) -> list[object]:
    model, x = network(name), torch.randn(batch, 3, 224, 224)
    inputs = fxcompress.Inputs.of(x)
    graph = fxcompress.trace(model, x)
    last, x_last = network(name).to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    forms = {"channels_last": lambda: last(x_last)}
    for target in NATIVE:
        try:
            lowered = fxcompress.Pipeline.parse(f"{REWRITES},lower{{target={target}}}").execute(graph, inputs, verify=False).module
        except fxcompress.errors.TargetError:
            continue
        forms[target] = lambda lowered=lowered: lowered(x)
    times = {name: timing.median for name, timing in interleaved(forms, seconds=0.8).items()}
    gain = times["channels_last"] / min(times[target] for target in NATIVE if target in times)
    return [name, times["channels_last"], *(times.get(target, "-") for target in NATIVE), f"{gain:.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [row(name, options.batch) for name in options.networks]
    print(tabulate(rows, ["network", "channels_last", *NATIVE, "gain"], tablefmt="github", floatfmt=".1f"))


if __name__ == "__main__":
    main()
