r"""Moves the range of activations into the weights of the linears that read them.

SmoothQuant (Xiao, Lin, Seznec, Wu, Demouth, Han, arXiv:2211.10438, equation 4): transformers have a few channels with very
large activations, so

    Y = (X diag(s)^-1) (diag(s) W),        s_j = max|X_j|^alpha / max|W_j|^(1 - alpha),

with the maxima of input channel j over the calibration data and over all outputs of all linears that read it. The division
goes into what gives the channel: the affine part of the norm before, or a layer (:mod:`~fxcompress.passes.scale_groups`).
Where something else gives it, as GELU does, nothing is moved. Where only layers give it, ``equalize`` may have found better
scales; there these are taken only if they lower the noise that is expected. The function is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from fxcompress.errors import InputError
from fxcompress.ir.edit import Editor
from fxcompress.ir.view import module_of
from fxcompress.passes.scale_apply import normalized, obstacle, rescale
from fxcompress.passes.scale_groups import NORMS_OF_ROWS, ScaleGroups
from fxcompress.passes.scale_intervals import blocks
from fxcompress.passes.scale_labels import Group
from fxcompress.passes.scale_ranges import ChannelRange, expected_noise, input_ranges, largest_of
from fxcompress.pipeline import Pass, PassContext, PassResult, Property, Remark, Semantics

RATIO = 1.1  # scales that differ by less are not worth a change
GAIN = 0.9  # of the noise that is expected, where only layers are scaled


@dataclass(frozen=True)
class Smooth(Pass):
    """Smooths the inputs of linears; ``alpha`` is the share of the range that moves, 0 to 1; the bits are those to come."""

    name: ClassVar[str] = "smooth"
    semantics: ClassVar[Semantics] = Semantics.CLOSE
    requires: ClassVar[frozenset[Property]] = frozenset({Property.FUNCTIONAL})
    forbids: ClassVar[frozenset[Property]] = frozenset({Property.OBSERVED, Property.LOWERED})
    alpha: float = 0.5
    bits: int = 8
    weight_bits: int = 8

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise InputError(f"alpha is {self.alpha}", hint="write a share of the range from 0 to 1, such as 0.5")
        if not (2 <= self.bits <= 8 and 2 <= self.weight_bits <= 8):
            raise InputError(f"{self.bits} and {self.weight_bits} bits", hint="activations and weights have 2 to 8 bits")

    def run(self, module: GraphModule, ctx: PassContext) -> PassResult:
        groups = [g for g in ScaleGroups(module, ctx.analyses).groups if all(_is_linear(r.node) for r in g.readers)]
        if groups and not ctx.calibration.batches:
            raise InputError("smooth needs calibration data", hint="pass calibration=...: batches of typical inputs")
        ranges = input_ranges(module, [r.node for g in groups for r in g.readers], ctx.calibration.batches, ctx.inputs)
        editor, remarks, changed = Editor(module), [], False
        for group in groups:
            scale = self._scale(group, ranges)
            if scale is None or float(scale.max() / scale.min()) < RATIO:
                continue
            why = obstacle(group, scale)
            if why is None:
                rescale(group, scale, editor)
                changed = True
            remarks.append(_remark(group, scale, why))
        if changed:
            editor.finish()
        return PassResult(module, changed, remarks=tuple(remarks))

    def _scale(self, group: Group, ranges: dict[Node, ChannelRange]) -> Tensor | None:
        if not all(r.node in ranges and ranges[r.node].finite for r in group.readers):
            return None
        largest, weights = largest_of(group, ranges), torch.zeros(len(group.labels), dtype=torch.float64)
        for reader in group.readers:
            columns = blocks(module_of(reader.node)).abs().amax((1, 3)).flatten()
            weights.scatter_reduce_(0, group.places(reader.labels), columns, "amax")
        live = (largest > 0) & (weights > 0)
        scale = largest.clamp_min(1e-300) ** self.alpha / weights.clamp_min(1e-300) ** (1 - self.alpha)
        found = normalized(group, torch.where(live, scale, 1.0), torch.where(live, largest, 0.0))
        if any(writer.kind in NORMS_OF_ROWS for writer in group.writers):
            return found
        before, after = (expected_noise(group, ranges, s, self.bits, self.weight_bits) for s in (torch.ones_like(found), found))
        return found if after < GAIN * before else None


def _is_linear(node: Node) -> bool:
    layer = module_of(node)
    return isinstance(layer, nn.Linear) and layer.weight.numel() > 0 and not layer.weight.is_meta


def _remark(group: Group, scale: Tensor, why: str | None) -> Remark:
    readers = ", ".join(f"'{r.node.name}'" for r in group.readers[:3]) + (", ..." if len(group.readers) > 3 else "")
    text = f"{len(group.labels)} channels that {readers} read: scales {float(scale.min()):.3g} to {float(scale.max()):.3g}"
    where = group.writers[0].node if group.writers else group.readers[0].node
    return Remark.on(where, text if why is None else f"{text}; {why}", applied=why is None)
