"""What a target is: something that can run a rewritten graph faster than torch's eager mode."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch.fx import GraphModule

from fxcompress.ir.inputs import Inputs


@runtime_checkable
class Target(Protocol):
    """A machine or an engine, and how a graph is handed to it.

    A target takes single operations (the native CPU kernels) or the whole graph (an engine); either way the result is a
    GraphModule with the signature and the output structure of the one that came in.
    """

    @property
    def name(self) -> str:
        """The word by which users choose it, for example ``"openvino"``."""
        ...

    def missing(self) -> str | None:
        """None where the target can be used; otherwise what is not there and what to install."""
        ...

    def lower(self, gm: GraphModule, inputs: Inputs) -> GraphModule:
        """A new module that computes what ``gm`` computes; ``gm`` stays as it is.

        Raises:
            TargetError: the target is not installed, or cannot run this graph.
        """
        ...
