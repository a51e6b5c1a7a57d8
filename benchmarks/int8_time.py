"""Seconds from a float network to its int8 form, calibration included.

    python benchmarks/int8_time.py --networks resnet50 --images 32

Everyone calibrates on the same 32 random images, one by one, and is done when the quantized network has run once. ``forward`` is what the
float network alone needs for these images, as many times as the way of the engine runs it (once), so the last column is the
price of the tool itself. Importing torch is not counted; importing the tool is.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from typing import Any

from harness import blame
from latency import network
from tabulate import tabulate

ENGINES = ["torch-x86", "torch-onednn", "pt2e", "onnxruntime", "openvino", "cpu", "auto"]
HEAD = ["network", "engine", "seconds", "of these forward", "rest", "note"]


def run_one(engine: str, name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of all, and of the forward passes of the float network over the calibration images."""
    import torch
    from int8_latency import TRANSFORMERS, settled
    from int8_peers import PREPARE, Task

    torch.set_num_threads(options.threads)
    with torch.no_grad():
        model = settled(network(name))
        images = list(torch.randn(options.images, 3, 224, 224, generator=torch.Generator().manual_seed(1)).split(options.batch))
        model(images[0])
        began = time.perf_counter()
        for x in images:
            model(x)
        forward = time.perf_counter() - began
        task = Task(model, images, images[0], options.threads, transformer=name in TRANSFORMERS)
        began = time.perf_counter()
        PREPARE[engine](task)(images[0])
        taken = time.perf_counter() - began
    return {"seconds": taken, "forward": forward, "note": task.facts.get("note", "")}


def row(engine: str, name: str, arguments: list[str]) -> list[Any]:
    command = [sys.executable, __file__, *arguments, "--serve", engine, "--networks", name]
    done = subprocess.run(command, capture_output=True, text=True)
    answers = [line for line in done.stdout.splitlines() if line.startswith('{"seconds"')]
    if not answers:
        return [name, engine, "-", "-", "-", blame(done.stderr)]
    found = json.loads(answers[-1])
    return [name, engine, found["seconds"], found["forward"], found["seconds"] - found["forward"], found["note"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["resnet50"])
    parser.add_argument("--engines", nargs="+", default=ENGINES)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--batch", type=int, default=1, help="images per calibration batch")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        print(json.dumps(run_one(options.serve, options.networks[0], options)))
        return
    rows = [row(engine, name, sys.argv[1:]) for name in options.networks for engine in options.engines]
    print(tabulate(rows, HEAD, tablefmt="github", floatfmt=".1f"))


if __name__ == "__main__":
    main()
