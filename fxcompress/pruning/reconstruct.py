"""Refitting the layers that lost inputs, one at a time, in closed form."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from fxcompress.analysis.channels import ChannelDependencyGraph, Mask
from fxcompress.ir.view import view
from fxcompress.pruning.layer_rows import LAYERS, Layer, as_weight
from fxcompress.pruning.statistics import Moments
from fxcompress.rewrite.rules import Remark

_WEIGHTED = ("conv", "linear", "conv_transpose", "recurrent")


@dataclass(frozen=True)
class Consumer:
    """A layer of the sliced graph that lost inputs. ``nodes`` are all its calls in the order of the graph."""

    layer: Layer
    nodes: tuple[Node, ...]


Place = tuple[nn.Module, str]  # a module and the name of one of its tensors


class Uses:
    """Who calls which module of a graph, and who else holds or reads its tensors; as the graph is when this is made."""

    def __init__(self, module: GraphModule) -> None:
        self.module = module
        self._calls: dict[int, list[Node]] = {}
        self._readers: dict[int, str] = {}  # by tensor: what reads it besides the module that has it
        for node in module.graph.nodes:
            if node.op == "call_module":
                self._calls.setdefault(id(module.get_submodule(str(node.target))), []).append(node)
            elif node.op == "get_attr":
                self._readers[id(_attribute(module, str(node.target)))] = f"read by '{node.name}'"
        self._paths = {id(child): path for path, child in module.named_modules()}
        self._holders: dict[int, list[Place]] = {}
        for child in module.modules():
            for leaf, tensor in (*child._parameters.items(), *child._buffers.items()):
                if tensor is not None:
                    self._holders.setdefault(id(tensor), []).append((child, leaf))
        self._same = {(id(child), leaf): (key, held) for key, held in self._holders.items() for child, leaf in held}
        called = (module.get_submodule(str(n.target)) for n in module.graph.nodes if n.op == "call_module")
        self._run = {id(inner) for outer in called for inner in outer.modules()}

    def calls(self, layer: nn.Module) -> tuple[Node, ...]:
        return tuple(self._calls.get(id(layer), ()))

    def elsewhere(self, layer: nn.Module, leaf: str) -> str | None:
        """What else computes with a tensor of a layer, or None."""
        key, held = self._same.get((id(layer), leaf), (0, []))
        others = [(child, name) for child, name in held if child is not layer and id(child) in self._run]
        return self._readers.get(key) or next((f"{self._paths[id(child)]}.{name}" for child, name in others), None)

    def names(self, layer: nn.Module, leaf: str) -> list[Place]:
        """All places that hold a tensor of a layer: also a parameter of the user's module that the layer was made of."""
        return self._same[id(layer), leaf][1] if (id(layer), leaf) in self._same else [(layer, leaf)]

    def own_norm(self, node: Node) -> nn.modules.batchnorm._BatchNorm | None:
        """The batch norm that ``node`` calls, if it has running statistics that nobody else uses and no other call."""
        norm = self.module.get_submodule(str(node.target)) if node.op == "call_module" else None
        if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or norm.running_mean is None or norm.running_var is None:
            return None
        tied = self.elsewhere(norm, "running_mean") or self.elsewhere(norm, "running_var")
        return norm if self.calls(norm) == (node,) and not tied else None


def _attribute(module: GraphModule, path: str) -> Any:
    parent, _, leaf = path.rpartition(".")
    return getattr(module.get_submodule(parent), leaf, None)


def consumers(deps: ChannelDependencyGraph, keep: Mask, uses: Uses) -> tuple[list[Consumer], list[Remark]]:
    """The layers of the sliced graph that can be refitted, and why others that lost inputs cannot."""
    module = uses.module
    twin = {node.name: node for node in module.graph.nodes}
    found: dict[int, Consumer] = {}
    remarks = []
    for read in deps.reads:
        if read.how != "contract" or read.axis not in deps.kept(read.operand, keep) or view(read.node, *_WEIGHTED) is None:
            continue
        node = twin[read.node.name]
        layer = module.get_submodule(str(node.target)) if node.op == "call_module" else None
        why = _obstacle(uses, layer)
        if why is not None:
            remarks.append(Remark.on(read.node, why, applied=False))
        elif isinstance(layer, LAYERS):
            found[id(layer)] = Consumer(layer, uses.calls(layer))
    return list(found.values()), list(dict.fromkeys(remarks))


def _obstacle(uses: Uses, layer: nn.Module | None) -> str | None:
    if layer is None:
        return "it is a function call, whose weight is not refitted"
    if not isinstance(layer, LAYERS):
        return f"a {type(layer).__name__} is not refitted"
    for name in ("weight", "bias"):
        other = uses.elsewhere(layer, name)
        if other is not None:
            return f"it is not refitted, because its {name} is also {other}"
    return None


# -- fits -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fit:
    """A change of a layer: ``weight`` (groups, outputs, regressors) and ``bias`` (groups, outputs) are added to its own."""

    what: str
    weight: Tensor | None
    bias: Tensor


