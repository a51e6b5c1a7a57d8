"""Every torchvision model through ``compress``: how it was captured, what was rewritten, and the error in float64.

    python benchmarks/equivalence.py

The weights are random, the statistics of the norms too: what is shown is that rewrites keep the function, whatever it is.
"""

from __future__ import annotations

import argparse
import gc
import time

import torch
import torchvision
from tabulate import tabulate
from torch import nn

import fxcompress
from fxcompress.errors import FxCompressError

SIZES = {"vit": 224, "swin": 224, "maxvit": 224, "inception": 299, "alexnet": 224, "vgg": 224, "squeezenet": 96}
DETECTION = ("rcnn", "retinanet", "ssd", "fcos")


def build(name: str) -> tuple[nn.Module, object]:
    torch.manual_seed(0)
    extra = {"weights_backbone": None} if any(word in name for word in ("deeplab", "fcn_", "lraspp", *DETECTION)) else {}
    model = torchvision.models.get_model(name, weights=None, **extra).eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
        elif isinstance(module, nn.Linear) and not module.weight.any():  # the head of a new vit: all its outputs would be zero
            nn.init.normal_(module.weight, std=0.1)
    if any(word in name for word in DETECTION):
        return model, ([torch.rand(3, 160, 160)],)
    size = next((n for word, n in SIZES.items() if word in name), 64)
    return model, torch.randn(1, 3, size, size)


def row(name: str) -> list[object]:
    model, inputs = build(name)
    began = time.perf_counter()
    try:
        report = fxcompress.compress(model, inputs, target="cpu").report
    except FxCompressError as error:
        return [name, "refused", str(error).splitlines()[0][:80], "", "", "", ""]
    accuracy = report.accuracy
    exact = "-" if accuracy.relative64 is None else f"{accuracy.relative64:.1e}"
    rewrites = sum(line.rewrites for line in report.passes)
    macs = report.after.macs / max(report.before.macs, 1)
    return [name, report.capture, rewrites, f"{macs:.3f}", exact, f"{accuracy.relative:.1e}", f"{time.perf_counter() - began:.1f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    families = (torchvision.models, torchvision.models.segmentation, torchvision.models.detection)
    parser.add_argument("names", nargs="*", default=[name for family in families for name in torchvision.models.list_models(module=family)])
    rows = []
    for name in parser.parse_args().names:
        rows.append(row(name))
        print(rows[-1], flush=True)
        gc.collect()
    head = ["model", "captured by", "rewrites", "MACs", "error in float64", "lowered, float32", "seconds"]
    print("\n" + tabulate(rows, head, tablefmt="github"))


if __name__ == "__main__":
    main()
