"""Accuracy of int8 networks: fxcompress and its peers on the same images, with the same calibration set.

    python benchmarks/int8_accuracy.py --photographs FOLDER                     # MobileNetV2 and ResNet-50
    python benchmarks/int8_accuracy.py --cases resnet20 mobilenet repvgg vit    # CIFAR-10

The networks are trained: those of ``cifar_networks.py``, torchvision's MobileNetV2 and Keras' ResNet-50 v1 with their ImageNet
weights (``mobilenet_v2.pth`` and ``resnet50_v1.pth`` in ``--data``). The photographs are JPEG files of 224x224 pixels
whose names are their class index in ImageNet-1k. The first images of a random order calibrate, the rest test.

``mobilenet_v2_hostile`` is MobileNetV2 with ReLU for ReLU6, in which every channel before and behind a depthwise convolution is
multiplied by a random factor that the next layer divides by: the same function, with unequal ranges.

Every engine runs in its own process, on single images, as NNCF asks for. Columns: top-1 in %, its loss against float, how often the
class is that of the float network, and the signal to noise ratio of the scores.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cifar import DATA, cifar10, normalised
from cifar_networks import MODELS, trained
from harness import blame
from torch import Tensor, nn

PHOTOGRAPHS = ["mobilenet_v2", "resnet50", "mobilenet_v2_hostile"]
CASES = [*MODELS, *PHOTOGRAPHS]
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CAFFE = (123.68, 116.779, 103.939)


# -- networks and images ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A float network in eval mode, calibration images (N, C, H, W), test images and their classes."""

    model: nn.Module
    calibration: Tensor
    test: Tensor
    classes: Tensor


def case(name: str, options: argparse.Namespace) -> Case:
    if name in MODELS:
        images, test = cifar10(options.data)
        few = test.first(options.test or len(test.x))
        return Case(trained(name), normalised(images.x[: options.calibrate or 500]), normalised(few.x), few.y)
    pixels, classes = photographs(options.photographs)
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(options.seed))
    calibrate = options.calibrate or 100
    used, kept = order[:calibrate], order[calibrate:][: options.test or len(order)]
    model, scale = (resnet50_v1(options.data), caffe) if name == "resnet50" else (mobilenet_v2(options.data), imagenet)
    if name == "mobilenet_v2_hostile":
        model = hostile(model, options.spread)
    return Case(model, scale(pixels[used]), scale(pixels[kept]), classes[kept])


def photographs(folder: Path | None) -> tuple[Tensor, Tensor]:
    """(N, 3, 224, 224) uint8 and (N,) int64."""
    from PIL import Image

    paths = sorted(folder.glob("*.jpg")) if folder else []
    if not paths:
        raise SystemExit(f"no photographs in {folder}; give a folder of CLASS.jpg with --photographs")
    pixels = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.tensor([int(path.stem) for path in paths])


