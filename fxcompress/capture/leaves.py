"""Which modules stay one node of the graph."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

# Containers of torch.nn, and layers whose insides are worth rewriting (linears, norms, activations).
TRACED_THROUGH: tuple[type[nn.Module], ...] = (
    nn.Sequential,
    nn.ModuleList,
    nn.ModuleDict,
    nn.Transformer,
    nn.TransformerEncoder,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoder,
    nn.TransformerDecoderLayer,
)


@dataclass(frozen=True)
class LeafRegistry:
    """The leaf rule: every layer of ``torch.nn`` itself (not a subclass of one), and the types in ``extra``."""

    extra: tuple[type[nn.Module], ...] = ()

    @classmethod
    def of(cls, leaves: Iterable[type[nn.Module]]) -> LeafRegistry:
        return cls(tuple(leaves))

    def is_leaf(self, module: nn.Module) -> bool:
        if isinstance(module, self.extra):
            return True
        if _random_depth(module):
            return module.training
        return type(module).__module__.startswith("torch.nn.") and not isinstance(module, TRACED_THROUGH)


def _random_depth(module: nn.Module) -> bool:
    """Stochastic depth of torchvision, timm and transformers: random in training, so its flag must stay alive there."""
    name = type(module).__name__
    return (name == "StochasticDepth" or name.endswith("DropPath")) and not list(module.children())
