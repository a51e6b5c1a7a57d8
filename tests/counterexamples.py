"""Networks that a pass here or elsewhere once got wrong. Every pass is tried on each; paste the ``repr`` of a ``Net`` to add one."""

from __future__ import annotations

from networks import Net, step

_CONV = {"cin": 3, "cout": 3, "kernel": 3, "padding": 1}
_IN = ((3, 7, 5),)

KNOWN: dict[str, Net] = {
    "one conv called twice, one norm": Net(_IN, (step("conv", 0, **_CONV), step("conv", 1, **_CONV, same=0), step("bn", 2, n=3)), (1, 3)),
    "one conv called twice, the first call normed": Net(
        _IN, (step("conv", 0, **_CONV), step("bn", 1, n=3), step("fn", 2, name="relu"), step("conv", 3, **_CONV, same=0)), 4
    ),
    "one conv, two norms": Net(_IN, (step("conv", 0, **_CONV), step("bn", 1, n=3), step("bn", 1, n=3)), (2, 3)),
    "one norm after two convs": Net(
        _IN, (step("conv", 0, **_CONV), step("bn", 1, n=3), step("conv", 2, **_CONV), step("bn", 3, n=3, same=1)), 4
    ),
    "a shared relu module": Net(
        _IN, (step("conv", 0, **_CONV), step("act", 1, kind="relu"), step("conv", 2, **_CONV), step("act", 3, kind="relu", same=1)), 4
    ),
    "a shared in-place relu module": Net(
        _IN,
        (
            step("conv", 0, **_CONV),
            step("act", 1, kind="relu", inplace=True),
            step("conv", 2, **_CONV),
            step("act", 3, kind="relu", inplace=True, same=1),
            step("binary", 4, 2, name="add"),
        ),
        5,
    ),
    "in-place relu on a conv that a residual reads": Net(
        _IN,
        (step("conv", 0, **_CONV), step("act", 1, kind="relu", inplace=True), step("conv", 2, **_CONV), step("binary", 3, 1, name="add")),
        4,
    ),
    "tied weights, different norms": Net(
        _IN,
        (
            step("conv", 0, **_CONV),
            step("bn", 1, n=3),
            step("conv", 0, **_CONV, tied=0),
            step("bn", 3, n=3),
            step("binary", 2, 4, name="add"),
        ),
        5,
    ),
    "tied weights, one norm": Net(
        _IN, (step("conv", 0, **_CONV), step("bn", 1, n=3), step("conv", 2, **_CONV, tied=0), step("binary", 2, 3, name="add")), 4
    ),
    "grouped transposed conv and norm": Net(
        ((4, 5, 5),), (step("deconv", 0, cin=4, cout=6, kernel=3, groups=2, stride=2), step("bn", 1, n=6)), 2
    ),
    "norm before a zero-padded conv": Net(_IN, (step("bn", 0, n=3), step("conv", 1, **_CONV)), 2),
    "norm before a reflect-padded conv": Net(_IN, (step("bn", 0, n=3), step("conv", 1, **_CONV, mode="reflect")), 2),
    "norm read by two convs": Net(_IN, (step("bn", 0, n=3), step("conv", 1, cin=3, cout=2), step("conv", 1, cin=3, cout=2)), (2, 3)),
    "norm through dropout": Net(_IN, (step("conv", 0, **_CONV), step("dropout", 1), step("identity", 2), step("bn", 3, n=3)), 4),
    "norm in training mode, nobody reads it": Net(_IN, (step("conv", 0, **_CONV), step("bn", 1, n=3)), 1, train=True),
    "functional norm in training mode, nobody reads it": Net(_IN, (step("fbn", 0, n=3), step("fn", 0, name="relu")), 2, train=True),
    "the same norm in training mode twice": Net(_IN, (step("bn", 0, n=3), step("bn", 0, n=3, same=0)), (1, 2), train=True),
    "dropout twice on one value": Net(_IN, (step("dropout", 0), step("dropout", 0)), (1, 2), train=True),
    "in-place 2d dropout in training mode": Net(
        _IN, (step("conv", 0, **_CONV), step("dropout", 1, kind="2d", inplace=True)), 2, train=True
    ),
    "in-place alpha dropout in training mode": Net(
        _IN, (step("conv", 0, **_CONV), step("dropout", 1, kind="alpha", inplace=True)), 2, train=True
    ),
    "a view, a write to its source, a read of the view": Net(
        _IN,
        (
            step("scalar", 0, name="add", value=1.0),
            step("slice", 1, dim=1, start=0, stop=2),
            step("fn", 1, name="relu_"),
            step("scalar", 2, name="mul", value=2.0),
        ),
        (3, 4),
    ),
    "a view, a write to the view, a read of its source": Net(
        _IN,
        (
            step("scalar", 0, name="add", value=1.0),
            step("slice", 1, dim=1, start=0, stop=2),
            step("scalar", 2, name="imul", value=0.5),
            step("fn", 1, name="relu"),
        ),
        (3, 4),
    ),
    "a write that nobody reads, seen through a view": Net(
        _IN, (step("scalar", 0, name="add", value=1.0), step("slice", 1, dim=1, start=0, stop=2), step("fn", 1, name="relu_")), 2
    ),
    "a residual that is scaled": Net(
        _IN, (step("conv", 0, **_CONV), step("conv", 0, **_CONV), step("scaled_add", 1, 2, alpha=2), step("fn", 3, name="relu")), 4
    ),
    "a copy of what is written": Net(
        _IN,
        (
            step("scalar", 0, name="add", value=1.0),
            step("method", 1, name="clone"),
            step("slice", 1, dim=1, start=0, stop=2),
            step("fn", 1, name="relu_"),
            step("scalar", 3, name="mul", value=2.0),
        ),
        (2, 5),
    ),
    "mT, then a write": Net(
        _IN,
        (step("scalar", 0, name="add", value=1.0), step("mT", 1), step("scalar", 1, name="imul", value=0.5), step("fn", 2, name="relu")),
        (3, 4),
    ),
    "einsum that is a view, then a write": Net(
        _IN,
        (
            step("scalar", 0, name="add", value=1.0),
            step("einsum", 1, text="nabc->nbac"),
            step("scalar", 1, name="imul", value=0.5),
            step("fn", 2, name="relu"),
        ),
        (3, 4),
    ),
    "a write to the input": Net(_IN, (step("fn", 0, name="relu_"), step("binary", 0, 1, name="add")), 2),
    "the input is written after a view of it": Net(
        _IN, (step("slice", 0, dim=1, start=0, stop=2), step("scalar", 0, name="imul", value=2.0)), (1, 2)
    ),
    "state in a buffer": Net(
        _IN, (step("counter", shape=(1,), buffer=True), step("binary", 0, 1, name="add"), step("counter", shape=(1,), same=0)), (2, 3)
    ),
    "channel shuffle": Net(((4, 5, 5),), (step("conv", 0, cin=4, cout=4, kernel=3, padding=1), step("shuffle", 1, groups=2, c=4)), 2),
    "repvgg": Net(
        _IN,
        (
            step("conv", 0, **_CONV, bias=False),
            step("bn", 1, n=3),
            step("conv", 0, cin=3, cout=3, bias=False),
            step("bn", 3, n=3),
            step("bn", 0, n=3),
            step("binary", 2, 4, name="add"),
            step("binary", 6, 5, name="add"),
            step("act", 7, kind="relu"),
        ),
        8,
    ),
    "the same value twice in cat and add": Net(
        _IN, (step("conv", 0, **_CONV), step("cat", 1, 1), step("binary", 1, 1, name="add")), (2, 3)
    ),
    "x += x": Net(_IN, (step("conv", 0, **_CONV), step("binary", 1, 1, name="iadd"), step("binary", 1, 2, name="mul")), 3),
    "parallel projections": Net(
        ((5, 8),),
        (step("linear", 0, cin=8, cout=4), step("linear", 0, cin=8, cout=4, bias=False), step("linear", 0, cin=8, cout=2)),
        (1, 2, 3),
    ),
    "pointwise convs in a row": Net(_IN, (step("conv", 0, cin=3, cout=8), step("conv", 1, cin=8, cout=2, kernel=3, padding=1)), 2),
    "duplicates": Net(
        _IN,
        (
            step("conv", 0, **_CONV),
            step("conv", 0, **_CONV, same=0),
            step("fn", 1, name="relu"),
            step("fn", 2, name="relu"),
            step("binary", 3, 4, name="iadd"),
        ),
        (5, 1),
    ),
    "one attention layer called twice, with a norm between": Net(
        ((5, 6),),
        (
            step("mha", 0, width=6, heads=2),
            step("ln", 1, shape=(6,)),
            step("mha", 2, width=6, heads=2, same=0),
            step("binary", 0, 3, name="add"),
        ),
        4,
    ),
    "attention across, whose weights are used": Net(
        ((5, 6),), (step("mha", 0, width=6, heads=3, first=False, bias=False, cross=True, weights=True), step("fn", 1, name="relu")), 2
    ),
    "attention with dropout in training mode": Net(((5, 6),), (step("mha", 0, width=6, heads=2, p=0.2),), 1, train=True),
    "squeeze and excite": Net(
        _IN,
        (
            step("adaptive", 0, size=1),
            step("conv", 1, cin=3, cout=2),
            step("act", 2, kind="relu", inplace=True),
            step("conv", 3, cin=2, cout=3),
            step("act", 4, kind="hardsigmoid"),
            step("binary", 0, 5, name="mul"),
        ),
        6,
    ),
    "a count of its calls": Net(((4, 9),), (step("counter", shape=(1,), buffer=True), step("binary", 0, 1, name="add")), 2),
}
