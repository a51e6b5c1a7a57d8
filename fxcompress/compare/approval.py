"""When a new snapshot says the same as an approved one, so that there is nothing to look at and no file to write."""

from __future__ import annotations

from dataclasses import replace

from fxcompress.compare.schema import Snapshot
from fxcompress.report.difference import Change, Difference, NodeChange, NumbersChange


def agree(found: Difference, base: Snapshot, head: Snapshot) -> bool:
    """Whether nothing is left to approve in ``found``, the difference of ``base`` to ``head``.

    Names may differ, and numbers of another machine within the tolerance of the comparison.
    """
    numbers = found.numbers
    nothing = found.same_function and not (found.cost or numbers.outputs or numbers.note)
    return nothing and (base.numbers is None) == (head.numbers is None) and base.schema_version == head.schema_version


def without_values(found: Difference) -> Difference:
    """The difference of structures only: neither the values of weights nor the numbers that come of them.

    For models whose weights are drawn anew in every run.
    """
    changed = [replace(node, changes=_structural(node.changes)) for node in found.changed]
    groups = tuple(replace(group, changes=_structural(group.changes)) for group in found.groups)
    return replace(found, changed=tuple(filter(_has_changes, changed)), groups=groups, numbers=NumbersChange())


def _has_changes(node: NodeChange) -> bool:
    return bool(node.changes)


def _structural(changes: tuple[Change, ...]) -> tuple[Change, ...]:
    return tuple(change for change in changes if not _of_values(change))


def _of_values(change: Change) -> bool:
    """A tensor that is of the dtype and shape that it was."""
    if change.what != "tensor" or not isinstance(change.base, dict) or not isinstance(change.head, dict):
        return False
    return all(change.base.get(key) == change.head.get(key) for key in ("dtype", "shape"))
