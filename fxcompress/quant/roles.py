"""What each node of a graph could be in integers: a layer, a mover of data, a mean, an elementwise operation, or nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from fxcompress.analysis import Aliases, Shapes
from fxcompress.ir.effects import written_operand
from fxcompress.ir.fused import FUSED
from fxcompress.ir.ops import Trait
from fxcompress.ir.view import Op, activation_of, module_of, view

__all__ = ["LAYERS", "Reader", "Reading", "Role"]

LAYERS = (*FUSED, *FUSED.values())
"""The classes of layers that have an integer form."""


class Role(Enum):
    """How a node can take part in an integer region."""

    LAYER = "computes with integers, and gives integers or float as its readers want"
    MEAN = "reduces integers, and gives integers or float as its readers want"
    MAP = "computes integers from integers, element by element"
    MOVE = "moves integers without looking at them"
    META = "looks at shapes only"
    FLOAT = "computes in float"


@dataclass(frozen=True)
class Reading:
    """A node read for quantization.

    Attributes:
        operands: the nodes whose values must be integers if the node is to compute with integers.
        free: operands that may be integers or float whatever the node does.
        why: what a float node lacks.
    """

    role: Role
    operands: tuple[Node, ...] = ()
    free: tuple[Node, ...] = ()
    why: str = ""


@dataclass
class Reader:
    """Reads nodes; see :class:`Reading`."""

    shapes: Shapes
    aliases: Aliases
    _known: dict[Node, Reading] = field(default_factory=dict)

    def read(self, node: Node) -> Reading:
        if node not in self._known:
            self._known[node] = self._read(node)
        return self._known[node]

    def float32(self, node: Any) -> bool:
        """Whether a node gives a float32 tensor, or several, and nobody writes into it in place."""
        if not isinstance(node, Node) or self.aliases.is_written(node):
            return False
        value = self.shapes.value(node)
        values = value if isinstance(value, (tuple, list)) and value else [value]
        return all(isinstance(v, Tensor) and v.dtype == torch.float32 and v.numel() > 0 for v in values)

    def rank(self, node: Node) -> int:
        shape = self.shapes.shape(node)
        return -1 if shape is None else len(shape)

    def _read(self, node: Node) -> Reading:
        if node.op in ("placeholder", "get_attr", "output"):
            return _float(f"it is the graph's {node.op}" if node.op != "get_attr" else "it is a constant")
        op = view(node)
        if op is None:
            kind = type(module_of(node)).__name__ if node.op == "call_module" else str(getattr(node.target, "__name__", node.target))
            return _float(f"{kind} has no integer form")
        if Trait.META in op.spec.traits:
            return _meta(op)
        if written_operand(node) is not None or not self.float32(node):
            return _float("it does not give a float32 tensor" if written_operand(node) is None else "it writes in place")
        rows: tuple[Callable[[Op], Reading | None], ...] = (self._layer, self._mean, self._map, self._move)
        found = next((reading for row in rows if (reading := row(op)) is not None), _float(f"{op.kind} has no integer form"))
        odd = next((n for n in (*found.operands, *found.free) if not self.float32(n)), None)
        return found if odd is None else _float(f"'{odd.name}' is no float32 tensor that stays as it is")

    def _layer(self, op: Op) -> Reading | None:
        layer: Any = op.module
        if type(layer) not in LAYERS:
            return None
        found = layer_operands(op.node)
        if found is None:
            return _float("it is called in an unusual way")
        x, residual = found
        weight: Tensor = layer.weight
        wanted = 2 if op.kind == "linear" else weight.dim()
        if self.rank(x) < wanted or (op.kind == "conv" and self.rank(x) != wanted):
            return _float("its input has no batch axis")
        if weight.dtype != torch.float32 or not weight.numel():
            return _float("its weights are not float32")
        return Reading(Role.LAYER, (x,), () if residual is None else (residual,))

    def _mean(self, op: Op) -> Reading | None:
        if op.kind not in ("mean", "avg_pool", "adaptive_avg_pool"):
            return None
        if mean_plan(op, self.rank(op.input)) is None:
            return _float(f"this form of {op.kind} has no integer form")
        return Reading(Role.MEAN, (op.input,))

    def _map(self, op: Op) -> Reading | None:
        if op.kind in ("add", "mul"):
            a, b = op["input"], op["other"]
            if not isinstance(a, Node) or not isinstance(b, Node) or (op.kind == "add" and op["alpha"] != 1):
                return _float(f"{op.kind} of other than two tensors has no integer form")
            large, small = (a, b) if self._size(a) >= self._size(b) else (b, a)
            gate = op.kind == "mul" and self._size(small) < self._size(large)
            return Reading(Role.MAP, (large,), (small,)) if gate else Reading(Role.MAP, (a, b))
        return None if activation_of(op.node) is None else Reading(Role.MAP, (op.input,))

    def _size(self, node: Node) -> int:
        value = self.shapes.value(node)
        return value.numel() if isinstance(value, Tensor) else -1

    def _move(self, op: Op) -> Reading | None:
        check = MOVES.get(op.kind)
        if check is None:
            return None
        refusal = check(op)
        if refusal is not None:
            return _float(refusal)
        moved = op["tensors"] if op.kind in ("cat", "stack") else (op.input,)
        if not isinstance(moved, (tuple, list)) or not all(isinstance(n, Node) for n in moved):
            return _float(f"{op.kind} of what is no list of tensors")
        others = [n for n in op.node.all_input_nodes if n not in moved]
        if op.kind not in ("expand_as", "view_as") and any(self._is_float(n) for n in others):
            return _float(f"{op.kind} by float numbers has no integer form")
        if op.kind == "max_pool" and max_pool_numbers(op, self.rank(op.input)) is None:
            return _float("this form of max_pool has no integer form")
        return Reading(Role.MOVE, tuple(moved))

    def _is_float(self, node: Node) -> bool:
        value = self.shapes.value(node)
        return value is None or isinstance(value, float) or (isinstance(value, Tensor) and value.is_floating_point())


def layer_operands(node: Node) -> tuple[Node, Node | None] | None:
    """Input and residual of a call of a layer; None where it is written in another way."""
    values: tuple[Any, ...] = (*node.args, *node.kwargs.values())
    names = (*("input", "residual")[: len(node.args)], *node.kwargs)
    if not 1 <= len(values) <= 2 or not all(isinstance(v, Node) for v in values) or not set(names) <= {"input", "x", "residual"}:
        return None
    found = dict(zip(names, values, strict=True))
    x = found.get("input", found.get("x"))
    return None if x is None else (x, found.get("residual"))


def main_operand(node: Node) -> Node:
    """The input of a layer."""
    found = layer_operands(node)
    assert found is not None
    return found[0]


def _float(why: str) -> Reading:
    return Reading(Role.FLOAT, why=why)


def _meta(op: Op) -> Reading:
    """Of what looks at shapes; a dtype is another thing in integers."""
    if op.kind in ("size", "dim", "numel", "ndimension") or (op.kind == "getattr" and op["name"] in ("shape", "ndim", "device")):
        return Reading(Role.META)
    return _float("it looks at more than the shape")


# -- movers: kind -> why this form of it does not move integers as they are ----------------------------------------------


def _always(op: Op) -> str | None:
    return None


def _no_dtype(op: Op) -> str | None:
    """``view(dtype)`` looks at the bits."""
    return "it reads the bits of a tensor" if any(isinstance(a, torch.dtype) for a in (*op.node.args, *op.node.kwargs.values())) else None


def _pad(op: Op) -> str | None:
    if op["mode"] != "constant" or op["value"] in (None, 0):
        return None
    return f"it pads with {op['value']}, not with zero"


def _pad_module(op: Op) -> str | None:
    value = getattr(op.module, "value", 0)
    return None if value == 0 else f"it pads with {value}, not with zero"


def _max_pool(op: Op) -> str | None:
    return "it gives indices" if op.operands.get("return_indices") else None


def _nearest(op: Op) -> str | None:
    return None if op["mode"] in ("nearest", "nearest-exact") and not op["antialias"] else f"{op['mode']} resizing computes new values"


_PLAIN_MOVES = """
    identity contiguous clone detach reshape flatten unflatten permute transpose t squeeze unsqueeze expand expand_as view_as getitem
    select movedim narrow chunk split tensor_split unbind cat stack repeat repeat_interleave roll flip index_select pixel_shuffle
    pixel_unshuffle channel_shuffle
