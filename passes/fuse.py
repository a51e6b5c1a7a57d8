"""Lets convolutions and linears carry the residual and the activation that follow them: ``act(layer(x) + r)``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch.fx import Node

from fxcompress.ir.activation import Activation
from fxcompress.ir.edit import Editor
from fxcompress.ir.fused import FUSED, fuse
from fxcompress.ir.view import activation_of, module_of, view
from fxcompress.pipeline import Property, RulePass, Semantics
from fxcompress.rewrite import Rule, Rules, Scope, reads, single_reader


@dataclass(frozen=True)
class LayerThenActivation:
    """``activation(layer(x) [+ r])``."""

    layer: Node
    activation: Node
    function: Activation

    @property
    def nodes(self) -> tuple[Node, ...]:
        return (self.layer, self.activation)


@dataclass(frozen=True)
class LayerThenAdd:
    """``layer(x) + other``."""

    layer: Node
    other: Node
    add: Node

    @property
    def nodes(self) -> tuple[Node, ...]:
        return (self.layer, self.other, self.add)


def _open_layer(node: Any) -> bool:
    """Whether ``node`` is a layer that carries no activation yet."""
    if not isinstance(node, Node) or node.op != "call_module":
        return False
    layer = module_of(node)
    return type(layer) in (*FUSED, *FUSED.values()) and getattr(layer, "activation", None) is None


def find_activation(node: Node, scope: Scope) -> LayerThenActivation | None:
    found = activation_of(node)
    return LayerThenActivation(found[1], node, found[0]) if found is not None and _open_layer(found[1]) else None


def check_activation(match: LayerThenActivation, scope: Scope) -> str | None:
    if not single_reader(match.layer, match.activation):
        return f"'{match.layer.name}' is also read by {reads(u for u in match.layer.users if u is not match.activation)}"
    return None


def carry_activation(match: LayerThenActivation, scope: Scope) -> str:
    _fuse(match.layer, match.function, scope.editor)
    scope.editor.absorb(match.layer, match.activation)
    scope.editor.replace(match.activation, match.layer)
    return f"{match.function} joins '{match.layer.name}'"


def find_add(node: Node, scope: Scope) -> LayerThenAdd | None:
    add = view(node, "add")
    if add is None or add["alpha"] != 1 or not isinstance(add["input"], Node) or not isinstance(add["other"], Node):
        return None
    sides = [(add["input"], add["other"]), (add["other"], add["input"])]
    ready = [(layer, other) for layer, other in sides if _open_layer(layer) and len(layer.args) == 1 and layer is not other]
    # Of two layers the later one: what the earlier one gives has been computed by then, and may lie in the cache.
    best = max((pair for pair in ready if single_reader(pair[0], node)), key=lambda pair: pair[0], default=None)
    return None if best is None else LayerThenAdd(*best, node)


def check_add(match: LayerThenAdd, scope: Scope) -> str | None:
    shapes = [scope.shapes.shape(node) for node in match.nodes]
    if None in shapes or len(set(shapes)) != 1:
        return f"shapes {shapes[0]} and {shapes[1]} are broadcast"
    if len({scope.shapes.dtype(node) for node in match.nodes}) != 1:
        return "the operands have different dtypes"
    return None


def carry_residual(match: LayerThenAdd, scope: Scope) -> str:
    _fuse(match.layer, None, scope.editor)
    match.add.prepend(match.layer)  # the residual may be computed after the layer stood
    match.layer.args = (match.layer.args[0], match.other)
    scope.editor.absorb(match.layer, match.add)
    scope.editor.replace(match.add, match.layer)
    return f"residual '{match.other.name}' joins '{match.layer.name}'"


def _fuse(node: Node, activation: Activation | None, editor: Editor) -> None:
    layer = module_of(node)
    assert layer is not None
    if isinstance(layer, tuple(FUSED.values())):
        fused = type(layer).of(layer, activation)  # type: ignore[attr-defined]
    else:
        fused = fuse(layer, activation)
    editor.set_module(node, fused)


@dataclass(frozen=True)
class Fuse(RulePass):
    """Joins residual additions and activations to the convolutions and linears before them."""

    name: ClassVar[str] = "fuse"
    semantics: ClassVar[Semantics] = Semantics.CLOSE
    requires: ClassVar[frozenset[Property]] = frozenset({Property.FUNCTIONAL})
    establishes: ClassVar[frozenset[Property]] = frozenset({Property.FUSED})

    def rules(self) -> Rules:
        return Rule("fuse-residual", find_add, carry_residual, check_add) + Rule(
            "fuse-activation", find_activation, carry_activation, check_activation
        )
