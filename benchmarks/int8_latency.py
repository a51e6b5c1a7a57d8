"""Latency of int8 networks: fxcompress and its peers, as ratios measured in one run.

    python benchmarks/int8_latency.py --batch 1 8 --threads 2

Every engine lives in its own process; see ``harness.py`` for how they take turns and ``int8_peers.py`` for how each quantizes.
Weights are random, batch norms hold the statistics of the calibration images (random too), so that no activation vanishes.
``float-cpu`` is ``fxcompress.compress(target="cpu")``; ``cpu`` and ``auto`` are ``fxcompress.quantize``.
"""

from __future__ import annotations

import argparse
from typing import Any

from harness import Prepared, Rows, geometric_mean, options_of, rounds, sweep
from latency import NETWORKS, network

TORCH = ["torch-x86", "torch-onednn", "pt2e"]
OTHERS = ["onnxruntime", "openvino"]
OURS = ["float-cpu", "cpu", "auto"]
ENGINES = [*TORCH, *OTHERS, *OURS]
TRANSFORMERS = ("vit_b_16", "swin_t")


# -- one engine in one process ------------------------------------------------------------------------------------------


def prepare(engine: str, name: str, batch: int, threads: int) -> Prepared:
    """The quantized network as a function of no arguments."""
    import torch
    from int8_peers import PREPARE, Task, tensors_only

    torch.set_num_threads(threads)
    with torch.inference_mode(False), torch.no_grad():
        model = settled(network(name))
        generator = torch.Generator().manual_seed(1)
        images = [torch.randn(batch, 3, 224, 224, generator=generator) for _ in range(max(1, 8 // batch))]
        x = images[0]
        task = Task(model, images, x, threads, transformer=name in TRANSFORMERS)
        expected = tensors_only(model, x)(x)
        run = PREPARE[engine](task)
        facts = {key: value for key, value in task.facts.items() if key != "report"}
        return lambda: run(x), facts | {"sqnr": decibels(expected, run(x))}


def settled(model: Any) -> Any:
    """``model`` with batch norms that hold the statistics of random images, in eval mode."""
    import torch
    from torch.nn.modules.batchnorm import _BatchNorm

    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    if norms:
        model(torch.randn(4, 3, 224, 224, generator=torch.Generator().manual_seed(2)))
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()


def decibels(expected: Any, found: Any) -> float:
    """Signal to quantization noise at the output."""
    import torch

    found = torch.as_tensor(found["out"] if isinstance(found, dict) else found).double()
    noise = (found - expected.double()).square().sum()
    return round(float(10 * torch.log10(expected.double().square().sum() / noise.clamp_min(1e-300))), 1)


def measure(name: str, batch: int, threads: int, engines: list[str], blocks: int, seconds: float) -> dict[str, dict[str, Any]]:
    rest = ["--networks", name, "--batch", str(batch), "--threads", str(threads)]
    return rounds({engine: [__file__, "--serve", engine, *rest] for engine in engines}, blocks, seconds)


# -- tables -------------------------------------------------------------------------------------------------------------

RATIOS = {
    "cpu / best torch": (TORCH, "cpu"),
    "cpu / best engine": (OTHERS, "cpu"),
    "auto / best peer": ([*TORCH, *OTHERS], "auto"),
    "cpu / float-cpu": (["float-cpu"], "cpu"),
}
"""How many times faster the second is than the fastest of the first."""


def ratios(row: dict[str, dict[str, Any]]) -> list[float | None]:
    found = []
    for others, ours in RATIOS.values():
        best = min((row[n]["ms"] for n in others if row.get(n, {}).get("ms")), default=None)
        mine = row.get(ours, {}).get("ms")
        found.append(best / mine if best and mine else None)
    return found


def table(rows: dict[str, dict[str, Any]], engines: list[str], key: str) -> str:
    """One line per network: ``key`` of every engine, and the ratios where the key is the time."""
    timed = key == "ms"
    head = ["network", *engines, *(["auto runs on", *RATIOS] if timed else [])]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, row in rows.items():
        cells = [f"{row[e][key]:.1f}" if row.get(e, {}).get(key) is not None else "-" for e in engines]
        extra = [row.get("auto", {}).get("note", ""), *map(_ratio, ratios(row))] if timed else []
        lines.append("| " + " | ".join([name, *cells, *extra]) + " |")
    if timed:
        means = [geometric_mean(ratios(row)[i] for row in rows.values()) for i in range(len(RATIOS))]
        lines.append("| geometric mean |" + " |" * (len(engines) + 1) + " " + " | ".join(f"**{_ratio(m)}**" for m in means) + " |")
    return "\n".join(lines)


def _ratio(value: float | None) -> str:
    return f"{value:.2f}" if value else "-"


def boundaries(rows: dict[str, dict[str, Any]]) -> str:
    """Where ``cpu`` goes from float to integers and back, and whether it kept the int8 form."""
    lines = ["| network | quantize | dequantize | kept |", "|---|---|---|---|"]
    for name, row in rows.items():
        found = row.get("cpu", {})
        if "kept" in found:
            lines.append(f"| {name} | {found['quantizes']} | {found['dequantizes']} | {'int8' if found['kept'] else 'float'} |")
    return "\n".join(lines)


def failures(rows: dict[str, dict[str, Any]]) -> str:
    """What did not run, and its error."""
    found = [f"{name}, {engine}: {row['error']}" for name, one in rows.items() for engine, row in one.items() if row.get("error")]
    return "\n".join(["", "Failed:", *found]) if found else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options = options_of(parser, NETWORKS, ENGINES, ["eager", "float-auto"])

    def show(batch: int, rows: Rows) -> str:
        return (
            f"\nMedian ms, batch {batch}, {options.threads} threads\n\n{table(rows, options.engines, 'ms')}\n"
            f"\nSignal to noise at the output, dB\n\n{table(rows, options.engines, 'sqnr')}\n"
            f"\nBoundaries of fxcompress\n\n{boundaries(rows)}\n{failures(rows)}"
        )

    sweep(options, prepare, measure, show)


if __name__ == "__main__":
    main()
