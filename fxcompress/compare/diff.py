"""What is different between two snapshots."""

from __future__ import annotations

from dataclasses import replace

from fxcompress.compare import changes, numbers, rewiring
from fxcompress.compare.contract import contract, cost
from fxcompress.compare.correspondence import Correspondence
from fxcompress.compare.latency import latency as measure
from fxcompress.compare.matching import Matching, match
from fxcompress.compare.places import places
from fxcompress.compare.schema import Snapshot
from fxcompress.compare.sides import sides
from fxcompress.compare.tensors import Tensors
from fxcompress.report.difference import Difference


def diff(base: Snapshot, head: Snapshot, *, matching: Matching | None = None, latency: bool = False) -> Difference:
    """Everything that differs from ``base`` to ``head``; ``diff(head, base)`` is its inverse.

    Names of nodes, modules and tensors do not count: one function under other names gives an empty difference.

    Args:
        matching: which node is which, where it is known already.
        latency: time both; both graphs must be at hand (taken in this process, not read from a file).

    Raises:
        InputError: latency is asked of a snapshot without its graph.
    """
    matching = match(base, head) if matching is None else matching
    nodes = Correspondence(base, head, matching)
    tensors = Tensors(nodes)
    found = Difference(
        base=base.model,
        head=head.model,
        base_nodes=len(base.nodes),
        head_nodes=len(head.nodes),
        matched=len(matching.pairs),
        added=places(head, matching.added),
        removed=places(base, matching.removed),
        changed=changes.changed(nodes, tensors),
        rewired=rewiring.rewired(nodes),
        moved=rewiring.moved(nodes),
        groups=changes.groups(nodes, tensors),
        contract=contract(base, head),
        cost=cost(base, head),
        sides=sides(base, head, matching),
    )
    seen = numbers.numbers(nodes, same=found.same_function)
    return replace(found, numbers=replace(seen, latency=measure(base, head) if latency else None))
