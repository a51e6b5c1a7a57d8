"""Pruning plans: which channels go, as plain data that can be read, stored, compared, and applied again."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import nn
from torch.fx import GraphModule

from fxcompress.analysis.channels import ChannelDependencyGraph, Mask
from fxcompress.errors import PlanError
from fxcompress.ir.inputs import Inputs
from fxcompress.ir.snapshot import Structure
from fxcompress.pruning import plan_codec, plan_text, plan_use
from fxcompress.pruning.input_spec import InputSpec
from fxcompress.pruning.plan_build import Scores, build_part, keep_of, other_graph
from fxcompress.pruning.plan_data import PlanGroup, PlanPart, PlanPinned, PlanStatistic

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True, repr=False)
class PruningPlan:
    """Which channels of a network stay.

    A plan is made for a structure: graph, names, shapes and dtypes. The weights may change, so one can plan, train the
    network with masks, and slice it then::

        plan = make_plan(deps, keep)
        network = plan.masked(model)      # all parameters, computes what the sliced one will
        ...                               # train it
        small = plan.apply(network)       # sliced; or plan.apply(network, optimizer)

    Attributes:
        options: what was asked, as text.
        inputs: the form of the example inputs, so that a model can be captured again.
        parts: one entry per graph; a network that was captured as a whole has one, with the path "".
    """

    options: str
    inputs: InputSpec
    parts: tuple[PlanPart, ...]

    def __post_init__(self) -> None:
        plan_codec.check(self.parts)

    @property
    def fingerprint(self) -> str:
        """sha256 of the structure of all parts; the same in every process."""
        lines = [f"{part.path} {part.structure.fingerprint}" for part in self.parts]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    @property
    def groups(self) -> tuple[PlanGroup, ...]:
        """Those of all parts."""
        return tuple(group for part in self.parts for group in part.groups)

    @property
    def pinned(self) -> tuple[PlanPinned, ...]:
        """What can never be removed, in all parts."""
        return tuple(pinned for part in self.parts for pinned in part.pinned)

    @property
    def statistics(self) -> tuple[PlanStatistic, ...]:
        """Where the function itself changes, in all parts."""
        return tuple(statistic for part in self.parts for statistic in part.statistics)

    @property
    def removed(self) -> int:
        """How many channels go."""
        return sum(group.channels - group.remaining for group in self.groups)

    @classmethod
    def joined(cls, plans: Mapping[str, PruningPlan], inputs: Inputs) -> PruningPlan:
        """One plan of a network that was captured in parts, from the plans of its parts by path.

        Args:
            inputs: those of the whole network.

        Raises:
            PlanError: they were made with different options, or one of them has parts itself.
        """
        options = {plan.options for plan in plans.values()}
        if len(options) != 1 or any([part.path for part in plan.parts] != [""] for plan in plans.values()):
            raise PlanError("only plans of whole graphs that were made with the same options can be joined")
        parts = tuple(replace(plan.parts[0], path=path) for path, plan in plans.items())
        return cls(options.pop(), InputSpec.of(inputs), parts)

    # -- use ----------------------------------------------------------------------------------------------------------

    def keep(self, deps: ChannelDependencyGraph) -> Mask:
        """One flag per class of ``deps``: what the plan keeps.

        Raises:
            PlanError: the plan was made for another graph (it says which parameter or node differs), or a group
                contradicts itself or the graph (it names the group).
        """
        structure = Structure.of(deps.module)
        part = next((part for part in self.parts if part.structure == structure), None)
        if part is None and len(self.parts) > 1:
            raise other_graph("", f"none of its {len(self.parts)} parts has this structure")
        return keep_of(part or self.parts[0], deps, structure)

    def masked(self, model: nn.Module, example_inputs: Any = None) -> nn.Module:
        """The unsliced network in which what the plan removes is ignored: it computes what the sliced one does.

        It has all parameters under their names, can be trained, and can be given to :meth:`apply` afterwards. ``model``
        is not changed and shares no tensors with the result.

        Args:
            model: the captured graph, or the model itself, which is then captured again.
            example_inputs: to capture it; None makes inputs of the form that the plan remembers.

        Raises:
            PlanError: the plan does not fit. CaptureError, InputError: the model cannot be captured.
        """
        return plan_use.masked_model(self.parts, self.inputs, model, example_inputs)

    def apply(self, model: nn.Module, optimizer: torch.optim.Optimizer | None = None, *, example_inputs: Any = None) -> nn.Module:
        """The network without the channels that the plan removes; what remains has the bits of ``model``.

        ``model`` is not changed and shares no tensors with the result.

        Args:
            model: the captured graph, the result of :meth:`masked`, or the model itself, which is then captured again.
            optimizer: one that trains ``model``. Its state is sliced in place and it goes on with the parameters of the
                result, see :func:`fxcompress.pruning.optimizer.slice_optimizer`.
            example_inputs: to capture the model; None makes inputs of the form that the plan remembers.

        Raises:
            PlanError: the plan does not fit, or the optimizer's state cannot be sliced; nothing has been changed then.
            CaptureError, InputError: the model cannot be captured. GraphError: the graph cannot be sliced so.
        """
        return plan_use.applied(self.parts, self.inputs, model, optimizer, example_inputs)

    def apply_to(self, module: M) -> M:
        """Slice parameters, buffers and settings of an instance of the user's own class, in place and by names alone.

        After that ``module.load_state_dict(pruned.state_dict())`` works, and so does its own forward, as far as no
        sizes are written into it.

        Returns:
            ``module``.

        Raises:
            PlanError: a parameter is missing or has another shape, or the forward has a number that would have to
                change (with its source line); nothing has been changed then.
        """
        plan_use.slice_in_place(self.parts, module)
        return module

    # -- text ---------------------------------------------------------------------------------------------------------

    def to_json(self) -> str:
        """The plan as text; the same bytes for the same plan in every process."""
        return plan_codec.encode(self)

    @classmethod
    def from_json(cls, text: str) -> PruningPlan:
        """Read the text that :meth:`to_json` made. Nothing in it is run or imported.

        Raises:
            ArchiveError: it is damaged, contradicts itself, or is of a newer version.
        """
        return plan_codec.decode(text, cls)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write :meth:`to_json` to a file, all of it or nothing.

        Raises:
            ArchiveError: the file cannot be written.
        """
        plan_codec.write(self.to_json(), path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PruningPlan:
        """Read a file that :meth:`save` wrote.

        Raises:
            ArchiveError: as :meth:`from_json`, or there is no such file.
        """
        return cls.from_json(plan_codec.read(path))

    def diff(self, other: PruningPlan) -> str:
        """What ``other`` does otherwise than this plan, one line each; "" when they are equal."""
        return plan_text.difference(self, other)

    def __str__(self) -> str:
        return plan_text.render(self)

    def __repr__(self) -> str:
        return f"<PruningPlan {self.fingerprint[:12]}: {self.removed} channels of {len(self.groups)} groups go; {self.options}>"


def make_plan(
    deps: ChannelDependencyGraph,
    keep: Mask,
    scores: Scores | None = None,
    options: Any = "",
    *,
    reasons: Mapping[int, str] | None = None,
    latency: tuple[float, float] | None = None,
    each: bool = True,
    result: GraphModule | None = None,
) -> PruningPlan:
    """The plan that keeps the classes ``keep`` of a graph.

    Args:
        deps: the channel dependencies of the graph.
        keep: one flag per class.
        scores: importance of every class.
        options: what was asked: a text, or a dataclass of options.
        reasons: for some groups, by index, why as many of their channels remain as do.
        latency: seconds of one run before and after, where they are known.
        each: say for every group what the network would cost if only that group lost its channels.
        result: ``sliced(deps, keep)``, if it has been made already.

    Raises:
        PlanError: an axis would lose all its channels, or the flags do not fit the graph.
        GraphError: the graph cannot be sliced so; the message names the node and its source line.
    """
    part = build_part(deps, keep, scores, reasons=reasons, latency=latency, each=each, result=result)
    return PruningPlan(options_text(options), part.inputs, (part,))


def options_text(options: Any) -> str:
    """Options as text, the same in every process: of a dataclass the fields that do not have their default."""
    if isinstance(options, str):
        return options
    if not dataclasses.is_dataclass(options) or isinstance(options, type):
        return re.sub(r" at 0x[0-9a-f]+", "", repr(options))
    given = {f.name: getattr(options, f.name) for f in dataclasses.fields(options)}
    shown = [f for f in dataclasses.fields(options) if f.repr and given[f.name] != f.default]
    return f"{type(options).__name__}({', '.join(f'{f.name}={_value_text(given[f.name])}' for f in shown)})"


def _value_text(value: Any) -> str:
    return options_text(value) if dataclasses.is_dataclass(value) else re.sub(r" at 0x[0-9a-f]+", "", repr(value))
