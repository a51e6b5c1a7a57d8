"""What a called module is: its class, its settings and its tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule, Node

from fxcompress.compare.plain import plain
from fxcompress.compare.schema import Json
from fxcompress.ir.snapshot import Structure
from fxcompress.ir.view import module_of
from fxcompress.quant.affine import QParams
from fxcompress.quant.elementwise import QuantActivation, QuantAdd, QuantMean, QuantMul
from fxcompress.quant.fake import FakeQuantConv1d, FakeQuantConv2d, FakeQuantConv3d, FakeQuantize, FakeQuantLinear
from fxcompress.quant.modules import Dequantize, QuantConv, Quantize, QuantLinear, Requantize
from fxcompress.quant.observed import ObservedConv1d, ObservedConv2d, ObservedConv3d, ObservedLinear
from fxcompress.quant.pooling import QuantAdaptiveAvgPool, QuantAvgPool, QuantMaxPool
from fxcompress.quant.stored import StoredConv, StoredEmbedding, StoredLinear, StoredRecurrent
from fxcompress.report.graphs import node_kind
from fxcompress.targets.cpu_attention import PackedSelfAttention
from fxcompress.targets.cpu_modules import PackedConv
from fxcompress.targets.engine import EngineModule

__all__ = ["kind", "settings", "target", "tensors_of"]

_KINDS: dict[str, tuple[type[nn.Module], ...]] = {
    "conv": (QuantConv, StoredConv, FakeQuantConv1d, FakeQuantConv2d, FakeQuantConv3d, ObservedConv1d, ObservedConv2d, ObservedConv3d),
    "linear": (QuantLinear, StoredLinear, FakeQuantLinear, ObservedLinear),
    "quantize": (Quantize,),
    "dequantize": (Dequantize,),
    "requantize": (Requantize,),
    "fake_quantize": (FakeQuantize,),
    "add": (QuantAdd,),
    "mul": (QuantMul,),
    "mean": (QuantMean,),
    "max_pool": (QuantMaxPool,),
    "avg_pool": (QuantAvgPool,),
    "adaptive_avg_pool": (QuantAdaptiveAvgPool,),
    "embedding": (StoredEmbedding,),
    "recurrent": (StoredRecurrent,),
    "multihead_attention": (PackedSelfAttention,),
    "engine": (EngineModule,),
}
"""An operation has one kind in all its forms: in float, in integers, and packed."""

_DERIVED: dict[type[nn.Module], frozenset[str]] = {
    QuantActivation: frozenset({"table"}),
    **dict.fromkeys((FakeQuantConv1d, FakeQuantConv2d, FakeQuantConv3d, FakeQuantLinear), frozenset({"float_weight", "float_bias"})),
}
"""Tensors that follow from the rest, or are there for passes only."""

_MODAL = (
    *(nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd, nn.AlphaDropout, nn.FeatureAlphaDropout, nn.RReLU),
    *(nn.MultiheadAttention, nn.RNNBase),
)
_KNOWN = ("torch.nn.", "fxcompress.")


def kind(node: Node) -> str:
    """The operation as reports name it; that of a quantized or lowered layer is the one of the layer."""
    layer = module_of(node)
    if isinstance(layer, QuantActivation):
        return layer.activation.name
    found = next((name for name, classes in _KINDS.items() if isinstance(layer, classes)), None)
    if found is None:
        return node_kind(node)
    carried = ["add"] if found in ("conv", "linear") and len(node.args) + len(node.kwargs) > 1 else []
    activation = getattr(layer, "activation", None)
    return "+".join([found, *carried, *([activation.name] if activation is not None else [])])


def target(layer: nn.Module) -> str:
    """The class, by the shortest name under which it can be imported where that is known."""
    cls = type(layer)
    if getattr(nn, cls.__name__, None) is cls:
        return f"torch.nn.{cls.__name__}"
    if isinstance(layer, GraphModule):
        return "torch.fx.GraphModule"  # every one has a class of its own
    return f"fxcompress.{cls.__qualname__}" if cls.__module__.startswith("fxcompress.") else f"{cls.__module__}.{cls.__qualname__}"


def settings(layer: nn.Module, grids: tuple[QParams | None, ...], digest: Callable[[Tensor], str]) -> dict[str, Json]:
    """The plain settings of a module and of those in it ("out_proj.in_features").

    What says how an operand is quantized is left out where the operand says the same; ``grids`` are those of the operands.
    """
    if isinstance(layer, EngineModule):
        return {key: _digested(value) if isinstance(value, bytes) else value for key, value in layer.state().items()}
    found: dict[str, Json] = {}
    if isinstance(layer, Dequantize) and grids[:1] != (layer.qparams,):
        found["source"] = plain(layer.qparams, str, digest)
    for path, module in layer.named_modules():
        prefix = f"{path}." if path else ""
        if path and _is_below_graph(layer, path):
            continue
        if isinstance(module, GraphModule):
            found[f"{prefix}graph"] = Structure.of(module).fingerprint[:16]
        for name, value in sorted(vars(module).items()):
            if _is_setting(module, name, value) and not (not path and _is_told(layer, name, value, grids)):
                found[prefix + name] = plain(value, str, digest)
        if isinstance(module, _CONVS):  # that of integer and packed ones is only seen in the weight
            found[f"{prefix}kernel_size"] = list(module.weight.shape[2:])
        if _has_mode(module):
            found[f"{prefix}training"] = module.training
    return found


def _digested(network: bytes) -> str:
    return f"{len(network)} bytes {hashlib.sha256(network).hexdigest()[:16]}"


def _is_below_graph(layer: nn.Module, path: str) -> bool:
    parts = path.split(".")
    return any(isinstance(layer.get_submodule(".".join(parts[:n])), GraphModule) for n in range(len(parts)))


_CONVS = (nn.modules.conv._ConvNd, QuantConv, StoredConv, PackedConv)

_PLUMBING = frozenset({"training", "qparams"})

_SHAPES: tuple[tuple[Any, frozenset[str]], ...] = (
    (nn.modules.conv._ConvTransposeNd, frozenset({"in_channels", "out_channels", "kernel_size", "transposed"})),
    (nn.modules.conv._ConvNd, frozenset({"in_channels", "out_channels", "kernel_size", "transposed", "output_padding"})),
    (nn.Linear, frozenset({"in_features", "out_features"})),
    (nn.modules.batchnorm._NormBase, frozenset({"num_features", "affine"})),
    (nn.Embedding, frozenset({"num_embeddings", "embedding_dim"})),
    (nn.PReLU, frozenset({"num_parameters"})),
)
"""Settings that are the shapes of the layer's tensors, or whether it has them; there they are seen already."""


