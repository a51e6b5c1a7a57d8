"""One change of a node as a sentence: what is told of all nodes that have such a change, and what of each by itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeGuard

from fxcompress.report.diff_values import Name, Phrase, between, dims, joined, percent, value_text

if TYPE_CHECKING:
    from fxcompress.report.difference import Change


_ORDER = ("target", "mode", "attribute", "quantization", "dtype", "tensor", "shape")
"""What is changed, the worst first."""


@dataclass(frozen=True)
class Sentence:
    """``subjects``: the settings or tensors it is about, ``says``: what is told of all nodes, ``detail``: of one among others, ``note``:
    only where a node has a line for itself. ``rank``: smaller is worse, first among all changes, then among those of one sort."""

    says: Phrase
    detail: Phrase = ()
    note: Phrase = ()
    rank: tuple[float, ...] = (0,)
    subjects: tuple[Name, ...] = ()

    @property
    def what(self) -> Phrase:
        """ "weight, bias resized"."""
        return (*joined([(name,) for name in self.subjects]), *self.says)


def sentences(changes: Sequence[Change]) -> list[Sentence]:
    """The changes of one node; what is the same of several settings or tensors is told once."""
    same: dict[tuple[Phrase, Phrase, Phrase], Sentence] = {}
    for change in _without_own(changes):
        made = _ranked(sentence(change), change)
        key = (made.says, made.detail, made.note)
        if made.subjects and key in same:
            made = replace(same[key], subjects=(*same[key].subjects, *made.subjects), rank=min(made.rank, same[key].rank))
        same[key] = made
    return list(same.values())


def _ranked(made: Sentence, change: Change) -> Sentence:
    sort = _ORDER.index(change.what) if change.what in _ORDER else len(_ORDER)
    # what is not a number is worse than any amount
    amount = math.inf if change.amount is None or math.isnan(change.amount) else change.amount
    return replace(made, rank=(sort, *made.rank, -amount))


def _without_own(changes: Sequence[Change]) -> list[Change]:
    """``changes`` of one node; where another thing is called, the settings and tensors that only one of the two has are one remark."""
    target = next((change for change in changes if change.what == "target"), None)
    if target is None:
        return list(changes)
    own = [c.what in ("attribute", "tensor") and (c.base is None or c.head is None) for c in changes]
    lost = [c.name for c in changes if c.what == "tensor" and c.head is None]
    new = [c.name for c in changes if c.what == "tensor" and c.base is None]
    parts = [target.note, f"without {', '.join(lost)}" if lost else "", f"with new {', '.join(new)}" if new else ""]
    remark = replace(target, note=", ".join(part for part in parts if part))
    return [remark if c is target else c for c, gone in zip(changes, own, strict=True) if not gone]


def sentence(change: Change) -> Sentence:
    """One change in words; its rank only among those of its sort."""
    makers = {"tensor": _tensor, "quantization": _quantization, "shape": _shape, "dtype": _dtype, "attribute": _attribute}
    return makers.get(change.what, _other)(change)


def _note(change: Change) -> Phrase:
    return (change.note,) if change.note else ()


def _other(change: Change) -> Sentence:
    if (change.base, change.head) == (None, None):
        return Sentence((change.what, *_of(change)), (), _note(change))
    word = () if change.what == "target" else (change.what, " ")
    return Sentence((*word, *between(change.base, change.head)), (), _note(change))


def _of(change: Change) -> Phrase:
    """Which output, where it is not the only one."""
    return (" of ", Name(change.name)) if change.name not in ("", "output") else ()


def _attribute(change: Change) -> Sentence:
    return Sentence((), between(change.base, change.head), _note(change), subjects=(Name(change.name),))


def _dtype(change: Change) -> Sentence:
    return Sentence((*between(change.base, change.head), *_of(change)), (), _note(change), (0 if change.note == "widened" else 1,))


def _shape(change: Change) -> Sentence:
    return Sentence(("shape", *_of(change)), _shapes(change.base, change.head), _note(change))


def _shapes(base: Any, head: Any) -> Phrase:
    if not (_is_shape(base) and _is_shape(head)):
        return between(base, head)
    return (Name(dims(base)), " -> ", Name(dims(head)))


def _is_shape(value: Any) -> TypeGuard[Sequence[int]]:
    return isinstance(value, (list, tuple)) and all(isinstance(size, int) for size in value)


def _quantization(change: Change) -> Sentence:
    base, head = change.base, change.head
    if head is None:
        return Sentence((f"float instead of {_bits(base)}", *_of(change)), (), (), (0,))
    if base is None:
        return Sentence((f"{_bits(head)} instead of float", *_of(change)), (), (Name(value_text(head)),), (3,))
    if _bits(base) != _bits(head):
        return Sentence((f"{_bits(base)} -> {_bits(head)}", *_of(change)), (), _note(change), (1,))
    if isinstance(base, dict) and isinstance(head, dict) and base.get("zero_point") == head.get("zero_point"):
        return Sentence(("scale", *_of(change)), between(base.get("scale"), head.get("scale")), _by(change), (2,))
    return Sentence(("scale and zero point", *_of(change)), between(_grid(base), _grid(head)), _by(change), (2,))


def _bits(grid: Any) -> str:
    bits = grid.get("bits") if isinstance(grid, dict) else None
    return f"int{bits}" if isinstance(bits, int) else "quantized"


def _grid(grid: Any) -> Any:
    return [grid.get("scale"), grid.get("zero_point")] if isinstance(grid, dict) else grid


def _by(change: Change) -> Phrase:
    return (f"by {percent(change.amount)}",) if change.amount is not None else ()


def _tensor(change: Change) -> Sentence:
    name, base, head = (Name(change.name),), change.base, change.head
    if base is None and head is not None:
        return Sentence((" new",), ("(", _kind(head), ")"), (), (1,), name)
    if head is None and base is not None:
        return Sentence((" gone",), ("(", _kind(base), ")"), (), (0,), name)
    if not (isinstance(base, dict) and isinstance(head, dict)):
        return Sentence((" changed",), _about(change), _note(change), (2,), name)
    if base.get("dtype") != head.get("dtype"):
        types = (Name(str(base.get("dtype"))), " -> ", Name(str(head.get("dtype"))))
        resized = _shapes(base.get("shape"), head.get("shape")) if base.get("shape") != head.get("shape") else ()
        return Sentence((" ", *types), resized, _note(change), (1,), name)
    if base.get("shape") != head.get("shape"):
        return Sentence((" resized",), _shapes(base.get("shape"), head.get("shape")), _note(change), (1,), name)
    return Sentence((" changed",), _about(change), () if change.note == "estimated" else _note(change), (2,), name)


def _about(change: Change) -> Phrase:
    if change.amount is None:
        return ()
    return (f"by {'about ' if change.estimated else ''}{percent(change.amount)}",)


def _kind(tensor: Any) -> str:
    if not isinstance(tensor, dict):
        return Name(value_text(tensor))
    shape = tensor.get("shape")
    return Name(f"{value_text(tensor.get('dtype'))} {dims(shape) if _is_shape(shape) else value_text(shape)}")
