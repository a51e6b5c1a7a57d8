"""What networks are made of, and what rewrites get wrong: blocks of several steps."""

from __future__ import annotations

import math

from pool import MAX_CHANNELS, MAX_FEATURES, Maker, Pool
from steps import activation, again, binary, conv, drop, linear, norm, writable


def conv_norm_act(p: Pool) -> int | None:
    y = conv(p) if p.flag(True) else linear(p)
    if y is None:
        return None
    y = drop(p, y) if p.number(0, 4) == 4 else y
    y = norm(p, y) or y
    return activation(p, y) if p.flag(True) else y


def residual(p: Pool) -> int | None:
    x = p.tensor((3, 4))
    if x is None:
        return None
    y = conv(p, x, p.shape(x)[1], same_size=True)
    y = norm(p, y) if p.flag(True) else y
    y = binary(p, *((x, y) if p.flag() else (y, x)))
    return activation(p, y)


def two_readers(p: Pool) -> int | None:
    """One layer read by two norms, or by a norm and an activation that may write in place."""
    x = p.tensor((2, 3, 4))
    y = conv(p, x) if len(p.shape(x)) > 2 and p.flag(True) else linear(p, x)
    return binary(p, *((norm if p.flag(True) else activation)(p, y) if y is not None else y for _ in range(2)))  # type: ignore[misc]


def shared_layer(p: Pool) -> int | None:
    """One layer called on two values, one or both of them followed by a norm; or two layers with one weight."""
    x = p.tensor((2, 3, 4))
    y = (conv(p, x) if len(p.shape(x)) > 2 else linear(p, x)) or x
    if y == x or p.steps[-1].op not in ("conv", "linear"):
        return None
    k, other = len(p.steps) - 1, p.like(x)
    z = p.add(p.steps[k].op, other, **dict(p.steps[k].options), **{p.pick(["same", "tied"]): k})
    left = norm(p, y) or y
    right = norm(p, z) if p.flag() else z
    return p.add("binary", left, right or z, name="add")


def branches(p: Pool) -> int | None:
    """Parallel layers on one value: RepVGG (3x3 + 1x1 + identity, each with a norm) or projections side by side."""
    x = p.tensor((3, 4))
    if x is None:
        return None
    n, d = p.shape(x)[1], {"d": 1} if len(p.shape(x)) == 3 else {}
    many = math.prod(p.shape(x)[2:]) > 1 or not p.train
    groups = p.pick([1, n])
    arms = [
        p.add("conv", x, cin=n, cout=n, kernel=k, padding=k // 2, groups=groups, bias=p.flag(), **d)
        for k in p.pick([(3, 1), (1, 1), (3, 3), (3, 1, 1)])
    ]
    if p.flag():
        arms.append(x)
    if many and p.flag(True):
        arms = [p.add("bn", a, n=n, **d) for a in arms]
    if p.number(0, 3) == 3 and n * len(arms) <= MAX_CHANNELS:
        return p.add("cat", *arms, dim=1)
    total = arms[0]
    for arm in arms[1:]:
        total = p.add("binary", total, arm, name=p.pick(["add", "add", "iadd"] if writable(p, total) and total != x else ["add"]))
    return activation(p, total) if p.flag(True) else total


def projections(p: Pool) -> int | None:
    x = p.tensor((2, 3), where=lambda t: t.shape[-1] <= MAX_FEATURES)
    if x is None:
        return None
    arms = [linear(p, x, p.pick([4, 4, 2])) for _ in range(p.number(2, 3))]
    if p.flag():
        return p.add("cat", *arms, dim=-1)
    return arms[0]


def chain(p: Pool) -> int | None:
    """Consecutive pointwise layers, perhaps with a bottleneck, a norm before, or a reader in between."""
    x = p.tensor((2, 3, 4))
    if len(p.shape(x)) == 2:
        y = linear(p, x)
        return linear(p, y)
    n, d = p.shape(x)[1], {"d": 1} if len(p.shape(x)) == 3 else {}
    x = (norm(p, x) or x) if p.flag() else x
    middle = p.number(1, 8)
    y = p.add("conv", x, cin=n, cout=middle, bias=p.flag(True), **d)
    k = p.pick([1, 3])
    z = p.add("conv", y, cin=middle, cout=p.number(1, 8), kernel=k, padding=p.pick([0, 1]) if min(p.shape(y)[2:]) >= k else 1, **d)
    if p.number(0, 3) == 3:
        activation(p, y)
    return z


def squeeze_excite(p: Pool) -> int | None:
    x = p.tensor((4,))
    if x is None:
        return None
    n = p.shape(x)[1]
    s = p.add("adaptive", x, size=1)
    s = p.add("act", p.add("conv", s, cin=n, cout=2), kind=p.pick(["relu", "silu"]), inplace=p.flag())
    s = p.add("act", p.add("conv", s, cin=2, cout=n), kind=p.pick(["sigmoid", "hardsigmoid"]))
    return p.add("binary", *p.pick([(x, s), (s, x)]), name="mul")


def alias(p: Pool) -> int | None:
    """A view is taken, its source (or the view) is written in place, and the other one is read afterwards."""
    x = p.tensor(where=lambda t: t.shape[1] > 1)
    if x is None:
        return None
    form = p.pick(["slice", "transpose", "detach", "clone", "mT", "einsum", "identity", "dropout"])
    rank = len(p.shape(x))
    if form == "slice" or (form in ("mT", "einsum") and rank < 3):
        v = p.add("slice", x, dim=1, start=0, stop=p.shape(x)[1] - p.number(0, 1))
    elif form == "transpose":
        v = p.add("transpose", x, a=1, b=rank - 1)
    elif form in ("mT", "einsum"):
        v = p.add("mT", x) if form == "mT" else p.add("einsum", x, text={3: "nab->nba"}.get(rank, "nabc->nbac"))
    elif form in ("identity", "dropout"):
        v = p.add(form, x)
    else:
        v = p.add("method", x, name=form)
    target, other = (x, v) if p.flag(True) else (v, x)
    if not writable(p, target):
        return v
    kind = p.pick(["relu", "imul", "layer"])
    if kind == "relu":
        w = p.add("fn", target, name="relu_")
    elif kind == "imul":
        w = p.add("scalar", target, name="imul", value=0.5)
    else:
        w = p.add("act", target, kind="hardswish", inplace=True)
    reader = p.add("scalar", other, name="mul", value=3.0)
    return binary(p, w, reader) if p.shape(w) == p.shape(reader) else reader


def encoder(p: Pool) -> int | None:
    """``nn.MultiheadAttention`` on one value or across two, normed before or after, perhaps with a residual."""
    x = p.tensor((3,), where=lambda t: t.shape[-1] <= 24)
    if x is None:
        return None
    width = p.shape(x)[-1]
    y = p.add("ln", x, shape=(width,)) if p.flag() else x
    options = {name: p.flag(default) for name, default in (("first", True), ("bias", True), ("cross", False), ("weights", False))}
    heads = p.pick([h for h in (1, 2, 3) if width % h == 0])
    y = p.add("mha", y, width=width, heads=heads, **options, **p.pick([{}, {"p": 0.2}]))
    return p.add("binary", x, y, name="add") if p.flag(True) else y


MOTIFS: list[Maker] = [
    conv_norm_act, residual, two_readers, shared_layer, branches, chain, squeeze_excite, alias, projections, again, encoder,
]  # fmt: skip
