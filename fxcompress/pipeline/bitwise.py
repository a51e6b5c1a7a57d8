"""Graphs that round: their lowered form is compared module by module, bit for bit.

Where values are rounded to integers, another order of float32 operations can move one across a boundary, and what follows
amplifies that: the outputs of two right graphs differ by about as much as quantization itself. So end to end only gross errors
can be told from rounding. Each module, however, defines its bits: given the operands that its reference receives, what stands
in its place must give the same ones.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from fxcompress.ir.inputs import Inputs
from fxcompress.quant.fake import FakeQuantize
from fxcompress.quant.modules import Quantize

MARGIN = 3.0
LEAST_SQNR = 15.0
"""dB of a graph's output against its lowered form. The noise of rounding lies far below: 30 to 60 dB on trained networks."""


def least_sqnr(noise: float) -> float:
    """The least SQNR (dB) between two right forms of a graph whose quantization has the SQNR ``noise``: where quantization itself
    leaves little of the output, other roundings of single values leave no more."""
    return min(LEAST_SQNR, noise - MARGIN)


def rounds(module: GraphModule) -> bool:
    """Whether values of the graph are rounded to integers."""
    return any(isinstance(child, (Quantize, FakeQuantize)) for child in module.modules())


def other_bits(before: GraphModule, after: GraphModule, inputs: Inputs) -> tuple[Node, str] | None:
    """The first module of ``before`` whose replacement in ``after`` gives other bits on the same operands, and how it differs.

    A replacement is a module of a derived class under the same path.
    """
    comparison = _Comparison(before, after)
    with torch.no_grad():
        comparison.run(*inputs.clone().bind(before.graph).values())
    return comparison.found


class _Comparison(fx.Interpreter):
    def __init__(self, before: GraphModule, after: GraphModule) -> None:
        super().__init__(before)
        self.replacements = dict(after.named_modules())
        self.found: tuple[Node, str] | None = None

    def run_node(self, n: Node) -> Any:
        if n.op != "call_module" or self.found is not None or not self._is_replaced(str(n.target)):
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        own: Any = pytree.tree_map_only(Tensor, torch.clone, (args, kwargs))  # a kernel may write over its residual
        got = self.replacements[str(n.target)](*own[0], **own[1])
        wanted = super().run_node(n)
        if not torch.equal(got, wanted):
            self.found = n, _described(got, wanted)
        return wanted

    def _is_replaced(self, path: str) -> bool:
        old, new = self.module.get_submodule(path), self.replacements.get(path)
        return _is_quantized(old) and new is not None and type(new) is not type(old) and isinstance(new, type(old))


def _is_quantized(module: nn.Module) -> bool:
    return type(module).__module__.startswith("fxcompress.quant.")


def _described(got: Tensor, wanted: Tensor) -> str:
    if got.shape != wanted.shape or got.dtype != wanted.dtype:
        return f"{got.dtype} {tuple(got.shape)} instead of {wanted.dtype} {tuple(wanted.shape)}"
    differ = got != wanted
    largest = (got.double() - wanted.double()).abs().max().item()
    return f"{int(differ.sum())} of {differ.numel()} values differ, by up to {largest:g}"
