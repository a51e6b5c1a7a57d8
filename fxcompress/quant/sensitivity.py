"""What quantization costs, layer by layer: measured, and searched for the layers that should stay in float."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from fxcompress.errors import InputError
from fxcompress.ir.inputs import Inputs
from fxcompress.quant.affine import QParams
from fxcompress.quant.fake import FakeQuantize
from fxcompress.quant.float_form import float_form, is_fake_layer, is_fake_quantize, quantized_layers

__all__ = [
    "Budget",
    "LayerCost",
    "Sensitivity",
    "fewest_in_float",
    "layer_costs",
    "only_quantized",
    "output_sqnr",
    "partly_float",
    "sensitivity",
]


@dataclass(frozen=True)
class LayerCost:
    """What quantization does to one layer, in dB of signal over noise; inf where nothing changes.

    Attributes:
        name: the path of the layer's module.
        alone: at the output of the network, with only this layer's weights and inputs quantized.
        here: at the output of the layer, in the fully quantized network.
    """

    name: str
    alone: float
    here: float

    def __str__(self) -> str:
        return f"{self.name}: {self.alone:.1f} dB alone, {self.here:.1f} dB at its output"


@dataclass(frozen=True)
class Sensitivity:
    """``layers``, the most sensitive first; ``output`` is the SQNR of the fully quantized network in dB."""

    layers: tuple[LayerCost, ...]
    output: float

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(layer.name for layer in self.layers)

    def __str__(self) -> str:
        return "\n".join([f"output: {self.output:.1f} dB", *map(str, self.layers)])


class Noise:
    """Sums the power of values and of their errors over batches."""

    def __init__(self) -> None:
        self.signal = self.noise = 0.0

    def add(self, wanted: Any, given: Any) -> None:
        """Two values of the same structure; what is not made of floating-point numbers does not count."""
        for a, b in zip(pytree.tree_leaves(wanted), pytree.tree_leaves(given), strict=True):
            if isinstance(a, Tensor) and isinstance(b, Tensor) and a.is_floating_point():
                finite = torch.isfinite(a)
                exact = a[finite].double()
                error = float((exact - b[finite].double()).square().sum())
                self.signal += float(exact.square().sum())
                self.noise += error if math.isfinite(error) else math.inf

    @property
    def sqnr(self) -> float:
        """10 log10 of signal over noise, in dB."""
        if self.noise == 0:
            return math.inf
        return 10 * math.log10(self.signal / self.noise) if self.signal > 0 and self.noise < math.inf else -math.inf


def output_sqnr(reference: torch.nn.Module, module: torch.nn.Module, batches: Iterable[Inputs]) -> float:
    """The SQNR of the outputs of ``module`` against those of ``reference`` over all batches, in dB."""
    noise = Noise()
    with torch.no_grad():
        for batch in batches:
            noise.add(batch.clone().call(reference), batch.clone().call(module))
    return noise.sqnr


def sensitivity(fake: GraphModule, batches: Sequence[Inputs]) -> Sensitivity:
    """Measure every quantized layer of a fake-quantized graph.

    A layer's cost alone is that of its weights on their grid and its inputs (the main one and the residual) rounded, with all
    else in float. Of the network only what follows the layer is run for it. Ties are broken by the order in the graph, so the
    same graph and data give the same ranking.

    Args:
        fake: the graph that ``calibrate`` gives.
        batches: one or more; a few are enough, since only an order is wanted. Memory: all values of the float network on one.

    Raises:
        InputError: there is no batch.
    """
    if not batches:
        raise InputError("sensitivity needs data", hint="pass calibration=...: batches of typical inputs")
    names = list(dict.fromkeys(str(node.target) for node in quantized_layers(fake)))
    alone, here, whole = {name: Noise() for name in names}, {name: Noise() for name in names}, Noise()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for batch in batches:
            _measure(fake, batch, alone, here, whole)
    costs = [LayerCost(name, alone[name].sqnr, here[name].sqnr) for name in names]
    return Sensitivity(tuple(sorted(costs, key=lambda cost: cost.alone)), whole.sqnr)


def _measure(fake: GraphModule, batch: Inputs, alone: dict[str, Noise], here: dict[str, Noise], whole: Noise) -> None:
    plain = float_form(fake)
    twins = {node.name: node for node in plain.graph.nodes}
    bound = batch.clone().bind(fake.graph)
    given = _Values(fake).run(bound)
    wanted = _Values(plain).run({twins[node.name]: value for node, value in bound.items()})
    exact = {node: wanted[twins[node.name]] for node in fake.graph.nodes}
    output = next(node for node in fake.graph.nodes if node.op == "output")
    whole.add(exact[output], given[output])
    for name, noise in here.items():
        for node in _calls(fake, name):
            noise.add(exact[node], given[node])
    for name, noise in alone.items():
        noise.add(exact[output], _OneQuantized(fake, plain, _calls(fake, name)).output(exact, output))


def _calls(module: GraphModule, name: str) -> list[Node]:
    return [node for node in module.graph.nodes if node.op == "call_module" and node.target == name]


class _Values(fx.Interpreter):
    """Runs a graph and keeps all values."""

    def __init__(self, module: GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)

    def run(self, bound: dict[Node, Any]) -> dict[Node, Any]:  # type: ignore[override]
        self.env = dict(bound)
        for node in self.module.graph.nodes:  # type: ignore[union-attr]
            if node not in self.env:
                self.env[node] = self.run_node(node)
        return self.env


class _OneQuantized:
    """Computes in float, but for the calls of one layer, which reads rounded values that nobody else sees."""

    def __init__(self, fake: GraphModule, plain: GraphModule, calls: list[Node]) -> None:
        self.rounded, self.plain = fx.Interpreter(fake, garbage_collect_values=False), fx.Interpreter(plain, garbage_collect_values=False)
        self.calls, self.order = calls, list(fake.graph.nodes)

    def output(self, exact: dict[Node, Any], output: Node) -> Any:
        """What the network gives; ``exact`` holds the values of the float network."""
        behind = _downstream(self.calls)
        env = {node: value for node, value in exact.items() if node not in behind}
        for node in self.order:
            if node in behind:
                env[node] = self._call(node, env) if node in self.calls else self._run(self.plain, node, env)
        return env[output]

    def _call(self, layer: Node, env: dict[Node, Any]) -> Any:
        rounds, private = rounded_inputs(layer), dict(env)
        between = _upstream(layer, rounds)
        for node in self.order:
            if node in between:
                private[node] = self._run(self.rounded if node in rounds else self.plain, node, private)
        return self._run(self.rounded, layer, private)

    @staticmethod
    def _run(interpreter: fx.Interpreter, node: Node, env: dict[Node, Any]) -> Any:
        interpreter.env = env
        return interpreter.run_node(node)


def rounded_inputs(layer: Node, operand: Node | None = None) -> set[Node]:
    """The FakeQuantize nodes that round what a layer reads (as ``operand``): the nearest on each way up, not behind a layer."""
    found: set[Node] = set()
    pending, seen = [operand] if operand is not None else list(layer.all_input_nodes), set[Node]()
    while pending:
        node = pending.pop()
        if node in seen or is_fake_layer(node):
            continue
        seen.add(node)
        if is_fake_quantize(node):
            found.add(node)
        else:
            pending.extend(node.all_input_nodes)
    return found


def _downstream(nodes: Sequence[Node]) -> set[Node]:
    reached, pending = set(nodes), list(nodes)
    while pending:
        for user in pending.pop().users:
            if user not in reached:
                reached.add(user)
                pending.append(user)
    return reached


def _upstream(layer: Node, rounds: set[Node]) -> set[Node]:
    """What lies between the layer and the nodes that round its inputs, with these."""
    found: set[Node] = set()
    pending = list(layer.all_input_nodes)
    while pending:
        node = pending.pop()
        if node in found or is_fake_layer(node) or node.op in ("placeholder", "get_attr"):
            continue
        found.add(node)
        if node not in rounds:
            pending.extend(node.all_input_nodes)
    return found


def only_quantized(fake: GraphModule, name: str) -> GraphModule:
    """The graph with one layer quantized, which alone reads rounded values; all else is in float."""
    copy = float_form(fake, stays=lambda path: path == name)
    twins = {node.name: node for node in copy.graph.nodes}
    for node in _calls(fake, name):
        twin = twins[node.name]
        for operand in dict.fromkeys(node.all_input_nodes):
            qparams = {_qparams(fake, source) for source in rounded_inputs(node, operand)}
            if len(qparams) == 1:  # what moves data keeps the grid, so rounding may stand behind it
                fresh = f"round_{twin.name}_{operand.name}"
                copy.add_submodule(fresh, FakeQuantize(qparams.pop()))
                with copy.graph.inserting_before(twin):
                    twin.replace_input_with(twins[operand.name], copy.graph.call_module(fresh, (twins[operand.name],)))
    copy.recompile()
    return copy


def _qparams(module: GraphModule, node: Node) -> QParams:
    fake = module.get_submodule(str(node.target))
    assert isinstance(fake, FakeQuantize)
    return fake.qparams


def layer_costs(
    fake: GraphModule, batches: Sequence[Inputs], *, score: Callable[[torch.nn.Module], float] | None = None
) -> list[tuple[str, float]]:
    """What quantizing each layer alone costs, worst first: (path of the layer, cost).

    Args:
        score: higher is better; the cost is then how much of the float network's score is lost. Without it the cost is the power
            of the error over that of the output, see :func:`sensitivity`.
    """
    if score is None:
        return [(layer.name, 10 ** (-layer.alone / 10)) for layer in sensitivity(fake, batches).layers]
    names = dict.fromkeys(str(node.target) for node in quantized_layers(fake))
    best = float(score(float_form(fake)))
    costs = [(name, best - float(score(only_quantized(fake, name)))) for name in names]
    return sorted(costs, key=lambda cost: -cost[1])


# -- the budget -----------------------------------------------------------------------------------------------------------


def partly_float(fake: GraphModule, names: Iterable[str]) -> GraphModule:
    """The fake-quantized graph with some layers in float. A value that only these read is not rounded either.

    Args:
        names: paths of the modules of layers.
    """
    kept = set(names)
    copy = float_form(fake, stays=lambda path: path not in kept)
    needed = set[Node]().union(*(rounded_inputs(node) for node in quantized_layers(copy)))
    before = set[Node]().union(*(rounded_inputs(node) for node in fake.graph.nodes if is_fake_layer(node) and node.target in kept))
    free = {node.name for node in before} - {node.name for node in needed}
    for node in copy.graph.nodes:
        if node.name in free and isinstance(copy.get_submodule(str(node.target)), FakeQuantize):
            copy.set_submodule(str(node.target), torch.nn.Identity())
    return copy


@dataclass(frozen=True)
class Budget:
    """What the search found: the layers that stay in float, the score then, and every score that was asked for.

    ``holds`` is False where even the float network does not reach the wanted score.
    """

    names: tuple[str, ...]
    score: float
    wanted: float
    holds: bool
    tried: tuple[tuple[tuple[str, ...], float], ...]

    def __str__(self) -> str:
        verdict = "holds" if self.holds else "does not hold"
        kept = ", ".join(self.names) or "nothing"
        return f"{kept} in float: score {self.score:.5g}, wanted {self.wanted:.5g}, {verdict} ({len(self.tried)} evaluations)"


def fewest_in_float(ranking: Sequence[str], score: Callable[[tuple[str, ...]], float], wanted: float) -> Budget:
    """Keep the most sensitive layers in float until the score is reached, then give back those that are not needed.

    First the shortest beginning of the ranking that reaches the score, found by adding one layer after the other; then each of
    its layers, the least sensitive first, is quantized again if the score still holds without it. So no layer can be left out
    of the result, and no shorter beginning of the ranking would do.

    Args:
        ranking: names of layers, the most sensitive first, without repetition.
        score: of the network in which these layers are in float, higher is better; called once for each set.
        wanted: the score to reach.
    """
    tried: dict[frozenset[str], float] = {}

    def reached(names: Sequence[str]) -> bool:
        key = frozenset(names)
        if key not in tried:
            tried[key] = float(score(tuple(name for name in ranking if name in key)))
        return tried[key] >= wanted

    count = next((n for n in range(len(ranking) + 1) if reached(ranking[:n])), None)
    kept = list(ranking if count is None else ranking[:count])
    if count is not None:
        for name in reversed(kept[:-1]):  # without the last one it did not hold
            fewer = [other for other in kept if other != name]
            kept = fewer if reached(fewer) else kept
    order = tuple((tuple(n for n in ranking if n in key), value) for key, value in tried.items())
    return Budget(tuple(kept), tried[frozenset(kept)], wanted, count is not None, order)
