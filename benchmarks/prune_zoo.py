"""Every network of the zoo at ratio 0.5: is the pruned network exact, how much smaller is it, how long does it take.

    python benchmarks/prune_zoo.py torchvision
    python benchmarks/prune_zoo.py timm

L2 magnitude, nothing protected but the output, nothing tuned by hand. ``error`` is that of the sliced network against
the masked one, relative, in float64; norm statistics are random so that an index error cannot hide. ``seconds`` are
CPU seconds of capture, dependencies, plan and slicing on one thread, without the proof.
"""

from __future__ import annotations

import argparse
import gc
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import timm
import torch
import torchvision
from equivalence import build
from tabulate import tabulate
from torch import nn

import fxcompress

TIMM = (Path(__file__).parent / "timm_models.txt").read_text().split()

FAMILIES = (torchvision.models, torchvision.models.segmentation, torchvision.models.detection)


def randomize(model: nn.Module) -> None:
    """Statistics, scales and biases that hide no index error; layer scales that do not hide their branch."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            continue
        if tensor.ndim > 1:  # heads that start at zero would show nothing
            if not tensor.any():
                tensor.normal_(std=0.02, generator=generator)
        else:
            noise = torch.rand(tensor.shape, generator=generator)
            tensor.copy_(0.5 + noise if tensor.ndim == 0 or name.endswith(("weight", "var", "gamma", "scale")) else noise - 0.5)


def from_timm(name: str) -> tuple[nn.Module, object]:
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False).eval()
    randomize(model)
    return model, torch.randn(1, *model.default_cfg["input_size"])


def networks(zoo: str) -> Iterator[str]:
    if zoo == "timm":
        yield from TIMM
    else:
        for family in FAMILIES:
            yield from torchvision.models.list_models(module=family)


def row(zoo: str, name: str, limit: float) -> list[object]:
    try:
        model, inputs = from_timm(name) if zoo == "timm" else build(name)
        if zoo == "torchvision":
            randomize(model)
        began = time.process_time()
        fxcompress.prune(model, inputs, 0.5, verify=False, measure=False)
        seconds = time.process_time() - began
        report = fxcompress.prune(model, inputs, 0.5, measure=False).report
    except fxcompress.errors.FxCompressError as error:
        return [name, "refused", str(error).splitlines()[0][:110], "", "", ""]
    except Exception as error:  # a crash is a result, too
        return [name, "CRASH", f"{type(error).__name__}: {error}"[:110].splitlines()[0], "", "", ""]
    exact = report.accuracy.relative64
    verdict = "exact" if exact is not None and exact <= limit else "DIFFERS"
    params, macs = report.after.params / report.before.params, report.after.macs / max(report.before.macs, 1)
    shown = "-" if exact is None else f"{exact:.1e}"
    return [name, verdict, shown, f"{params:.2f}", f"{macs:.2f}", f"{seconds:.1f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zoo", choices=["torchvision", "timm"])
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    rows = []
    for name in options.names or networks(options.zoo):
        rows.append(row(options.zoo, name, 1e-12))
        print(*rows[-1], flush=True)
        gc.collect()
    print("\n" + tabulate(rows, ["network", "verdict", "error", "params", "MACs", "seconds"], tablefmt="github", disable_numparse=True))
    counts = {verdict: sum(r[1] == verdict for r in rows) for verdict in ("exact", "refused", "DIFFERS", "CRASH")}
    print("\n" + ", ".join(f"{count} {verdict}" for verdict, count in counts.items()), f"of {len(rows)}")


if __name__ == "__main__":
    main()