"""

MOVES: dict[str, Callable[[Op], str | None]] = {
    **dict.fromkeys(_PLAIN_MOVES.split(), _always),
    "view": _no_dtype,
    "pad": _pad,
    "pad_module": _pad_module,
    "max_pool": _max_pool,
    "interpolate": _nearest,
}
"""Operations whose results are among the values of their operands (or zero), and run on uint8 tensors as well."""


# -- means ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MeanPlan:
    """The mean over ``dims``, or pooling with ``arguments`` (names as of the integer module)."""

    kind: str
    arguments: dict[str, Any]


def mean_plan(op: Op, rank: int) -> MeanPlan | None:
    """What the integer form of a mean or an average pooling needs to know; None where it has none."""
    if rank < 1 or any(isinstance(v, Node) for name, v in op.operands.items() if name != "input"):
        return None
    if op.kind == "mean":
        return _mean_over(op, rank)
    spatial = rank - 2
    if not 1 <= spatial <= 3 or not _fits_rank(op, spatial):
        return None
    if op.kind == "adaptive_avg_pool":
        size = op["output_size"]
        sizes = tuple(size) if isinstance(size, (tuple, list)) else (size,) * spatial
        if all(n == 1 for n in sizes):
            return MeanPlan("mean", {"dims": tuple(range(-spatial, 0)), "keepdim": True})
        return MeanPlan("adaptive_avg_pool", {"output_size": sizes}) if all(n is None or isinstance(n, int) for n in sizes) else None
    kernel = _numbers(op["kernel_size"], spatial)
    stride = kernel if op["stride"] in (None, (), []) else _numbers(op["stride"], spatial)
    arguments = {"kernel_size": kernel, "stride": stride, "padding": _numbers(op["padding"], spatial)}
    flags = {"ceil_mode": bool(op["ceil_mode"]), "count_include_pad": bool(op["count_include_pad"])}
    return MeanPlan("avg_pool", {**arguments, **flags, "divisor": op.operands.get("divisor_override")})


def _mean_over(op: Op, rank: int) -> MeanPlan | None:
    dim = op["dim"]
    dims = tuple(range(rank)) if dim is None else (dim,) if isinstance(dim, int) else tuple(dim)
    if not dims or not all(isinstance(d, int) for d in dims):
        return None
    return MeanPlan("mean", {"dims": dims, "keepdim": bool(op["keepdim"])})


def max_pool_numbers(op: Op, rank: int) -> dict[str, Any] | None:
    """The arguments of the integer form of a max pooling; None where it has none."""
    spatial = rank - 2
    if not 1 <= spatial <= 3 or not _fits_rank(op, spatial):
        return None
    kernel = _numbers(op["kernel_size"], spatial)
    stride = kernel if op["stride"] in (None, (), []) else _numbers(op["stride"], spatial)
    numbers = {"kernel_size": kernel, "stride": stride}
    numbers |= {name: _numbers(op[name], spatial) for name in ("padding", "dilation")}
    if not all(isinstance(n, int) for values in numbers.values() for n in values):
        return None
    return {**numbers, "ceil_mode": bool(op["ceil_mode"])}


def _fits_rank(op: Op, spatial: int) -> bool:
    """Whether the input has a batch axis: the pooling is of as many dimensions as its name says."""
    name = type(op.module).__name__ if op.module is not None else str(getattr(op.node.target, "__name__", op.node.target))
    return name.endswith(f"{spatial}d")


def _numbers(value: Any, count: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return values * count if len(values) == 1 else values
