"""What calibration data say of the channels that layers read, and how much noise quantization would add."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import GraphModule, Node

from fxcompress.ir.effects import effect_of
from fxcompress.ir.inputs import Inputs
from fxcompress.ir.view import module_of
from fxcompress.passes.scale_intervals import blocks
from fxcompress.passes.scale_labels import Group
from fxcompress.passes.weights import channel_axis


@dataclass
class ChannelRange:
    """Of every channel of a value over all batches: smallest and largest number and mean square; (C,) in float64."""

    low: Tensor
    high: Tensor
    power: Tensor
    count: int = 0

    @classmethod
    def of(cls, x: Tensor, axis: int) -> ChannelRange:
        x, count = x.detach(), x.numel() // x.shape[axis]
        others = [d for d in range(x.dim()) if d != axis]
        if not others:
            x, others = x[None], [0]
        power = x.square().sum(others, dtype=torch.float64) / count
        return cls(x.amin(others).double().cpu(), x.amax(others).double().cpu(), power.cpu(), count)

    def merged(self, other: ChannelRange) -> ChannelRange:
        count = self.count + other.count
        power = (self.power * self.count + other.power * other.count) / count
        return ChannelRange(torch.minimum(self.low, other.low), torch.maximum(self.high, other.high), power, count)

    @property
    def largest(self) -> Tensor:
        return torch.maximum(self.low.abs(), self.high.abs())

    @property
    def finite(self) -> bool:
        return bool(torch.isfinite(self.low).all() and torch.isfinite(self.high).all())


class _Watch(fx.Interpreter):
    """Runs a graph and records the ranges of what some layers read."""

    def __init__(self, module: GraphModule, layers: frozenset[str], ranges: dict[str, ChannelRange]) -> None:
        super().__init__(module)
        self.layers, self.ranges = layers, ranges

    def run_node(self, n: Node) -> Any:
        if n.name in self.layers:
            x = self.env[n.all_input_nodes[0]]
            axis = channel_axis(module_of(n), x.dim())
            if axis is not None and x.numel():
                found = ChannelRange.of(x, axis)
                self.ranges[n.name] = self.ranges[n.name].merged(found) if n.name in self.ranges else found
        return super().run_node(n)


def input_ranges(module: GraphModule, layers: Sequence[Node], batches: Iterable[Inputs], like: Inputs) -> dict[Node, ChannelRange]:
    """The ranges of what each of ``layers`` (calls of convolutions and linears) reads on ``batches``, in the dtype of ``like``."""
    ranges: dict[str, ChannelRange] = {}
    module, names = _stateless(module), frozenset(node.name for node in layers)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for batch in batches:
            _Watch(module, names, ranges).run(*as_dtype_of(batch, like).clone().bind(module.graph).values())
    return {node: ranges[node.name] for node in layers if node.name in ranges}


def _stateless(module: GraphModule) -> GraphModule:
    """The module, or a copy where a run would change it: norms in training mode update their statistics."""
    return copy.deepcopy(module) if any(effect_of(node) is not None for node in module.graph.nodes) else module


def as_dtype_of(batch: Inputs, like: Inputs) -> Inputs:
    """``batch`` with floating-point tensors in the dtype of those of ``like``: the frame also runs passes on float64 twins."""
    dtype = next((t.dtype for t in like.tensors() if t.is_floating_point()), None)
    return batch if dtype is None else batch.map_tensors(lambda t: t.to(dtype) if t.is_floating_point() else t)


def largest_of(group: Group, ranges: dict[Node, ChannelRange]) -> Tensor:
    """The largest magnitude of each of the group's channels where layers read it; zero where none does."""
    found = torch.zeros(len(group.labels), dtype=torch.float64)
    for reader in group.readers:
        found.scatter_reduce_(0, group.places(reader.labels), ranges[reader.node].largest, "amax")
    return found


def weight_share(group: Group, largest: Tensor) -> Tensor:
    r"""How much of the range of its readers' weights a channel asks for once activations are equal, 0 to 1.

    With ``v_oi = max over taps of |W_oi| * largest_i`` (which no scaling of channels changes): ``max_o v_oi / max_j v_oj``.
    """
    share = torch.zeros(len(group.labels), dtype=torch.float64)
    for reader in group.readers:
        places = group.places(reader.labels)
        weight = blocks(module_of(reader.node)).abs().amax(3)
        asked = weight * largest[places].reshape(weight.shape[0], 1, -1)
        whole = asked.amax(2, keepdim=True)
        relative = torch.where(whole > 0, asked / whole.clamp_min(1e-300), 0.0)
        share.scatter_reduce_(0, places, relative.amax(1).flatten(), "amax")
    return share


def expected_noise(group: Group, ranges: dict[Node, ChannelRange], scale: Tensor, bits: int, weight_bits: int) -> float:
    r"""The noise that quantization adds to the outputs of the group's readers, over their power; summed over the readers.

    Rounding to steps of d adds d^2 / 12. Activations have one step per value, weights one per output channel o, so with
    x_i / s_i and W_oi s_i, for errors that are independent of each other (power p_i = E x_i^2)

        noise_o = sum_i W_oi^2 s_i^2 dx^2 / 12 + sum_i p_i / s_i^2 dw_o^2 / 12,    power_o = sum_i W_oi^2 p_i.
    """
    total = 0.0
    for reader in group.readers:
        seen, weight = ranges[reader.node], blocks(module_of(reader.node))
        s = scale[group.places(reader.labels)]
        step = ((seen.high / s).amax().clamp_min(0) - (seen.low / s).amin().clamp_max(0)) / (2**bits - 1)
        shape = (weight.shape[0], 1, -1)
        s, power, taps = s.reshape(shape), seen.power.reshape(shape), weight.shape[3]
        square = weight.square().sum(3)
        steps = (weight.abs().amax(3) * s).amax(2) / (2 ** (weight_bits - 1) - 1)
        noise = (square * s.square()).sum(2) * step.square() + (taps * power / s.square()).sum(2) * steps.square()
        signal = (square * power).sum(2)
        live = signal > 0
        total += float((noise[live] / signal[live]).mean() / 12) if bool(live.any()) else 0.0
    return total
