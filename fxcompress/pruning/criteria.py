"""How important a channel is, judged by weights alone, and what every criterion is made of.

A criterion of one's own is a class of a few lines::

    @dataclass(frozen=True)
    class Peak(Criterion):
        name: ClassVar[str] = "peak"

        def scores(self, ctx: Scoring) -> Scores:
            return ctx.of_weights(lambda rows: rows.abs().amax(1))

It is used as ``Prune(criterion=Peak())``, or by name after it is registered in the entry-point group ``fxcompress.criteria``.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import GraphModule, Node

from fxcompress.analysis.channels import PINNED, ChannelDependencyGraph, Slot
from fxcompress.analysis.channels.labels import Array
from fxcompress.analysis.shapes import attribute
from fxcompress.errors import InputError
from fxcompress.ir.inputs import Inputs
from fxcompress.ir.view import view

Scores = NDArray[np.float64]
Reduction = Literal["mean", "sum", "max"]
Role = Literal["producer", "consumer", "follower"]
Loss = Callable[[Any, int], Tensor]
Part = tuple[Array, Scores]  # classes of the indices of one axis, and what each index is worth

GROUP = "fxcompress.criteria"
_NORMS = ("batch_norm", "instance_norm", "group_norm", "layer_norm", "rms_norm")


@dataclass(frozen=True)
class Scoring:
    """What a criterion may look at, and the tools that turn scores of indices into scores of classes.

    Attributes:
        deps: the channel dependencies of ``module``.
        module: the graph with its weights, in eval mode.
        inputs: the example inputs.
        calibration: inputs that stand for the real ones; a criterion that ``needs_data`` runs the graph on each.
        loss: ``loss(output, i)`` is a scalar for the output on ``calibration[i]``, for criteria that need gradients;
            None takes :func:`fxcompress.pruning.criteria_data.output_energy`.
        reduction: how the scores of the indices of one class become one.
    """

    deps: ChannelDependencyGraph
    module: GraphModule
    inputs: Inputs
    calibration: Sequence[Inputs] = ()
    loss: Loss | None = None
    reduction: Reduction = "mean"

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers by name."""
        module = self.module
        return dict((*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)))

    @cached_property
    def group_of(self) -> Array:
        """The index of the group of every class."""
        found = np.zeros(self.deps.classes, dtype=np.int64)
        for group in self.deps.groups:
            found[group.classes] = group.index
        return found

    def of_weights(self, fn: Callable[[Tensor], Tensor], roles: Sequence[Role] = ("producer",)) -> Scores:
        """Score classes by weights: ``fn`` gets the weights of an axis, shape (indices, weights of each), in float32 or
        float64, and gives one value per index. Which axes: :meth:`slots`."""
        return self.reduced((classes, as_numpy(fn(self.rows(slot)))) for slot, classes in self.slots(roles))[0]

    def rows(self, slot: Slot, tensor: Tensor | None = None) -> Tensor:
        """The slot's tensor (or another of its shape) with one row per index, in float32 or float64.

        Raises:
            InputError: it is on the meta device.
        """
        found = self.tensors[slot.parameter] if tensor is None else tensor
        if found.device.type == "meta":
            raise InputError(
                f"'{slot.parameter}' is on the meta device, so there is nothing to judge it by",
                hint='load the weights first, or write criterion="random"',
            )
        wide = found.detach().movedim(slot.axis, 0).reshape(found.shape[slot.axis], -1)
        return wide if wide.dtype in (torch.float32, torch.float64) else wide.float()

    def slots(self, roles: Sequence[Role]) -> list[tuple[Slot, Array]]:
        """The axes by which classes are judged, with the class of each index (``PINNED`` where it is not to be counted).

        A class counts in the axes that have one of ``roles``. One that is in none of them counts in followers that are
        matrices (recurrent weights, weights of a plain product); else in producers and consumers; else in whatever it has.
        """
        tiers: list[list[tuple[Slot, Array]]] = [[], [], [], []]
        for slot in dict.fromkeys(slot for group in self.deps.groups for slot in group.slots):
            tensor = self.tensors[slot.parameter]
            if tensor.is_floating_point():
                matrix = sum(size > 1 for size in tensor.shape) > 1
                tier = 0 if slot.role in roles else (1 if matrix else 3) if slot.role == "follower" else 2
                tiers[tier].append((slot, self.deps.slots[slot.parameter, slot.axis]))
        missing = np.append(np.ones(self.deps.classes, dtype=bool), False)  # PINNED is the last
        chosen = []
        for tier_slots in tiers:
            found = [(slot, np.where(missing[classes], classes, PINNED)) for slot, classes in tier_slots if missing[classes].any()]
            for _, classes in found:
                missing[classes[classes != PINNED]] = False
            chosen += found
        return chosen

    def reduced(self, parts: Iterable[Part]) -> tuple[Scores, NDArray[np.bool_]]:
        """One score per class from scores of indices, by ``reduction``, and whether the class has any; 0 where not."""
        found = list(parts)
        count = self.deps.classes
        classes = np.concatenate([part[0] for part in found]) if found else np.zeros(0, dtype=np.int64)
        values = np.concatenate([part[1] for part in found]) if found else np.zeros(0)
        real = classes != PINNED
        classes, values = classes[real], values[real]
        times = np.bincount(classes, minlength=count)
        if self.reduction == "max":
            best = np.full(count, -np.inf)
            np.maximum.at(best, classes, values)
            return np.where(times > 0, best, 0.0), times > 0
        total = np.bincount(classes, values, minlength=count).astype(np.float64)
        return (total / np.maximum(times, 1) if self.reduction == "mean" else total), times > 0

    def filled(self, scores: Scores, found: NDArray[np.bool_]) -> Scores:
        """``scores``, with L2 magnitude in groups of which some class has none: within a group scores are comparable."""
        lacking = np.bincount(self.group_of, ~found, minlength=len(self.deps.groups)) > 0
        if not lacking.any():
            return scores
        return np.where(lacking[self.group_of], L2().scores(self), scores)


