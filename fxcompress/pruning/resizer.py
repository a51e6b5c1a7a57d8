"""Edits the sizes that are written into a graph; the rules, one for each kind of operation, stand in ``resize``."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from fxcompress.errors import GraphError
from fxcompress.ir.verify import source_line
from fxcompress.ir.view import Op, view
from fxcompress.pruning.sizes import Sizes

Resize = Callable[["Resizer", Op], None]

FITTED = {"view", "reshape", "unflatten", "expand", "repeat", "layer_norm", "rms_norm"}  # their rules fit every number


class Resizer:
    """Edits one graph. ``node`` of the original graph is ``self.twin[node]`` here.

    A size that stands where sizes belong becomes what the shapes say. A size that is used as a number
    (``q / math.sqrt(q.size(-1))``) keeps its old value.
    """

    def __init__(self, module: GraphModule, sizes: Sizes, twin: dict[Node, Node]) -> None:
        self.module, self.sizes, self.twin = module, sizes, twin
        self._buffers = 0

    def run(self, rules: Mapping[str, Resize], created: Callable[[Resizer, Node], bool]) -> None:
        """Apply the rule of every node that is no module, and let other numbers keep their values.

        Args:
            created: the rule for calls that make a tensor; whether the node is one.
        """
        for node in self.sizes.deps.module.graph.nodes:
            known = node.op in ("call_function", "call_method") and self.sizes.shapes.reason(node) is None
            op = view(node) if known else None
            if known and created(self, node):
                continue
            if op is not None and op.kind in rules:
                rules[op.kind](self, op)
            if (op is None or op.kind not in FITTED) and not self.sizes.is_number(node):
                self.freeze(node)

    # -- what a rule asks for -----------------------------------------------------------------------------------------

    def set(self, op: Op, name: str, value: Any) -> None:
        """Give the operand ``name`` of the twin another value."""
        twin, names = self.twin[op.node], op.spec.operands
        starred = names[-1].startswith("*")
        if starred and name == names[-1][1:]:
            twin.kwargs = {k: v for k, v in twin.kwargs.items() if k != name}
            twin.args = (*twin.args[: len(names) - 1], tuple(value))
            return
        place = names.index(name)
        if place < len(twin.args) and not starred:
            twin.update_arg(place, value)
        else:
            twin.update_kwarg(name, value)

    def buffer(self, like: Node, value: Tensor) -> Node:
        """A node that reads a new buffer, which is not saved, before the twin of ``like``."""
        self._buffers += 1
        name = f"pruned_index_{self._buffers}"
        self.module.register_buffer(name, value, persistent=False)
        twin = self.twin[like]
        with twin.graph.inserting_before(twin):
            return twin.graph.get_attr(name)

    def fail(self, node: Node, why: str) -> GraphError:
        where = source_line(node)
        return GraphError(
            f"'{node.name}'{f' ({where})' if where else ''} cannot be resized: {why}",
            hint="keep its channels with ignore=, and please report the operation",
        )

    def changed_inputs(self, node: Node) -> bool:
        """Whether the node reads a number that is another one by now."""
        return any(self.sizes.changes(n) for n in node.all_input_nodes)

    # -- sizes --------------------------------------------------------------------------------------------------------

    def fit(self, op: Op, name: str, wanted: Sequence[int]) -> None:
        """Let the sizes in the operand ``name`` be ``wanted``; those that follow from the input stay as they are."""
        node, items = op.node, op[name]
        whole = items if isinstance(items, Node) else items[0] if isinstance(items, (tuple, list)) and len(items) == 1 else None
        if isinstance(whole, Node) and isinstance(self.sizes.was(whole), (tuple, list)):
            if tuple(self.sizes.number(whole)) != tuple(wanted):
                self.set(op, name, self.fitted_whole(node, whole, wanted))
            return
        single = not isinstance(items, (tuple, list))
        found = self.fitted(node, [items] if single else items, wanted)
        self.set(op, name, found[0] if single else tuple(found))

    def fitted(self, node: Node, items: Sequence[Any], wanted: Sequence[int]) -> list[Any]:
        """Size operands, one per axis, that give ``wanted``.

        A number that changes is written out; one that is computed from sizes of the input is scaled.
        """
        result: list[Any] = []
        for item, size in zip(items, wanted, strict=True):
            now = self.sizes.number(item)
            if now in (size, -1):
                result.append(self.twin[item] if isinstance(item, Node) else item)
            elif isinstance(item, Node) and not self._is_constant(item) and now:
                result.append(self._scaled(node, self.twin[item], size, now))
            else:
                result.append(size)
        return result

    def fitted_whole(self, node: Node, sizes: Node, wanted: Sequence[int]) -> tuple[Node, ...]:
        """The entries of one node that gives all sizes, each scaled where that is needed."""
        entries, twin = [], self.twin[node]
        for place, (now, size) in enumerate(zip(self.sizes.number(sizes), wanted, strict=True)):
            with twin.graph.inserting_before(twin):
                entry = twin.graph.call_function(operator.getitem, (self.twin[sizes], place))
            entries.append(entry if now in (size, -1) else self._scaled(node, entry, size, now))
        return tuple(entries)

    def _scaled(self, node: Node, number: Node, size: int, now: int) -> Node:
        common = math.gcd(size, now)
        twin = self.twin[node]
        with twin.graph.inserting_before(twin):
            times = twin.graph.call_function(operator.mul, (number, size // common))
            return twin.graph.call_function(operator.floordiv, (times, now // common)) if now != common else times

    def _is_constant(self, node: Node) -> bool:
        """Whether a number follows from channels alone, so that it is the same for every input."""
        tensors = [n for n in node.all_input_nodes if isinstance(self.sizes.shapes.value(n), Tensor)]
        if not tensors:
            return all(self._is_constant(n) for n in node.all_input_nodes) and node.op != "placeholder"
        axis = _axis_of(node)
        if axis is not None:
            return self._is_channel(tensors[0], axis)
        return all(
            user.target is operator.getitem and isinstance(user.args[1], int) and self._is_channel(tensors[0], user.args[1])
            for user in node.users
        )

    def _is_channel(self, tensor: Node, axis: int) -> bool:
        return axis % len(self.sizes.old(tensor)) in self.sizes.deps.channel_axes(tensor)

    # -- numbers that keep their value --------------------------------------------------------------------------------

    def freeze(self, node: Node) -> None:
        """Let the numbers that the twin of ``node`` reads keep their old values, where they changed."""
        changed = {self.twin[n]: n for n in node.all_input_nodes if self.sizes.changes(n)}
        if changed:
            twin = self.twin[node]
            twin.args, twin.kwargs = torch.fx.node.map_arg(
                (twin.args, twin.kwargs), lambda n: self._frozen(changed[n], node) if n in changed else n
            )

    def frozen(self, operand: Any, node: Node) -> Any:
        """An operand of the original graph for the twin of ``node``: sizes of channels as they were, others as they are in each call."""
        return torch.fx.node.map_arg(operand, lambda n: self._frozen(n, node))

    def _frozen(self, number: Node, node: Node) -> Any:
        if not self.sizes.changes(number):
            return self.twin[number]
        source = next((n for n in number.all_input_nodes if isinstance(self.sizes.shapes.value(n), Tensor)), None)
        if source is not None:
            return self._old_size(number, source, node)
        if number.op == "placeholder" or self._is_constant(number):
            return self.sizes.was(number)
        args, kwargs = self.frozen((number.args, number.kwargs), node)
        return self._call(node, number, args, kwargs)

    def _old_size(self, number: Node, source: Node, node: Node) -> Any:
        """``x.size(1)``, ``x.shape`` or ``x.numel()`` with the old channels."""
        known, kept = self.sizes.was(number), self.sizes.axes(source)
        if isinstance(known, (tuple, list)):
            twin = self.twin[node]
            with twin.graph.inserting_before(twin):
                return tuple(
                    size if axis in kept else twin.graph.call_function(operator.getitem, (self.twin[number], axis))
                    for axis, size in enumerate(known)
                )
        if _axis_of(number) is not None:
            return known
        before = math.prod(len(mask) for mask in kept.values())
        return self._scaled(node, self.twin[number], before, math.prod(int(mask.sum()) for mask in kept.values()))

    def _call(self, node: Node, number: Node, args: Any, kwargs: Any) -> Node:
        twin = self.twin[node]
        if number.op != "call_function" or not callable(number.target):
            raise self.fail(number, "a number is computed from sizes in a way that cannot be followed")
        with twin.graph.inserting_before(twin):
            return twin.graph.call_function(number.target, args, kwargs)


def _axis_of(node: Node) -> int | None:
    """The axis whose size ``x.size(axis)`` gives."""
    if node.op != "call_method" or node.target != "size":
        return None
    axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    return axis if isinstance(axis, int) else None
