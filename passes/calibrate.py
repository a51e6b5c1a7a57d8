"""Runs the observed graph on data, and puts numbers on the grids of integers: the fake-quantized graph.

Every observer becomes a FakeQuantize, and every observed layer one with weights on a grid; nothing else changes. The graph still
computes in float and can be looked at, corrected and trained.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.distributed
from torch.fx import GraphModule, Node

from fxcompress.analysis import Analyses
from fxcompress.errors import InputError
from fxcompress.ir.edit import Editor, share
from fxcompress.ir.view import module_of
from fxcompress.pipeline import Pass, PassContext, PassResult, Property, Remark, Semantics
from fxcompress.quant.calibration import CalibrationRecord, calibrate
from fxcompress.quant.fake import FakeQuantize, fake_quantized
from fxcompress.quant.observed import OBSERVED_LAYERS, unobserved
from fxcompress.quant.observers_base import Observer
from fxcompress.quant.regions import Regions
from fxcompress.quant.sharing import Shared, shared_qparams
from fxcompress.quant.weights import weight_scales


@dataclass(frozen=True)
class Calibrate(Pass):
    """Turns observers into FakeQuantize.

    Options:
        batches: how many batches of the calibration data are used; None for all.
        distributed: every process of the default group of ``torch.distributed`` runs this pass with its share of the data.
        progress: show a bar.
    """

    name: ClassVar[str] = "calibrate"
    semantics: ClassVar[Semantics] = Semantics.LOSSY
    requires: ClassVar[frozenset[Property]] = frozenset({Property.OBSERVED})
    establishes: ClassVar[frozenset[Property]] = frozenset({Property.QUANTIZED})
    forbids: ClassVar[frozenset[Property]] = frozenset({Property.QUANTIZED, Property.LOWERED})
    batches: int | None = None
    distributed: bool = False
    progress: bool = False

    def run(self, module: GraphModule, ctx: PassContext) -> PassResult:
        watching = [node for node in module.graph.nodes if isinstance(module_of(node), Observer)]
        if not watching:
            return PassResult(module, False, remarks=(Remark(False, "graph", "nothing in it is observed"),))
        if not ctx.calibration.batches:
            raise InputError("int8 needs calibration data", hint="pass calibration=..., a few batches of typical inputs")
        observers, record = self._calibrated(module, watching, ctx)
        shared = shared_qparams(Regions(module, Analyses(module, ctx.inputs)), observers)
        editor = Editor(module)
        _rescale(shared, editor)
        for node in watching:
            _replace(editor, node, FakeQuantize(shared.qparams[node]).eval())
        _quantize_weights(module)
        editor.finish()
        return PassResult(module, True, remarks=tuple(_remarks(record, shared)))

    def _calibrated(self, module: GraphModule, watching: list[Node], ctx: PassContext) -> tuple[dict[Node, Observer], CalibrationRecord]:
        """Observers that have seen the data, on a private copy."""
        private = share(module)
        for path in dict.fromkeys(str(node.target) for node in watching):
            private.set_submodule(path, copy.deepcopy(private.get_submodule(path)))
        group = torch.distributed.group.WORLD if self.distributed else None
        record = calibrate(private, ctx.calibration.batches, limit=self.batches, progress=self.progress, group=group)
        found = {}
        for node in watching:
            watcher = private.get_submodule(str(node.target))
            assert isinstance(watcher, Observer)
            found[node] = watcher
        return found, record


def _replace(editor: Editor, node: Node, fake: FakeQuantize) -> None:
    """Put ``fake`` in the place of an observer, under a name that says so."""
    (value,) = node.all_input_nodes
    editor.replace(node, editor.call_module(f"quantize.{value.name}", fake, (value,), before=node, of=[node]))


def _rescale(shared: Shared, editor: Editor) -> None:
    """A second FakeQuantize between a value and the ``cat`` that wants another scale."""
    for (cat, operand), qparams in shared.rescaled.items():
        new = editor.call_module(
            f"quantize.{operand.name}_for_{cat.name}", FakeQuantize(qparams).eval(), (operand,), before=cat, of=[operand]
        )
        cat.replace_input_with(operand, new)


def _quantize_weights(module: GraphModule) -> None:
    """Give observed layers weights on a grid; weights that were tied stay tied."""
    tied: dict[tuple[int, int, str], Any] = {}
    for path, layer in list(module.named_modules()):
        if type(layer) not in OBSERVED_LAYERS.values():
            continue
        observed: Any = layer
        key = (id(observed.weight), observed.weight_bits, observed.weight_observer)
        scale = weight_scales(observed.weight, observed.weight_bits, observed.weight_observer)
        fake: Any = fake_quantized(unobserved(layer), bits=observed.weight_bits, scale=scale)
        fake.weight = tied.setdefault(key, fake.weight)
        module.set_submodule(path, fake)


def _remarks(record: CalibrationRecord, shared: Shared) -> Iterable[Remark]:
    yield Remark(True, "graph", f"{record.batches} batches in {record.seconds:.1f} s")
    for where, why in record.remarks:
        yield Remark(False, where, why)
    for (cat, operand), qparams in shared.rescaled.items():
        yield Remark.on(cat, f"'{operand.name}' is brought to {qparams} before it joins", applied=True)