def _is_setting(module: nn.Module, name: str, value: Any) -> bool:
    """Whether an attribute says something of the function. None, and zeros as padding, are what most layers have or lack."""
    if name.startswith("_") or name in _PLUMBING or value is None or isinstance(value, (Tensor, nn.Module)):
        return False
    if name == "padding_mode" and value == "zeros":
        return False
    told = next((names for cls, names in _SHAPES if isinstance(module, cls)), frozenset())
    return name not in told and not (isinstance(module, GraphModule) and name == "meta")


def _is_told(layer: nn.Module, name: str, value: Any, grids: tuple[QParams | None, ...]) -> bool:
    place = {"source": 0, "residual": 1, "a": 0, "b": 1}.get(name)
    return isinstance(value, QParams) and place is not None and place < len(grids) and grids[place] == value


def _has_mode(module: nn.Module) -> bool:
    """Whether training mode changes what it computes, as far as one can see."""
    return isinstance(module, _MODAL) or not type(module).__module__.startswith(_KNOWN)


def tensors_of(layer: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters, buffers and other tensors that a module holds, by their names in it, sorted."""
    found: dict[str, Tensor] = {}
    for path, module in layer.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        derived = _DERIVED.get(_first(type(module)), frozenset())
        own = {**module._buffers, **module._parameters, **{k: v for k, v in vars(module).items() if isinstance(v, Tensor) and k[0] != "_"}}
        found.update({prefix + name: tensor for name, tensor in own.items() if tensor is not None and name not in derived})
    yield from sorted(found.items())


def _first(cls: type) -> Any:
    return next((base for base in cls.__mro__ if base in _DERIVED), cls)
