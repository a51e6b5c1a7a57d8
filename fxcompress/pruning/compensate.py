"""Losing less without training: the layers that remain take over, as far as they can, what the removed channels did."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from fxcompress.analysis import Shapes
from fxcompress.analysis.channels import ChannelDependencyGraph, Mask
from fxcompress.errors import InputError
from fxcompress.ir.edit import share
from fxcompress.ir.effects import written_operand, written_statistics
from fxcompress.ir.inputs import Inputs
from fxcompress.pruning.lockstep import Runner, live_bytes
from fxcompress.pruning.output_error import OutputError
from fxcompress.pruning.reconstruct import Uses
from fxcompress.pruning.sweep import LAYER_METHODS, LayerMethod, Sweep, Task
from fxcompress.rewrite.rules import Remark

Method = Literal["bias", "weights", "norms"]


@dataclass(frozen=True)
class Compensation:
    """How to compensate.

    Attributes:
        methods: "weights" (least-squares reconstruction), "bias" (the mean of removed channels; tried where the first is
            not, or does not help) and "norms" (batch-norm statistics).
        dampings: relative to the mean eigenvalue of the scatter of a layer's inputs; the one that does best on held-out
            data is taken, per layer.
        hold_out: every how many-th batch is held out to decide; the others are fitted.
        rows: positions of a layer's output that are used at most, or ``rows_per_input`` times the layer's inputs if
            that is more.
        memory: bytes of activations that may be held at once, in both networks; batches beyond that are left out.
    """

    methods: tuple[Method, ...] = ("bias", "weights", "norms")
    dampings: tuple[float, ...] = (1e-12, 1e-9, 1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    hold_out: int = 4
    rows: int = 8192
    rows_per_input: int = 4
    memory: int = 2 << 30

    def __post_init__(self) -> None:
        unknown = [m for m in self.methods if m not in get_args(Method)]
        if unknown:
            raise InputError(f"methods names {unknown[0]!r}", hint=f"the methods are {', '.join(get_args(Method))}")
        if any(not d > 0 for d in self.dampings):
            raise InputError(f"dampings is {self.dampings}", hint="give positive numbers, such as 1e-4")
        if self.hold_out < 2:
            raise InputError(f"hold_out is {self.hold_out}", hint="give 2 (every other batch) or more")


@dataclass(frozen=True)
class Compensated:
    """``module`` is the sliced graph with other weights; ``before`` and ``after`` are its errors on held-out batches."""

    module: GraphModule
    before: OutputError
    after: OutputError
    remarks: tuple[Remark, ...]


def compensate(
    deps: ChannelDependencyGraph,
    keep: Mask,
    module: GraphModule,
    calibration: Iterable[Inputs],
    options: Compensation | None = None,
) -> Compensated:
    """Bring the outputs of a sliced network closer to those of the original, in closed form, without gradients.

    1. Sweep: in graph order, every layer that lost inputs is refitted so that it gives what it gave in the original
       network, from what the network pruned and refitted so far feeds it (:func:`~fxcompress.pruning.reconstruct.weight_fits`,
       else :func:`~fxcompress.pruning.reconstruct.mean_fit`), if that lowers the error of its own output on held-out batches.
    2. The same sweep from the start, in which every batch norm on the way is given statistics under which its output has
       the mean and variance it had (:func:`~fxcompress.pruning.norms.matched`).
    3. If neither has lowered the error of the network's output, a sweep that decides about every layer by that.
    4. The statistics of all batch norms are estimated again (:func:`~fxcompress.pruning.norms.reestimated`).

    Each of these stays only if it lowers the output error on held-out batches; else it is undone and a remark says so.

    Args:
        deps: the channel dependencies of the original graph.
        keep: one flag per class.
        module: the sliced graph, whose nodes have the names of the original's; it stays as it is.
        calibration: batches of typical inputs, two or more; dtype and device of the model. Every fourth is held out; a
            single one is split. Memory: the live activations of both networks at one place of the graph for all
            batches (at most ``options.memory``), and the square of the widest layer's inputs in float64.

    Returns:
        the compensated module, trainable as before; the error before and after; what was done and what was not.

    Raises:
        InputError: there is no calibration data, or the network writes its own state.
    """
    options = options or Compensation()
    batches, remarks = _within(deps, _batches(calibration), options.memory)
    fit, held = _split(deps, batches, options)
    if fit is held:
        why = "there is one calibration batch, which cannot be split: the error is measured on the data that was fitted"
        remarks.append(Remark(False, "calibration", why))
    original, cut = share(deps.module).eval(), share(module).eval()
    if (writer := next((n for n in cut.graph.nodes if _writes_state(n)), None)) is not None:
        raise InputError(
            f"the network writes its own state at '{writer.name}', so it cannot be compensated", hint="prune it without compensation"
        )
    devices = {t.device.index or 0 for inputs in fit for t in inputs.tensors() if t.is_cuda}
    with torch.no_grad(), torch.random.fork_rng(devices=sorted(devices)):
        torch.manual_seed(0)
        reference = Runner(original, held).outputs()
        sizes = options.dampings, options.rows, options.rows_per_input
        found = _Compensator(Task(deps, keep, original, cut, fit, held, reference, *sizes), options)
        found.run()
    for child, source in zip(found.module.modules(), module.modules(), strict=True):
        child.training = source.training
    better = found.error.noise < found.before.noise
    total = Remark(better, "output", f"compensation: its error on held-out data was {found.before} and is {found.error}")
    return Compensated(found.module, found.before, found.error, (total, *remarks, *found.done, *found.undone))


def _batches(calibration: Iterable[Any]) -> list[Inputs]:
    hint = "pass a list of batches, each what forward takes, e.g. calibration=[images for images, _ in loader]"
    if calibration is None:
        raise InputError("compensation needs calibration data", hint=hint)
    if isinstance(calibration, (Tensor, dict, Inputs)):
        raise InputError(f"calibration is one {type(calibration).__name__}, not several batches", hint=hint)
    batches = [Inputs.of(batch) for batch in calibration]
    if not batches:
        raise InputError("calibration has no batches", hint=hint)
    return batches


def _within(deps: ChannelDependencyGraph, batches: list[Inputs], memory: int) -> tuple[list[Inputs], list[Remark]]:
    """The first batches whose activations fit into ``memory``, at least two."""
    example = sum(t.numel() for t in deps.inputs.tensors())
    per_number = 2 * live_bytes(deps.module, deps.analyses.get(Shapes)) / max(1, example)
    total = 0.0
    for count, batch in enumerate(batches):
        total += per_number * sum(t.numel() for t in batch.tensors())
        if total > memory and count >= 2:
            why = f"{count} of {len(batches)} batches are used: the activations of more would need over {memory / 2**30:.2g} GB"
            return batches[:count], [Remark(False, "calibration", why)]
    return batches, []


def _split(deps: ChannelDependencyGraph, batches: list[Inputs], options: Compensation) -> tuple[list[Inputs], list[Inputs]]:
    """The batches to fit and those to decide on; the same list where there is one batch that cannot be split."""
    if len(batches) == 1:
        parts = _parts(deps, batches[0])
        if parts is None:
            return batches, batches
        batches = list(parts)
    held = [i for i in range(len(batches)) if i % options.hold_out == options.hold_out - 1] or [len(batches) - 1]
    return [b for i, b in enumerate(batches) if i not in held], [batches[i] for i in held]


def _parts(deps: ChannelDependencyGraph, batch: Inputs) -> tuple[Inputs, Inputs] | None:
    """Three quarters and one quarter of the samples, if the graph takes any number of them along the first axis."""
    sizes = {t.shape[0] if t.ndim else 0 for t in batch.tensors()}
    size = next(iter(sizes))
    if len(sizes) > 1 or size < 2:
        return None
    cut = min(size - 1, math.ceil(0.75 * size))
    parts = batch.map_tensors(lambda t: t[:cut]), batch.map_tensors(lambda t: t[cut:])
    output = next(node for node in deps.module.graph.nodes if node.op == "output")
    for part, count in zip(parts, (cut, size - cut), strict=True):
        shapes = Shapes.of(deps.module, part)
        if not all((shapes.shape(node) or (-1,))[0] == count for node in output.all_input_nodes):
            return None
    return parts


class _Compensator:
    """Tries sweeps, each on a copy of a graph, and keeps the result with the smallest output error."""

    def __init__(self, task: Task, options: Compensation) -> None:
        self.task, self.methods = task, options.methods
        self.module, self.done, self.undone = task.sliced, list[Remark](), list[Remark]()
        self.before = self.error = task.error_of(task.sliced)

    def run(self) -> None:
        layers = tuple(method for method in LAYER_METHODS if method in self.methods)
        uses = Uses(self.task.sliced)
        norms = "norms" in self.methods and any(uses.own_norm(node) is not None for node in uses.module.graph.nodes)
        if layers:
            self._try(self._sweep(layers, None), "refitting all layers")
        if norms:
            self._try(
                self._sweep(layers, "matched"), "giving norms the statistics of the original network" + " and refitting" * bool(layers)
            )
        if layers and self.module is self.task.sliced:
            self._try(self._sweep(layers, None, self.error), "refitting layers one by one")
        if norms:
            last = Sweep(self.task, share(self.module), (), "reestimated")
            self._try(last, "estimating the statistics of all norms again", after=self.done)

    def _sweep(self, layers: tuple[LayerMethod, ...], norms: Literal["matched"] | None, error: OutputError | None = None) -> Sweep:
        return Sweep(self.task, share(self.task.sliced), layers, norms, error)

    def _try(self, sweep: Sweep, what: str, after: Sequence[Remark] = ()) -> None:
        remarks = sweep.run()
        error = self.task.error_of(sweep.module)
        if error.noise < self.error.noise:
            self.module, self.error, self.done = sweep.module, error, [*after, *remarks]
        elif any(remark.applied for remark in remarks):
            why = f"undone, the output gets no better ({error}, {self.error} without): {what}"
            self.undone.append(Remark(False, "output", why))
        elif not self.done:
            self.done = remarks


def _writes_state(node: Node) -> bool:
    written = written_operand(node)
    return bool(written_statistics(node)) or (written is not None and written.op == "get_attr")
