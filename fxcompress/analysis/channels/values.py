"""Channel rules of arithmetic, contractions, pooling and reductions."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.fx import Node
from torch.utils import _pytree as pytree

from fxcompress.analysis.channels.layers import LETTERS, along_channels
from fxcompress.analysis.channels.run import Handler, LabelRun
from fxcompress.analysis.channels.value import Value, axes, on_axis
from fxcompress.ir.ops import Trait, table
from fxcompress.ir.view import Op


def elementwise(run: LabelRun, op: Op) -> Any:
    """Every operand at its (broadcast) place."""
    values = [v for v in pytree.tree_leaves(run.of(dict(op.operands))) if isinstance(v, Value)]
    return run.merge(values) if values else sizes(run, op)


def sizes(run: LabelRun, op: Op) -> Any:
    """Operations that give numbers, or tensors with sizes that are written out."""
    known = run.shapes.value(run.node)
    if isinstance(known, Tensor) and any(v.factors for v in pytree.tree_leaves(run.of(dict(op.operands))) if isinstance(v, Value)):
        return run.barrier(f"{op.kind} makes a tensor of it")
    return run.unlabelled(run.node)


# -- contractions -------------------------------------------------------------------------------------------------------


def matmul(run: LabelRun, op: Op) -> Any:
    first, second = (op.operands[name] for name in op.spec.operands[:2])
    return _product(run, first, second)


def _product(run: LabelRun, first: Any, second: Any) -> Any:
    left, right = run.of(first), run.of(second)
    if not (isinstance(left, Value) and isinstance(right, Value)):
        return run.barrier("a product with something that is no tensor")
    batch = LETTERS[: max(left.rank, right.rank, 2) - 2]
    rows = "x" if left.rank > 1 else ""
    columns = "z" if right.rank > 1 else ""
    one = (batch[len(batch) - max(left.rank - 2, 0) :] if left.rank > 2 else "") + rows + "y"
    two = (batch[len(batch) - max(right.rank - 2, 0) :] if right.rank > 2 else "") + "y" + columns
    return run.contract([(first, left, one), (second, right, two)], batch + rows + columns)


def addmm(run: LabelRun, op: Op) -> Any:
    first, second = (op.operands[name] for name in op.spec.operands[1:3])
    product, bias = _product(run, first, second), run.of(op["input"])
    return run.merge([product, bias]) if isinstance(bias, Value) else product


def einsum(run: LabelRun, op: Op) -> Any:
    equation, operands = op["equation"], op["operands"]
    if not isinstance(equation, str) or not all(isinstance(o, Node) for o in operands):
        return run.barrier("an einsum whose equation is computed")
    left, arrow, result = equation.replace(" ", "").partition("->")
    values = [run.of(o) for o in operands]
    terms = [_spelled(letters, v.rank) for letters, v in zip(left.split(","), values, strict=True)]
    if any(len(set(term)) < len(term) for term in terms):
        return run.barrier("an einsum that takes a diagonal")
    if not arrow:
        counts = left.replace(",", "").replace("...", "")
        result = ("..." if "..." in left else "") + "".join(sorted(c for c in set(counts) if counts.count(c) == 1))
    longest = max((t for t in terms), key=lambda t: sum(c.isdigit() for c in t))
    result = result.replace("...", "".join(c for c in longest if c.isdigit()))
    return run.contract(list(zip(operands, values, terms, strict=True)), result)


def _spelled(term: str, rank: int) -> str:
    """One letter per axis; the axes of an ellipsis are digits, counted from the right."""
    named = term.replace("...", "")
    missing = rank - len(named)
    return term.replace("...", "".join(str(i) for i in reversed(range(missing))))


# -- pooling, resizing, reductions --------------------------------------------------------------------------------------


def pool(run: LabelRun, op: Op) -> Any:
    """Pooling and resizing: every channel by itself, positions mixed."""
    value = run.need(op, "input")
    known = run.shapes.value(run.node)
    several = isinstance(known, (tuple, list))
    shape = tuple(known[0].shape if several else known.shape)
    dims = _spatial_axes(op, value.rank)
    axis = value.rank - dims - 1
    channels, batch = along_channels(run, value, axis, f"{op.kind} mixes the positions along its axis")
    factors = (*batch, *([] if channels is None else [on_axis(channels, axis, value.rank)]))
    result = Value(shape, tuple(f for f in factors if axes(f)))
    return type(known)([result] * len(known)) if several else result


def _spatial_axes(op: Op, rank: int) -> int:
    name = type(op.module).__name__ if op.module is not None else str(getattr(op.node.target, "__name__", op.node.target))
    return next((d for d in (1, 2, 3) if f"{d}d" in name), rank - 2)


def reduce(run: LabelRun, op: Op) -> Any:
    """mean, sum, max, ...: a statistic along the axes that vanish."""
    value, dim, keep = run.need(op, "input"), run.of(op.operands.get("dim")), run.of(op.operands.get("keepdim", False))
    if (dim is not None and not isinstance(dim, (int, tuple, list))) or (
        isinstance(dim, (tuple, list)) and not all(isinstance(d, int) for d in dim)
    ):
        return run.barrier(f"{op.kind} with unusual arguments")
    wanted = range(value.rank) if dim in (None, (), []) else ((dim,) if isinstance(dim, int) else dim)
    gone = {d % value.rank for d in wanted}
    value = run.purify(value, gone)
    for axis in gone:
        if value.along(axis):
            run.read(op["input"], axis, "contract" if op.kind == "sum" else "statistic")
    left = [f for f in value.factors if not set(axes(f)) & gone]
    rest = [a for a in range(value.rank) if keep or a not in gone]
    shape = tuple(1 if a in gone else value.shape[a] for a in rest)
    return Value(shape, tuple(f if keep else f.reshape([f.shape[a] for a in rest]) for f in left))


def extremum(run: LabelRun, op: Op) -> Any:
    """max and min: of two tensors, of all, or along an axis with the places, which nobody may use along channels."""
    known = run.shapes.value(run.node)
    if isinstance(run.of(op.operands.get("dim")), Value):
        return run.merge([v for v in (run.tensor(op, "input"), run.of(op["dim"])) if v is not None])
    if isinstance(known, (tuple, list)):
        if any(len(u.args) < 2 or u.args[1] not in (0, "values") for u in run.node.users):
            return run.barrier(f"{op.kind} of which the indices are used")
        found = reduce(run, op)
        return type(known)((found, Value(found.shape))) if isinstance(found, Value) else found
    return reduce(run, op)


def ordered(run: LabelRun, op: Op) -> Any:
    """cumsum, argmax, topk: along an axis in which the places count."""
    value, dim = run.tensor(op, "input"), run.of(op.operands.get("dim"))
    if value is None or not isinstance(dim, int) or op.kind == "topk":
        return run.barrier(f"{op.kind} depends on the places of its values")
    axis = dim % value.rank
    value = run.purify(value, [axis])
    for factor in value.along(axis):
        run.pin(factor, f"{op.kind} depends on the places of the channels")
    left = tuple(f for f in value.factors if f.shape[axis] == 1)
    if op.kind == "cumsum":
        return Value(value.shape, left)
    for factor in left:
        run.pin(factor, f"{op.kind} gives places")
    return run.unlabelled(run.node)


def glu(run: LabelRun, op: Op) -> Any:
    """a * sigmoid(b) of the two halves of an axis."""
    value, dim = run.need(op, "input"), run.of(op["dim"])
    axis = dim % value.rank
    half = value.shape[axis] // 2
    shape = tuple(half if a == axis else s for a, s in enumerate(value.shape))
    parts = [Value(shape, tuple(f.take(range(i, i + half), axis) if f.shape[axis] > 1 else f for f in value.factors)) for i in (0, half)]
    return run.merge(parts, shape)


def nothing(run: LabelRun, op: Op) -> Any:
    return None


def handlers() -> dict[str, Handler]:
    every = {
        row.kind
        for index in (table().modules, table().functions, table().methods, table().names)
        for row in index.values()
        if Trait.ELEMENTWISE in row.traits
    }
    created = ("arange", "linspace", "eye", "size", "dim", "numel", "ndimension", "is_floating_point")
    return {
        **dict.fromkeys(sorted(every), elementwise),
        **dict.fromkeys(created, sizes),
        **dict.fromkeys(("matmul", "bmm", "mm"), matmul),
        **dict.fromkeys(("addmm", "baddbmm"), addmm),
        **dict.fromkeys(("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "interpolate"), pool),
        **dict.fromkeys(("mean", "sum", "amax", "amin", "var", "std", "norm", "any", "all"), reduce),
        **dict.fromkeys(("max", "min"), extremum),
        **dict.fromkeys(("cumsum", "argmax", "argmin", "topk"), ordered),
        **dict.fromkeys(("assert", "expect_constant"), nothing),
        "einsum": einsum,
        "glu": glu,
    }
