"""What callers rely on: inputs, outputs, the signature of forward and the mode."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import SequenceMatcher

from fxcompress.compare.schema import Port, Snapshot
from fxcompress.report.difference import ContractChange, CostChange


def contract(base: Snapshot, head: Snapshot) -> tuple[ContractChange, ...]:
    """How the contract of ``head`` differs from that of ``base``."""
    was, now = base.contract, head.contract
    found = [*_ports("input", was.inputs, now.inputs), *_ports("output", was.outputs, now.outputs)]
    if was.structure != now.structure:
        found.append(ContractChange("output", "structure", "", was.structure, now.structure))
    if was.signature != now.signature:
        found.append(ContractChange("signature", "structure", "", was.signature, now.signature))
    if base.training != head.training:
        found.append(ContractChange("model", "mode", "", _mode(base), _mode(head)))
    return tuple(found)


def cost(base: Snapshot, head: Snapshot) -> tuple[CostChange, ...]:
    """Figures that are not what they were."""
    names = ("params", "macs", "weight_bytes", "peak_bytes")
    figures = [(name, int(getattr(base.cost, name)), int(getattr(head.cost, name))) for name in names]
    return tuple(CostChange(*figure) for figure in figures if figure[1] != figure[2])


def _mode(snapshot: Snapshot) -> str:
    return "train" if snapshot.training else "eval"


def _ports(where: str, was: tuple[Port, ...], now: tuple[Port, ...]) -> Iterator[ContractChange]:
    for old, new in _aligned(was, now):
        if old is None or new is None:
            name = new.name if old is None and new is not None else old.name if old is not None else ""
            yield ContractChange(where, "count", name, _text(old), _text(new))
            continue
        renamed = new.name if new.name != old.name else ""
        if renamed:
            yield ContractChange(where, "name", old.name, old.name, new.name, renamed)
        elif old.place != new.place:
            yield ContractChange(where, "structure", old.name, old.place, new.place)
        if old.shape != new.shape:
            yield ContractChange(where, "shape", old.name, list(old.shape), list(new.shape), renamed)
        if old.dtype != new.dtype:
            yield ContractChange(where, "dtype", old.name, old.dtype, new.dtype, renamed)


def _text(port: Port | None) -> str | None:
    return None if port is None else f"{port.dtype} {'x'.join(map(str, port.shape)) or 'scalar'}"


def _aligned(was: tuple[Port, ...], now: tuple[Port, ...]) -> Iterator[tuple[Port | None, Port | None]]:
    """Ports by their place where there are as many; else by name, always the longer side first, so that both directions agree."""
    if len(was) == len(now):
        yield from zip(was, now, strict=True)
        return
    longer = len(was) > len(now)
    first, second = (was, now) if longer else (now, was)
    opcodes = SequenceMatcher(None, [p.name for p in first], [p.name for p in second], autojunk=False).get_opcodes()
    for _, a1, a2, b1, b2 in opcodes:
        for step in range(max(a2 - a1, b2 - b1)):
            one, other = (first[a1 + step] if a1 + step < a2 else None), (second[b1 + step] if b1 + step < b2 else None)
            yield (one, other) if longer else (other, one)
