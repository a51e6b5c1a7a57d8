"""Rewrites the sizes that are written into a graph so that they fit what remains: one function per kind of operation.

What follows from the shapes (``x.size(1)``) needs nothing; what is written out (``view(-1, 25088)``, ``split(32)``,
``normalized_shape``) is computed from the shapes that remain.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from fxcompress.analysis.channels.nodes import creates
from fxcompress.analysis.shapes import attribute
from fxcompress.ir.view import Op
from fxcompress.pruning.resizer import Resize, Resizer
from fxcompress.pruning.sizes import Sizes, moved, places


def _settled(r: Resizer, op: Op) -> bool:
    """Whether nothing that concerns the sizes of the node changes."""
    return r.sizes.new(op.node) == r.sizes.old(op.node) and not r.changed_inputs(op.node)


def _view(r: Resizer, op: Op) -> None:
    if not _settled(r, op):
        r.fit(op, "shape", r.sizes.new(op.node))


def _unflatten(r: Resizer, op: Op) -> None:
    if _settled(r, op):
        return
    dim = r.sizes.was(op["dim"]) % len(r.sizes.old(op.input))
    count = len(r.sizes.old(op.node)) - len(r.sizes.old(op.input)) + 1
    r.fit(op, "sizes", r.sizes.new(op.node)[dim : dim + count])


def _expand(r: Resizer, op: Op) -> None:
    if not _settled(r, op):
        r.fit(op, "sizes", r.sizes.new(op.node))


def _repeat(r: Resizer, op: Op) -> None:
    if _settled(r, op):
        return
    new, source = r.sizes.new(op.node), r.sizes.new(op.input)
    source = (1,) * (len(new) - len(source)) + source
    r.fit(op, "repeats", [size // before for size, before in zip(new, source, strict=True)])


def _squeeze(r: Resizer, op: Op) -> None:
    """``squeeze()`` names its axes, so that one that has shrunk to a single channel stays."""
    if op["dim"] is None and r.sizes.axes(op.input):
        r.set(op, "dim", tuple(axis for axis, size in enumerate(r.sizes.old(op.input)) if size == 1))


def _pieces(r: Resizer, op: Op) -> None:
    """Pieces of which some lose channels become a split with written-out sizes, unless torch cuts them so by itself."""
    node = op.node
    old = r.sizes.shapes.value(node)
    axis = r.sizes.was(op["dim"]) % old[0].ndim
    kept = r.sizes.kept(node)
    wanted = [int(k[axis].sum()) if axis in k else piece.shape[axis] for k, piece in zip(kept, old, strict=True)]
    if wanted == [piece.shape[axis] for piece in old]:
        return
    if any(size == 0 for size in wanted):
        raise r.fail(node, "one of its pieces would be empty")
    if op.kind == "chunk" and len(set(wanted)) == 1 and len(wanted) == op["chunks"]:
        return  # equal pieces
    twin = r.twin[node]
    twin.op, twin.target = "call_function", torch.split
    twin.args, twin.kwargs = (r.twin[op.input], wanted, axis), {}


# -- picking ------------------------------------------------------------------------------------------------------------


def _getitem(r: Resizer, op: Op) -> None:
    source = op.operands["input"]
    if not isinstance(source, Node) or not isinstance(r.sizes.shapes.value(source), Tensor):
        return
    items = list(op["index"]) if isinstance(op["index"], tuple) else [op["index"]]
    kept, axis = r.sizes.axes(source), 0
    result: list[Any] = []
    rank = len(r.sizes.old(source))
    for place, item in enumerate(items):
        if item is None:
            result.append(item)
        elif item is Ellipsis:
            axis = rank - sum(i is not None for i in items[place + 1 :])
            result.append(item)
        else:
            result.append(_index(r, op.node, item, kept[axis]) if axis in kept else r.frozen(item, op.node))
            axis += 1
    if kept or r.changed_inputs(op.node):
        r.set(op, "index", tuple(result) if isinstance(op["index"], tuple) else result[0])


def _index(r: Resizer, node: Node, item: Any, mask: Any) -> Any:
    """An index along an axis that loses channels."""
    known = r.sizes.was(item)
    if isinstance(known, slice):
        chosen = places(mask, range(len(mask))[known])
        return _as_slice(chosen) or r.buffer(node, torch.tensor(chosen, dtype=torch.int64, device=_device(r)))
    if isinstance(known, int):
        return moved(mask, known % len(mask))
    index = _constant(r, item)
    return r.buffer(node, _remapped(index, mask))


def _device(r: Resizer) -> torch.device:
    tensor = next((t for t in (*r.module.parameters(), *r.module.buffers())), None)
    return tensor.device if tensor is not None else torch.device("cpu")


def _constant(r: Resizer, item: Any) -> Tensor:
    if isinstance(item, Node):
        item = attribute(r.module, str(item.target))
    return item if isinstance(item, Tensor) else torch.tensor(item)


def _remapped(index: Tensor, mask: Any) -> Tensor:
    """The entries of a constant index that still exist, in the new counting."""
    index = index.long()
    kept = torch.from_numpy(mask).to(index.device)
    index = torch.where(index < 0, index + len(mask), index)
    order = torch.cumsum(kept, 0) - 1
    return order[index[kept[index]]] if index.ndim == 1 else order[index]


def _as_slice(chosen: list[int]) -> slice | None:
    if len(chosen) == 1:
        return slice(chosen[0], chosen[0] + 1, None)
    step = chosen[1] - chosen[0] if len(chosen) > 1 else 0
    if step > 0 and all(b - a == step for a, b in itertools.pairwise(chosen)):
        return slice(chosen[0], chosen[-1] + 1, None if step == 1 else step)
    return None


def _select(r: Resizer, op: Op) -> None:
    mask = r.sizes.axes(op.input).get(r.sizes.was(op["dim"]) % len(r.sizes.old(op.input)))
    if mask is not None:
        r.set(op, "index", moved(mask, r.sizes.was(op["index"]) % len(mask)))


def _narrow(r: Resizer, op: Op) -> None:
    dim, start, length = (r.sizes.was(op[name]) for name in ("dim", "start", "length"))
    mask = r.sizes.axes(op.input).get(dim % len(r.sizes.old(op.input)))
    if mask is None:
        return
    start %= len(mask)
    r.set(op, "start", moved(mask, start))
    r.set(op, "length", int(mask[start : start + length].sum()))


def _index_select(r: Resizer, op: Op) -> None:
    mask = r.sizes.axes(op.input).get(r.sizes.was(op["dim"]) % len(r.sizes.old(op.input)))
    if mask is not None:
        r.set(op, "index", r.buffer(op.node, _remapped(_constant(r, op["index"]), mask)))


# -- padding, rolling, groups -------------------------------------------------------------------------------------------


def _pad(r: Resizer, op: Op) -> None:
    kept = r.sizes.axes(op.node)
    rank = len(r.sizes.old(op.input))
    old, written = list(r.sizes.was(op["pad"])), op["pad"]
    amounts: list[Any] = [r.frozen(item, op.node) for item in written] if isinstance(written, (tuple, list)) else list(old)
    changed = False
    for i in range(len(old) // 2):
        mask, (before, after) = kept.get(rank - 1 - i), old[2 * i : 2 * i + 2]
        if mask is not None and (before or after):
            amounts[2 * i : 2 * i + 2] = [int(mask[:before].sum()), int(mask[len(mask) - after :].sum())]
            changed = True
    if changed:
        r.set(op, "pad", tuple(amounts))


def _roll(r: Resizer, op: Op) -> None:
    shifts, dims = r.sizes.was(op["shifts"]), r.sizes.was(op["dims"])
    kept = r.sizes.axes(op.input)
    if dims in ((), []):
        if kept:
            raise r.fail(op.node, "it rolls over all axes at once")
        return
    single = isinstance(shifts, int)
    pairs = list(zip((shifts,) if single else shifts, (dims,) if isinstance(dims, int) else dims, strict=True))
    masks = [kept.get(dim % len(r.sizes.old(op.input))) for _, dim in pairs]
    if all(mask is None for mask in masks):
        return
    written = [op["shifts"]] if single else list(op["shifts"])
    new = [
        r.frozen(item, op.node) if mask is None else int(mask[len(mask) - shift % len(mask) :].sum()) if shift % len(mask) else 0
        for item, mask, (shift, _) in zip(written, masks, pairs, strict=True)
    ]
    r.set(op, "shifts", new[0] if single else tuple(new))


def _normalized(r: Resizer, op: Op) -> None:
    if _settled(r, op):
        return
    old = r.sizes.was(op["normalized_shape"])
    count = len(old) if isinstance(old, (tuple, list)) else 1
    r.fit(op, "normalized_shape", r.sizes.new(op.input)[-count:])


def _groups(r: Resizer, op: Op) -> None:
    old, new = r.sizes.old(op.input), r.sizes.new(op.input)
    if old[1] == new[1]:
        return
    name = "groups" if op.kind == "channel_shuffle" else "num_groups"
    r.set(op, name, remaining_groups(int(r.sizes.was(op[name])), old[1], r.sizes.axes(op.input).get(1), new[1]))


def remaining_groups(groups: int, channels: int, mask: Any, left: int) -> int:
    """The number of groups after a removal: the same if every group lost the same places, else fewer groups of the old size."""
    if mask is None or (mask.reshape(groups, -1) == mask.reshape(groups, -1)[:1]).all():
        return groups
    return left // (channels // groups)


def _conv(r: Resizer, op: Op) -> None:
    """Functional convolutions; the number of groups follows from the weight."""
    weight, old = op["weight"], int(r.sizes.was(op["groups"]))
    if old == 1 or not isinstance(weight, Node):
        return
    axis, kernel = len(r.sizes.old(op.input)) - len(r.sizes.old(weight)) + 1, r.sizes.new(weight)
    groups = r.sizes.new(op.input)[axis] // kernel[1] if op.kind == "conv" else r.sizes.new(op.node)[axis] // kernel[1]
    if groups != r.sizes.number(op["groups"]):
        r.set(op, "groups", groups)


def _attention(r: Resizer, op: Op) -> None:
    """The default scale 1/sqrt(d) keeps the d of before."""
    query = op["query"]
    last = len(r.sizes.old(query)) - 1
    if op["scale"] is None and last in r.sizes.axes(query):
        r.set(op, "scale", 1 / math.sqrt(r.sizes.old(query)[last]))


def _created(r: Resizer, node: Node) -> bool:
    """The sizes of a tensor that a call makes, such as ``torch.zeros(n, 8)``."""
    place = creates(node)
    if place is None:
        return False
    if r.sizes.new(node) == r.sizes.old(node) and not r.changed_inputs(node):
        return True
    twin, name = r.twin[node], "size"
    written: Any = node.args[place:] if len(node.args) > place else (node.kwargs.get(name),)
    listed = len(written) > 0 and (isinstance(written[0], (tuple, list)) or isinstance(r.sizes.was(written[0]), (tuple, list)))
    rest = written[1:] if listed else ()
    items = written[0] if listed else written
    if isinstance(items, Node):
        if tuple(r.sizes.number(items)) == r.sizes.new(node):
            return True
        sizes = r.fitted_whole(node, items, r.sizes.new(node))
    else:
        sizes = tuple(r.fitted(node, list(items), r.sizes.new(node)))
    twin.args = (*twin.args[:place], sizes, *r.frozen(rest, node))
    twin.kwargs = {key: r.frozen(value, node) for key, value in node.kwargs.items() if key != name}
    return True


def resize(module: GraphModule, sizes: Sizes, twin: dict[Node, Node]) -> None:
    """Fit all sizes in the graph of ``module``, whose nodes are ``twin`` of those that ``sizes`` knows."""
    Resizer(module, sizes, twin).run(_rules(), _created)


def _rules() -> dict[str, Resize]:
    """The rule of every kind of operation that has one."""
    return {
        **dict.fromkeys(("view", "reshape"), _view),
        **dict.fromkeys(("chunk", "split", "tensor_split"), _pieces),
        **dict.fromkeys(("layer_norm", "rms_norm"), _normalized),
        **dict.fromkeys(("group_norm", "channel_shuffle"), _groups),
        **dict.fromkeys(("conv", "conv_transpose"), _conv),
        "unflatten": _unflatten,
        "expand": _expand,
        "repeat": _repeat,
        "squeeze": _squeeze,
        "getitem": _getitem,
        "narrow": _narrow,
        "select": _select,
        "index_select": _index_select,
        "pad": _pad,
        "roll": _roll,
        "attention": _attention,
    }
