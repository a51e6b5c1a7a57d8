"""How operations that move data are written in ONNX: reshape, transpose, slice, join, pad, resize, and tensors made from sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fxcompress.targets.onnx_ops import Table, composite, spread
from fxcompress.targets.onnx_trace import Writer
from fxcompress.targets.onnx_values import Dim, NotWritten, Value

END = 2**62  # "to the end" in Slice


def _sizes(args: Sequence[Any]) -> list[Any]:
    """``view(2, 3)`` and ``view((2, 3))`` alike."""
    return list(args[0]) if len(args) == 1 and isinstance(args[0], list | tuple) else list(args)


# ---- shapes


def write_reshape(w: Writer, input: Value, sizes: Sequence[Any]) -> str:
    """Reshape with as few computed sizes as possible: 0 keeps the size of the same axis, -1 takes the last free one."""
    wanted: list[Any] = list(sizes)
    zeros = any(isinstance(size, int) and size == 0 for size in wanted)
    for axis, size in enumerate(wanted):
        if isinstance(size, Dim) and size.source == (input.name, axis) and not zeros:
            wanted[axis] = 0
    free = [axis for axis, size in enumerate(wanted) if isinstance(size, Dim)]
    if len(free) == 1 and not any(isinstance(size, int) and size == -1 for size in wanted):
        wanted[free[0]] = -1
    return w.node("Reshape", [input.name, w.size_vector(wanted)], allowzero=1 if zeros else None)


def _reshape(w: Writer, input: Value, *shape: Any, **named: Any) -> str:
    sizes = _sizes(named.get("shape", shape))
    if len(sizes) == 1 and isinstance(sizes[0], torch.dtype):
        raise NotWritten("view as another dtype")
    return write_reshape(w, input, sizes)


def _flatten(w: Writer, input: Value, start_dim: int = 0, end_dim: int = -1) -> str:
    start, end = start_dim % max(input.ndim, 1), end_dim % max(input.ndim, 1)
    return write_reshape(w, input, [*input.shape[:start], -1, *input.shape[end + 1 :]])


def _unflatten(w: Writer, input: Value, dim: int, sizes: Any) -> str:
    axis = dim % input.ndim
    return write_reshape(w, input, [*input.shape[:axis], *sizes, *input.shape[axis + 1 :]])


def _like(w: Writer, input: Value, other: Any) -> str:
    return write_reshape(w, input, other.shape)


def _permute(w: Writer, input: Value, *dims: Any, **named: Any) -> str:
    order = [int(d) % input.ndim for d in _sizes(named.get("dims", dims))]
    return w.node("Transpose", [input.name], perm=order)


def _transpose(w: Writer, input: Value, dim0: int = 0, dim1: int = 1) -> str:
    order = list(range(input.ndim))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return w.node("Transpose", [input.name], perm=order)


def _movedim(w: Writer, input: Value, source: Any, destination: Any) -> str:
    order = torch.movedim(torch.empty(*range(1, input.ndim + 1), device="meta"), source, destination).shape
    return w.node("Transpose", [input.name], perm=[size - 1 for size in order])


def _squeeze(w: Writer, input: Value, dim: Any = None) -> str:
    candidates = range(input.ndim) if dim is None else [d % input.ndim for d in spread(dim, 1)]
    axes = [axis for axis in candidates if all(meta.shape[axis] == 1 for meta in input.metas)]
    return w.node("Squeeze", [input.name, w.constant(axes, torch.int64)]) if axes else w.node("Identity", [input.name])


def _unsqueeze(w: Writer, input: Value, dim: int) -> str:
    return w.node("Unsqueeze", [input.name, w.constant([dim % (input.ndim + 1)], torch.int64)])


def _expand(w: Writer, input: Any, *sizes: Any) -> str:
    wanted = [1 if isinstance(size, int) and size == -1 else size for size in _sizes(sizes)]
    return w.node("Expand", [w.name_of(input), w.size_vector(wanted)])


def _expand_as(w: Writer, input: Any, other: Value) -> str:
    return _expand(w, input, *other.shape)


def _repeat(w: Writer, input: Value, *sizes: Any) -> str:
    counts, name = _sizes(sizes), input.name
    if len(counts) > input.ndim:
        name = write_reshape(w, input, [1] * (len(counts) - input.ndim) + list(input.shape))
    return w.node("Tile", [name, w.size_vector(counts)])


def _same(w: Writer, input: Value, *args: Any, **kwargs: Any) -> str:
    return w.name_of(input, w.out[0].dtype)


def _dropout(w: Writer, input: Value, p: float = 0.5, training: bool = True, inplace: bool = False) -> str:
    if training and p:
        raise NotWritten("dropout in training mode")
    return input.name


# ---- joining and cutting


def _cat(w: Writer, tensors: Any, dim: int = 0) -> str:
    rank = w.out[0].dim()
    parts = [x for x in tensors if not (x.ndim == 1 and rank != 1)]  # torch skips old-style empty tensors
    return w.node("Concat", [w.name_of(x, w.out[0].dtype) for x in parts], axis=dim % rank)


def _stack(w: Writer, tensors: Any, dim: int = 0) -> str:
    axis = w.constant([dim % w.out[0].dim()], torch.int64)
    return w.node("Concat", [w.node("Unsqueeze", [w.name_of(x, w.out[0].dtype), axis]) for x in tensors], axis=dim % w.out[0].dim())


def _cut(w: Writer, input: Value, dim: int) -> tuple[str, ...]:
    """Split into the sizes that the results have; only one axis that is a number can be cut."""
    axis = dim % input.ndim
    sizes = [part.shape[axis] for part in w.out[0]]
    int(input.shape[axis])
    if len(sizes) == 1:
        return (input.name,)
    return tuple(w.nodes_of("Split", [input.name, w.constant(sizes, torch.int64)], len(sizes), axis=axis))


def _chunk(w: Writer, input: Value, chunks: int, dim: int = 0) -> tuple[str, ...]:
    return _cut(w, input, dim)


def _split(
    w: Writer, tensor: Value, split_size_or_sections: Any = None, dim: int = 0, split_sizes: Any = None, split_size: Any = None
) -> tuple[str, ...]:
    return _cut(w, tensor, dim)


def _unbind(w: Writer, input: Value, dim: int = 0) -> tuple[str, ...]:
    axis = dim % input.ndim
    return tuple(w.node("Gather", [input.name, w.constant(i, torch.int64)], axis=axis) for i in range(int(input.shape[axis])))


def write_slice(w: Writer, name: str, axis: int, item: slice) -> str:
    step = 1 if item.step is None else item.step
    bounds = [[0 if item.start is None else item.start], [END if item.stop is None else item.stop], [axis], [step]]
    return w.node("Slice", [name, *map(w.size_vector, bounds)])


def _getitem(w: Writer, input: Any, index: Any) -> str:
    items = list(index) if isinstance(index, tuple) else [index]
    tensors = [item for item in items if isinstance(item, Value | torch.Tensor | list)]
    if len(tensors) > 1 or any(not isinstance(item, list) and item.dtype == torch.bool for item in tensors):
        raise NotWritten("indexing with masks or with several tensors")
    consumed = sum(item is not None and item is not Ellipsis for item in items)
    place = next((i for i, item in enumerate(items) if item is Ellipsis), len(items))
    items[place : place + 1] = [slice(None)] * (input.ndim - consumed)
    name, axis = w.name_of(input), 0
    for item in items:
        if item is None:
            name = w.node("Unsqueeze", [name, w.constant([axis], torch.int64)])
        elif isinstance(item, slice):
            name = name if item == slice(None) else write_slice(w, name, axis, item)
        elif isinstance(item, Value | torch.Tensor | list):
            indices = w.name_of(torch.tensor(item) if isinstance(item, list) else item, torch.int64)
            name = w.node("Gather", [name, indices], axis=axis)
            axis += (1 if isinstance(item, list) else item.ndim) - 1
        else:
            name = w.node("Gather", [name, w.name_of(item, torch.int64)], axis=axis)
            axis -= 1
        axis += 1
    return name if name != w.name_of(input) else w.node("Identity", [name])


def _narrow(w: Writer, input: Value, dim: int, start: Any, length: Any) -> str:
    return write_slice(w, input.name, dim % input.ndim, slice(start, start + length))


def _select(w: Writer, input: Value, dim: int, index: Any) -> str:
    return w.node("Gather", [input.name, w.name_of(index, torch.int64)], axis=dim % input.ndim)


def _index_select(w: Writer, input: Value, dim: int, index: Any) -> str:
    return w.node("Gather", [w.name_of(input), w.name_of(index, torch.int64)], axis=dim % input.ndim)


def _gather(w: Writer, input: Any, dim: int, index: Any, *, sparse_grad: bool = False) -> str:
    return w.node("GatherElements", [w.name_of(input), w.name_of(index, torch.int64)], axis=dim % input.ndim)


def _embedding(w: Writer, input: Value, weight: Any, *args: Any, **kwargs: Any) -> str:
    if kwargs.get("max_norm") is not None:
        raise NotWritten("embedding with max_norm")
    return w.node("Gather", [w.name_of(weight), w.name_of(input, torch.int64)], axis=0)


def _flip(w: Writer, input: Value, *dims: Any) -> str:
    name = input.name
    for dim in _sizes(dims):
        bounds = [[-1], [-END], [dim % input.ndim], [-1]]
        name = w.node("Slice", [name, *map(w.size_vector, bounds)])
    return name


def _roll(w: Writer, input: Value, shifts: Any, dims: Any = None) -> str:
    if dims is None:
        raise NotWritten("roll without dims")
    name = input.name
    for shift, dim in zip(spread(shifts, 1), spread(dims, 1), strict=True):
        axis = dim % input.ndim
        if isinstance(shift, int) and shift == 0:
            continue
        size = input.shape[axis]
        cut = size - shift % size
        parts = [write_slice(w, name, axis, slice(cut, None)), write_slice(w, name, axis, slice(None, cut))]
        name = w.node("Concat", parts, axis=axis)
    return name if name != input.name else w.node("Identity", [name])


def _pad(w: Writer, input: Value, pad: Sequence[Any], mode: str = "constant", value: float | None = None) -> str:
    modes = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
    if all(isinstance(p, int) and p == 0 for p in pad):
        return input.name
    pairs = [(0, 0)] * (input.ndim - len(pad) // 2) + [(pad[i], pad[i + 1]) for i in range(len(pad) - 2, -1, -2)]
    sizes = [pair[0] for pair in pairs] + [pair[1] for pair in pairs]
    fill = [w.constant(float(value), input.dtype)] if mode == "constant" and value else []
    return w.node("Pad", [input.name, w.size_vector(sizes), *fill], mode=modes[mode])


def _pixel_shuffle(w: Writer, input: Value, upscale_factor: int) -> str:
    return w.node("DepthToSpace", [input.name], blocksize=upscale_factor, mode="CRD")


@composite
def _pixel_unshuffle(input: Value, downscale_factor: int) -> Any:
    n, c, h, w = input.shape
    r = downscale_factor
    return input.reshape(n, c, h // r, r, w // r, r).permute(0, 1, 3, 5, 2, 4).reshape(n, c * r * r, h // r, w // r)


@composite
def _channel_shuffle(input: Value, groups: int) -> Any:
    n, c, *rest = input.shape
    return input.reshape(n, groups, c // groups, *rest).transpose(1, 2).reshape(n, c, *rest)


@composite
def _repeat_interleave(input: Value, repeats: int, dim: int) -> Any:
    axis = dim % input.ndim
    sizes = list(input.shape)
    wide = input.unsqueeze(axis + 1).expand(*sizes[: axis + 1], repeats, *sizes[axis + 1 :])
    return wide.reshape(*sizes[:axis], sizes[axis] * repeats, *sizes[axis + 1 :])


# ---- resizing


def _interpolate(
    w: Writer,
    input: Value,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> str:
    rank = input.ndim - 2
    if antialias or mode not in ("nearest", "bilinear", "linear", "trilinear", "bicubic"):
        raise NotWritten(f"interpolate with mode={mode!r}, antialias={antialias}")
    kind = {"nearest": "nearest", "bicubic": "cubic"}.get(mode, "linear")
    place = "align_corners" if align_corners else "asymmetric" if kind == "nearest" else "pytorch_half_pixel"
    options: dict[str, Any] = {"mode": kind, "coordinate_transformation_mode": place, "cubic_coeff_a": -0.75 if kind == "cubic" else None}
    options["nearest_mode"] = "floor" if kind == "nearest" else None
    if size is None and not recompute_scale_factor:
        scales = w.constant([1.0, 1.0, *(float(s) for s in spread(scale_factor, rank))], torch.float32)
        return w.node("Resize", [input.name, "", scales], **options)
    if size is None:
        raise NotWritten("interpolate with recompute_scale_factor")
    wanted = w.size_vector([*input.shape[:2], *spread(size, rank)])
    return w.node("Resize", [input.name, "", "", wanted], **options)


def _grid_sample(
    w: Writer, input: Value, grid: Any, mode: str = "bilinear", padding_mode: str = "zeros", align_corners: bool | None = None
) -> str:
    kind = {"bilinear": "linear", "nearest": "nearest", "bicubic": "cubic"}[mode]
    return w.node(
        "GridSample", [w.name_of(input), w.name_of(grid)], mode=kind, padding_mode=padding_mode, align_corners=int(bool(align_corners))
    )


# ---- tensors made from sizes


def _filled(w: Writer, sizes: Sequence[Any], value: Any) -> str:
    dtype = w.out[0].dtype
    return w.node("Expand", [w.constant(value, dtype), w.size_vector(_sizes(sizes))])


def _full_like(value: Any) -> Any:
    def write(w: Writer, input: Value, fill: Any = value, **kwargs: Any) -> str:
        return _filled(w, input.shape, fill)

    return write


def _new_full(value: Any) -> Any:
    def write(w: Writer, input: Any, *size: Any, **kwargs: Any) -> str:
        if value is None:
            return _filled(w, [size[0]], size[1])
        return _filled(w, [kwargs["size"]] if "size" in kwargs else size, value)

    return write


def _full(value: Any) -> Any:
    def write(w: Writer, *size: Any, **kwargs: Any) -> str:
        if value is None:
            return _filled(w, [size[0]], size[1] if len(size) > 1 else kwargs["fill_value"])
        return _filled(w, [kwargs["size"]] if "size" in kwargs else size, value)

    return write


def _arange(w: Writer, start: Any, end: Any = None, step: Any = 1, **kwargs: Any) -> str:
    start, end = (0, start) if end is None else (start, end)
    name = w.node("Range", [w.name_of(x, torch.int64) for x in (start, end, step)])
    return name if w.out[0].dtype == torch.int64 else w.cast(name, w.out[0].dtype)


def moves() -> Table:
    """Writers of everything that moves data."""
    table: Table = {
        "reshape": _reshape,
        "view": _reshape,
        "flatten": _flatten,
        "unflatten": _unflatten,
        "view_as": _like,
        "reshape_as": _like,
    }
    table |= {"permute": _permute, "transpose": _transpose, "swapaxes": _transpose, "t": _transpose, "movedim": _movedim}
    table |= {
        "squeeze": _squeeze,
        "unsqueeze": _unsqueeze,
        "expand": _expand,
        "expand_as": _expand_as,
        "broadcast_to": _expand,
        "repeat": _repeat,
        "tile": _repeat,
    }
    table |= dict.fromkeys(
        ("contiguous", "clone", "detach", "to", "float", "type", "type_as", "int", "long", "bool", "alias", "cpu"), _same
    )
    table |= {"dropout": _dropout, "dropout1d": _dropout, "dropout2d": _dropout, "dropout3d": _dropout, "alpha_dropout": _dropout}
    table |= {
        "cat": _cat,
        "concat": _cat,
        "concatenate": _cat,
        "stack": _stack,
        "chunk": _chunk,
        "split": _split,
        "split_with_sizes": _split,
    }
    table |= {
        "tensor_split": _chunk,
        "unbind": _unbind,
        "getitem": _getitem,
        "narrow": _narrow,
        "select": _select,
        "index_select": _index_select,
    }
    table |= {"gather": _gather, "embedding": _embedding, "flip": _flip, "roll": _roll, "pad": _pad}
    table |= {"pixel_shuffle": _pixel_shuffle, "pixel_unshuffle": _pixel_unshuffle, "channel_shuffle": _channel_shuffle}
    table |= {"repeat_interleave": _repeat_interleave, "interpolate": _interpolate, "upsample": _interpolate, "grid_sample": _grid_sample}
    table |= {
        "zeros_like": _full_like(0),
        "ones_like": _full_like(1),
        "full_like": _full_like(0),
        "new_zeros": _new_full(0),
        "new_ones": _new_full(1),
    }
    table |= {"new_full": _new_full(None), "zeros": _full(0), "ones": _full(1), "full": _full(None), "arange": _arange}
    return table
