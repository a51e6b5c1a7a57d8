"""What a difference says, in a few words, and that it reads the same from both sides."""

from __future__ import annotations

from dataclasses import fields

from fxcompress.compare.diff import diff
from fxcompress.compare.schema import Snapshot
from fxcompress.report.difference import Difference


def said(difference: Difference) -> dict[str, list[str]]:
    """What a difference says of the graph, in words of the test."""
    found = {
        "added": [p.kind for p in difference.added],
        "removed": [p.kind for p in difference.removed],
        "changed": [f"{n.head.kind}: {c.what} {c.name}".strip() for n in difference.changed for c in n.changes],
        "rewired": [f"{r.head.kind}: {r.operand}" for r in difference.rewired],
        "moved": [m.head.kind for m in difference.moved],
        "groups": [g.kind for g in difference.groups],
        "contract": [f"{c.where} {c.what}" for c in difference.contract],
    }
    return {name: lines for name, lines in found.items() if lines}


def both(base: Snapshot, head: Snapshot) -> Difference:
    """The difference, which is checked to be the inverse of that from head to base."""
    found = diff(base, head)
    back, inverse = diff(head, base), found.inverse()
    for field in fields(back):
        assert getattr(inverse, field.name) == getattr(back, field.name), field.name
    assert inverse.inverse() == found
    return found
