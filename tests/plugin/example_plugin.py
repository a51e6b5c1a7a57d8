"""Two passes of a third party, one that is right and one that is not, and a pruning criterion."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from fxcompress import Pass, PassResult
from fxcompress.pruning.criteria import Criterion


@dataclass(frozen=True)
class Once(Pass):
    name: ClassVar[str] = "once"
    function: str = "relu"

    def run(self, module, ctx):
        calls = module.graph.find_nodes(op="call_function", target=getattr(torch, self.function))
        twice = [node for node in calls if node.args[0].target is node.target]
        for node in twice:
            node.replace_all_uses_with(node.args[0])
        return PassResult(module, changed=bool(twice) and module.graph.eliminate_dead_code())


@dataclass(frozen=True)
class Spoil(Pass):
    """Multiplies the output by ``1 + error``."""

    name: ClassVar[str] = "spoil"
    error: float = 1e-6

    def run(self, module, ctx):
        output = module.graph.output_node()
        with module.graph.inserting_before(output):
            output.args = (module.graph.call_function(torch.mul, (output.args[0], 1 + self.error)),)
        module.recompile()
        return PassResult(module, changed=True)


@dataclass(frozen=True)
class Peak(Criterion):
    """The largest weight of a channel."""

    name: ClassVar[str] = "peak"

    def scores(self, ctx):
        return ctx.of_weights(lambda rows: rows.abs().amax(1))
