"""Decides what computes with integers, and puts observers on the values that integers will hold.

An observer gives its input back. It is off until ``calibrate`` runs the graph on data. Layers that will be quantized become the
observed form of themselves, so what was decided can be seen in the graph; why it was decided is in the remarks, for every node.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch.fx import GraphModule, Node

from fxcompress.ir.edit import Editor
from fxcompress.ir.view import module_of
from fxcompress.pipeline import Pass, PassContext, PassResult, Property, Remark, Semantics
from fxcompress.quant.affine import weight_limit
from fxcompress.quant.costs import Costs
from fxcompress.quant.observed import observed
from fxcompress.quant.observers import Observer, observer
from fxcompress.quant.patterns import fits
from fxcompress.quant.placement import Placement, place
from fxcompress.quant.roles import Role, main_operand
from fxcompress.targets.int8_speed import Int8Speed
from fxcompress.targets.latency_cache import cache_path

ObserverName = Literal["min-max", "moving-average", "percentile", "histogram", "sqnr", "entropy"]
WeightObserverName = Literal["min-max", "mse"]
Speed = Literal["table", "measure", "none"]


@dataclass(frozen=True)
class Observe(Pass):
    """Inserts observers.

    Options:
        bits: of activations, 2 to 8.
        weight_bits: of weights, 2 to 8.
        observer: how the range of an activation is chosen.
        weight_observer: how the range of each output channel of a weight is chosen.
        ignore: patterns of names of layers that stay in float.
        only: patterns of names of layers that may be quantized; empty for all.
        speed: whether integers must be faster, by a table or by measuring on this machine; ``none``: all layers that can be int8 are.
    """

    name: ClassVar[str] = "observe"
    semantics: ClassVar[Semantics] = Semantics.EXACT
    requires: ClassVar[frozenset[Property]] = frozenset({Property.FUNCTIONAL, Property.FUSED})
    establishes: ClassVar[frozenset[Property]] = frozenset({Property.OBSERVED})
    forbids: ClassVar[frozenset[Property]] = frozenset({Property.OBSERVED, Property.LOWERED})
    bits: int = 8
    weight_bits: int = 8
    observer: ObserverName = "sqnr"
    weight_observer: WeightObserverName = "min-max"
    ignore: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    speed: Speed = "table"

    def __post_init__(self) -> None:
        observer(self.observer, self.bits)  # wrong numbers are answered here
        weight_limit(self.weight_bits)

    def run(self, module: GraphModule, ctx: PassContext) -> PassResult:
        if any(isinstance(child, Observer) for child in module.modules()):
            return PassResult(module, False, remarks=(Remark(False, "graph", "it has observers already"),))
        speed = None if self.speed == "none" else Int8Speed(self.speed, cache_path("int8.json"))
        found = place(module, ctx.analyses, Costs(speed), self._excluded)
        if speed is not None:
            speed.store()
        editor = Editor(module)
        remarks = tuple(_remarks(found))
        layers = [node for node in module.graph.nodes if node in found.integer and found.readings[node].role is Role.LAYER]
        if not layers:
            return PassResult(module, False, remarks=remarks)
        self._mark(layers, editor)
        for node in found.observe:
            _stand_on(node, found, observer(self.observer, self.bits).eval(), editor)
        editor.finish()
        return PassResult(module, True, remarks=remarks)

    def _excluded(self, node: Node) -> str | None:
        name = str(node.target)
        if fits(name, self.ignore) or fits(node.name, self.ignore):
            return "it is among those to ignore"
        if self.only and not fits(name, self.only) and not fits(node.name, self.only):
            return "it is not among the only ones to quantize"
        return None

    def _mark(self, layers: list[Node], editor: Editor) -> None:
        """Give every layer its observed form; the calls of one module that are quantized stay calls of one module."""
        by_path: dict[str, list[Node]] = {}
        for node in layers:
            by_path.setdefault(str(node.target), []).append(node)
        for nodes in by_path.values():
            layer = module_of(nodes[0])
            assert layer is not None
            editor.set_modules(nodes, observed(layer, self.weight_bits, self.weight_observer))


def _stand_on(node: Node, found: Placement, watcher: Observer, editor: Editor) -> None:
    """Let those who want integers read ``node`` through an observer, or all if its value leaves it as integers."""
    after = _behind(node)
    users = list(node.users)
    watch = editor.call_module(f"observer.{node.name}", watcher, (node,), before=after, of=[node])
    for user in users:
        if node in found.made:
            user.replace_input_with(node, watch)
        elif user in found.integer and found.readings[user].role is Role.LAYER:
            _replace_main(user, node, watch)
        elif user in found.integer and node in found.readings[user].operands:
            user.replace_input_with(node, watch)


def _replace_main(user: Node, node: Node, watch: Node) -> None:
    """A layer's residual stays in float when it is there in float."""
    if main_operand(user) is not node:
        return
    if user.args:
        user.args = (watch, *user.args[1:])
    else:
        user.kwargs = {**user.kwargs, next(key for key in user.kwargs if key != "residual"): watch}


def _behind(node: Node) -> Node:
    """The first node that may stand behind the value: arguments of the graph stay together."""
    after = node.next
    while node.op == "placeholder" and after.op == "placeholder":
        after = after.next
    return after


def _remarks(found: Placement) -> Iterable[Remark]:
    for node, reading in found.readings.items():
        if node.op not in ("call_module", "call_function", "call_method") or reading.role is Role.META:
            continue
        integer = node in found.integer
        yield Remark.on(node, f"{'int8' if integer else 'float'}: {found.why[node]}", applied=integer)
