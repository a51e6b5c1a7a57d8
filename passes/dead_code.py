"""Removes nodes that nobody reads and that do nothing else, and the modules and parameters that only they used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch.fx import GraphModule

from fxcompress.analysis import Shapes
from fxcompress.ir.edit import Editor
from fxcompress.pipeline import Pass, PassContext, PassResult, Remark, Semantics
from fxcompress.rewrite import remove_dead


@dataclass(frozen=True)
class DeadCode(Pass):
    """Removes what nobody reads. Nodes that write in place, draw random numbers, update statistics or check something stay."""

    name: ClassVar[str] = "dead-code"
    semantics: ClassVar[Semantics] = Semantics.EXACT

    def run(self, module: GraphModule, ctx: PassContext) -> PassResult:
        editor = Editor(module)
        tensors = len(module.state_dict(keep_vars=True))
        dead = remove_dead(editor)
        editor.finish()
        unread = tensors - len(module.state_dict(keep_vars=True))
        parts = [f"{count} {what}" for count, what in ((dead, "nodes"), (unread, "tensors")) if count]
        remarks = (Remark(True, "graph", f"nobody reads {' and '.join(parts)}"),) if parts else ()
        return PassResult(module, bool(parts), frozenset({Shapes}), remarks)
