"""Comparing the outputs of two graphs."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from fxcompress.ir.effects import written_operand
from fxcompress.ir.inputs import Inputs

FLOAT64_TOLERANCE = 1e-9  # relative to the largest value of an output
FLOAT32_TOLERANCE = 1e-4
HALF_TOLERANCE = 3e-2


@dataclass(frozen=True)
class Difference:
    """How far two outputs are apart.

    ``relative``: largest absolute difference over the largest finite reference value; inf when structure, shape, dtype
    or the places of NaN and infinities differ. ``sqnr``: 10 log10(signal power / error power) in dB, inf when equal.
    """

    absolute: float
    relative: float
    sqnr: float
    equal: bool
    why: str = ""


def leaves(value: Any) -> Iterator[Any]:
    """Tensors and constants of an output: nested tuples, lists, dicts, dataclasses and registered pytrees."""
    if dataclasses.is_dataclass(value) and not isinstance(value, (type, dict)):
        value = [getattr(value, f.name) for f in dataclasses.fields(value)]
    for leaf in pytree.tree_leaves(value):
        if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            yield from leaves(leaf)
        else:
            yield leaf


def compare(reference: Any, value: Any) -> Difference:
    """The difference between two outputs of any structure."""
    left, right = list(leaves(reference)), list(leaves(value))
    if len(left) != len(right):
        return _broken(f"{len(left)} output values became {len(right)}")
    return worst([_compare_leaf(a, b) for a, b in zip(left, right, strict=True)])


def worst(parts: list[Difference]) -> Difference:
    """The largest of several differences; none at all is equality."""
    if not parts:
        return Difference(0.0, 0.0, math.inf, True)
    return Difference(
        max(p.absolute for p in parts),
        max(p.relative for p in parts),
        min(p.sqnr for p in parts),
        all(p.equal for p in parts),
        next((p.why for p in parts if p.why), ""),
    )


def _broken(why: str) -> Difference:
    return Difference(math.inf, math.inf, -math.inf, False, why)


def _compare_leaf(a: Any, b: Any) -> Difference:
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        same = type(a) is type(b) and (a == b or a is b)
        return Difference(0.0, 0.0, math.inf, True) if same else _broken(f"{a!r} became {b!r}")
    if a.shape != b.shape or a.dtype != b.dtype:
        return _broken(f"{a.dtype}{list(a.shape)} became {b.dtype}{list(b.shape)}")
    if _same_bits(a, b):
        return Difference(0.0, 0.0, math.inf, True)
    if not (a.is_floating_point() or a.is_complex()):
        wrong = int((a != b).sum())
        return _broken(f"{wrong} of {a.numel()} integer values differ")
    wide = torch.complex128 if a.is_complex() else torch.float64
    a, b = a.detach().to(wide), b.detach().to(wide)
    finite = torch.isfinite(a)
    if not torch.equal(finite, torch.isfinite(b)) or not torch.equal(a[~finite].nan_to_num(), b[~finite].nan_to_num()):
        return _broken("NaN or infinity at other places")
    a, b = a[finite], b[finite]
    error, scale = (a - b).abs().max().item(), a.abs().max().item()
    noise = float((a - b).abs().square().sum())
    signal = float(a.abs().square().sum())
    sqnr = 10 * math.log10(signal / noise) if noise > 0 and signal > 0 else (math.inf if noise == 0 else -math.inf)
    return Difference(error, error / scale if scale > 0 else math.inf, sqnr, False)


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Tensors on the meta device have no bits that could differ."""
    if a.is_meta:
        return True
    if a.is_floating_point():
        return bool(torch.equal(a, b) or (torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())))
    return bool(torch.equal(a, b))


def is_zero(output: Any) -> bool:
    """Whether every tensor of an output is zero everywhere, as that of a head that was never trained."""
    tensors = [leaf for leaf in leaves(output) if isinstance(leaf, Tensor)]
    return bool(tensors) and not any(t.is_meta or t.any() for t in tensors)


def _keeps_state(module: nn.Module) -> bool:
    """Whether a call may change the module: statistics in training mode, or a buffer written in place."""
    if any(child.training for child in module.modules()):
        return True
    return isinstance(module, GraphModule) and any(written_operand(node) is not None for node in module.graph.nodes)


def tolerance(inputs: Inputs) -> float:
    """The relative difference that rounding may make in the dtype of the inputs."""
    dtypes = {t.dtype for t in inputs.tensors() if t.is_floating_point()}
    if dtypes & {torch.float16, torch.bfloat16}:
        return HALF_TOLERANCE
    return FLOAT64_TOLERANCE if dtypes == {torch.float64} else FLOAT32_TOLERANCE


def evaluate(module: nn.Module, inputs: Inputs) -> Any:
    """The module's output, leaving module, inputs and the random state as they were."""
    if _keeps_state(module):
        module = copy.deepcopy(module)
    devices = [t.device for t in inputs.tensors() if t.is_cuda]
    with torch.no_grad(), torch.random.fork_rng(devices=sorted({d.index or 0 for d in devices})):
        torch.manual_seed(0)
        return inputs.clone().call(module)


class Recorder(fx.Interpreter):
    """Runs a graph and keeps a copy of every node's value."""

    def __init__(self, module: GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.values: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.values[n] = pytree.tree_map_only(Tensor, torch.clone, value)
        return value
