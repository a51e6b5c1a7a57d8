"""What became of the parameters and buffers of a node: which changed, by how much, and which channels are gone."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from fxcompress.compare.correspondence import Correspondence
from fxcompress.compare.kept import Kept
from fxcompress.compare.schema import Snapshot, TensorRecord
from fxcompress.compare.sketch import distance
from fxcompress.report.difference import Change, Channels


class Tensors:
    """The tensors of both sides: records, and the tensors themselves where both graphs are at hand."""

    def __init__(self, nodes: Correspondence) -> None:
        self._nodes = nodes
        self._live = _live(nodes.base), _live(nodes.head)
        self._kept = Kept(nodes, self.pair) if all(self._live) else None

    def pair(self, base: TensorRecord, head: TensorRecord) -> tuple[Tensor, Tensor] | None:
        """Both tensors themselves; None where one is not at hand."""
        was, now = self._live[0].get(base.name), self._live[1].get(head.name)
        if was is None or now is None or was.is_meta or now.is_meta:
            return None
        return was, now

    def changes(self, base: int, head: int) -> Iterator[Change]:
        """Of the tensors of a matched node, by their name in the module."""
        was, now = self._nodes.base, self._nodes.head
        mine, its = was.nodes[base].tensors, now.nodes[head].tensors
        for name in sorted(mine.keys() | its.keys()):
            old = was.tensors[mine[name]] if name in mine else None
            new = now.tensors[its[name]] if name in its else None
            if old is None or new is None:
                yield Change("tensor", name, _plain(old), _plain(new))
            elif (old.digest, old.dtype, old.shape) != (new.digest, new.dtype, new.shape):
                channels = self._kept.channels(base, head, name) if self._kept is not None and old.shape != new.shape else ()
                yield self._change(name, old, new, channels)

    def _change(self, name: str, old: TensorRecord, new: TensorRecord, channels: tuple[Channels, ...]) -> Change:
        amount, estimated = None, False
        if old.shape == new.shape:
            live = self.pair(old, new)
            estimated = live is None
            amount = relative(old, new) if live is None else _relative(*live)
        return Change("tensor", name, _plain(old), _plain(new), amount, estimated=estimated, channels=channels)


def relative(old: TensorRecord, new: TensorRecord) -> float | None:
    """L2 norm of the difference over the larger norm, from sketches."""
    larger = max(old.sketch.norm, new.sketch.norm)
    if not larger or not math.isfinite(larger) or old.sketch.count != new.sketch.count:
        return None
    return distance(old.sketch, new.sketch) / larger


def _relative(old: Tensor, new: Tensor) -> float | None:
    was, now = (t.detach().to("cpu", torch.complex128 if t.is_complex() else torch.float64) for t in (old, new))
    larger = max(float(was.norm()), float(now.norm()))
    apart = float((was - now).norm())
    return apart / larger if larger > 0 and math.isfinite(larger) and math.isfinite(apart) else None


def _plain(record: TensorRecord | None) -> dict[str, object] | None:
    return None if record is None else {"dtype": record.dtype, "shape": list(record.shape), "digest": record.digest}


def _live(snapshot: Snapshot) -> dict[str, Tensor]:
    """Parameters and buffers by every name that they have."""
    if snapshot.live is None:
        return {}
    module = snapshot.live.module
    return dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
