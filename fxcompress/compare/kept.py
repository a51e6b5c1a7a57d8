"""Which channels of every layer are still there, from the weights of both versions.

Where the weights that are left were not changed, a layer tells it by itself: its smaller weight lies in the larger one. Where they were
(folded, compensated, trained further), the input channels are those that the layers before have left, and the output channels are the
rows that still point into one direction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property

from torch import Tensor

from fxcompress.compare.correspondence import Correspondence
from fxcompress.compare.flow import Flow, Known, Sizes
from fxcompress.compare.schema import TensorRecord
from fxcompress.compare.slices import alike, blocks, embedding, lines, rows_and_columns
from fxcompress.report.difference import Channels

Live = Callable[[TensorRecord, TensorRecord], tuple[Tensor, Tensor] | None]


class Kept:
    """Channels that are gone or new, by node and tensor. ``live`` gives both tensors of two records, where they are at hand."""

    def __init__(self, nodes: Correspondence, live: Live) -> None:
        self._nodes = nodes
        self._live = live

    def channels(self, base: int, head: int, name: str) -> tuple[Channels, ...]:
        """Of tensor ``name`` of a matched node; one entry for each dimension along which it is known."""
        return self._found.get((base, head), {}).get(name, ())

    @cached_property
    def _found(self) -> dict[tuple[int, int], dict[str, tuple[Channels, ...]]]:
        flow = Flow(self._nodes)
        found = {}
        pairs = [(pair.base, pair.head) for pair in self._nodes.matching.pairs]
        for base, head in sorted(pairs):
            layer = _Layer(dict(self._resized(base, head)), flow.into(base, head))
            found[(base, head)] = {name: layer.channels(name) for name in layer.tensors}
            flow.note(base, head, {**layer.columns, **layer.rows})
        return found

    def _resized(self, base: int, head: int) -> Iterator[tuple[str, tuple[Tensor, Tensor]]]:
        was, now = self._nodes.base, self._nodes.head
        mine, its = was.nodes[base].tensors, now.nodes[head].tensors
        for name in sorted(mine.keys() & its.keys()):
            old, new = was.tensors[mine[name]], now.tensors[its[name]]
            live = self._live(old, new) if old.shape != new.shape and len(old.shape) == len(new.shape) > 0 else None
            if live is not None:
                yield name, live


class _Layer:
    """The resized tensors of one layer, and what is left of their rows (dimension 0) and columns (dimension 1), by the sizes of both sides.

    ``incoming``: the same of what the layer reads.
    """

    def __init__(self, tensors: dict[str, tuple[Tensor, Tensor]], incoming: Known) -> None:
        self.tensors = tensors
        self.incoming = incoming
        self.rows: Known = {}
        self.columns: Known = {}
        for old, new in tensors.values():
            if old.dim() > 1:
                self._matrix(old, new)
        self._vectors()

    def channels(self, name: str) -> tuple[Channels, ...]:
        old, new = self.tensors[name]
        found = []
        for dim, (sizes, known) in enumerate(zip(_sizes(old, new), (self.rows, self.columns), strict=False)):
            if sizes[0] != sizes[1] and sizes in known:
                gone = tuple(sorted(set(range(max(sizes))) - set(known[sizes])))
                found.append(Channels(dim, gone, ()) if sizes[0] > sizes[1] else Channels(dim, (), gone))
        return tuple(found)

    def _matrix(self, old: Tensor, new: Tensor) -> None:
        sizes = _sizes(old, new)[:2]
        if old.shape[2:] != new.shape[2:] or old.dtype != new.dtype:
            return
        larger = {a > b for a, b in sizes if a != b}  # True: channels were removed
        both = None
        if len(larger) == 1:
            large, small = (old, new) if larger.pop() else (new, old)
            both = rows_and_columns(blocks(large), blocks(small)) or self._changed(large, small, sizes)
        for known, size, places in zip((self.rows, self.columns), sizes, both or (None, self.incoming.get(sizes[1])), strict=True):
            if size[0] != size[1] and places is not None:
                known[size] = tuple(places)

    def _changed(self, large: Tensor, small: Tensor, sizes: list[Sizes]) -> tuple[list[int], list[int]] | None:
        """Rows and columns of weights that are not the same numbers any more."""
        columns = range(large.shape[1]) if sizes[1][0] == sizes[1][1] else self.incoming.get(sizes[1])
        if columns is None:
            return None
        if sizes[0][0] == sizes[0][1]:
            return list(range(large.shape[0])), list(columns)
        rows = alike(large[:, list(columns)], small)
        return None if rows is None else (rows, list(columns))

    def _vectors(self) -> None:
        """One-dimensional tensors (of a norm) tell together what each alone may not."""
        by_size: dict[Sizes, list[tuple[Tensor, Tensor]]] = {}
        for old, new in self.tensors.values():
            if old.dim() == 1 and old.dtype == new.dtype and (len(old), len(new)) not in self.rows:
                by_size.setdefault((len(old), len(new)), []).append((old, new))
        for sizes, pairs in by_size.items():
            was, now = ([b"".join(parts) for parts in zip(*(lines(blocks(pair[side])) for pair in pairs), strict=True)] for side in (0, 1))
            found = embedding(was, now) if sizes[0] > sizes[1] else embedding(now, was)
            places = self.incoming.get(sizes) if found is None else tuple(found)
            if places is not None:
                self.rows[sizes] = places


def _sizes(old: Tensor, new: Tensor) -> list[Sizes]:
    return list(zip(old.shape, new.shape, strict=True))
