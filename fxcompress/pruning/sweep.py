"""One walk through the original and the sliced graph, side by side, that refits layers and norms on the way."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from fxcompress.analysis.channels import ChannelDependencyGraph, Mask
from fxcompress.ir.inputs import Inputs
from fxcompress.pruning.layer_rows import constant_stays_constant, layer_rows, regressors
from fxcompress.pruning.lockstep import Runner
from fxcompress.pruning.norms import BatchMoments, matched, reestimated
from fxcompress.pruning.output_error import OutputError, output_error
from fxcompress.pruning.reconstruct import Change, Consumer, Fit, Uses, best, change_of, consumers, mean_fit, residual, weight_fits
from fxcompress.pruning.statistics import Moments
from fxcompress.rewrite.rules import Remark

Rows = list[tuple[Tensor, Tensor]]
LayerMethod = Literal["weights", "bias"]
LAYER_METHODS: tuple[LayerMethod, ...] = ("weights", "bias")


@dataclass(frozen=True)
class Task:
    """What all sweeps of a compensation have in common.

    Attributes:
        original, sliced: the graphs in eval mode.
        fit, held: batches to fit and batches to decide on.
        reference: the leaves of the original's outputs on ``held``.
        dampings, rows, rows_per_input: see :class:`fxcompress.pruning.compensate.Compensation`.
    """

    deps: ChannelDependencyGraph
    keep: Mask
    original: GraphModule
    sliced: GraphModule
    fit: Sequence[Inputs]
    held: Sequence[Inputs]
    reference: list[list[Any]]
    dampings: tuple[float, ...]
    rows: int
    rows_per_input: int

    def error_of(self, module: GraphModule) -> OutputError:
        return output_error(self.reference, Runner(module, self.held).outputs())


@dataclass
class Sweep:
    """Refits ``module`` in place of its tensors, node by node in graph order.

    Attributes:
        layers: what to try on layers that lost inputs, in this order.
        norms: what to do with the statistics of batch norms.
        error: None to take each step that lowers the held-out error of the layer's own output; else the output error so
            far, and each step is undone that does not lower it.
    """

    task: Task
    module: GraphModule
    layers: tuple[LayerMethod, ...]
    norms: Literal["matched", "reestimated"] | None
    error: OutputError | None = None
    remarks: list[Remark] = field(default_factory=list)

    def run(self) -> list[Remark]:
        """Returns what was done and what was not, in graph order."""
        task = self.task
        batches = [*task.fit, *task.held]
        self.full, self.cut = Runner(task.original, batches), Runner(self.module, batches)
        self.fit, self.held = range(len(task.fit)), range(len(task.fit), len(batches))
        self.uses = Uses(self.module)
        self.twin = {node.name: node for node in task.original.graph.nodes}
        self.source = {node.name: node for node in task.deps.module.graph.nodes}
        found, remarks = consumers(task.deps, task.keep, self.uses) if self.layers else ([], [])
        self.remarks += remarks
        first = {consumer.nodes[0]: consumer for consumer in found}
        for node in self.cut.nodes:
            if node in first:
                self._refit(first[node])
            elif self.norms is not None and node.op == "call_module" and node.name in self.twin:
                self._renormalise(node)
        return self.remarks

    def _say(self, node: Node, why: str, *, applied: bool) -> None:
        self.remarks.append(Remark.on(self.source.get(node.name, node), why, applied=applied))

    def _run_before(self, node: Node) -> None:
        self.full.run_before(self.twin[node.name])
        self.cut.run_before(node)

    def _take(self, change: Change) -> bool:
        """Make a change, and undo it if the sweep looks at the output and that gets no better."""
        undo = change.apply()
        if self.error is None:
            return True
        error = output_error(self.task.reference, self.cut.fork(self.held).outputs())
        if error.noise < self.error.noise:
            self.error = error
            return True
        undo.apply()
        return False

    # -- layers ---------------------------------------------------------------------------------------------------------

    def _refit(self, consumer: Consumer) -> None:
        node = consumer.nodes[0]
        self._run_before(node)
        moments, rows = self._observe(consumer)
        if not moments.count or not rows:
            self._say(node, "it gives no finite values to fit", applied=False)
            return
        now = residual(rows, None)
        for fits in self._choices(consumer, moments):
            found = best(fits, rows)
            if found is None or not found[1] < now:
                continue
            fit, left = found
            if self._take(change_of(self.uses, consumer, fit)):
                output = "" if self.error is None else f", of the output {self.error.relative:.2e}"
                self._say(node, f"{fit.what}: {math.sqrt(left / now):.1%} of its error remains{output}", applied=True)
                return
            self._say(node, f"undone, the output gets no better: {fit.what}", applied=False)
        self._say(node, "nothing that was tried lowers its error on held-out data", applied=False)

    def _choices(self, consumer: Consumer, moments: Moments) -> Iterator[Iterator[Fit]]:
        for method in self.layers:
            if method == "weights":
                yield weight_fits(moments, self.task.dampings)
            elif not constant_stays_constant(consumer.layer):
                why = "no bias: zeros are padded, so a constant channel is not constant at the borders"
                self._say(consumer.nodes[0], why, applied=False)
            else:
                yield iter([mean_fit(moments)])

    def _observe(self, consumer: Consumer) -> tuple[Moments, Rows]:
        """Sums over the fitted batches, and rows of the held-out ones, of all calls of a consumer."""
        moments, rows, task = Moments(), [], self.task
        limit = max(task.rows, task.rows_per_input * regressors(consumer.layer))
        full, cut = self.full, self.cut
        if len(consumer.nodes) > 1:  # later calls read what earlier ones give, with the weights as they are
            everything = range(len(cut.values))
            full, cut = full.fork(everything), cut.fork(everything)
        for node in consumer.nodes:
            full.run_before(self.twin[node.name])
            cut.run_before(node)
            for batch in range(len(cut.values)):
                fitted = batch in self.fit
                count = limit // len(self.fit) if fitted else task.rows // 4 // len(self.held)
                for x, r in self._rows(consumer, node, full, cut, batch, max(1, count // len(consumer.nodes))):
                    if fitted:
                        moments.add(x, r)
                    else:
                        rows.append((x, r))
        return moments, rows

    def _rows(self, consumer: Consumer, node: Node, full: Runner, cut: Runner, batch: int, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows (what the consumer reads now, what its output lacks) of one call on one batch."""
        given, wanted = cut.result(batch, node), full.result(batch, self.twin[node.name], final=True)
        for axis, mask in self.task.deps.kept(self.source[node.name], self.task.keep).items():
            wanted = _selected(wanted, axis, mask)
        read = cut.values[batch][node.all_input_nodes[0]]
        for x, r in layer_rows(consumer.layer, read, _difference(wanted, given), count, seed=batch):
            finite = x.isfinite().all(2).all(0) & r.isfinite().all(2).all(0)
            if bool(finite.any()):
                yield x[:, finite], r[:, finite]

    # -- norms ----------------------------------------------------------------------------------------------------------

    def _renormalise(self, node: Node) -> None:
        norm = self.uses.own_norm(node)
        if norm is None:
            return
        self._run_before(node)
        now = self._moments(self.cut, node, {})
        before = self._moments(self.full, self.twin[node.name], self.task.deps.kept(self.source[node.name], self.task.keep))
        was = self.task.sliced.get_submodule(str(node.target))
        mean, var = was.running_mean, was.running_var
        assert isinstance(mean, Tensor)
        assert isinstance(var, Tensor)
        if not (now.finite() and before.finite()) or now.close_to(before):
            return
        new_mean, new_var = matched(mean, var, norm.eps, before, now) if self.norms == "matched" else reestimated(now)
        if self._take(Change.of(self.uses, (norm, "running_mean", new_mean.to(mean)), (norm, "running_var", new_var.to(var)))):
            how = "give the mean and variance of the original network" if self.norms == "matched" else "are estimated again"
            self._say(node, f"its statistics {how}", applied=True)

    def _moments(self, runner: Runner, node: Node, kept: dict[int, Mask]) -> BatchMoments:
        """Of what a norm reads on the fitted batches, the channels that remain."""
        moments = BatchMoments()
        for batch in self.fit:
            x = runner.values[batch][node.all_input_nodes[0]]
            moments.add(_selected(x, 1, kept[1]) if 1 in kept else x)
        return moments


def _difference(wanted: Tensor, given: Tensor) -> Tensor:
    return wanted.float() - given.float() if wanted.itemsize < 4 else wanted - given


def _selected(tensor: Tensor, axis: int, mask: Mask) -> Tensor:
    return tensor.index_select(axis, torch.from_numpy(mask.nonzero()[0]).to(tensor.device))
