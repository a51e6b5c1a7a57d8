"""Running a graph on channel labels.

Every axis of a parameter starts with labels of its own. Operations that move data move the labels; operations that
combine values at the same place tie them; a contraction ties both sides of the contracted axis and ends it; whatever
nobody has taught, and the outputs, pin them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from fxcompress.analysis.channels.labels import FIXED, Array, Labels
from fxcompress.analysis.channels.nodes import called, canonical_names, creates, is_sound, shapes_of
from fxcompress.analysis.channels.value import Value, axes, on_axis, squeezed, widened
from fxcompress.analysis.shapes import Shapes, attribute
from fxcompress.ir.view import Op, view

Handler = Callable[["LabelRun", Op], Any]


@dataclass(frozen=True)
class Read:
    """A place where labels end: ``node`` reads ``operand`` along ``axis``.

    ``contract``: the channels are summed over against weights or another tensor, so a removed one counts as zero.
    ``statistic``: they feed a mean, a norm or a softmax, which after a removal runs over the kept ones.
    """

    node: Node
    operand: Node
    axis: int
    how: Literal["contract", "statistic"]


@dataclass(frozen=True)
class Pin:
    """Labels that cannot be removed because of ``node``."""

    labels: Array
    why: str
    node: Node


class LabelRun:
    """One run over a graph; ``values`` holds the labels of every node's tensors afterwards."""

    def __init__(self, module: GraphModule, shapes: Shapes, handlers: dict[str, Handler]) -> None:
        self.module, self.shapes, self.handlers = module, shapes, handlers
        self.labels = Labels()
        self.values: dict[Node, Any] = {}
        self.reads: list[Read] = []
        self.pins: list[Pin] = []
        self.planes: list[tuple[Array, Node]] = []  # factors over several axes, which must become pure along one
        self.parts: list[Array] = []  # labels of pieces of a tensor, of each of which something must stay
        self.parameters: dict[tuple[str, int], Array] = {}
        self.node: Node  # the one that runs now
        self.names = canonical_names(module)

    def run(self) -> None:
        for node in self.module.graph.nodes:
            self.node = node
            self.values[node] = self._value(node)
            for value in pytree.tree_leaves(self.values[node]):
                if isinstance(value, Value):
                    self.note_planes(value)
        self._flatten_planes()
        self._pin_collapsed()

    def note_planes(self, value: Value) -> None:
        """Remember that a tensor of these labels exists, so that it must stay a rectangle."""
        self.planes += [(f, self.node) for f in value.factors if len(axes(f)) > 1]

    def _value(self, node: Node) -> Any:
        if node.op == "placeholder":
            return self.unlabelled(node)
        if node.op == "get_attr":
            found = attribute(self.module, str(node.target))
            return self.parameter(str(node.target), found) if isinstance(found, Tensor) else found
        if node.op == "output":
            for self.node in node.all_input_nodes:
                self.pin_all([self.node], "it reaches the output")
            return None
        op = view(node)
        handler = self.handlers.get(op.kind) if op is not None else None
        if creates(node) is not None:
            return self._created()
        why = self._unknown(node)
        if why is not None or op is None or handler is None:
            return self.barrier(why or f"{called(node, self.module)} is not an operation whose channels are known")
        try:
            found = handler(self, op)
        except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
            # Arguments that a rule does not expect; what it has tied so far ties too much, never too little.
            return self.barrier(f"{op.kind} has arguments that the rules cannot follow ({type(error).__name__}: {error})")
        if shapes_of(found) != shapes_of(self.shapes.value(node)) or not all(map(is_sound, pytree.tree_leaves(found))):
            return self.barrier(f"{op.kind} gives a shape that the rules cannot follow")
        return found

    def _unknown(self, node: Node) -> str | None:
        """Why no rule applies: a shape that depends on data, or an empty tensor."""
        tensors = [t for n in (node, *node.all_input_nodes) for t in pytree.tree_leaves(self.shapes.value(n)) if isinstance(t, Tensor)]
        reason = self.shapes.reason(node)
        if reason is not None:
            return f"the shape of its result is not known ({reason})"
        return None if all(t.numel() > 0 for t in tensors) else "a tensor without elements"

    def _created(self) -> Any:
        """A tensor of equal values can lose any of its positions."""
        value = self.unlabelled(self.node)
        return Value(value.shape, self.free((1,) * value.rank, value.shape)) if isinstance(value, Value) else value

    def free(self, old: Sequence[int], shape: Sequence[int]) -> tuple[Array, ...]:
        """Labels of their own for the axes along which one position is repeated: they go with whatever they meet."""
        grown = [a for a, (before, size) in enumerate(zip(old, shape, strict=True)) if before == 1 < size]
        return tuple(on_axis(self.labels.fresh(shape[a]), a, len(shape)) for a in grown)

    def disjoint(self, value: Value) -> Value:
        """One factor for each axis: what shares an axis with other channels behind a view cannot be removed."""
        if is_sound(value):
            return value
        owned = self._owned()
        kept: list[Array] = []
        for factor in sorted(value.factors, key=lambda f: not np.isin(self.labels.find(f), owned).any()):
            if any(set(axes(factor)) & set(axes(other)) for other in kept):
                self.pin(factor, "a view puts it on one axis with other channels")
            else:
                kept.append(factor)
        return Value(value.shape, tuple(kept))

    def _owned(self) -> Array:
        """The labels that parameters have."""
        return self.labels.find(np.concatenate([np.zeros(0, dtype=np.int64), *map(np.ravel, self.parameters.values())]))

    # -- what a handler asks for ----------------------------------------------------------------------------------

    def of(self, operand: Any) -> Any:
        """An operand with nodes replaced by their values; sizes are those of the example inputs."""
        return torch.fx.node.map_arg(operand, lambda n: self.values[n]) if operand is not None else None

    def tensor(self, op: Op, name: str) -> Value | None:
        """The operand ``name`` of an operation, whether it comes from the graph or is a parameter of its module."""
        if name in op.spec.parameters and op.module is not None:
            found = getattr(op.module, name, None)
            window = 2 if name == "weight" and op.kind in ("conv", "conv_transpose") else None  # no channels from this axis on
            return self.parameter(f"{op.node.target}.{name}", found, window) if isinstance(found, Tensor) else None
        value = self.of(op.operands.get(name))
        return value if isinstance(value, Value) else None

    def need(self, op: Op, name: str) -> Value:
        """:meth:`tensor` of an operand that a rule cannot do without."""
        value = self.tensor(op, name)
        if value is None:
            raise TypeError(f"its {name} is no tensor")
        return value

    def name_of(self, path: str) -> str:
        """The canonical name of a parameter or buffer: tied ones share it."""
        return self.names.get(id(attribute(self.module, path)), path)

    def parameter(self, path: str, tensor: Tensor, stop: int | None = None) -> Value:
        """Labels for every axis of a parameter or buffer before the axis ``stop``; tied names have the same ones."""
        name = self.names.get(id(tensor), path)
        factors = []
        for axis, size in enumerate(tensor.shape[:stop]):
            if size > 1:
                if (name, axis) not in self.parameters:
                    self.parameters[name, axis] = self.labels.fresh(size)
                factors.append(on_axis(self.parameters[name, axis], axis, tensor.ndim))
        return Value(tuple(tensor.shape), tuple(factors))

    def result(self, factors: Iterable[Array] = ()) -> Value:
        """The node's tensor with these factors."""
        shape = self.shapes.shape(self.node)
        assert shape is not None
        return Value(shape, tuple(f for f in factors if axes(f)))

    def unlabelled(self, node: Node) -> Any:
        known = self.shapes.value(node)
        return pytree.tree_map(lambda v: Value(tuple(v.shape)) if isinstance(v, Tensor) else v, known)

    # -- what a handler says --------------------------------------------------------------------------------------

    def barrier(self, why: str) -> Any:
        """Give up on this node: nothing that it reads can be removed."""
        self.pin_all(self.node.all_input_nodes, why)
        if self.node.op == "call_module":
            module = self.module.get_submodule(str(self.node.target))
            for name, tensor in (*module.named_parameters(), *module.named_buffers()):
                self.pin_value(self.parameter(f"{self.node.target}.{name}", tensor), why)
        return self.unlabelled(self.node)

    def pin_all(self, nodes: Iterable[Node], why: str) -> None:
        for value in pytree.tree_leaves([self.values[n] for n in nodes]):
            if isinstance(value, Value):
                self.pin_value(value, why)

    def pin_value(self, value: Value, why: str) -> None:
        for factor in value.factors:
            self.pin(factor, why)

    def pin(self, labels: Array, why: str) -> None:
        self.pins.append(Pin(labels.ravel(), why, self.node))

    def read(self, operand: Any, axis: int, how: Literal["contract", "statistic"]) -> None:
        """Note that labels along ``axis`` of an operand (a node of the graph; parameters have no node) end here."""
        if isinstance(operand, Node):
            self.reads.append(Read(self.node, operand, axis, how))

    # -- ties -----------------------------------------------------------------------------------------------------

    def tie(self, left: Array, right: Array) -> None:
        """Labels at the same place go together; what stands beside FIXED is pinned."""
        left, right = np.broadcast_arrays(left, right)
        beside = np.concatenate([right[(left == FIXED) & (right != FIXED)], left[(right == FIXED) & (left != FIXED)]])
        if beside.size:
            self.pin(beside, "it is combined with values that no parameter owns")
        self.labels.unite(left, right)

    def settle(self, value: Value) -> Value:
        """The value with the labels as they are tied by now; axes on which they no longer depend have size 1."""
        settled = self.settled(value)
        if len(settled.factors) < len(value.factors):
            for factor in value.factors:
                roots = self.labels.find(factor)
                if (roots == roots.flat[0]).all():
                    self.pin(roots.flat[:1], "all its channels go together")
        return settled

    def settled(self, value: Value) -> Value:
        """:meth:`settle` without noting what has become one class."""
        factors = (squeezed(self.labels.find(factor)) for factor in value.factors)
        return Value(value.shape, tuple(f for f in factors if axes(f)))

    def level(self, factor: Array, over: Iterable[int]) -> Array:
        """Make a factor independent of the axes ``over`` by tying what lies along them."""
        for axis in over:
            first = factor.take([0], axis)
            self.tie(first, factor)
            factor = first
        return factor

    def purify(self, value: Value, special: Iterable[int]) -> Value:
        """Where labels vary along a special axis and along others, make them independent of the special ones.

        An axis is special when the operation contracts, normalises or mixes along it: whole heads can go, not
        slices of every head.
        """
        value, special = self.settle(value), set(special)
        factors = []
        for factor in value.factors:
            over = special & set(axes(factor))
            factors.append(self.level(factor, over) if over and set(axes(factor)) - special else factor)
        return Value(value.shape, tuple(factors))

    def merge(self, values: Sequence[Value], shape: tuple[int, ...] | None = None) -> Value:
        """Tie values that are combined element by element, with broadcasting."""
        shape = shape if shape is not None else self.result().shape
        rank = len(shape)
        wide = [Value((1,) * (rank - v.rank) + v.shape, tuple(widened(f, rank) for f in v.factors)) for v in values]
        wide = [self._lean_left(self.settle(v), [o for o in wide if o is not v]) for v in wide]
        for i, one in enumerate(wide):
            for j, other in enumerate(wide):
                if i != j:
                    self._meet(one, other, tie=i < j)
        return Value(shape, self._joined([f for v in wide for f in v.factors]))

    def _lean_left(self, value: Value, others: Sequence[Value]) -> Value:
        """Where a factor over several axes meets one that lacks its leftmost axis, keep that axis free.

        The leftmost of (heads, head_dim) or (channels, height, width) is the one whose slices people remove; a rotary
        embedding over head_dim shall not tie all heads together.
        """
        if all(len(axes(factor)) == 1 for factor in value.factors):
            return value
        factors = []
        for factor in value.factors:
            first, *rest = axes(factor)
            for other in others:
                met = [g for g in other.factors if set(axes(g)) & set(rest)] if rest else []
                if any(first not in axes(g) for g in met):
                    factor = self.level(factor, set(rest) & {a for g in met for a in axes(g)} & set(axes(factor)))
            factors.append(factor)
        return self.settle(Value(value.shape, tuple(factors)))

    def _meet(self, one: Value, other: Value, *, tie: bool) -> None:
        for factor in one.factors:
            full = [a for a in axes(factor) if other.shape[a] > 1]
            met = [g for g in other.factors if set(axes(g)) & set(full)]
            if met:
                for g in met if tie else ():
                    self.tie(factor, g)
            elif full and len(full) < len(axes(factor)):
                self.level(factor, full)
            elif full:
                self.pin(factor, "it is combined with a tensor whose channels are fixed")

    def _joined(self, factors: list[Array]) -> tuple[Array, ...]:
        """One factor for each set of factors that share an axis; they are tied by now."""
        joined: list[Array] = []
        for factor in sorted(factors, key=lambda f: -len(axes(f))):
            if not any(set(axes(factor)) & set(axes(other)) for other in joined):
                joined.append(factor)
        return tuple(joined)

    def contract(self, terms: Sequence[tuple[Any, Value, str]], result: str) -> Value:
        """A sum of products as in einsum: ``terms`` are (operand, its value, one letter per axis)."""
        sizes: dict[str, int] = {}
        for _, value, letters in terms:
            for letter, size in zip(letters, value.shape, strict=True):
                sizes[letter] = max(size, sizes.get(letter, 1))
        pure = []
        for operand, value, letters in terms:
            summed = [a for a, letter in enumerate(letters) if letter not in result]
            pure.append((operand, self.purify(value, summed), letters))
        for letter in dict.fromkeys("".join(letters for _, _, letters in terms)):
            self._meet_along(letter, pure, summed=letter not in result)
        factors = []
        for _, value, letters in pure:
            for factor in value.factors:
                if all(letters[a] in result for a in axes(factor)):
                    factors.append(_transposed(factor, letters, result))
        return Value(tuple(sizes[letter] for letter in result), self._joined(factors))

    def _meet_along(self, letter: str, terms: Sequence[tuple[Any, Value, str]], *, summed: bool) -> None:
        """Tie what the terms have along one letter; pin it where one of them has nothing that could be removed."""
        having = [(o, v, s) for o, v, s in terms if letter in s and v.shape[s.index(letter)] > 1]
        found = [[_transposed(f, s, _letters(terms)) for f in v.along(s.index(letter))] for _, v, s in having]
        flat = [f for group in found for f in group]
        for other in flat[1:]:
            self.tie(flat[0], other)
        if flat and not all(found):
            self.pin(flat[0], "it is multiplied with a tensor whose channels are fixed")
        elif flat and summed:
            for operand, value, letters in having:
                if isinstance(value, Value):
                    self.read(operand, letters.index(letter), "contract")

    def _flatten_planes(self) -> None:
        """A tensor stays a rectangle only if its labels vary along one axis: the longest one, where nothing has decided it."""
        changed = True
        while changed:
            changed = False
            for plane, node in self.planes:
                self.node = node
                small = squeezed(self.labels.find(plane))
                varying = axes(small)
                if len(varying) > 1:
                    keep = max(varying, key=lambda a: small.shape[a])
                    self.level(small, [a for a in varying if a != keep])
                    changed = True

    def _pin_collapsed(self) -> None:
        """A tensor all of whose channels go together would be left empty."""
        for node, values in self.values.items():
            self.node = node
            for value in pytree.tree_leaves(values):
                for factor in value.factors if isinstance(value, Value) else ():
                    roots = self.labels.find(factor).ravel()
                    if (roots == roots[0]).all():
                        self.pin(roots[:1], "all its channels go together")


def _letters(terms: Sequence[tuple[Any, Value, str]]) -> str:
    return "".join(dict.fromkeys("".join(letters for _, _, letters in terms)))


def _transposed(factor: Array, letters: str, order: str) -> Array:
    """The factor with its axes in the order of the letters ``order``; axes that it lacks have size 1."""
    present = [letter for letter in order if letter in letters]
    absent = [letter for letter in letters if letter not in order]
    moved = factor.transpose([letters.index(letter) for letter in (*present, *absent)])
    sizes = dict(zip(present, moved.shape, strict=False))
    return moved.reshape([sizes.get(letter, 1) for letter in order])
