"""Small networks, one idea each, on which channel pruning must be exact or refuse with a reason.

A ``Pattern`` says what is built, what goes in, and what pruning must find there: at least so many removable classes, or
the reason why not. The networks stand in ``prune_patterns_*.py``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Pattern:
    """A network and what pruning must find in it.

    Attributes:
        inputs: shapes of the inputs, with the batch axis.
        classes: how many channel classes can be removed at least; 0 says that a reason must be given.
        pinned: what must stand among the reasons.
        other: which other inputs the sliced network must take: "" none, "batch", or "size" (batch and image size, or batch
            and number of tokens for inputs of rank three).
        by_hand: why zeroing the weights of the consumers by hand is not the same; "" where it is.
        words: inputs are whole numbers below this one, where it is not 0.
        passes: what runs on the captured graph before it is pruned.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: tuple[Shape, ...]
    classes: int = 0
    pinned: str = ""
    other: str = "size"
    by_hand: str = ""
    words: int = 0
    passes: str = ""

    def example(self, seed: int = 0, shapes: tuple[Shape, ...] | None = None) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(seed)
        shapes = shapes or self.inputs
        if self.words:
            return tuple(torch.randint(0, self.words, shape, generator=generator) for shape in shapes)
        return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)

    def variants(self) -> Iterator[tuple[Shape, ...]]:
        """Other input shapes that the network takes."""
        if self.other:
            yield tuple((shape[0] + 1, *shape[1:]) for shape in self.inputs)
        if self.other == "size":
            yield tuple(_larger(shape) for shape in self.inputs)


def _larger(shape: Shape) -> Shape:
    """Another image size (batch, channels, *size), or another number of tokens (batch, tokens, features)."""
    if len(shape) < 3:
        return shape
    return (shape[0], shape[1] + 4, shape[2]) if len(shape) == 3 and shape[2] == 6 else (*shape[:2], *(size + 4 for size in shape[2:]))


class Small(nn.Module):
    """A module whose forward is a function of itself and its inputs, and whose parts are given by name."""

    def __init__(self, run: Callable[..., Any], /, **parts: Any) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


class Pair(Small):
    """:class:`Small` with two inputs."""

    def forward(self, x: Tensor, y: Tensor) -> Any:  # type: ignore[override]
        return self.run(self, x, y)


def conv(cin: int, cout: int, kernel: int = 3, **rest: Any) -> nn.Conv2d:
    """A convolution that keeps the size."""
    return nn.Conv2d(cin, cout, kernel, padding=rest.pop("padding", kernel // 2), **rest)


def through(run: Any, width: int = 8, out: int = 8, **parts: Any) -> Small:
    """conv, what ``run`` does, conv."""
    return Small(lambda m, x: m.b(run(m, torch.relu(m.a(x)))), a=conv(3, width), b=conv(out, 4), **parts)


def own(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape))


def unique(patterns: list[Pattern]) -> list[Pattern]:
    names = [p.name for p in patterns]
    assert len(set(names)) == len(names), sorted(n for n, many in itertools.groupby(sorted(names)) if len(list(many)) > 1)
    return patterns


def patterns() -> list[Pattern]:
    """All of them."""
    import prune_patterns_attention
    import prune_patterns_blocks
    import prune_patterns_conv
    import prune_patterns_graphs
    import prune_patterns_moves
    import prune_patterns_norms
    import prune_patterns_shuffles
    import prune_patterns_windows

    parts = (
        prune_patterns_conv,
        prune_patterns_norms,
        prune_patterns_moves,
        prune_patterns_shuffles,
        prune_patterns_attention,
        prune_patterns_windows,
        prune_patterns_blocks,
        prune_patterns_graphs,
    )
    return unique([pattern for part in parts for pattern in part.patterns()])
