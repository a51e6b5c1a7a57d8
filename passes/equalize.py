r"""Cross-layer equalization: gives the channels of a value similar ranges, because they will share one scale.

For a layer, a positively homogeneous f and the next layer (Nagel, van Baalen, Blankevoort, Welling: "Data-free quantization
through weight equalization and bias correction", ICCV 2019, arXiv:1906.04721, section 4.1):

    W2 f(W1 x + b1) = (W2 S) f(S^-1 W1 x + S^-1 b1)        S diagonal, positive,  s_i = sqrt(r1_i / r2_i),

with r1_i the largest weight of row i of W1 and r2_i that of column i of W2. Here S may belong to any number of layers that
write and read a value, over residual additions, pooling, concatenation and moves (:mod:`~fxcompress.passes.scale_groups`),
and all S are found by sweeps until nothing changes.

With calibration data the measured range of a channel takes the place of r1, and because weights have one scale per output
channel, r2 is what the channel asks of these. Both are raised to powers that add up to one, and those are taken that leave
least noise at the readers' outputs by the usual model of rounding; a group in which that gains little stays as it is.

ReLU6 is homogeneous only where it does not cut. A channel that provably stays below the bound, which interval arithmetic shows
for many depthwise layers, is scaled as far as it still does; the others keep their scale, and those of the same value are
brought up to them. So the function is kept, which replacing ReLU6 by ReLU, as the paper does, would not. The absorption of
high biases, also in the paper, changes the function where a ReLU cuts, and is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from fxcompress.errors import InputError
from fxcompress.ir.edit import Editor
from fxcompress.ir.view import module_of
from fxcompress.passes.scale_apply import normalized, obstacle, rescale, settle_silent
from fxcompress.passes.scale_groups import NORMS_OF_ROWS, ScaleGroups
from fxcompress.passes.scale_intervals import blocks
from fxcompress.passes.scale_labels import Group
from fxcompress.passes.scale_ranges import ChannelRange, expected_noise, input_ranges, largest_of, weight_share
from fxcompress.pipeline import Pass, PassContext, PassResult, Property, Remark, Semantics

POWERS = (1.0, 0.75, 0.5, 0.25, 0.0)
GAIN = 0.9  # a group is scaled if that leaves less than this share of the noise
RATIO = 1.1  # ... and if its scales differ by more than this
SWEEPS = 40


@dataclass(frozen=True)
class Equalize(Pass):
    """Equalizes the ranges of channels across layers; ``bits`` and ``weight_bits`` are those to come."""

    name: ClassVar[str] = "equalize"
    semantics: ClassVar[Semantics] = Semantics.CLOSE
    requires: ClassVar[frozenset[Property]] = frozenset({Property.FUNCTIONAL})
    forbids: ClassVar[frozenset[Property]] = frozenset({Property.OBSERVED, Property.LOWERED})
    bits: int = 8
    weight_bits: int = 8

    def __post_init__(self) -> None:
        if not (2 <= self.bits <= 8 and 2 <= self.weight_bits <= 8):
            raise InputError(f"{self.bits} and {self.weight_bits} bits", hint="activations and weights have 2 to 8 bits")

    def run(self, module: GraphModule, ctx: PassContext) -> PassResult:
        groups = [g for g in ScaleGroups(module, ctx.analyses).groups if all(w.kind not in NORMS_OF_ROWS for w in g.writers)]
        groups = [g for g in groups if not any(_empty(r.node) for r in g.readers)]
        if ctx.calibration.batches:
            readers = {r.node for g in groups for r in g.readers}
            ranges = input_ranges(module, list(readers), ctx.calibration.batches, ctx.inputs)
            found = [self._by_data(group, ranges) for group in groups]
        else:
            found = [(scale, "by their weights") for scale in by_weights(groups)]
        editor, remarks, changed = Editor(module), [], False
        for group, (scale, how) in zip(groups, found, strict=True):
            if float(scale.max() / scale.min()) < RATIO:
                continue
            why = obstacle(group, scale)
            if why is None:
                rescale(group, scale, editor)
                changed = True
            remarks.append(_remark(group, scale, how if why is None else why, applied=why is None))
        if changed:
            editor.finish()
        return PassResult(module, changed, remarks=tuple(remarks))

    def _by_data(self, group: Group, ranges: dict[Node, ChannelRange]) -> tuple[Tensor, str]:
        """The scales that leave least noise, and what they gain."""
        same = torch.ones(len(group.labels), dtype=torch.float64)
        if not all(r.node in ranges and ranges[r.node].finite for r in group.readers):
            return same, ""
        largest = largest_of(group, ranges)
        share = weight_share(group, largest)
        share = torch.where(share > 0, share, 1.0).clamp_min(1e-6)

        def noise(scale: Tensor) -> float:
            return expected_noise(group, ranges, scale, self.bits, self.weight_bits)

        wanted = [torch.where(largest > 0, largest / share ** (1 - power), 1.0) for power in POWERS]
        candidates = [settle_silent(group, normalized(group, scale, largest), largest) for scale in wanted]
        best = min(candidates, key=noise)
        before, after = noise(same), noise(best)
        return (best, f"expected noise {after / before:.2g} of what it was") if after < GAIN * before else (same, "")


def _empty(node: Node) -> bool:
    weight = getattr(module_of(node), "weight", None)
    return not isinstance(weight, Tensor) or weight.numel() == 0 or weight.is_meta


def _remark(group: Group, scale: Tensor, why: str, *, applied: bool) -> Remark:
    readers = ", ".join(f"'{r.node.name}'" for r in group.readers[:3]) + (", ..." if len(group.readers) > 3 else "")
    text = f"{len(group.labels)} channels that {readers} read: scales {float(scale.min()):.3g} to {float(scale.max()):.3g}; {why}"
    return Remark.on(group.writers[0].node if group.writers else group.readers[0].node, text, applied=applied)


def by_weights(groups: Sequence[Group]) -> list[Tensor]:
    """Scales for all groups by s = sqrt(r1 / r2), each in turn with the others as they are by then, until they settle."""
    state = _Weights(groups)
    scales = [torch.ones(len(group.labels), dtype=torch.float64) for group in groups]
    for _ in range(SWEEPS):
        moved = 0.0
        for at, group in enumerate(groups):
            rows, columns = state.rows(group), state.columns(group)
            live = (rows > 0) & (columns > 0)
            ratio = torch.where(live, rows / columns.clamp_min(1e-300), 1.0).sqrt()
            step = normalized(group, ratio, rows * live)
            wanted = torch.maximum(scales[at] * step, torch.where(group.fixed, 1.0, group.least))
            moved = max(moved, float((wanted / scales[at]).log().abs().max()))
            scales[at] = wanted
            state.set(group, wanted)
        if moved < 1e-3:
            break
    return scales


class _Weights:
    """The largest weights between channels of all layers of the groups, under scales that are being looked for."""

    def __init__(self, groups: Sequence[Group]) -> None:
        writers = {w.node for g in groups for w in g.writers if w.kind == "layer"}
        readers = {r.node for g in groups for r in g.readers}
        self.largest = {node: blocks(module_of(node)).abs().amax(3) for node in writers | readers}
        self.outputs = {node: torch.ones(w.shape[0], w.shape[1], 1, dtype=torch.float64) for node, w in self.largest.items()}
        self.inputs = {node: torch.ones(w.shape[0], 1, w.shape[2], dtype=torch.float64) for node, w in self.largest.items()}

    def _now(self, node: Node) -> Tensor:
        return self.largest[node] * self.inputs[node] / self.outputs[node]

    def set(self, group: Group, scale: Tensor) -> None:
        for writer in group.writers:
            if writer.kind == "layer":
                self.outputs[writer.node] = scale[group.places(writer.labels)].reshape(self.outputs[writer.node].shape)
        for reader in group.readers:
            self.inputs[reader.node] = scale[group.places(reader.labels)].reshape(self.inputs[reader.node].shape)

    def rows(self, group: Group) -> Tensor:
        found = torch.zeros(len(group.labels), dtype=torch.float64)
        for writer in group.writers:
            if writer.kind == "layer":
                found.scatter_reduce_(0, group.places(writer.labels), self._now(writer.node).amax(2).flatten(), "amax")
        return found

    def columns(self, group: Group) -> Tensor:
        found = torch.zeros(len(group.labels), dtype=torch.float64)
        for reader in group.readers:
            found.scatter_reduce_(0, group.places(reader.labels), self._now(reader.node).amax(1).flatten(), "amax")
        return found
