"""What is not as it was at nodes that are the same: what they call, how they are set, their tensors and what they give."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from fxcompress.compare import quantization
from fxcompress.compare.correspondence import Correspondence
from fxcompress.compare.matching import GroupMatch
from fxcompress.compare.places import place, places
from fxcompress.compare.schema import Json, NodeRecord
from fxcompress.compare.tensors import Tensors
from fxcompress.report import diff_notes
from fxcompress.report.difference import Change, Group, NodeChange


def changed(nodes: Correspondence, tensors: Tensors) -> tuple[NodeChange, ...]:
    """Matched nodes outside of groups at which something has changed, in the order of base."""
    found = []
    for pair in nodes.free_pairs():
        changes = node_changes(nodes, tensors, pair.base, pair.head)
        if changes:
            found.append(NodeChange(place(nodes.base, pair.base), place(nodes.head, pair.head), pair.confidence, changes))
    return tuple(found)


def groups(nodes: Correspondence, tensors: Tensors) -> tuple[Group, ...]:
    """Nodes that became other nodes together, with the changes of those that stand for them."""
    found = [_group(nodes, tensors, group) for group in nodes.matching.groups]
    return tuple(sorted(found, key=lambda g: [[p.index for p in side] for side in (g.base, g.head)]))


def _group(nodes: Correspondence, tensors: Tensors, group: GroupMatch) -> Group:
    base, head = places(nodes.base, group.base), places(nodes.head, group.head)
    pair = nodes.anchor(group)
    if nodes.partner.get(pair[0]) == pair[1]:
        changes = node_changes(nodes, tensors, *pair)
    else:  # nobody stands for anybody: only what the group gives can be compared
        changes = tuple(_noted(quantization.values(nodes, *nodes.results(group), [Change("target", "")])))
    return Group(base, head, diff_notes.group_kind(base, head), group.confidence, changes)


def node_changes(nodes: Correspondence, tensors: Tensors, base: int, head: int) -> tuple[Change, ...]:
    """Everything that has changed from node ``base`` to node ``head``, operands aside."""
    was, now = nodes.base.nodes[base], nodes.head.nodes[head]
    resized = list(tensors.changes(base, head))
    own = [*_target(was, now), *_attributes(was, now, _resizes(resized)), *resized]
    found = [*own, *quantization.values(nodes, base, head, own)]
    return tuple(_noted(found))


def _noted(changes: Iterable[Change]) -> Iterator[Change]:
    return (replace(change, note=diff_notes.note(change)) for change in changes)


def _target(was: NodeRecord, now: NodeRecord) -> Iterator[Change]:
    if was.target != now.target:
        yield Change("target", "", was.target, now.target)
    elif was.kind != now.kind and was.attributes == now.attributes:
        yield Change("target", "kind", was.kind, now.kind)


def _resizes(changes: list[Change]) -> set[tuple[int, int]]:
    """The sizes of the dimensions of tensors that were and are."""
    both = [(change.base["shape"], change.head["shape"]) for change in changes if change.base and change.head]
    return {(old, new) for was, now in both for old, new in zip(was, now, strict=False) if old != new}


def _attributes(was: NodeRecord, now: NodeRecord, resizes: set[tuple[int, int]]) -> Iterator[Change]:
    """Settings that differ; not numbers of channels that only say what the shape of a weight says, and of another class only those that
    both have."""
    other_inputs = len(was.inputs) != len(now.inputs)
    mine, its = was.attributes.keys(), now.attributes.keys()
    for name in sorted(mine | its if was.target == now.target else mine & its):
        old, new = was.attributes.get(name), now.attributes.get(name)
        given = name in was.attributes, name in now.attributes
        if (_equal(old, new) and given[0] == given[1]) or (other_inputs and all(given) and _equal(_settings(old), _settings(new))):
            continue
        if was.target != now.target and _equal(_spread(old, new), _spread(new, old)):
            continue
        if not (type(old) is int and type(new) is int and (old, new) in resizes):
            yield Change("attribute", name, old, new)


def _equal(old: Json, new: Json) -> bool:
    """Of one type too: 1, 1.0 and True are three settings. NaN is itself."""
    if type(old) is not type(new):
        return False
    if isinstance(old, dict):
        return old.keys() == new.keys() and all(_equal(old[key], new[key]) for key in old)
    if isinstance(old, list):
        return len(old) == len(new) and all(map(_equal, old, new))
    return bool(old == new) or (old != old and new != new)


def _spread(value: Json, other: Json) -> Json:
    """A number as the list that another class has in its place: 3 is [3, 3]."""
    return [value] * len(other) if isinstance(other, list) and not isinstance(value, list) else value


def _settings(value: Json) -> Json:
    """``value`` without the nodes in it: which they are is a matter of operands."""
    if isinstance(value, dict):
        return {key: _settings(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_settings(item) for item in value if not _is_operand(item)]
    return "$" if _is_operand(value) else value


def _is_operand(value: Json) -> bool:
    return isinstance(value, str) and value[:1] == "$" and value[1:2] != "$"
