"""Whole float32 graphs as partitions of oneDNN Graph, which is part of torch: :class:`OneDnnGraph`.

Every operator call of torch builds a oneDNN primitive descriptor anew (about 25 us) and passes activations in channels_last.
oneDNN Graph compiles each partition once for one shape and keeps its own blocked layout between partitions. Against the same
graph of packed modules (one thread, batch 1, AVX-512): mobilenet_v2, mobilenet_v3, efficientnet_b0, regnet_y_400mf and
shufflenet_v2 run 1.3 to 1.55 times faster, resnet50, deeplabv3_mobilenet_v3 1.2, resnet18, convnext_tiny, densenet121 1.1, vit_b_16
1.0. Compiling takes 0.3 to 2 s and needs no compiler.

torch reaches it through TorchScript alone (``torch.jit.enable_onednn_fusion``), which is deprecated but present in torch 2.11 to 2.15;
:func:`onednn_graph_missing` tells when it is gone, and the module then runs its graph as it is.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from fxcompress.ir.copying import copied
from fxcompress.targets.inference import constant
from fxcompress.targets.per_shape import PerShape

__all__ = ["OneDnnGraph", "onednn_graph_missing"]

_TOLERANCE = 1e-3  # of the largest output; a compiled form that is further off is not used


def onednn_graph_missing() -> str | None:
    """Why this torch cannot run oneDNN Graph, or None."""
    if not torch.backends.mkldnn.is_available():
        return "this build of torch has no oneDNN"
    if not all(hasattr(torch.jit, name) for name in ("enable_onednn_fusion", "onednn_fusion_enabled", "trace")):
        return f"torch {torch.__version__} no longer offers torch.jit.enable_onednn_fusion"
    return None


class OneDnnGraph(PerShape):
    """Runs ``graph`` in partitions that oneDNN Graph compiles for the shapes of its inputs.

    ``graph`` may hold PackedConv and PackedLinear, which show their plain form to the compiler.
    """

    def _unsuited(self, tensors: list[Tensor]) -> str | None:
        return onednn_graph_missing() or _unsuited(self.graph, tensors)

    def _compile(self, tensors: list[Tensor]) -> Callable[..., Any]:
        return _compile(self.graph, tensors)

    def _disagreement(self, run: Callable[..., Any], tensors: list[Tensor]) -> str | None:
        return _disagreement(run(*tensors), self._reference(tensors))


class _FriendlyForms(TorchFunctionMode):
    """Writes operations, while they are traced, in the forms that oneDNN Graph has; otherwise they would cut partitions apart."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func in (F.adaptive_avg_pool2d, torch._C._nn.adaptive_avg_pool2d) and _to_one_pixel(*args, **kwargs):
            size = [int(n) for n in args[0].shape[2:]]
            return F.avg_pool2d(args[0], size, size)
        if func in (F.hardsigmoid, torch._C._nn.hardsigmoid):
            return F.hardtanh(args[0] * (1 / 6) + 0.5, 0.0, 1.0)
        if func in _POOLS and len(args) > 1 and not (args[2] if len(args) > 2 else kwargs.get("stride")):
            args, kwargs = (*args[:2], args[1], *args[3:]), {k: v for k, v in kwargs.items() if k != "stride"}
        return func(*args, **kwargs)


# pools whose default stride, an empty list, oneDNN Graph refuses
_POOLS = (F.max_pool2d, torch.max_pool2d, F.avg_pool2d)


def _to_one_pixel(x: Tensor, output_size: Any, **_: Any) -> bool:
    return x.dim() == 4 and output_size in (1, (1, 1), [1, 1]) and x.numel() > 0


class _Flat(nn.Module):
    """``graph`` with a flat tuple of tensors as its output; keeps the tree it came from."""

    def __init__(self, graph: nn.Module) -> None:
        super().__init__()
        self.training = False  # of this wrapper only: the graph keeps the flags of its modules
        self.graph = graph
        self.tree: pytree.TreeSpec | None = None

    def forward(self, *args: Tensor) -> tuple[Tensor, ...]:
        leaves, self.tree = pytree.tree_flatten(self.graph(*args))
        if not all(isinstance(leaf, Tensor) for leaf in leaves):
            raise RuntimeError("an output of the graph is not a tensor")
        return tuple(leaves)


@contextmanager
def _fusion_enabled() -> Iterator[None]:
    before = torch.jit.onednn_fusion_enabled()
    torch.jit.enable_onednn_fusion(True)
    try:
        yield
    finally:
        torch.jit.enable_onednn_fusion(before)


def _compile(graph: nn.Module, tensors: list[Tensor]) -> Callable[..., Any]:
    """Trace and run until the partitions are compiled: one run records the shapes, the next is optimized for them.

    The graph is traced as a function, in which weights are constants: modules would be scripted one by one, and frozen.
    """
    flat = _Flat(copied(graph, constant))
    example = tuple(t.detach().contiguous() for t in tensors)
    with warnings.catch_warnings(), _fusion_enabled(), torch.no_grad():
        warnings.simplefilter("ignore")  # TorchScript is deprecated; sizes become constants, which is meant
        with _FriendlyForms():
            compiled = torch.jit.trace(lambda *args: flat(*args), example, check_trace=False)
        for _ in range(2):
            compiled(*example)
    tree: Any = flat.tree

    def run(*args: Tensor) -> Any:
        with torch.no_grad():
            return pytree.tree_unflatten(compiled(*[a.contiguous() for a in args]), tree)

    return run


def _unsuited(graph: nn.Module, tensors: list[Tensor]) -> str | None:
    """Why the graph as it is now should not be compiled, or None."""
    for t in (*tensors, *graph.parameters(), *graph.buffers()):
        if not t.is_cpu:
            return f"a tensor is on {t.device}"
        if t.is_complex() or (t.is_floating_point() and t.dtype is not torch.float32):
            return f"a tensor is {str(t.dtype).removeprefix('torch.')}, not float32"
    return None


def _disagreement(found: Any, wanted: Any) -> str | None:
    """How the compiled form differs from the graph beyond rounding, or None. Values that are not finite are left out."""
    for a, b in zip(pytree.tree_leaves(found), pytree.tree_leaves(wanted), strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"it gives {a.dtype} {tuple(a.shape)} instead of {b.dtype} {tuple(b.shape)}"
        finite = torch.isfinite(b)
        error, scale = ((t * finite).nan_to_num().double() for t in (a - b, b))
        if b.numel() and error.abs().max() > _TOLERANCE * scale.abs().max() + 1e-30:
            return f"its result is off by {error.abs().max():.3g} where the largest value is {scale.abs().max():.3g}"
    return None
