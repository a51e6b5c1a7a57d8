"""Networks after the passes of ``compress``, as ``fxcompress check`` holds them: a change that was meant to change no graph shows none.

    fxcompress check            # compares with benchmarks/snapshots
    fxcompress check --update   # after a change that was meant to change graphs

The weights are small fractions of two, so that sums and products of them are exact and the folded weights are the same on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torchvision
from torch import Tensor, nn
from torch.fx import GraphModule

import fxcompress
from fxcompress.api import REWRITES

INT8 = "observe{speed=none},calibrate,lower-int8"


@dataclass(frozen=True)
class Rewritten:
    """A factory: called without arguments, as a SPEC names it, it gives the graph after the passes.

    ``size``: of the square image. ``passes``: more of them, after those of ``compress``.
    """

    name: str
    size: int = 64
    passes: str = ""

    def __call__(self) -> GraphModule:
        extra = {"weights_backbone": None} if "lraspp" in self.name else {}
        extra |= {"init_weights": False} if self.name == "googlenet" else {}
        model = torchvision.models.get_model(self.name, weights=None, **extra).eval()
        fill(model)
        x = fractions((1, 3, self.size, self.size), 1)
        text = f"{REWRITES},{self.passes}" if self.passes else REWRITES
        inputs = fxcompress.Inputs.of(x)
        data = fxcompress.pipeline.Calibration((inputs,))
        return fxcompress.Pipeline.parse(text).execute(fxcompress.trace(model, x), inputs, verify=False, calibration=data).module


def fractions(shape: tuple[int, ...], start: int, parts: int = 16) -> Tensor:
    """Multiples of 1/16 between -1/2 and 1/2 in an order that repeats after 17 elements."""
    places = torch.arange(torch.Size(shape).numel(), dtype=torch.int64)
    return (((places * 5 + start) % (parts + 1) - parts // 2).float() / parts).reshape(shape)


def fill(model: nn.Module) -> None:
    """Give every parameter and statistic values that depend on its place only; variances are 1."""
    with torch.no_grad():
        for start, (name, tensor) in enumerate((*model.named_parameters(), *model.named_buffers())):
            if name.endswith("running_var"):
                tensor.fill_(1.0)
            elif tensor.is_floating_point():
                tensor.copy_(fractions(tuple(tensor.shape), start))


resnet18 = Rewritten("resnet18")
mobilenet_v2 = Rewritten("mobilenet_v2")
mobilenet_v3_small = Rewritten("mobilenet_v3_small")
shufflenet_v2_x0_5 = Rewritten("shufflenet_v2_x0_5")
squeezenet1_1 = Rewritten("squeezenet1_1")
googlenet = Rewritten("googlenet")
densenet121 = Rewritten("densenet121")
efficientnet_b0 = Rewritten("efficientnet_b0")
regnet_y_400mf = Rewritten("regnet_y_400mf")
mnasnet0_5 = Rewritten("mnasnet0_5")
convnext_tiny = Rewritten("convnext_tiny")
swin_t = Rewritten("swin_t")
lraspp_mobilenet_v3_large = Rewritten("lraspp_mobilenet_v3_large")
resnet18_int8 = Rewritten("resnet18", passes=INT8)
