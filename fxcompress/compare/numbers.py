"""How far the outputs of two versions are apart on the same seeded inputs, and where along the graph that begins.

Equal is what rounding cannot tell apart. Two machines round differently: they order sums as their kernels do, and an int8 network may
step to the next integer. So when the graphs and all tensors are the same, only what no rounding explains counts (the tolerances of
:mod:`fxcompress.ir.numbers` for the dtype, 20 dB where there are integers): then the operations themselves compute something else. When
the graphs differ, all that is above the rounding of a few operations is told; one weight that changed is seen by its digest, not here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from fxcompress.compare.correspondence import Correspondence
from fxcompress.compare.drops import along, first_drop
from fxcompress.compare.exact import exact_outputs
from fxcompress.compare.prints import of_prints
from fxcompress.compare.schema import Port, Snapshot
from fxcompress.ir import numbers as ir_numbers
from fxcompress.report.difference import NumbersChange, OutputNumbers

# Relative L2 differences. Prints hold float32, so nothing can be said of less than 1e-6.
_ROUNDING = {"float16": 2e-3, "bfloat16": 2e-2}
_LEAST = 1e-6
_MACHINES = {"float64": _LEAST, "float16": ir_numbers.HALF_TOLERANCE, "bfloat16": ir_numbers.HALF_TOLERANCE}
_INTEGERS = 0.1
_DEPTH_DB = 20.0  # what the rounding of many operations and the estimate may add up to at a node


def numbers(nodes: Correspondence, *, same: bool) -> NumbersChange:
    """Compare the numbers of both snapshots. ``same``: nothing else differs."""
    base, head = nodes.base.numbers, nodes.head.numbers
    why = _why_not(nodes.base, nodes.head, same=same)
    if base is None or head is None or why:
        return NumbersChange(note=why)
    ports = nodes.base.contract.outputs
    names = labels(ports)
    limits = {name: _equal_db(nodes.base, port.dtype, same=same) for name, port in zip(names, ports, strict=True)}
    found = [of_prints(name, a, b) for name, a, b in zip(names, base.outputs, head.outputs, strict=True)]
    skipped = [name for name, one in zip(names, found, strict=True) if one is None]
    told = [one for one in found if one is not None and _differs(one, limits)]
    note = f"outputs of another size: {', '.join(skipped)}" if skipped else ""
    if same and not told:
        return NumbersChange(note=note)
    exact = exact_outputs(nodes.base, nodes.head, names, told)
    told = [one for one in exact if _differs(one, limits)]
    path = along(nodes, min(limits.values(), default=math.inf) - _DEPTH_DB)
    drops = first_drop(nodes, path)
    return NumbersChange(tuple(told), path, drops[1], None, note, drops[0])


def labels(ports: Sequence[Port]) -> list[str]:
    """The names of outputs; their places where several have one name."""
    often = Counter(port.name for port in ports)
    return [port.name if often[port.name] == 1 else port.place for port in ports]


def _differs(one: OutputNumbers, limits: dict[str, float]) -> bool:
    """Whether an output is further apart than ``limits`` (in dB, by its name) allow, seen from either side."""
    if one.sqnr_db is None or one.sqnr_head_db is None:
        return False
    return not min(one.sqnr_db, one.sqnr_head_db) >= limits[one.name]


def _equal_db(base: Snapshot, dtype: str, *, same: bool) -> float:
    """The SQNR above which two outputs count as equal."""
    relative = _ROUNDING.get(dtype, _LEAST)
    if same:
        relative = _INTEGERS if _has_grids(base) else _MACHINES.get(dtype, ir_numbers.FLOAT32_TOLERANCE)
    return -20 * math.log10(relative)


def _has_grids(snapshot: Snapshot) -> bool:
    return any(value.grid is not None for node in snapshot.nodes for value in node.outputs)


def _why_not(base: Snapshot, head: Snapshot, *, same: bool) -> str:
    """Why the numbers of two snapshots cannot be compared; "" when they can, or when neither side asked for any."""
    was, now = base.numbers, head.numbers
    if was is None and now is None:
        return ""
    if was is None or now is None:
        return "not compared: one of both snapshots was taken without numbers"
    if len(was.outputs) != len(now.outputs) or len(was.outputs) != len(base.contract.outputs):
        return "not compared: there are not as many outputs"
    if (was.generator, was.seed, was.digest, was.count) != (now.generator, now.seed, now.digest, now.count):
        return "not compared: the seeded inputs are not the same on both sides"
    return ""
