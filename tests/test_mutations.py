"""The suite notices broken passes: each mutation below is found by ``oracle.check`` on a known network."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from typing import Any

import oracle
import pytest
import torch
from counterexamples import KNOWN
from networks import Net, step
from oracle import case, check, establishing, make

from fxcompress.analysis import Aliases
from fxcompress.errors import FxCompressError
from fxcompress.passes import cse, drop_noops, fold_norm, fold_norm_before, functionalize, fuse, merge_chain
from fxcompress.pipeline import Pipeline
from fxcompress.pruning import slicing
from fxcompress.quant import integer_forms, integers, regions, roles
from fxcompress.rewrite import attention, rules

_CONV = {"cin": 3, "cout": 3, "kernel": 3, "padding": 1}
_IN = ((3, 7, 5),)
CONV_NORM = Net(_IN, (step("conv", 0, **_CONV), step("bn", 1, n=3)), 2)
CONV_RELU_TWICE = Net(_IN, (step("conv", 0, **_CONV), step("fn", 1, name="relu"), step("binary", 1, 2, name="add")), 3)
STATISTICS_OF_THE_BATCH = Net(_IN, (step("conv", 0, **_CONV), step("bn", 1, n=3)), 2, train=True)

CONV_NORM_CONV = Net(
    _IN,
    (step("conv", 0, **_CONV | {"cout": 6}), step("bn", 1, n=6), step("fn", 2, name="sigmoid"), step("conv", 3, **_CONV | {"cin": 6})),
    4,
)
real_kept_indices, real_cut = slicing.kept_indices, slicing._cut
real_scale_and_shift = fold_norm.scale_and_shift


def without_eps(norm: Any) -> tuple[torch.Tensor, torch.Tensor]:
    scale = norm.running_var.double().rsqrt() * norm.weight.detach().double()
    return scale, norm.bias.detach().double() - norm.running_mean.double() * scale


def swapped(norm: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return real_scale_and_shift(norm)[::-1]


def without_mean(norm: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return real_scale_and_shift(norm)[0], norm.bias.detach().double()


def in_single_precision(norm: Any) -> tuple[torch.Tensor, torch.Tensor]:
    scale, shift = real_scale_and_shift(norm)
    return scale.float().double(), shift.float().double()


def in_place(layer: Any, name: str, value: torch.Tensor | None) -> None:
    if value is not None and getattr(layer, name) is not None:
        getattr(layer, name).data.copy_(value)
    elif value is not None:
        layer.register_parameter(name, torch.nn.Parameter(value))


def not_private(node: Any, editor: Any) -> Any:
    return editor.module.get_submodule(str(node.target))


def nothing(*args: Any) -> None:
    return None


def next_index(deps: Any, keep: Any) -> dict[tuple[str, int], Any]:
    """Readers keep the channel after the one that is kept."""
    found = real_kept_indices(deps, keep)
    return {slot: (kept + 1) % len(deps.slots[slot]) if slot[1] == 1 else kept for slot, kept in found.items()}


def first_of_buffers(tensor: torch.Tensor, axes: dict[int, Any]) -> torch.Tensor:
    """Statistics of norms keep the first channels, whichever remain."""
    if isinstance(tensor, torch.nn.Parameter):
        return real_cut(tensor, axes)
    return tensor.narrow(0, 0, len(axes[0])).clone()


def producers_masked(deps: Any, keep: Any) -> Any:
    """The weights that make a channel are zero, instead of those that read it."""
    module = copy.deepcopy(deps.module)
    slots = {slot for group in deps.groups for slot in group.slots if slot.role == "producer"}
    with torch.no_grad():
        for slot in slots:
            gone = [at for at, index in enumerate(deps.slots[slot.parameter, slot.axis]) if index >= 0 and not keep[index]]
            module.get_parameter(slot.parameter).movedim(slot.axis, 0)[gone] = 0.0
    return module


QUANTIZED_PAD = Net(_IN, (step("conv", 0, **_CONV), step("pad", 1, pad=(1, 2, 0, 1)), step("conv", 2, **_CONV)), 3)
QUANTIZED_RESIDUAL = KNOWN["in-place relu on a conv that a residual reads"]
QUANTIZED_TWO_READERS = Net(_IN, (step("conv", 0, **_CONV), step("conv", 1, **_CONV), step("fn", 1, name="exp")), (2, 3))
QUANTIZED_ABS = Net(_IN, (step("conv", 0, **_CONV), step("fn", 1, name="abs"), step("conv", 2, **_CONV)), 3)
real_layer_operands, real_qparams = roles.layer_operands, regions.Regions.qparams


def twice_the_scale(self: Any, value: Any) -> Any:
    found = real_qparams(self, value)
    return found if regions.is_quantizer(value) else dataclasses.replace(found, scale=2 * found.scale)


def integers_as_float(self: Any, value: Any, reader: Any) -> Any:
    return self.ints.get(value) or self.floats.get(value, value)


MUTATIONS = {
    "int8: zero is not the zero point": (integers, "pad_with", lambda node, zero, editor: node, "lower-int8", QUANTIZED_PAD),
    "int8: the residual is forgotten": (
        integer_forms,
        "layer_operands",
        lambda node: (real_layer_operands(node)[0], None),
        "lower-int8",
        QUANTIZED_RESIDUAL,
    ),
    "int8: the scale of what was moved": (regions.Regions, "qparams", twice_the_scale, "lower-int8", QUANTIZED_PAD),
    "int8: float readers get integers": (
        integers._Lowering,
        "float_of",
        integers_as_float,
        "lower-int8",
        QUANTIZED_TWO_READERS,
    ),
    "int8: the absolute value moves integers": (roles, "MOVES", roles.MOVES | {"abs": nothing}, "lower-int8", QUANTIZED_ABS),
    "pruned: the next index is kept": (slicing, "kept_indices", next_index, "prune-apply", CONV_NORM_CONV),
    "pruned: statistics are not in step": (slicing, "_cut", first_of_buffers, "prune-apply", CONV_NORM_CONV),
    "pruned: the producers are masked": (oracle, "masked", producers_masked, "prune-apply", CONV_NORM_CONV),
    "no eps": (fold_norm, "scale_and_shift", without_eps, "fold-norm", CONV_NORM),
    "scale and shift swapped": (fold_norm, "scale_and_shift", swapped, "fold-norm", CONV_NORM),
    "mean forgotten": (fold_norm, "scale_and_shift", without_mean, "fold-norm", CONV_NORM),
    "folded in float32": (fold_norm, "scale_and_shift", in_single_precision, "fold-norm", CONV_NORM),
    "norm before: swapped": (fold_norm_before, "scale_and_shift", swapped, "fold-norm-before", KNOWN["norm before a reflect-padded conv"]),
    "norm before a zero-padded conv": (
        fold_norm_before,
        "shift_obstacle",
        nothing,
        "fold-norm-before",
        KNOWN["norm before a zero-padded conv"],
    ),
    "a norm in training mode": (fold_norm, "fixed_statistics", nothing, "fold-norm", STATISTICS_OF_THE_BATCH),
    "the conv has another reader": (fold_norm, "single_reader", lambda a, b: True, "fold-norm", KNOWN["one conv, two norms"]),
    "a shared conv is changed": (fold_norm, "own", not_private, "fold-norm", KNOWN["one conv called twice, one norm"]),
    "tied weights are changed": (
        "fxcompress.passes.weights",
        "set_parameter",
        in_place,
        "fold-norm",
        KNOWN["tied weights, different norms"],
    ),
    "views read after a write": (
        functionalize,
        "_obstacle",
        nothing,
        "functionalize",
        KNOWN["a view, a write to its source, a read of the view"],
    ),
    "a write whose source is read": (
        functionalize,
        "_obstacle",
        nothing,
        "functionalize",
        KNOWN["a view, a write to the view, a read of its source"],
    ),
    "rules touch what is written": (Aliases, "is_written", lambda self, node: False, "drop-noops", KNOWN["a copy of what is written"]),
    "in-place nodes are dead": (rules, "effect_of", nothing, "dead-code", KNOWN["a write that nobody reads, seen through a view"]),
    "norms in training mode are dead": (rules, "effect_of", nothing, "dead-code", KNOWN["norm in training mode, nobody reads it"]),
    "random numbers are the same": (cse, "effect_of", nothing, "cse", KNOWN["dropout twice on one value"]),
    "dropout in training mode is nothing": (drop_noops, "is_random", lambda node: False, "drop-noops", KNOWN["dropout twice on one value"]),
    "the layer has another reader": (fuse, "single_reader", lambda a, b: True, "fuse", CONV_RELU_TWICE),
    "queries, keys and values have one projection": (
        attention._Writer,
        "thirds",
        lambda self, value, dim: (self.call(torch.narrow, value, dim, 0, self.layer.embed_dim),) * 3,
        "expand-attention",
        KNOWN["attention across, whose weights are used"],
    ),
    "the first conv's bias at the border": (merge_chain, "shift_obstacle", nothing, "merge-chain", KNOWN["pointwise convs in a row"]),
}


@pytest.fixture(autouse=True)
def _fresh_networks() -> Iterator[None]:
    """Some of these passes write into the weights, which the cached networks share."""
    yield
    case.cache_clear()


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_broken_pass_is_noticed(mutation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    where, name, replacement, of, net = MUTATIONS[mutation]
    pipeline = Pipeline(tuple(make(n) for n in establishing(of)))
    check(pipeline, net)
    if isinstance(where, str):
        monkeypatch.setattr(f"{where}.{name}", replacement)
    else:
        monkeypatch.setattr(where, name, replacement)
    with pytest.raises((AssertionError, FxCompressError, RuntimeError)):
        check(pipeline, net)
