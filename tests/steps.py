"""How single steps of a random network are drawn. Each maker adds steps to the pool and gives the number of its value, or None."""

from __future__ import annotations

import math
from typing import Any

from networks import ACTIVATIONS, DROPOUTS
from pool import MAX_CHANNELS, MAX_FEATURES, MAX_SIDE, Maker, Pool
from torch import Tensor


def activation(p: Pool, x: int | None = None) -> int | None:
    x = p.tensor() if x is None else x
    form = p.pick(["layer", "fn", "method"])
    free = writable(p, x)
    if form == "layer":
        kind = p.pick(list(ACTIVATIONS))
        inplace = free and kind not in ("gelu", "sigmoid", "tanh", "softplus") and p.flag()
        return p.add("act", x, kind=kind, **({"inplace": True} if inplace else {}))
    if form == "fn":
        plain = ["relu", "torch.relu", "hardswish", "silu", "relu6", "gelu", "sigmoid", "leaky_relu", "elu", "tanh", "abs"]
        name = p.pick(plain + (["relu_", "hardtanh_"] if free else []))
        extra = {"inplace": True} if free and name in ("relu", "hardswish", "silu", "relu6", "leaky_relu", "elu") and p.flag() else {}
        return p.add("fn", x, name=name, **extra)
    name = p.pick(["relu", "sigmoid", "clamp", "abs", "neg", *(["relu_", "clamp_", "sigmoid_", "tanh_"] if free else [])])
    bounds = p.pick([{"min": 0.0, "max": 6.0}, {"min": 0.0}, {"min": -1, "max": 1}, {"max": 0.5}]) if "clamp" in name else {}
    return p.add("method", x, name=name, **bounds)


def writable(p: Pool, x: int) -> bool:
    """In-place operations need memory in which no two elements coincide, and parameters are not to be written."""
    value = p.values[x]
    return x not in p.weights and all(stride or size == 1 for stride, size in zip(value.stride(), value.shape, strict=True))


