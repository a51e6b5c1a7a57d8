"""Rounding the weights of one layer up or down for the least error of its output; see the pass ``adaround``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fxcompress.ir.activation import Activation

__all__ = ["Problem", "Rounding", "descended"]

WARM_UP = 0.2  # share of the steps without regularization
FIRST_BETA, LAST_BETA = 20.0, 2.0
LOW, HIGH = -0.1, 1.1  # the stretched sigmoid of equation 23


@dataclass(frozen=True)
class Problem:
    """A layer at some places: ``f(x W^T + offset)`` shall be ``f(wanted)``. All in float32.

    Attributes:
        x: (groups, places, regressors).
        wanted: (groups, places, outputs), before the activation.
        offset: bias and residual, of the shape of ``wanted``.
        low, high: the integers below and above each weight, (groups, outputs, regressors); equal where there is no choice.
        scale: (groups, outputs, 1).
        weight: the float weights.
    """

    x: Tensor
    wanted: Tensor
    offset: Tensor
    low: Tensor
    high: Tensor
    scale: Tensor
    activation: Activation | None
    weight: Tensor

    @property
    def rows(self) -> int:
        return self.x.shape[1]

    @property
    def finite(self) -> bool:
        return all(bool(torch.isfinite(t).all()) for t in (self.x, self.wanted, self.offset))

    def output(self, integers: Tensor, rows: Tensor | slice) -> Tensor:
        """What the layer gives at some places, with weights ``integers * scale``."""
        return self.activated(self.x[:, rows] @ (integers * self.scale).mT + self.offset[:, rows])

    def activated(self, y: Tensor) -> Tensor:
        return y if self.activation is None else self.activation.apply(y)

    def squared(self, integers: Tensor, rows: Tensor | slice) -> Tensor:
        """The mean over places of the squared error, summed over the outputs."""
        error = self.output(integers, rows) - self.activated(self.wanted[:, rows])
        return error.square().sum((0, 2)).mean()

    def error(self, integers: Tensor) -> float:
        """The squared error at all places."""
        return float(self.squared(integers, slice(None)))

    @property
    def nearest(self) -> Tensor:
        """Integers by rounding to nearest."""
        return (self.weight / self.scale).round().clamp(self.low, self.high)


def descended(problem: Problem, integers: Tensor, sweeps: int = 8) -> Tensor:
    """Coordinate descent on the quadratic form of the error before the activation (equation 13 of the paper, with ``x' != x``).

    Every weight in turn goes to its other neighbour if that lowers ``|x W~^T + offset - wanted|^2``, until none does.
    """
    gram = problem.x.mT @ problem.x  # (groups, regressors, regressors)
    weight, other = integers * problem.scale, (problem.low + problem.high - integers) * problem.scale
    slope = weight @ gram - (problem.wanted - problem.offset).mT @ problem.x
    for _ in range(sweeps):
        moved = 0
        for j in range(weight.shape[2]):
            step = other[:, :, j] - weight[:, :, j]
            better = (step * (2 * slope[:, :, j] + step * gram[:, None, j, j]) < -1e-6 * (step * slope[:, :, j]).abs()) & (step != 0)
            group, row = better.nonzero(as_tuple=True)
            if len(group) == 0:
                continue
            slope[group, row] += step[group, row, None] * gram[group, j]
            weight[group, row, j], other[group, row, j] = other[group, row, j], weight[group, row, j]
            moved += len(group)
        if not moved:
            break
    return (weight / problem.scale).round().clamp(problem.low, problem.high)


@dataclass(frozen=True)
class Rounding:
    """How V is learned: ``iterations`` steps of Adam on ``batch`` places each; ``strength`` is lambda."""

    iterations: int
    batch: int
    strength: float
    learning_rate: float
    seed: int

    def learn(self, problem: Problem) -> Tensor:
        """Integers (groups, outputs, regressors), each the one below or the one above the weight."""
        choice = problem.high > problem.low
        rest = (problem.weight / problem.scale - problem.low).clamp(0.01, 0.99)
        v = _inverse(rest).requires_grad_(True)
        with torch.enable_grad():
            self._descend(problem, v, choice)
        up = (_stretched(v.detach()) > 0.5) & choice
        return torch.where(up, problem.high, problem.low)

    def _descend(self, problem: Problem, v: Tensor, choice: Tensor) -> None:
        unit = problem.error(problem.nearest) or 1.0
        adam = torch.optim.Adam([v], lr=self.learning_rate)
        generator = torch.Generator().manual_seed(self.seed)
        count = max(1, int(choice.sum()))
        for step in range(self.iterations):
            rows = torch.randint(problem.rows, (min(self.batch, problem.rows),), generator=generator)
            h = torch.where(choice, _stretched(v), 0.0)
            loss = problem.squared(problem.low + h, rows) / unit
            beta = self._beta(step)
            if beta is not None:
                loss = loss + self.strength * (torch.where(choice, 1 - (2 * h - 1).abs() ** beta, 0.0).sum() / count)
            adam.zero_grad()
            loss.backward()
            adam.step()

    def _beta(self, step: int) -> float | None:
        """None during the warm-up, then from 20 down to 2."""
        start = WARM_UP * self.iterations
        if step < start:
            return None
        return FIRST_BETA + (LAST_BETA - FIRST_BETA) * (step - start) / max(1.0, self.iterations - start)


def _stretched(v: Tensor) -> Tensor:
    return (torch.sigmoid(v) * (HIGH - LOW) + LOW).clamp(0.0, 1.0)


def _inverse(h: Tensor) -> Tensor:
    return torch.logit((h - LOW) / (HIGH - LOW)).detach().clone()
