"""Times of layers in float32 and int8 without measuring: a call, the multiply-adds, the numbers written, the weights read.

The constants were fitted to measured times of 100 layers of resnet50, mobilenet, regnet, convnext, vit and shufflenet on one core of
an AMD EPYC (AVX-512 with VNNI), with all of its instructions and with none newer than AVX2. Only the ratio of float32 to int8
matters to who asks; it is right within a fifth for most layers, and on the right side of one wherever it is not close to one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch

from fxcompress.targets.saturation import saturation

if TYPE_CHECKING:
    from fxcompress.targets.int8_speed import LayerForm

__all__ = ["Rates", "Table", "table"]


@dataclass(frozen=True)
class Rates:
    """One data type on one kind of machine and one core.

    Attributes:
        call: seconds of a call.
        dense, depthwise: multiply-adds per second.
        output: seconds per number written; of depthwise layers ``output_depthwise``.
        weights: weights read per second where each is used once or twice: of small layers, and of those with over 4 million.
        thin: share of ``dense`` that is left with one or two input channels per group.
        strict_groups: whether only groups of 4n input and output channels have a kernel worth the name.
    """

    call: float
    dense: float
    depthwise: float
    output: float
    output_depthwise: float
    weights: tuple[float, float]
    thin: float
    strict_groups: bool = False


@dataclass(frozen=True)
class Table:
    """Both data types, and how many threads share the work."""

    float32: Rates
    int8: Rates
    threads: int = 1

    def seconds(self, form: LayerForm) -> tuple[float, float]:
        """In float32 and in int8."""
        small = self._call(form)
        return small + self._work(form, self.float32), self.int8.call + self._work(form, self.int8) + self._after(form)

    def _call(self, form: LayerForm) -> float:
        """Small linears and convolutions of one pixel go to MKL in float."""
        single = torch.Size((*form.kernel, *form.shape[2:])).numel() == 1 or not form.kernel
        return _MKL_CALL if single and form.macs <= _SMALL else self.float32.call

    def _work(self, form: LayerForm, rates: Rates) -> float:
        per_group, out_per_group = form.inputs // form.groups, form.outputs // form.groups
        written = form.pixels * form.outputs
        if form.groups > 1 and per_group == 1 and out_per_group == 1:
            return (form.macs / rates.depthwise + written * rates.output_depthwise) / self.threads
        if form.groups > 1 and rates.strict_groups and (per_group % 4 or out_per_group % 4):
            return form.macs / _REFERENCE / self.threads
        fill = _stem_fill(form, rates)
        if form.groups > 1:
            fill = rates.thin if per_group <= 2 else next(share for most, share in _FILLS if per_group <= most)
        count = form.macs / form.pixels if form.pixels else 0.0
        read = count / rates.weights[count > _LARGE]
        return max((form.macs / (rates.dense * fill) + written * rates.output) / self.threads, read)

    def _after(self, form: LayerForm) -> float:
        """An activation that the int8 kernel does not take inside, or is slower at than the float32 one (gelu)."""
        name = None if form.activation is None else form.activation.name
        inside = _INSIDE_CONV if form.kernel else _INSIDE_LINEAR
        return 0.0 if name in inside else form.pixels * form.outputs * _ACTIVATION / self.threads


_MKL_CALL = 4e-6
_SMALL = 300_000  # multiply-adds
_REFERENCE = 0.3e9
_ACTIVATION = 0.6e-9
_LARGE = 4e6
_FILLS = ((4, 0.3), (8, 0.75), (1 << 30, 1.0))
"""Input channels per group, and the share of the throughput that is left."""
_INSIDE_CONV = frozenset({None, "relu", "hardtanh", "hardswish", "silu"})
_INSIDE_LINEAR = _INSIDE_CONV | {"leaky_relu", "tanh"}

_VNNI = (
    Rates(25e-6, 54e9, 55e9, 0.05e-9, 0.10e-9, (13.6e9, 5.5e9), 0.085),
    Rates(33e-6, 205e9, 55e9, 0.085e-9, 0.20e-9, (60e9, 20e9), 0.025),
)
_AVX2 = (
    Rates(25e-6, 54e9, 23e9, 0.05e-9, 0.06e-9, (13.6e9, 5.5e9), 0.085),
    Rates(33e-6, 108e9, 25e9, 0.17e-9, 0.17e-9, (18e9, 4.3e9), 0.025, strict_groups=True),
)


def _stem_fill(form: LayerForm, rates: Rates) -> float:
    """int8 kernels compute four input channels at a time."""
    return form.inputs / (-(-form.inputs // 4) * 4) if rates.dense > 60e9 and form.kernel else 1.0


def table() -> Table:
    """For this process: its kernels and its number of threads."""
    return Table(*_rates(), threads=torch.get_num_threads())


@cache
def _rates() -> tuple[Rates, Rates]:
    return _AVX2 if saturation().pairs else _VNNI