def conv(p: Pool, x: int | None = None, cout: int | None = None, same_size: bool = False) -> int | None:
    x = p.tensor((3, 4)) if x is None else x
    if x is None:
        return None
    _, cin, *size = p.shape(x)
    kernel = p.pick([k for k in (1, 3, 5) if k <= 3 or not same_size])
    groups = p.pick([g for g in (1, 2, 3, cin) if cin % g == 0])
    cout = cout or (groups * p.number(1, max(1, 8 // groups)))
    if cout % groups:
        groups = 1
    dilation = 1 if same_size else p.pick([1, 2])
    padding = kernel // 2 if same_size else p.pick([0, kernel // 2, 1])
    reach = dilation * (kernel - 1) + 1
    if any(reach > s + 2 * padding for s in size):
        padding = -(-reach // 2)
    options: dict[str, Any] = {"d": len(size), "groups": groups, "dilation": dilation, "padding": padding, "bias": p.flag(True)}
    options["stride"] = 1 if same_size else p.pick([1, 2])
    if padding and padding < min(size):
        options["mode"] = p.pick(["zeros", "zeros", "reflect", "circular", "replicate"])
    defaults = {"d": 2, "groups": 1, "dilation": 1, "padding": 0, "bias": True, "stride": 1, "mode": "zeros"}
    return p.add("conv", x, cin=cin, cout=cout, kernel=kernel, **{k: v for k, v in options.items() if v != defaults[k]})


def deconv(p: Pool) -> int | None:
    x = p.tensor((3, 4), where=lambda t: max(t.shape[2:]) <= 5)
    if x is None:
        return None
    cin, d = p.shape(x)[1], len(p.shape(x)) - 2
    groups = p.pick([g for g in (1, 2, cin) if cin % g == 0])
    options = {"stride": p.pick([1, 2]), "groups": groups, "bias": p.flag(True), "d": d}
    y = p.add("deconv", x, cin=cin, cout=groups * p.number(1, 3), kernel=p.pick([1, 2, 3]), **options)
    return norm(p, y) if p.flag(True) else y


def linear(p: Pool, x: int | None = None, cout: int | None = None) -> int | None:
    x = p.tensor(where=lambda t: t.shape[-1] <= MAX_FEATURES) if x is None else x
    if x is None:
        return None
    options = {} if p.flag(True) else {"bias": False}
    name = p.pick(["linear", "linear", "flinear"])
    return p.add(name, x, cin=p.shape(x)[-1], cout=cout or p.number(1, 8), **options)


def norm(p: Pool, x: int | None = None) -> int | None:
    x = p.tensor((2, 3, 4)) if x is None else x
    if x is None or len(p.shape(x)) not in (2, 3, 4):
        return None
    _, n, *size = p.shape(x)
    many = math.prod(size) > 1  # statistics of the batch need more than one value per channel, also in a batch of one
    kinds = ["bn", "bn", "bn", "fbn", "ln", "gn"] + (["in"] if many and size else [])
    if p.train and not many:
        kinds = ["bn", "ln", "gn"]
    kind, d = p.pick(kinds), {"d": 1} if len(size) < 2 else {}
    if kind == "fbn":
        return p.add("fbn", x, n=n, **({} if p.flag(True) else {"affine": False}))
    if kind == "ln":
        return p.add(
            "ln", x, shape=p.shape(x)[p.number(1, len(size) + 1) :][-3:], **({} if p.flag(True) else {"elementwise_affine": False})
        )
    if kind == "gn":
        groups = [g for g in (1, 2, n) if n % g == 0 and n // g * math.prod(size) > 1]
        return p.add("gn", x, groups=p.pick(groups), n=n) if groups else p.add("identity", x)
    options: dict[str, Any] = dict(d)
    if p.flag(kind == "in"):
        options["affine"] = kind == "in"
    if kind == "in":
        options |= {"track_running_stats": True} if p.flag() else {}
        return p.add("in", x, n=n, **options)
    if many and p.number(0, 4) == 4:
        options["track_running_stats"] = False
    if p.train and not many:
        options["frozen"] = True
    if p.train and "track_running_stats" not in options and p.number(0, 3) == 3:
        options["frozen"] = True
    if p.number(0, 4) == 4:
        options |= p.pick([{"eps": 0.1}, {"momentum": None}])
    return p.add("bn", x, n=n, **options)


def scale_or_shift(p: Pool) -> int | None:
    x = p.tensor()
    form = p.pick(["scalar", "param", "div", "rscalar", "constant", "tree", "like"])
    values = [1, 0, 2.0, -1, 0.5, 1.0]
    names = ["mul", "add", "sub"]
    if form == "scalar":
        return p.add("scalar", x, name=p.pick(names + (["iadd", "imul", ".mul_"] if writable(p, x) else [])), value=p.pick(values))
    if form == "rscalar":
        return p.add("rscalar", x, name=p.pick(names), value=p.pick(values))
    if form == "div":
        return p.add("div", x, value=p.pick([1, 2.0, -4]))
    if form == "like":
        return p.add("like", x, name=p.pick(["ones", "full"]))
    rank = len(p.shape(x))
    channels = (p.shape(x)[1], *[1] * (rank - 2))
    shape = p.pick([channels, (1, *channels), (1,), p.shape(x)[-1:]])
    if form == "constant":
        return p.add("constant", x, shape=shape, value=p.pick([0.5, 0.0, 2.0]))
    w = p.add("param", shape=shape, buffer=p.flag(), weight=True)
    if form == "tree":
        for _ in range(p.number(1, 2)):
            w = p.pick([lambda v: p.add("scalar", v, name="mul", value=2.0), lambda v: p.add("fn", v, name="relu")])(w)
    return p.add("binary", x, w, name=p.pick(["mul", "add", "sub", "torch.mul", *(["imul", "iadd"] if writable(p, x) else [])]))


def binary(p: Pool, x: int | None = None, y: int | None = None) -> int | None:
    x = p.tensor() if x is None else x
    y = p.like(x) if y is None else y
    if p.number(0, 5) == 5:
        return p.add("scaled_add", x, y, alpha=p.pick([2, 1, 0.5, -1]))
    names = ["add", "torch.add", ".add", "mul", "sub", "torch.maximum"]
    return p.add("binary", x, y, name=p.pick(names + (["iadd", ".add_", "imul", ".sub_"] if writable(p, x) else [])))


def join(p: Pool) -> int | None:
    x = p.tensor(where=lambda t: t.shape[1] * 3 <= MAX_CHANNELS)
    if x is None:
        return None
    others = [p.like(x) for _ in range(p.number(1, 2))]
    if p.number(0, 3) == 3 and len(p.shape(x)) < 4:
        return p.add("stack", x, *others, dim=p.pick([1, -1]))
    return p.add("cat", x, *others, dim=p.pick([1, 1, -1] if p.shape(x)[-1] <= MAX_SIDE else [1]))


def part(p: Pool) -> int | None:
    x = p.tensor(where=lambda t: t.shape[1] > 1)
    if x is None:
        return None
    n = p.shape(x)[1]
    form = p.pick(["chunk", "slice", "split", "select", "unbind"])
    if form == "slice":
        start = p.number(0, n - 1)
        return p.add("slice", x, dim=1, start=p.pick([start, None]), stop=None, **p.pick([{}, {"by": 2}]))
    if form == "select":
        return p.add("select", x, dim=1, at=p.number(0, n - 1)) if len(p.shape(x)) > 2 else None
    if form == "chunk":
        parts = p.add("chunk", x, chunks=2)
    elif form == "split":
        parts = p.add("split", x, sizes=p.pick([1, (1, n - 1)]))
    elif len(p.shape(x)) > 2:
        parts = p.add("unbind", x, dim=1)
    else:
        return None
    count = len(p.values[parts])
    first = p.add("item", parts, at=p.number(0, count - 1))
    return first if p.flag() else binary(p, first, p.add("item", parts, at=0)) if p.shape(first) == p.values[parts][0].shape else first


def look(p: Pool) -> int | None:
    """A view or a permutation."""
    x = p.tensor()
    shape, value = p.shape(x), p.values[x]
    rank = len(shape)
    forms = ["flatten", "flatten_layer", "method", "permute", "transpose", "reshape", "unsqueeze", "mean", "fdropout"]
    if rank > 2:
        forms += ["mT", "rows", "einsum", "squeeze"]
    if rank == 2:
        forms += ["rows_fixed"]
    form = p.pick(forms)
    if form == "flatten":
        start = p.pick([1, rank - 1])
        return p.add("flatten", x, start=start, form=p.pick(["torch", "method"]))
    if form == "flatten_layer":
        return p.add("flatten_layer", x)
    if form == "method":
        name = p.pick(["contiguous", "clone", "detach", "to", "type_as"])
        return p.add("method", x, name=name) if name in ("contiguous", "clone", "detach") else p.add("cast", x, form=name)
    if form == "permute":
        dims = p.pick([tuple(range(rank)), (0, *range(2, rank), 1), (0, rank - 1, *range(1, rank - 1))])
        return p.add("permute", x, dims=dims)
    if form == "transpose":
        return p.add("transpose", x, a=p.number(1, rank - 1), b=p.number(1, rank - 1))
    if form == "reshape":
        rest = shape[1:]
        options = [rest, (math.prod(rest),), (-1, rest[-1]), (1, *rest)]
        return p.add("reshape", x, shape=p.pick([s for s in options if len(s) < 4]))
    if form == "unsqueeze":
        return p.add("unsqueeze", x, dim=p.pick([1, -1])) if rank < 4 else None
    if form == "squeeze":
        return p.add("squeeze", x, dim=p.number(1, rank - 1))
    if form == "mT":
        return p.add("mT", x)
    if form == "einsum":
        return p.add("einsum", x, text={3: "nab->nba", 4: "nabc->nbac"}.get(rank, "...->..."))
    if form == "rows_fixed":
        return p.add("rows_fixed", x, n=shape[1]) if value.is_contiguous() else None
    if form == "rows":
        return p.add("rows", x, form="view" if value.is_contiguous() and p.flag(True) else "reshape")
    if form == "mean":
        return p.add("mean", x, dim=p.pick([1, -1]), keepdim=True)
    return p.add("fdropout", x, p=0.3, training=p.train and p.flag(True))


def spatial(p: Pool) -> int | None:
    x = p.tensor((4,))
    if x is None:
        return None
    _, c, h, w = p.shape(x)
    form = p.pick(["adaptive", "pool", "interpolate", "shuffle", "upsample", "pad", "fpool"])
    if form == "adaptive":
        return p.add("adaptive", x, size=p.pick([1, 2]), kind=p.pick(["avg", "max"]))
    if form == "shuffle":
        groups = p.pick([g for g in (2, 3, 1) if c % g == 0])
        return p.add("shuffle", x, groups=groups, c=c, form=p.pick(["view", "reshape"])) if p.values[x].is_contiguous() else None
    if form == "pad":
        pad = p.pick([(1, 1, 1, 1), (0, 1, 0, 1), (0, 0, 0, 0)])
        return p.add("pad", x, pad=pad, mode=p.pick(["constant", "replicate"]))
    if form in ("pool", "fpool"):
        if min(h, w) < 2:
            return None
        return p.add(form, x, kernel=2, kind=p.pick(["max", "avg"]), **({"stride": 1} if form == "pool" and p.flag() else {}))
    if max(h, w) > MAX_SIDE // 2:
        return p.add("interpolate", x, size=p.pick([(3, 3), (h, w), (4, 5)]), **p.pick([{}, {"mode": "bilinear", "align_corners": True}]))
    return p.add("upsample" if form == "upsample" else "interpolate", x, scale_factor=p.pick([2, 1.0]))


def drop(p: Pool, x: int | None = None) -> int | None:
    x = p.tensor() if x is None else x
    if p.flag():
        return p.add("identity", x)
    kinds = {3: ["element", "1d", "alpha"], 4: ["element", "2d", "alpha"]}.get(len(p.shape(x)), ["element", "alpha"])
    assert set(kinds) <= set(DROPOUTS)
    return p.add("dropout", x, p=p.pick([0.4, 0.0]), kind=p.pick(kinds), **({"inplace": True} if writable(p, x) and p.flag() else {}))


def attention(p: Pool) -> int | None:
    x = p.tensor((3,), where=lambda t: t.shape[-1] <= 24)
    if x is None:
        return None
    width = p.shape(x)[-1]
    return p.add("attention", x, width=width, heads=p.pick([h for h in (1, 2) if width % h == 0]), **p.pick([{}, {"p": 0.2}]))


def again(p: Pool) -> int | None:
    """An earlier layer called once more, or an earlier step computed once more (a common subexpression)."""
    old = [k for k, one in enumerate(p.steps) if one.op not in ("item", "param", "counter") and one.get("same") is None]
    if not old:
        return None
    k = p.pick(old[::-1])
    one, shape = p.steps[k], p.shape(p.steps[k].reads[0]) if isinstance(p.values[p.steps[k].reads[0]], Tensor) else None
    writes = any(str(one.get(key, "")).endswith("_") or str(one.get("name", "")).startswith("i") for key in ("name",)) or one.get("inplace")
    if writes or shape is None:
        return None
    owns = hasattr(p.host, f"m{k}") or hasattr(p.host, f"w{k}")
    reads = [p.like(one.reads[0]), *one.reads[1:]] if owns else list(one.reads)
    options = dict(one.options) | ({"same": k} if owns and p.flag(True) else {})
    return p.add(one.op, *reads, **options)


def state(p: Pool) -> int | None:
    x = p.tensor()
    return p.add("binary", x, p.add("counter", shape=(1,), buffer=True, weight=True), name="add")


SINGLE: list[Maker] = [
    activation, conv, linear, norm, binary, scale_or_shift, join, part, look, spatial, drop, deconv, attention, again, state,
]  # fmt: skip
