"""Functional layers whose parameters are attributes, turned into modules: ``F.conv2d(x, self.w)`` -> ``nn.Conv2d``.

The module takes the place of the one that owns the parameters (``P.weight`` and ``P.bias`` -> a layer at ``P``), so the
keys of the state_dict survive. Parameters with other names get a layer of their own next to them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxcompress.ir.edit import PROVENANCE, provenance

Operands = dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """How to build the module of a functional layer.

    ``signature`` are the parameters of the function with their defaults, ``tensors`` those that the module owns, and
    ``build(operands, weight, rank)`` makes the module, whose tensors are put in afterwards.
    """

    signature: dict[str, Any]
    tensors: tuple[str, ...]
    build: Callable[[Operands, Any, int], nn.Module]


def _conv(rank: int) -> Recipe:
    cls: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]

    def build(o: Operands, weight: Tensor, _: int) -> nn.Module:
        options = {k: o[k] for k in ("stride", "padding", "dilation", "groups")}
        options = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
        return cls(weight.size(1) * o["groups"], weight.size(0), tuple(weight.shape[2:]), bias=o["bias"] is not None, **options)

    signature = {"input": ..., "weight": ..., "bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}
    return Recipe(signature, ("weight", "bias"), build)


def _conv_transpose(rank: int) -> Recipe:
    cls: Any = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[rank - 1]
    names = {"stride": 1, "padding": 0, "output_padding": 0, "groups": 1, "dilation": 1}

    def build(o: Operands, weight: Tensor, _: int) -> nn.Module:
        options = {k: tuple(o[k]) if isinstance(o[k], list) else o[k] for k in names}
        return cls(weight.size(0), weight.size(1) * o["groups"], tuple(weight.shape[2:]), bias=o["bias"] is not None, **options)

    return Recipe({"input": ..., "weight": ..., "bias": None, **names}, ("weight", "bias"), build)


def _linear(o: Operands, weight: Tensor, _: int) -> nn.Module:
    return nn.Linear(weight.size(1), weight.size(0), bias=o["bias"] is not None)


def _batch_norm(o: Operands, weight: Tensor, rank: int) -> nn.Module:
    cls = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[rank]
    stats = o["running_mean"] is not None
    module = cls(weight.numel(), eps=o["eps"], momentum=o["momentum"], affine=o["weight"] is not None, track_running_stats=stats)
    return module.eval()


def _layer_norm(o: Operands, weight: Tensor, _: int) -> nn.Module:
    return nn.LayerNorm(tuple(o["normalized_shape"]), eps=o["eps"], bias=o["bias"] is not None)


def _rms_norm(o: Operands, weight: Tensor, _: int) -> nn.Module:
    return nn.RMSNorm(tuple(o["normalized_shape"]), eps=o["eps"])


def _group_norm(o: Operands, weight: Tensor, _: int) -> nn.Module:
    return nn.GroupNorm(o["num_groups"], weight.numel(), eps=o["eps"])


def _embedding(o: Operands, weight: Tensor, _: int) -> nn.Module:
    names = ("padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse")
    return nn.Embedding(weight.size(0), weight.size(1), **{k: o[k] for k in names})


def _prelu(o: Operands, weight: Tensor, _: int) -> nn.Module:
    return nn.PReLU(weight.numel())


def recipes() -> Mapping[Any, Recipe]:
    """The functional layers that have a module."""
    both = ("weight", "bias")
    norm = {"weight": None, "bias": None}
    return {
        F.conv1d: _conv(1), F.conv2d: _conv(2), F.conv3d: _conv(3),
        F.conv_transpose1d: _conv_transpose(1), F.conv_transpose2d: _conv_transpose(2), F.conv_transpose3d: _conv_transpose(3),
        F.linear: Recipe({"input": ..., "weight": ..., "bias": None}, both, _linear),
        F.batch_norm: Recipe(
            {"input": ..., "running_mean": ..., "running_var": ..., **norm, "training": False, "momentum": 0.1, "eps": 1e-5},
            ("weight", "bias", "running_mean", "running_var"), _batch_norm),
        F.layer_norm: Recipe({"input": ..., "normalized_shape": ..., **norm, "eps": 1e-5}, both, _layer_norm),
        F.rms_norm: Recipe({"input": ..., "normalized_shape": ..., "weight": None, "eps": None}, ("weight",), _rms_norm),
        F.group_norm: Recipe({"input": ..., "num_groups": ..., **norm, "eps": 1e-5}, both, _group_norm),
        F.embedding: Recipe(
            {"input": ..., "weight": ..., "padding_idx": None, "max_norm": None, "norm_type": 2.0, "scale_grad_by_freq": False,
             "sparse": False}, ("weight",), _embedding),
        F.prelu: Recipe({"input": ..., "weight": ...}, ("weight",), _prelu),
    }  # fmt: skip


def raise_functional(
    graph_module: fx.GraphModule, ranks: Mapping[fx.Node, int], skip: Callable[[fx.Node], bool] = lambda node: False
) -> list[fx.Node]:
    """Replace every functional layer over get_attr parameters by a call of a module; returns the new nodes.

    Args:
        ranks: the number of dimensions of the nodes' tensors, where known (a batch norm's class depends on it).
        skip: nodes to leave alone.
    """
    raised: list[fx.Node] = []
    known, ranks = recipes(), dict(ranks)
    made: dict[Any, str] = {}
    called = {str(node.target) for node in graph_module.graph.nodes if node.op == "call_module"}
    for node in list(graph_module.graph.nodes):
        recipe = known.get(node.target) if node.op == "call_function" and not skip(node) else None
        operands = _operands(node, recipe) if recipe else None
        if recipe is not None and operands is not None:
            call = _replace(graph_module, node, recipe, operands, ranks.get(operands["input"], 0), made, called)
            ranks[call] = ranks.get(node, 0)
            raised += [call] if call is not node else []
    if not raised:
        return raised
    for node in reversed(list(graph_module.graph.nodes)):
        if node.op == "get_attr" and not node.users:
            graph_module.graph.erase_node(node)
    graph_module.delete_all_unused_submodules()
    return raised


def _operands(node: fx.Node, recipe: Recipe) -> Operands | None:
    """The operands by name; None unless the input is a node, the tensors are attributes and the rest constants."""
    names = list(recipe.signature)
    operands = {**recipe.signature, **dict(zip(names, node.args, strict=False)), **node.kwargs}
    if set(operands) != set(names) or not isinstance(operands["input"], fx.Node):
        return None
    for name, value in operands.items():
        if name in recipe.tensors:
            if value is not None and not (isinstance(value, fx.Node) and value.op == "get_attr"):
                return None
        elif name != "input" and (value is ... or _has_node(value)):
            return None
    if operands.get("training"):
        return None  # a module would forget it at eval()
    present = [operands[name] for name in recipe.tensors]
    needed = "running_mean" if "running_mean" in recipe.tensors and operands["weight"] is None else "weight"
    return operands if any(present) and operands[needed] is not None else None


def _has_node(value: Any) -> bool:
    return isinstance(value, fx.Node) or (isinstance(value, (tuple, list)) and any(map(_has_node, value)))


def _replace(
    graph_module: fx.GraphModule, node: fx.Node, recipe: Recipe, operands: Operands, rank: int, made: dict[Any, str], called: set[str]
) -> fx.Node:
    """Returns the node that stands for ``node`` afterwards."""
    paths = {name: str(operands[name].target) for name in recipe.tensors if operands[name] is not None}
    tensors = {name: _attribute(graph_module, path) for name, path in paths.items()}
    if recipe.build is _batch_norm and not 2 <= rank <= 5:
        return node
    options = tuple((k, str(v)) for k, v in operands.items() if k not in recipe.tensors and k != "input")
    key = (recipe.build, tuple(paths.items()), options, rank if recipe.build is _batch_norm else 0)
    if key not in made:
        made[key] = _install(graph_module, _built(recipe, operands, tensors, rank), paths, called | set(made.values()))
    with graph_module.graph.inserting_before(node):
        call = graph_module.graph.call_module(made[key], (operands["input"],))
    call.meta = {**node.meta, PROVENANCE: provenance(node)}
    node.replace_all_uses_with(call)
    graph_module.graph.erase_node(node)
    return call


def _built(recipe: Recipe, operands: Operands, tensors: dict[str, Tensor], rank: int) -> nn.Module:
    with torch.device("meta"):
        module = recipe.build(operands, next(iter(tensors.values())) if "weight" not in tensors else tensors["weight"], rank)
    for name, tensor in tensors.items():
        module._parameters.pop(name, None)
        module._buffers.pop(name, None)
        if isinstance(tensor, nn.Parameter):
            module.register_parameter(name, tensor)
        else:
            module.register_buffer(name, tensor)
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.num_batches_tracked is not None:
        module.num_batches_tracked = torch.zeros((), dtype=torch.long, device=next(iter(tensors.values())).device)
    return module


def _install(graph_module: fx.GraphModule, module: nn.Module, paths: dict[str, str], taken: set[str]) -> str:
    """Put ``module`` where its parameters live and return its path."""
    owners = {path.rpartition(".")[0] for path in paths.values()}
    home = next(iter(owners))
    natural = len(owners) == 1 and home != "" and all(path == f"{home}.{name}" for name, path in paths.items())
    if natural and home not in taken:
        old = graph_module.get_submodule(home)
        for name, child in old._modules.items():
            module._modules.setdefault(name, child)
        for table in ("_parameters", "_buffers"):
            for name, value in getattr(old, table).items():
                if name == "num_batches_tracked" or not hasattr(module, name):
                    getattr(module, table)[name] = value
        if not isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.training = old.training
        graph_module.add_submodule(home, module)
        return home
    if not isinstance(module, nn.modules.batchnorm._BatchNorm):
        module.training = graph_module.get_submodule(home).training
    base = paths.get("weight", next(iter(paths.values()))) + f"_{type(module).__name__.lower()}"
    path, number = base, 0
    while _exists(graph_module, path):
        number += 1
        path = f"{base}_{number}"
    graph_module.add_submodule(path, module)
    return path


def _exists(graph_module: fx.GraphModule, path: str) -> bool:
    parent, _, name = path.rpartition(".")
    return hasattr(graph_module.get_submodule(parent), name)


def _attribute(graph_module: fx.GraphModule, path: str) -> Any:
    parent, _, name = path.rpartition(".")
    return getattr(graph_module.get_submodule(parent), name)