def as_numpy(values: Tensor) -> Scores:
    return values.detach().to("cpu", torch.float64).numpy()


class Criterion(ABC):
    """Gives every class of channels a score; the lowest are removed first.

    Attributes:
        name: what it is called in plans and reports.
        needs_data: whether it runs the graph on calibration inputs.
    """

    name: ClassVar[str]
    needs_data: ClassVar[bool] = False

    @abstractmethod
    def scores(self, ctx: Scoring) -> Scores:
        """One score per class of ``ctx.deps``, float64, finite; higher is more important."""


@cache
def _entries() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def names() -> list[str]:
    """The names of all registered criteria."""
    return sorted(_entries())


def criterion(asked: str | Criterion) -> Criterion:
    """A criterion by name; one that is a criterion already is returned as it is.

    Raises:
        InputError: there is none of this name; the nearest known one is in the message.
    """
    if isinstance(asked, Criterion):
        return asked
    if not isinstance(asked, str):
        raise InputError(f"criterion={asked!r} is no criterion", hint=f"write one of {', '.join(names())}, or an object such as L2()")
    entry = _entries().get(asked)
    if entry is None:
        near = difflib.get_close_matches(asked, names(), n=1)
        known = f"did you mean '{near[0]}'? " if near else ""
        raise InputError(f"there is no criterion '{asked}'", hint=f"{known}known are {', '.join(names())}")
    made: Criterion = entry.load()()
    return made


def scored(asked: str | Criterion, ctx: Scoring) -> Scores:
    """The scores of a criterion, checked.

    Raises:
        InputError: it needs calibration data and there is none, or it gave something else than one finite number per class.
    """
    judge = criterion(asked)
    if judge.needs_data and not ctx.calibration:
        raise InputError(f"criterion '{judge.name}' needs data", hint="pass calibration=[inputs, ...], or take criterion='l2'")
    scores = np.asarray(judge.scores(ctx), dtype=np.float64)
    check_scores(ctx.deps, scores, judge.name)
    return scores