def mean_fit(moments: Moments) -> Fit:
    """The mean of what is missing, folded into the bias.

    With the original output z = W x + b, of which x_K remain and are x'_K by now, and E over the calibration data:

        b' = b + E[z - W_K x'_K - b] = b + W_R E[x_R] + W_K E[x_K - x'_K].

    The second term is the mean of the removed channels as this consumer sees it (behind activations); the third what
    earlier removals did to the mean of the kept ones. Exact for constant channels where no zeros are padded.
    Source: bias correction, Finkelstein et al., "Fighting Quantization Bias With Bias", 2019; Nagel et al.,
    "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, section 4.2; for pruning
    Ye et al., "Rethinking the Smaller-Norm-Less-Informative Assumption", ICLR 2018.
    """
    return Fit("the mean of the removed channels is folded into its bias", None, moments.mean_r())


def weight_fits(moments: Moments, dampings: Sequence[float]) -> Iterator[Fit]:
    """Least-squares reconstruction of the weights, for every damping from the strongest.

        W' = W_K + D, b' = b + d  with  D, d = argmin sum |z - (W_K + D) x'_K - b - d|^2 + lambda |D|^2

    where z is what the original network gives at this consumer, x'_K what the pruned one, compensated so far, feeds it
    (its im2col for a convolution, zero padding included, so that borders are fitted as they are). The damping draws to
    the surviving weights, not to zero, so that little data changes little.
    Source: He et al., "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017, eq. 4 (and sequentially,
    section 3.2); Luo et al., "ThiNet", ICCV 2017, eq. 7; the closed form is that of optimal brain surgeon, Hassibi and
    Stork, NIPS 1992.
    """
    for damping in sorted(dampings, reverse=True):
        found = moments.ridge(damping)
        if found is not None:
            yield Fit(f"its weights are refitted (damping {damping:g})", *found)


def residual(rows: Sequence[tuple[Tensor, Tensor]], fit: Fit | None) -> float:
    """Sum of squares of what is still missing at rows (x, r) after a fit."""
    total = 0.0
    for x, r in rows:
        if fit is not None:
            r = r - fit.bias[:, None]
            r = r if fit.weight is None else r - x @ fit.weight.mT
        total += float(r.square().sum())
    return total


def best(fits: Iterator[Fit], rows: Sequence[tuple[Tensor, Tensor]]) -> tuple[Fit, float] | None:
    """The fit with the smallest residual on held-out rows, and that residual; the search ends where it grows again."""
    found: tuple[Fit, float] | None = None
    for fit in fits:
        error = residual(rows, fit)
        if found is not None and not error < found[1]:
            break
        if math.isfinite(error):
            found = fit, error
    return found


# -- changes --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """Tensors to put into modules; tensors are replaced, never written. ``apply`` returns the change that undoes it."""

    tensors: tuple[tuple[nn.Module, str, Tensor | None], ...]

    @classmethod
    def of(cls, uses: Uses, *tensors: tuple[nn.Module, str, Tensor]) -> Change:
        """New tensors for a layer, and for every other name of what they replace."""
        return cls(tuple((owner, name, new) for layer, leaf, new in tensors for owner, name in uses.names(layer, leaf)))

    def apply(self) -> Change:
        old = tuple((module, name, getattr(module, name)) for module, name, _ in self.tensors)
        for module, name, tensor in self.tensors:
            if name in module._buffers:
                module._buffers[name] = tensor
            else:
                module.register_parameter(name, tensor if isinstance(tensor, nn.Parameter) else None)
        return Change(old)


def change_of(uses: Uses, consumer: Consumer, fit: Fit) -> Change:
    """The new tensors of a consumer.

    A layer without a bias that stands before a batch norm keeps none, so that the keys of the state_dict stay: an
    offset d before it is the same as a running mean that is smaller by d.
    """
    layer = consumer.layer
    tensors: list[tuple[nn.Module, str, Tensor]] = []
    if fit.weight is not None:
        tensors.append((layer, "weight", _like(layer.weight, layer.weight.double() + as_weight(layer, fit.weight))))
    offset = fit.bias.reshape(-1)
    norm = _absorbing_norm(uses, consumer) if layer.bias is None else None
    if norm is not None:
        assert norm.running_mean is not None
        tensors.append((norm, "running_mean", _like(norm.running_mean, norm.running_mean.double() - offset)))
    else:
        bias = layer.bias if layer.bias is not None else layer.weight.new_zeros(len(offset))
        like = nn.Parameter(bias.detach(), requires_grad=layer.weight.requires_grad) if layer.bias is None else bias
        tensors.append((layer, "bias", _like(like, bias.double() + offset)))
    return Change.of(uses, *tensors)


def _like(old: Tensor, value: Tensor) -> Tensor:
    """``value`` in the dtype, memory format and trainability of ``old``."""
    new = torch.empty_like(old.detach()).copy_(value.detach())
    return nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new


def _absorbing_norm(uses: Uses, consumer: Consumer) -> nn.modules.batchnorm._BatchNorm | None:
    if len(consumer.nodes) != 1 or len(consumer.nodes[0].users) != 1:
        return None
    user = next(iter(consumer.nodes[0].users))
    norm = uses.own_norm(user)
    return norm if norm is not None and not norm.training and user.args[:1] == (consumer.nodes[0],) else None
