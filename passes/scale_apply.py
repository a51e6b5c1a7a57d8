"""Gives the channels of a group another scale."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fxcompress.ir.edit import Editor, own, set_parameter
from fxcompress.ir.view import module_of
from fxcompress.passes.scale_intervals import blocks
from fxcompress.passes.scale_labels import Group
from fxcompress.passes.weights import scale_inputs, scale_outputs, unfit

LARGEST = 2.0**20
"""Scales stay within this factor, up and down."""


def normalized(group: Group, scale: Tensor, largest: Tensor) -> Tensor:
    """Scales that the group allows, from scales of which only the ratios matter.

    Args:
        scale: (n,) positive; 1 where nothing is known of a channel.
        largest: (n,) magnitude of each channel as it is now.

    Returns:
        (n,) with geometric mean 1; where some channels must stay as they are the others come up to the largest of these.
    """
    free = ~group.fixed & (largest > 0)
    if not bool(free.any()):
        return torch.ones_like(scale)
    level = scale[free].log().mean().exp()
    fixed = largest[group.fixed]
    if bool((fixed > 0).any()):
        level = (fixed.max() / (largest[free] / scale[free]).max()).reciprocal()
    found = torch.where(free, (scale / level).clamp(1 / LARGEST, LARGEST), 1.0)
    return torch.where(free, torch.maximum(found, group.least), 1.0)


def settle_silent(group: Group, scale: Tensor, largest: Tensor) -> Tensor:
    """Scales for channels that were zero on all data: as large as they may be without widening the range of any weights.

    Nothing is known of their own range; at scale 1 one of them could be the largest weight of every output channel.
    """
    silent = ~group.fixed & (largest == 0)
    limit = torch.full_like(scale, LARGEST)
    for reader in group.readers:
        places = group.places(reader.labels)
        weight = blocks(module_of(reader.node)).abs().amax(3)
        quiet = silent[places].reshape(weight.shape[0], 1, -1)
        whole = (weight * scale[places].reshape(quiet.shape) * ~quiet).amax(2, keepdim=True)
        room = torch.where((weight > 0) & (whole > 0), whole / weight.clamp_min(1e-300), LARGEST).amin(1).flatten()
        limit.scatter_reduce_(0, places, room, "amin")
    limit = torch.where(limit < LARGEST, limit, 1.0)
    return torch.where(silent, torch.maximum(limit.clamp_min(1 / LARGEST), group.least), scale)


def obstacle(group: Group, scale: Tensor) -> str | None:
    """Why the group's layers cannot have these scales in their dtype, or None."""
    zero = torch.zeros(1, dtype=torch.float64)
    for writer in group.writers:
        if writer.kind == "layer" and (why := unfit(module_of(writer.node), 1 / _at(group, scale, writer.labels), zero)) is not None:
            return f"'{writer.node.name}': {why}"
    for reader in group.readers:
        if (why := unfit(module_of(reader.node), _at(group, scale, reader.labels), zero, inputs=True)) is not None:
            return f"'{reader.node.name}': {why}"
    return None


def rescale(group: Group, scale: Tensor, editor: Editor) -> None:
    """Divide what the group's writers give by ``scale`` (n,) and multiply what its readers expect by it."""
    for writer in group.writers:
        layer: Any = own(writer.node, editor)
        factor = 1 / _at(group, scale, writer.labels).to(layer.weight.device)
        if writer.kind == "layer":
            scale_outputs(layer, factor, torch.zeros_like(factor))
            continue
        for name in ("weight", "bias"):
            old = getattr(layer, name, None)  # an RMS norm has no bias
            if old is not None:
                set_parameter(layer, name, (old.detach().double() * factor).to(old.dtype))
    for reader in group.readers:
        layer = own(reader.node, editor)
        factor = _at(group, scale, reader.labels).to(layer.weight.device)
        scale_inputs(layer, factor, torch.zeros_like(factor))


def _at(group: Group, scale: Tensor, labels: Tensor) -> Tensor:
    return scale[group.places(labels)]
