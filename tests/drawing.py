"""Hypothesis strategies for :class:`networks.Net` and for what goes into it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from motifs import MOTIFS
from networks import Net
from pool import Draw, Pool
from steps import SINGLE
from torch import Tensor


@st.composite
def networks(draw: Draw, most: int = 5, train: bool | None = None) -> Net:
    """Networks of one to ``most`` single steps or motifs, always valid for batches of one to three."""
    shapes = [(3, 7, 5), (4, 5, 5), (2, 4, 4), (4, 9), (6,), (5, 8)]
    inputs = (draw(st.sampled_from(shapes)),)
    if draw(st.integers(0, 4)) == 4:
        inputs *= 2
    mode = draw(st.sampled_from([False, False, False, True])) if train is None else train
    pool = Pool(draw, inputs, mode)
    for _ in range(draw(st.integers(1, most))):
        draw(st.sampled_from(MOTIFS + SINGLE))(pool)
    return Net(inputs, tuple(pool.steps), _outputs(draw, pool), mode, draw(st.integers(0, 2)))


def _outputs(draw: Draw, pool: Pool) -> Any:
    last = max(i for i, v in enumerate(pool.values) if isinstance(v, Tensor))
    form = draw(st.sampled_from(["one", "tuple", "dict", "nested"]))
    if form == "one":
        return last
    every = [i for i, v in enumerate(pool.values) if isinstance(v, Tensor)]
    more = tuple(draw(st.lists(st.sampled_from(every), min_size=1, max_size=2)))
    if form == "tuple":
        return (last, *more)
    named = (("out", last), *((f"aux{k}", v) for k, v in enumerate(more)))
    return named if form == "dict" else (last, named)


@dataclass(frozen=True)
class Feed:
    """Which numbers go in: ``kind`` of values, a seed and the size of the batch."""

    kind: str = "normal"
    seed: int = 0
    batch: int = 2

    def inputs(self, net: Net, batch: int | None = None, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(self.seed)
        return tuple(self._one((batch or self.batch, *shape), generator).to(dtype) for shape in net.inputs)

    def _one(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        x = torch.randn(shape, generator=generator, dtype=torch.float64)
        scale = {"zeros": 0.0, "huge": 1e12, "tiny": 1e-30}.get(self.kind, 1.0)
        x = x * scale
        if self.kind in ("nan", "inf"):
            x.view(-1)[self.seed % x.numel()] = math.nan if self.kind == "nan" else math.inf
        return x


def feeds() -> st.SearchStrategy[Feed]:
    kinds = st.sampled_from(["normal", "normal", "normal", "normal", "zeros", "huge", "tiny", "nan", "inf"])
    return st.builds(Feed, kinds, st.integers(0, 3), st.integers(1, 3))