def check_scores(deps: ChannelDependencyGraph, scores: Scores, name: str) -> None:
    """Raise unless there is one finite score per class.

    Raises:
        InputError: there is not; the message names the criterion and, where it can, a parameter.
    """
    if scores.shape != (deps.classes,):
        raise InputError(f"criterion '{name}' gave scores of shape {scores.shape}, not ({deps.classes},)", hint="give one score per class")
    if not np.isfinite(scores).all():
        wrong = int(np.flatnonzero(~np.isfinite(scores))[0])
        where = next((slot.parameter for group in deps.groups if wrong in group.classes for slot in group.slots), "?")
        raise InputError(
            f"criterion '{name}' gave {scores[wrong]} for a channel of '{where}'",
            hint="look for NaN or inf in the weights, the calibration inputs or the loss",
        )


# -- criteria of the weights --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class L1(Criterion):
    """Sum of the absolute weights that make a channel.

    Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017. With ``roles=("producer", "consumer")`` the weights
    that read it count too, as in DepGraph (Fang et al., CVPR 2023).
    """

    name: ClassVar[str] = "l1"
    roles: tuple[Role, ...] = ("producer",)

    def scores(self, ctx: Scoring) -> Scores:
        return ctx.of_weights(lambda rows: rows.abs().sum(1), self.roles)


@dataclass(frozen=True)
class L2(Criterion):
    """Euclidean norm of the weights that make a channel (Li et al. 2017; see :class:`L1`)."""

    name: ClassVar[str] = "l2"
    roles: tuple[Role, ...] = ("producer",)

    def scores(self, ctx: Scoring) -> Scores:
        return ctx.of_weights(lambda rows: torch.linalg.vector_norm(rows, dim=1), self.roles)


@dataclass(frozen=True)
class GroupL2(L2):
    """L2 over the weights that make a channel and those that read it.

    Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023.
    """

    name: ClassVar[str] = "group-l2"
    roles: tuple[Role, ...] = ("producer", "consumer")


@dataclass(frozen=True)
class NormScale(Criterion):
    """Absolute scale (gamma) of the normalisation that a channel passes; L2 in groups without one.

    Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", ICCV 2017.
    """

    name: ClassVar[str] = "bn-scale"

    def scores(self, ctx: Scoring) -> Scores:
        scales = {id(scale) for node in ctx.module.graph.nodes if (scale := _norm_scale(ctx.module, node)) is not None}
        slots = [slot for slot in ctx.deps.slots if id(ctx.tensors[slot[0]]) in scales]
        parts = [(ctx.deps.slots[name, axis], as_numpy(ctx.rows(Slot(name, axis, "follower")).abs().sum(1))) for name, axis in slots]
        return ctx.filled(*ctx.reduced(parts))


def _norm_scale(module: GraphModule, node: Node) -> Tensor | None:
    op = view(node, *_NORMS) if node.op.startswith("call_") else None
    if op is None:
        return None
    if op.module is not None:
        found = getattr(op.module, "weight", None)
    else:
        weight = op.operands.get("weight")
        found = attribute(module, str(weight.target)) if isinstance(weight, Node) and weight.op == "get_attr" else None
    return found if isinstance(found, Tensor) else None


@dataclass(frozen=True)
class FPGM(Criterion):
    """Sum of the Euclidean distances from a filter to all filters of its layer: near the geometric median means
    replaceable.

    He et al., "Filter Pruning via Geometric Median for Deep Convolutional Neural Networks Acceleration", CVPR 2019.
    Costs (filters)^2 x (weights of each) per layer.
    """

    name: ClassVar[str] = "fpgm"

    def scores(self, ctx: Scoring) -> Scores:
        return ctx.of_weights(lambda rows: torch.cat([torch.cdist(part, rows).sum(1) for part in rows.split(1024)]))


@dataclass(frozen=True)
class Random(Criterion):
    """Uniform in [0, 1): what a criterion must beat."""

    name: ClassVar[str] = "random"
    seed: int = 0

    def scores(self, ctx: Scoring) -> Scores:
        return np.random.default_rng(self.seed).random(ctx.deps.classes)
