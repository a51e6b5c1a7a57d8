"""What ``compress``, ``quantize`` and ``prune`` give back."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.fx import GraphModule

from fxcompress.errors import ArchiveError, InputError
from fxcompress.pruning import handover
from fxcompress.pruning.plan import PruningPlan
from fxcompress.quant.compact import Compact
from fxcompress.report import Report
from fxcompress.storage import load as load_graph
from fxcompress.storage import save
from fxcompress.targets.accelerated import AcceleratedGraph

_REPORT = "fxcompress_report"
_FAKE = "_fake_quantized"  # in __dict__, and no module: it is neither state nor part of a copy


class Compressed(AcceleratedGraph):
    """A compressed or pruned model: an ordinary module with the signature of the original, its report, and a way to a file."""

    @property
    def report(self) -> Report:
        """What was done, and what it brought."""
        return Report.from_json(self.meta[_REPORT])

    @property
    def plan(self) -> PruningPlan | None:
        """Which channels were removed; None for a model that was not pruned."""
        return handover.applied(self)

    @property
    def fake_quantized(self) -> GraphModule:
        """The quantized network in float arithmetic on the grids of its integers, to look at; made anew in every call.

        Raises:
            InputError: nothing was quantized, or this is a copy or a loaded file, which do not have it.
        """
        return _fake(self, "")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model and its report to one file; :func:`fxcompress.load` reads it without the model's source.

        Raises:
            ArchiveError: the file cannot be written, or something in the graph has no safe form.
        """
        save(self, path)

    def _repr_html_(self) -> str:
        return self.report._repr_html_()


def _fake(result: nn.Module, path: str) -> GraphModule:
    held: dict[str, Compact] = result.__dict__.get(_FAKE, {})
    if path not in held:
        raise InputError(
            "this model has no fake-quantized graph",
            hint="ask the result of fxcompress.quantize itself, not a copy of it or a loaded file",
        )
    return held[path].expanded()


def whole(
    module: GraphModule, report: Report, plan: PruningPlan | None = None, fake: Mapping[str, GraphModule] | None = None
) -> Compressed:
    """The result for a model that is one graph. ``fake``: its fake-quantized graph under the path ""."""
    result = Compressed(module, module.graph)
    result.training = module.training
    result.meta.update(module.meta)
    result.meta[_REPORT] = report.to_json()
    if plan is not None:
        handover.settle(result, plan)
    if fake is not None:
        result.__dict__[_FAKE] = {path: Compact(graph) for path, graph in fake.items()}
    return result


class InParts:
    """Mixin of the result for a model of which only parts could be captured: the user's own class around graph modules."""

    fxcompress_report: str
    fxcompress_plan: str | None

    @property
    def report(self) -> Report:
        """What was done, and what it brought."""
        return Report.from_json(self.fxcompress_report)

    @property
    def plan(self) -> PruningPlan | None:
        """Which channels were removed, part by part; None for a model that was not pruned."""
        return None if self.fxcompress_plan is None else PruningPlan.from_json(self.fxcompress_plan)

    @property
    def fake_quantized(self) -> dict[str, GraphModule]:
        """The fake-quantized graph of every part by its path, to look at; made anew in every call.

        Raises:
            InputError: nothing was quantized, or this is a copy, which does not have them.
        """
        assert isinstance(self, nn.Module)
        return {path: _fake(self, path) for path in self.__dict__.get(_FAKE, {"": None})}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Always an ArchiveError: the code between the parts is the user's own and has no safe form in a file."""
        raise ArchiveError(
            f"{type(self).__bases__[1].__name__} was captured in parts; the code between them is its own and cannot be stored safely",
            hint="save state_dict() and compress again after loading, or save the parts: fxcompress.save(part, path)",
        )

    def _repr_html_(self) -> str:
        return self.report._repr_html_()


def in_parts(
    module: nn.Module, report: Report, plan: PruningPlan | None = None, fake: Mapping[str, GraphModule] | None = None
) -> nn.Module:
    """The result for a copy of the user's module in which the captured parts are replaced. ``fake``: of every part, by its path."""
    kind = type(module)
    module.__class__ = type(kind.__name__, (InParts, kind), {"__module__": kind.__module__, "__doc__": kind.__doc__})
    module.__dict__.update(fxcompress_report=report.to_json(), fxcompress_plan=None if plan is None else plan.to_json())
    if fake is not None:
        module.__dict__[_FAKE] = {path: Compact(graph) for path, graph in fake.items()}
    return module


def load(path: str | os.PathLike[str], *, allow: Any = ()) -> GraphModule:
    """Read a model that was saved with ``save``; a compressed one has its ``report`` again.

    Nothing in the file is run, imported or unpickled. ``allow``: classes and functions of your own that it may name.

    Raises:
        ArchiveError: the file is missing, damaged, of a newer version, or names what is not allowed.
    """
    module = load_graph(path, allow=allow)
    report = module.meta.get(_REPORT)
    return whole(module, Report.from_json(report)) if isinstance(report, str) else module
