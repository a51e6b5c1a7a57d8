"""How important a channel is, judged by running the graph on calibration data."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, fx
from torch.fx import Node
from torch.utils import _pytree as pytree

from fxcompress.analysis.channels import PINNED, Read
from fxcompress.analysis.shapes import attribute
from fxcompress.errors import FxCompressError, InputError
from fxcompress.ir.inputs import Inputs
from fxcompress.ir.view import Op, view
from fxcompress.pruning.criteria import Criterion, Part, Role, Scores, Scoring, as_numpy

Axis = tuple[Node, int]

# -- gradients ----------------------------------------------------------------------------------------------------------


def output_energy(output: Any, batch: int) -> Tensor:
    """Half the mean square of every floating-point output, added up: the loss where none is given.

    Its gradient is large where the output reacts most. It needs no labels and fits any output; the cross entropy with the
    network's own predictions has no gradient where it is sure, and the distance to its own outputs has none at all.
    """
    tensors = [t for t in pytree.tree_leaves(output) if isinstance(t, Tensor) and t.is_floating_point() and t.numel()]
    if not tensors:
        raise InputError("the graph gives no floating-point tensor", hint="pass loss=, a function of (output, batch number)")
    return sum((t.square().mean() / 2 for t in tensors[1:]), tensors[0].square().mean() / 2)


def gradients(ctx: Scoring, names: list[str]) -> Iterator[dict[str, Tensor]]:
    """For every calibration input, the gradient of the loss for the named parameters and buffers.

    The module is left as it is, ``requires_grad`` and ``grad`` included; a parameter that is not used has none.

    Raises:
        InputError: the loss is no scalar or does not depend on the weights.
    """
    loss = output_energy if ctx.loss is None else ctx.loss
    for number, inputs in enumerate(ctx.calibration):
        with torch.inference_mode(False), torch.enable_grad():
            leaves = {name: _leaf(ctx.tensors[name]) for name in names}
            fed = inputs.clone()
            with _running(number):
                output = torch.func.functional_call(ctx.module, leaves, fed.args, dict(fed.kwargs))
            value = loss(output, number)
            if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
                what = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
                hint = "give a function of (output, batch number), for example one that returns F.cross_entropy(...)"
                raise InputError(f"loss gave {what}, not a scalar that depends on the weights", hint=hint)
            found = torch.autograd.grad(value.sum(), list(leaves.values()), allow_unused=True)
        yield {name: grad for name, grad in zip(leaves, found, strict=True) if grad is not None}


@contextmanager
def _running(number: int) -> Iterator[None]:
    try:
        yield
    except FxCompressError:
        raise
    except Exception as error:  # an operation may refuse its operands in any way
        hint = "give inputs of the same kind as the example inputs"
        raise InputError(f"the graph cannot run on calibration input {number}: {type(error).__name__}: {error}", hint=hint) from error


def _leaf(tensor: Tensor) -> Tensor:
    return (tensor.clone() if tensor.is_inference() else tensor.detach()).requires_grad_()


@dataclass(frozen=True)
class Taylor(Criterion):
    """First-order change of the loss when a channel goes: mean over the calibration inputs of (sum of gradient x weight)^2.

    Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019 (equation 8; first order as in
    "Pruning Convolutional Neural Networks for Resource Efficient Inference", ICLR 2017). The sum runs over the weights
    that read the channel, since these are what a removal sets to zero; it equals the paper's gate on the channel's
    activation. ``roles=("producer",)`` takes the filters that make it. Terms of one class add up by the chain rule, so
    ``reduction`` plays no part.
    """

    name: ClassVar[str] = "taylor"
    needs_data: ClassVar[bool] = True
    roles: tuple[Role, ...] = ("consumer",)

    def scores(self, ctx: Scoring) -> Scores:
        slots = ctx.slots(self.roles)
        total = np.zeros(ctx.deps.classes)
        for grads in gradients(ctx, list(dict.fromkeys(slot.parameter for slot, _ in slots))):
            change = np.zeros(ctx.deps.classes + 1)  # the last belongs to what is PINNED
            for slot, classes in slots:
                if slot.parameter in grads:
                    product = (ctx.rows(slot) * ctx.rows(slot, grads[slot.parameter])).sum(1, dtype=torch.float64)
                    change += np.bincount(classes % len(change), as_numpy(product), minlength=len(change))
            total += change[:-1] ** 2
        return total / len(ctx.calibration)


@dataclass(frozen=True)
class Hessian(Criterion):
    """Saliency h w^2 / 2 of the weights that read a channel, with the diagonal h of the empirical Fisher matrix.

    LeCun et al., "Optimal Brain Damage", NeurIPS 1990. h is the mean over the calibration inputs of the squared gradient;
    inputs of one sample each give the Fisher matrix of the textbook, larger batches a smoothed one.
    """

    name: ClassVar[str] = "hessian"
    needs_data: ClassVar[bool] = True
    roles: tuple[Role, ...] = ("consumer",)

    def scores(self, ctx: Scoring) -> Scores:
        slots = ctx.slots(self.roles)
        fisher: dict[str, Tensor] = {}
        for grads in gradients(ctx, list(dict.fromkeys(slot.parameter for slot, _ in slots))):
            for name, grad in grads.items():
                square = (grad if grad.dtype == torch.float64 else grad.float()).square()
                fisher[name] = fisher[name].add_(square) if name in fisher else square
        parts: list[Part] = []
        for slot, classes in slots:
            if slot.parameter in fisher:
                saliency = (ctx.rows(slot).square() * ctx.rows(slot, fisher[slot.parameter])).sum(1, dtype=torch.float64)
                parts.append((classes, as_numpy(saliency) / (2 * len(ctx.calibration))))
        return ctx.reduced(parts)[0]


# -- activations --------------------------------------------------------------------------------------------------------


def recorded(ctx: Scoring, fn: Callable[[Tensor], Tensor]) -> dict[Axis, Scores]:
    """Where channels are read, the mean of ``fn`` (element by element) over all calibration inputs and other axes.

    Returns: for every (node, axis) that a contraction reads, one value per position along the axis.
    """
    readers: dict[Node, list[Axis]] = {}
    for operand, axis, reader in {(r.operand, r.axis): (r.operand, r.axis, r.node) for r in reversed(activation_reads(ctx))}.values():
        readers.setdefault(reader, []).append((operand, axis))
    recorder = _Recorder(ctx.module, readers, fn)
    with torch.no_grad():
        for number, inputs in enumerate(ctx.calibration):
            with _running(number):
                recorder.feed(inputs)
    return {axis: total / recorder.counts[axis] for axis, total in recorder.totals.items()}


def activation_reads(ctx: Scoring) -> list[Read]:
    """The places where activations (not weights) are contracted."""
    return [read for read in ctx.deps.reads if read.how == "contract" and read.operand.op != "get_attr"]


class _Recorder(fx.Interpreter):
    """Runs the graph and adds up statistics of operands just before their first reader runs."""

    def __init__(self, module: fx.GraphModule, readers: dict[Node, list[Axis]], fn: Callable[[Tensor], Tensor]) -> None:
        super().__init__(module)
        self.traced, self.readers, self.fn = module.graph, readers, fn
        self.totals: dict[Axis, Scores] = {}
        self.counts: dict[Axis, int] = {}

    def feed(self, inputs: Inputs) -> None:
        self.run(initial_env=inputs.clone().bind(self.traced), enable_io_processing=False)

    def run_node(self, n: Node) -> Any:
        for operand, axis in self.readers.get(n, ()):
            self._add(operand, axis, self.env[operand])
        return super().run_node(n)

    def _add(self, operand: Node, axis: int, value: Any) -> None:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return
        statistic = self.fn(value if value.dtype == torch.float64 else value.float())
        others = [a for a in range(value.ndim) if a != axis]
        total = as_numpy(statistic.sum(others, dtype=torch.float64) if others else statistic)
        before = self.totals.get((operand, axis))
        if before is not None and before.shape != total.shape:
            raise InputError(
                f"the calibration inputs differ in their number of channels at '{operand.name}': {len(before)} and {len(total)}",
                hint="give inputs of one kind",
            )
        self.totals[operand, axis] = total if before is None else before + total
        self.counts[operand, axis] = self.counts.get((operand, axis), 0) + value.numel() // len(total)


class ActivationCriterion(Criterion):
    """Judges channels by the values that their readers see; L2 in groups that no weight and no product reads."""

    needs_data: ClassVar[bool] = True

    @abstractmethod
    def statistic(self, values: Tensor) -> Tensor:
        """What is averaged, element by element."""

    def scores(self, ctx: Scoring) -> Scores:
        parts = [part for (node, axis), values in recorded(ctx, self.statistic).items() if (part := _part(ctx, node, axis, values))]
        return ctx.filled(*ctx.reduced(parts))


def _part(ctx: Scoring, node: Node, axis: int, values: Scores) -> Part | None:
    classes = ctx.deps.classes_along(node, axis)
    if classes is None or (classes == PINNED).all():
        return None
    if len(classes) != len(values):
        raise InputError(
            f"the calibration inputs have {len(values)} channels at '{node.name}', the example inputs {len(classes)}",
            hint="give inputs of the same kind as the example inputs",
        )
    return classes, values


@dataclass(frozen=True)
class MeanActivation(ActivationCriterion):
    """Mean absolute activation.

    Molchanov et al., "Pruning Convolutional Neural Networks for Resource Efficient Inference", ICLR 2017 (section 2.2).
    """

    name: ClassVar[str] = "activation"

    def statistic(self, values: Tensor) -> Tensor:
        return values.abs()


@dataclass(frozen=True)
class APoZ(ActivationCriterion):
    """1 - average percentage of zeros: the share of activations over zero.

    Hu et al., "Network Trimming: A Data-Driven Neuron Pruning Approach towards Efficient Deep Architectures", 2016. The
    paper looks behind a ReLU, where nothing is below zero; behind GELU and the like what is below counts as off.
    """

    name: ClassVar[str] = "apoz"

    def statistic(self, values: Tensor) -> Tensor:
        return (values > 0).to(values.dtype)


@dataclass(frozen=True)
class ActivationAware(Criterion):
    """Norm of the weights that read a channel, times the root mean square of what they read.

    Sun et al., "A Simple and Effective Pruning Approach for Large Language Models" (Wanda), ICLR 2024: |W_ij| ||X_j||_2,
    here as the Euclidean norm over all weights that read channel j. L2 in groups that are read by no weight.
    """

    name: ClassVar[str] = "activation-aware"
    needs_data: ClassVar[bool] = True

    def scores(self, ctx: Scoring) -> Scores:
        squares = recorded(ctx, torch.square)
        parts = []
        for read in activation_reads(ctx):
            op = view(read.node, "linear", "conv", "conv_transpose")
            found = squares.get((read.operand, read.axis))
            if op is None or found is None or op.input is not read.operand:
                continue
            norms = reading_norms(op)
            part = _part(ctx, read.operand, read.axis, found) if norms is not None else None
            if part is not None:
                parts.append((part[0], np.sqrt(part[1]) * norms))
        return ctx.filled(*ctx.reduced(parts))


def reading_norms(op: Op) -> Scores | None:
    """For every input channel of a linear or convolution, the Euclidean norm of the weights that read it."""
    weight = _weight(op)
    if weight is None:
        return None
    weight = weight.detach() if weight.dtype == torch.float64 else weight.detach().float()
    if op.kind == "conv_transpose":
        return as_numpy(torch.linalg.vector_norm(weight.flatten(1), dim=1))
    groups = int(op["groups"]) if op.kind == "conv" else 1
    blocks = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    return as_numpy(torch.linalg.vector_norm(blocks, dim=(1, 3)).ravel())


def _weight(op: Op) -> Tensor | None:
    if op.module is not None:
        found = getattr(op.module, "weight", None)
    else:
        weight, owner = op.operands.get("weight"), op.node.graph.owning_module
        found = attribute(owner, str(weight.target)) if isinstance(weight, Node) and weight.op == "get_attr" and owner is not None else None
    return found if isinstance(found, Tensor) else None
