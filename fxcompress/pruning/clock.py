"""Measuring layers and networks on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from fxcompress.errors import InputError
from fxcompress.ir.inputs import Inputs
from fxcompress.pruning.layer import Layer
from fxcompress.targets.cpu import CpuTarget
from fxcompress.targets.cpu_modules import PackedConv, PackedLinear, lowerable
from fxcompress.targets.machine import cpu_name
from fxcompress.targets.timing import interleaved

Form = Callable[[], object]
Lower = Callable[[GraphModule, Inputs], GraphModule]
"""Makes of a graph what will be deployed; its latency is what counts."""

_CONVS: dict[int, type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_LAYER_SECONDS = 0.004  # of samples per layer
_FEWEST, _MOST = 3, 40  # samples per layer


class Clock(Protocol):
    """Says how long things take; tests have one that computes it."""

    @property
    def machine(self) -> str:
        """What the times depend on besides the layer: processor, versions, threads, dtype."""
        ...

    def layer(self, layer: Layer) -> float:
        """Seconds of one call of a layer of this shape."""
        ...

    def deployed(self, module: GraphModule, inputs: Inputs) -> Form:
        """One run of the network in the form in which it will be deployed, to be timed."""
        ...

    def race(self, forms: Sequence[Form]) -> list[float]:
        """Seconds of each form, all measured under the same conditions."""
        ...


def lowered(module: GraphModule, inputs: Inputs) -> GraphModule:
    """The graph on the native kernels, where there are any; norms are not folded."""
    target = CpuTarget()
    return target.lower(module, inputs) if target.missing() is None else module


@dataclass(frozen=True)
class MachineClock:
    """Measures with the kernels that will run: packed weights on a CPU, torch's own elsewhere.

    Attributes:
        device, dtype: those of the weights.
        lower: what is done to a network before it is deployed.
    """

    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    lower: Lower = lowered

    @classmethod
    def of(cls, module: nn.Module, lower: Lower = lowered) -> MachineClock:
        """A clock for the device and dtype of the parameters of ``module``."""
        first = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))
        return cls(str(first.device), first.dtype, lower)

    @property
    def machine(self) -> str:
        name = torch.cuda.get_device_name(self.device) if self.device.startswith("cuda") else cpu_name()
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{name}, torch {torch.__version__}, {torch.get_num_threads()} threads, {dtype}"

    def layer(self, layer: Layer) -> float:
        """The fastest of a few calls: whatever else the machine does only adds to it."""
        with torch.inference_mode():
            module, x = self._built(layer)
            module(x)  # packs the weights
            taken: list[float] = []
            while len(taken) < _FEWEST or (sum(taken) < _LAYER_SECONDS and len(taken) < _MOST):
                taken.append(self._timed(module, x))
        return min(taken)

    def deployed(self, module: GraphModule, inputs: Inputs) -> Form:
        """See :class:`Clock`. Raises InputError for a model without data, which cannot run."""
        if self.device == "meta":
            raise InputError("a latency cannot be measured on the meta device", hint="give the model weights, or limit macs instead")
        form = self.lower(module, inputs)
        return lambda: inputs.call(form)

    def race(self, forms: Sequence[Form]) -> list[float]:
        """The medians over alternating blocks with pauses, see :func:`fxcompress.targets.timing.interleaved`."""
        timings = interleaved({str(i): form for i, form in enumerate(forms)}, synchronize=self._synchronize)
        return [timing.median / 1e3 for timing in timings.values()]

    def _built(self, layer: Layer) -> tuple[nn.Module, Tensor]:
        """The layer as it will run, and an input; activations are channels_last there."""
        if layer.kind == "linear":
            module = self._filled(nn.Linear, layer.inputs, layer.outputs)
            return PackedLinear.of(module) if lowerable(module) is None else module, self._ones(layer.batch, layer.inputs)
        numbers = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation, "groups": layer.groups}
        module = self._filled(_CONVS[len(layer.kernel)], layer.inputs, layer.outputs, layer.kernel, **numbers)
        x = self._ones(layer.batch, layer.inputs, *layer.size)
        layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.ndim)
        x = x if layout is None else x.contiguous(memory_format=layout)
        return PackedConv.of(module) if lowerable(module) is None else module, x

    def _filled(self, kind: type[nn.Module], *sizes: object, **numbers: object) -> nn.Module:
        """A layer without the cost of random weights; equal ones take the same time."""
        module = nn.utils.skip_init(kind, *sizes, **numbers, device=self.device, dtype=self.dtype)
        for parameter in module.parameters():
            parameter.detach().fill_(0.01)
        return module

    def _ones(self, *shape: int) -> Tensor:
        return torch.ones(shape, device=self.device, dtype=self.dtype)

    def _timed(self, module: nn.Module, x: Tensor) -> float:
        self._synchronize()
        began = time.perf_counter()
        module(x)
        self._synchronize()
        return time.perf_counter() - began

    def _synchronize(self) -> None:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize(self.device)