def imagenet(pixels: Tensor) -> Tensor:
    return (pixels.float() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(DEVIATION).view(3, 1, 1)


def caffe(pixels: Tensor) -> Tensor:
    return pixels.float() - torch.tensor(CAFFE).view(3, 1, 1)


def mobilenet_v2(folder: Path) -> nn.Module:
    import torchvision

    model = torchvision.models.mobilenet_v2()
    model.load_state_dict(torch.load(folder / "mobilenet_v2.pth", weights_only=True))
    return model.eval()


def resnet50_v1(folder: Path) -> nn.Module:
    """ResNet-50 with the stride in the first convolution of a block, as in the paper."""
    import torchvision

    model = torchvision.models.resnet50()
    for stage in (model.layer2, model.layer3, model.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    model.load_state_dict(torch.load(folder / "resnet50_v1.pth", weights_only=True))
    return model.eval()


def hostile(model: nn.Module, spread: float) -> nn.Module:
    """``model`` (a MobileNetV2) with ReLU, and with factors from 1/spread to spread on the channels around depthwise layers."""
    from torchvision.models.mobilenetv2 import InvertedResidual

    generator = torch.Generator().manual_seed(0)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU6):
                setattr(module, name, nn.ReLU())
    for block in (m for m in model.modules() if isinstance(m, InvertedResidual)):
        layers = [m for m in block.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
        for norm, conv in zip(layers[1::2], layers[2::2], strict=False):
            _rescale(norm, conv, spread ** (2 * torch.rand(norm.num_features, generator=generator) - 1))
    return model


@torch.no_grad()
def _rescale(norm: nn.BatchNorm2d, conv: nn.Conv2d, factor: Tensor) -> None:
    """Channels behind ``norm`` become ``factor`` times as large; ``conv`` divides by it."""
    norm.weight *= factor
    norm.bias *= factor
    conv.weight /= factor.view(-1, 1, 1, 1) if conv.groups > 1 else factor.view(1, -1, 1, 1)


# -- one engine in one process ------------------------------------------------------------------------------------------


def engines() -> dict[str, Any]:
    """Every way to quantize, by the name of its row. ``speed="none"``: what is int8 is not to depend on this machine's kernels."""
    from functools import partial

    import int8_peers as peers

    int8 = partial(peers.ours, "cpu", speed="none")
    return {
        "float": peers.eager,
        "torch-x86": peers.torch_fx("x86"),
        "torch-onednn": peers.torch_fx("onednn"),
        "pt2e": peers.pt2e,
        "onnxruntime": peers.onnxruntime,
        "onnxruntime-entropy": partial(peers.onnxruntime, method="Entropy"),
        "onnxruntime-percentile": partial(peers.onnxruntime, method="Percentile"),
        "openvino": peers.openvino,
        "openvino-mixed": partial(peers.openvino, preset="MIXED"),
        "openvino-bias": partial(peers.openvino, preset="MIXED", fast_bias=False),
        "int8": int8(),
        "int8-plain": int8(observer="histogram", bias_correction="none"),
        "int8-histogram": int8(observer="histogram"),
        "int8-min-max": int8(observer="min-max"),
        "int8-percentile": int8(observer="percentile"),
        "int8-entropy": int8(observer="entropy"),
        "int8-mse-weights": int8(weight_observer="mse"),
        "int8-equalize": int8(equalize=True),
        "int8-bias": int8(bias_correction="empirical"),
        "int8-equalize-bias": int8(equalize=True, bias_correction="empirical"),
        "int8-adaround": int8(adaround=True),
        "int8-smooth": int8(smooth=0.5),
        "int8-cpu": peers.ours("cpu"),
        "int8-auto": peers.ours("auto"),
    }


DEFAULT = ["float", "torch-x86", "torch-onednn", "pt2e", "onnxruntime", "openvino", "openvino-mixed"]
DEFAULT += ["int8", "int8-equalize", "int8-bias", "int8-equalize-bias", "int8-auto"]


def run_one(engine: str, name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Quantize, run all test images, compare with the scores that the float network has left in ``options.scores``."""
    from int8_peers import Task

    torch.set_num_threads(options.threads)
    one = case(name, options)
    with torch.no_grad():
        batches = list(one.calibration.split(1))
        task = Task(one.model, batches, one.test[:1], options.threads, transformer=name == "vit")
        run = engines()[engine](task)
        scores = torch.cat([torch.as_tensor(run(x)).clone() for x in one.test.split(1)])
    if engine == "float":
        torch.save(scores, options.scores)
    expected = torch.load(options.scores)
    if options.report and "report" in task.facts:
        print(task.facts["report"], file=sys.stderr)
    return compared(scores, expected, one.classes) | {"note": task.facts.get("note", "")}


def compared(scores: Tensor, expected: Tensor, classes: Tensor) -> dict[str, float]:
    noise = (scores.double() - expected.double()).square().sum().clamp_min(1e-300)
    return {
        "top1": 100 * (scores.argmax(1) == classes).double().mean().item(),
        "agree": 100 * (scores.argmax(1) == expected.argmax(1)).double().mean().item(),
        "sqnr": float(10 * torch.log10(expected.double().square().sum() / noise)),
    }


def in_process(engine: str, name: str, scores: Path, arguments: list[str]) -> dict[str, Any]:
    command = [sys.executable, __file__, *arguments, "--serve", engine, "--cases", name, "--scores", str(scores)]
    done = subprocess.run(command, capture_output=True, text=True)
    answers = [line for line in done.stdout.splitlines() if line.startswith('{"top1"')]
    sys.stderr.write(done.stderr if "--report" in arguments else "")
    if not answers:
        return {"error": blame(done.stderr)}
    return json.loads(answers[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=PHOTOGRAPHS, choices=CASES)
    parser.add_argument("--engines", nargs="+", default=DEFAULT, help="float comes first by itself")
    parser.add_argument("--photographs", type=Path, help="folder of CLASS.jpg")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of cifar10.npz and of the pretrained weights")
    parser.add_argument("--calibrate", type=int, help="images to calibrate; 100 photographs or 500 of CIFAR-10")
    parser.add_argument("--test", type=int, help="images to test; all others")
    parser.add_argument("--spread", type=float, default=8.0, help="of the factors of mobilenet_v2_hostile")
    parser.add_argument("--seed", type=int, default=0, help="which photographs calibrate")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--report", action="store_true", help="print the reports of fxcompress")
    parser.add_argument("--out", type=Path, help="write all figures as JSON")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--scores", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        print(json.dumps(run_one(options.serve, options.cases[0], options)))
        return
    figures: dict[str, dict[str, Any]] = {}
    for name in options.cases:
        print(f"\n{name}\n\n| engine | top-1 | loss | as float | SQNR dB | runs on |\n|---|---|---|---|---|---|", flush=True)
        rows = figures[name] = {}
        with tempfile.TemporaryDirectory() as folder:
            for engine in ["float", *(e for e in options.engines if e != "float")]:
                rows[engine] = in_process(engine, name, Path(folder) / "scores.pt", sys.argv[1:])
                print(line(engine, rows[engine], rows["float"]), flush=True)
        if options.out:
            options.out.write_text(json.dumps(figures, indent=1))


def line(engine: str, row: dict[str, Any], floating: dict[str, Any]) -> str:
    if "error" in row:
        return f"| {engine} | failed: {row['error']} | | | | |"
    loss = floating.get("top1", float("nan")) - row["top1"]
    return f"| {engine} | {row['top1']:.2f} | {loss:.2f} | {row['agree']:.2f} | {min(row['sqnr'], 200):.1f} | {row['note']} |"


if __name__ == "__main__":
    main()
