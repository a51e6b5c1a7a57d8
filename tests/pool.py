"""The network drawn so far. Every step is run at once on a small batch, so only valid steps are drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from networks import Net, Network, Step, make_layer, randomise, run_step, step
from torch import Tensor

MAX_CHANNELS, MAX_SIDE, MAX_FEATURES = 24, 9, 600
Draw = Callable[[st.SearchStrategy[Any]], Any]


class Pool:
    """The values of the network drawn so far, computed on a batch of two."""

    def __init__(self, draw: Draw, inputs: tuple[tuple[int, ...], ...], train: bool) -> None:
        self._draw, self.inputs, self.train = draw, inputs, train
        self.steps: list[Step] = []
        self.host: Any = Network(Net(inputs, (), 0))
        self.values: list[Any] = [torch.randn(2, *shape, dtype=torch.float64) for shape in inputs]
        self.weights: set[int] = set()  # values that do not depend on the input
        self.host.train(train)

    def pick(self, options: Any) -> Any:
        return self._draw(st.sampled_from(list(options)))

    def flag(self, default: bool = False) -> bool:
        return self.pick([default, not default])

    def number(self, low: int, high: int) -> int:
        return self._draw(st.integers(low, high))

    def add(self, op: str, *reads: int, weight: bool = False, **options: Any) -> int:
        """Append a step and run it; gives the number of its value."""
        at = len(self.steps)
        one = step(op, *reads, **options)
        with torch.no_grad():
            make_layer(self.host, at, one)
            child = getattr(self.host, f"m{at}", None)
            if child is not None:
                randomise(child)
                child.train(self.train and not options.get("frozen"))
            self.host.double()
            self.values.append(run_step(self.host, at, one, [self.values[i] for i in reads]))
        self.steps.append(one)
        if weight or (reads and all(i in self.weights for i in reads)):
            self.weights.add(len(self.values) - 1)
        return len(self.values) - 1

    def tensor(self, ranks: tuple[int, ...] = (2, 3, 4, 5), *, where: Callable[[Tensor], bool] = lambda t: True) -> int | None:
        """A value to work on, the newest first; None when there is none."""
        found = [
            i
            for i, v in enumerate(self.values)
            if isinstance(v, Tensor) and i not in self.weights and v.dim() in ranks and 0 < v[0].numel() <= 3000 and where(v)
        ]
        return self.pick(found[::-1]) if found else None

    def shape(self, i: int) -> tuple[int, ...]:
        return tuple(self.values[i].shape)

    def like(self, i: int) -> int:
        """A value of the same shape as ``i``, perhaps ``i`` itself."""
        found = [k for k, v in enumerate(self.values) if isinstance(v, Tensor) and v.shape == self.values[i].shape]
        return self.pick(found)


Maker = Callable[[Pool], "int | None"]
