"""The result of a capture."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import fx, nn

from fxcompress.errors import CaptureError
from fxcompress.ir.inputs import Inputs

Step = Literal["fx", "export", "parts"]


@dataclass(frozen=True)
class Part:
    """One captured graph: the submodule ``path`` of the model ("" is the whole) and the inputs it receives in a run.

    ``output`` is what the graph gives on them; None where it has not been kept.
    """

    path: str
    graph: fx.GraphModule
    inputs: Inputs
    output: Any = None


@dataclass(frozen=True)
class Captured:
    """A captured model.

    ``module`` is the graph module itself for the steps "fx" and "export" (one part with the path ""). For "parts" it is
    a copy of the user's own module in which the submodule of every part is its graph module. ``notes`` say, one line
    each, what was taken from the example inputs and why an earlier step was not possible. ``expected`` is what the model gives
    on ``inputs``.
    """

    module: nn.Module
    parts: tuple[Part, ...]
    step: Step
    notes: tuple[str, ...]
    inputs: Inputs
    expected: Any = None

    def in_eval(self) -> Captured:
        """The same capture with its modules in eval mode; outputs that were found in training mode are forgotten."""
        was_training = any(module.training for module in self.module.modules())
        self.module.eval()
        if not was_training:
            return self
        return replace(self, parts=tuple(replace(part, output=None) for part in self.parts), expected=None)

    def with_part(self, path: str, new_module: nn.Module) -> Captured:
        """The same capture with the part ``path`` replaced by ``new_module``; this object stays as it is.

        Raises:
            CaptureError: there is no such part.
        """
        if path not in {part.path for part in self.parts}:
            known = ", ".join(repr(part.path) for part in self.parts)
            raise CaptureError(f"there is no captured part {path!r}", hint=f"the parts are {known}")
        parts = self.parts
        if isinstance(new_module, fx.GraphModule):
            parts = tuple(replace(p, graph=new_module, output=None) if p.path == path else p for p in parts)
        if path == "":
            return replace(self, module=new_module, parts=parts)
        return replace(self, module=_substituted(self.module, path, new_module), parts=parts)


def _substituted(module: nn.Module, path: str, new: nn.Module) -> nn.Module:
    """``module`` with the submodule ``path`` exchanged; only the containers on the way are copied."""
    head, _, rest = path.partition(".")
    clone = copy.copy(module)
    clone.__dict__["_modules"] = dict(module._modules)
    child = module._modules[head]
    assert child is not None
    clone._modules[head] = _substituted(child, rest, new) if rest else new
    return clone
