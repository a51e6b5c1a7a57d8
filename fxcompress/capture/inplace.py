"""In-place operations written out of place, where nobody can tell the difference.

``x += y`` makes a new value for the same Python name. The recorder sends every later use of the object through the
in-place node, so the node may be replaced by ``x + y`` unless another tensor that shares the memory (a view, a
parameter) is used afterwards. Where one is, ``v.add_(y)`` becomes ``v[...] = v + y``, which torch.fx never drops.
"""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

from fxcompress.capture.recorder import Recorder
from fxcompress.capture.targets import out_of_place, writes_in_place


def functionalise(recorder: Recorder) -> None:
    """Rewrite the in-place nodes of the recorded graph and drop what nobody uses."""
    graph, memory = recorder.graph, recorder.memory
    order = {node: index for index, node in enumerate(graph.nodes)}
    groups: dict[int, list[fx.Node]] = {}
    for node, storage in memory.items():
        groups.setdefault(storage, []).append(node)

    def seen_later(node: fx.Node) -> bool:
        """Whether memory that ``node`` writes is read afterwards under another name."""
        peers = groups.get(memory.get(node, -1), [])
        return any(
            peer.op == "get_attr" or any(order.get(user, -1) > order[node] for user in peer.users)
            for peer in peers
            if peer is not node and order.get(peer, -1) < order[node]
        )

    for node in list(graph.nodes):
        if node.op in ("call_function", "call_method") and writes_in_place(node.op, node.target, dict(node.kwargs)):
            _rewrite(graph, node, seen_later(node), node in recorder.same_dtype)
    _drop_dead(graph, seen_later)


def _rewrite(graph: fx.Graph, node: fx.Node, seen_later: bool, same_dtype: bool) -> None:
    written = out_of_place(node) if same_dtype else None
    if written is None:
        return
    op, target = written
    if not seen_later:
        node.op, node.target = op, target
        return
    destination = node.args[0]
    assert isinstance(destination, fx.Node)
    with graph.inserting_before(node):
        value = graph.create_node(op, target, node.args, dict(node.kwargs))
        write = graph.create_node("call_function", operator.setitem, (destination, ..., value))  # type: ignore[arg-type]
    for made in (value, write):
        made.meta = dict(node.meta)
    node.replace_all_uses_with(destination)
    graph.erase_node(node)


def _drop_dead(graph: fx.Graph, seen_later: Any) -> None:
    for node in reversed(list(graph.nodes)):
        if node.users or node.op in ("placeholder", "output"):
            continue
        if node.op == "call_function" and node.target is not operator.setitem and node.is_impure(False):
            continue
        writes = node.op in ("call_function", "call_method") and writes_in_place(node.op, node.target, dict(node.kwargs))
        if not writes or not (node.target is operator.setitem or seen_later(node)):
            graph.erase_node(node)
