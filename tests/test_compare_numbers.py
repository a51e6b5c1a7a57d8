"""Numbers: against arithmetic of the test on the outputs themselves, and what counts as equal."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import fxcompress
from fxcompress.compare import codec
from fxcompress.compare.diff import diff
from fxcompress.compare.latency import compare_times, latency, mann_whitney
from fxcompress.compare.prints import of_prints
from fxcompress.compare.schema import Numbers, OutputPrint, Snapshot
from fxcompress.compare.seeded import seeded
from fxcompress.compare.sketch import sketch
from fxcompress.errors import InputError
from fxcompress.report.difference import Difference, NumbersChange

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """Its two outputs have one name: the last of "scores" and "more.scores"."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.middle = nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 7)

    def forward(self, x: Tensor) -> dict[str, Tensor | dict[str, Tensor]]:
        y = torch.relu(self.middle(torch.relu(self.stem(x))))
        z = torch.relu(self.last(y))
        return {"scores": self.head(z.mean((2, 3))), "more": {"scores": z}}


def made() -> Net:
    torch.manual_seed(3)
    return Net().eval()


def noisy(layer: str, amount: float) -> Net:
    net = made()
    weight = getattr(net, layer).weight
    with torch.no_grad():
        weight += amount * torch.randn(weight.shape, generator=torch.Generator().manual_seed(5))
    return net


def file(snapshot: Snapshot) -> Snapshot:
    return codec.decode(codec.encode(snapshot))


def pair(base: nn.Module, head: nn.Module) -> tuple[Snapshot, Snapshot]:
    return fxcompress.snapshot(base, X), fxcompress.snapshot(head, X)


def test_exact_numbers_are_those_of_the_outputs() -> None:
    net, other = made(), noisy("middle", 0.05)
    base, head = pair(net, other)
    found = diff(base, head).numbers
    assert base.live is not None
    assert base.numbers is not None
    runs = seeded(base.live.inputs, base.numbers.seed, base.numbers.count)
    assert all(map(torch.equal, runs[0].tensors(), base.live.inputs.tensors()))
    was, now = ([inputs.call(one) for inputs in runs] for one in (net, other))
    outputs = {  # the file has all of the small output; of the large one, the first run is made again
        "['scores']": [torch.cat([one["scores"] for one in side]) for side in (was, now)],
        "['more']['scores']": [side[0]["more"]["scores"] for side in (was, now)],
    }
    assert [one.name for one in found.outputs] == list(outputs)
    for one in found.outputs:
        a, b = (t.detach().double().numpy().ravel() for t in outputs[one.name])
        assert one.max_abs == pytest.approx(np.abs(a - b).max(), rel=1e-5)
        assert one.sqnr_db == pytest.approx(10 * np.log10((a**2).sum() / ((a - b) ** 2).sum()), abs=1e-3)
        assert one.sqnr_head_db == pytest.approx(10 * np.log10((b**2).sum() / ((a - b) ** 2).sum()), abs=1e-3)
        assert one.cosine == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-6)


def test_files_estimate_what_the_graphs_say() -> None:
    for layer, amount in (("middle", 0.01), ("last", 0.01), ("stem", 0.005)):
        base, head = pair(made(), noisy(layer, amount))
        exact, estimated = diff(base, head).numbers, diff(file(base), file(head)).numbers
        for a, b in zip(exact.outputs, estimated.outputs, strict=True):
            assert a.name == b.name
            assert a.sqnr_db == pytest.approx(b.sqnr_db, abs=4)  # dB
            assert a.cosine == pytest.approx(b.cosine, abs=0.02)
            assert a.top1 == b.top1


def test_quality_drops_at_the_layer_that_was_changed() -> None:
    for layer in ("stem", "middle", "last", "head"):
        for change in (file, lambda snapshot: snapshot):
            base, head = (change(one) for one in pair(made(), noisy(layer, 0.1)))
            found = diff(base, head).numbers
            assert found.first_drop is not None
            assert found.first_drop_base is not None
            assert found.first_drop.path == found.first_drop_base.path == layer
            assert all(one.base_index >= found.first_drop_base.index for one in found.nodes)
            assert diff(head, base).numbers == diff(base, head).inverse().numbers


def shaken(snapshot: Snapshot, amount: float) -> Snapshot:
    """As another machine would have written it: all numbers a little different."""
    rng = np.random.default_rng(0)

    def values(numbers: tuple[float, ...]) -> tuple[float, ...]:
        scale = np.abs(numbers).max() if numbers else 0.0
        return tuple(float(n + amount * scale * rng.standard_normal()) for n in numbers)

    def output(one: OutputPrint) -> OutputPrint:
        return replace(one, sample=values(one.sample), sketch=replace(one.sketch, buckets=values(one.sketch.buckets)))

    assert snapshot.numbers is not None
    nodes = [
        replace(node, print=None if node.print is None else replace(node.print, buckets=values(node.print.buckets)))
        for node in snapshot.nodes
    ]
    return replace(snapshot, nodes=tuple(nodes), numbers=replace(snapshot.numbers, outputs=tuple(map(output, snapshot.numbers.outputs))))


def test_the_rounding_of_another_machine_is_no_change() -> None:
    base = file(fxcompress.snapshot(made(), X))
    assert diff(base, shaken(base, 1e-6)).numbers == NumbersChange()
    assert diff(base, shaken(base, 1e-2)).numbers.outputs  # no rounding explains this


def test_one_weight_is_seen_beside_that_rounding() -> None:
    net, other = made(), made()
    with torch.no_grad():
        other.middle.weight[0, 0, 0, 0] *= 1.001
    found = diff(file(fxcompress.snapshot(net, X)), shaken(file(fxcompress.snapshot(other, X)), 1e-6))
    assert [(n.head.path, [c.name for c in n.changes]) for n in found.changed] == [("middle", ["weight"])]


def test_an_operation_that_computes_something_else_is_seen_without_any_change_of_the_graph() -> None:
    base = file(fxcompress.snapshot(made(), X))
    head = shaken(base, 1e-2)
    found = diff(base, head)
    assert found.same_function
    assert {one.name for one in found.numbers.outputs} == {"['scores']", "['more']['scores']"}


def output(values: list[float], step: int = 1) -> OutputPrint:
    tensor = torch.tensor(values, dtype=torch.float64)
    return OutputPrint(sketch(tensor), step, tuple(values[::step]))


@given(st.lists(st.tuples(st.floats(-1e3, 1e3, width=32), st.floats(-1e3, 1e3, width=32)), min_size=1, max_size=40))
def test_an_output_that_is_in_the_file_as_a_whole_is_not_estimated(values: list[tuple[float, float]]) -> None:
    a, b = ([float(v[side]) for v in values] for side in (0, 1))
    found = of_prints("x", output(a), output(b))
    assert found is not None
    assert not found.estimated
    power, error = math.fsum(v * v for v in a), math.fsum((v - w) ** 2 for v, w in zip(a, b, strict=True))
    assert (found.sqnr_db is None) == (error == 0)
    if error > 1e-9 and power > 1e-9:
        assert found.sqnr_db == pytest.approx(10 * math.log10(power / error), abs=1e-3)
        assert found.max_abs == max(abs(v - w) for v, w in zip(a, b, strict=True))
    assert -1 <= found.cosine <= 1


def test_values_that_are_not_finite() -> None:
    plain, bad = output([1.0, 2.0]), output([1.0, 2.0])
    bad = replace(bad, sketch=replace(bad.sketch, max_abs=math.nan))
    same = of_prints("x", bad, replace(bad))
    assert same is not None
    assert same.sqnr_db is None
    for a, b in ((plain, bad), (bad, plain)):
        found = of_prints("x", a, b)
        assert found is not None
        assert (found.sqnr_db, found.sqnr_head_db, found.max_abs) == (-math.inf, -math.inf, math.inf)
    assert of_prints("x", plain, output([1.0])) is None


def test_a_network_that_gives_nan_differs_from_one_that_does_not_and_not_from_itself() -> None:
    net, other = made(), made()
    with torch.no_grad():
        other.head.bias[2] = torch.nan
    for change in (file, lambda snapshot: snapshot):
        base, head = (change(one) for one in pair(net, other))
        assert [one.name for one in diff(base, head).numbers.outputs] == ["['scores']"]
        found = diff(head, head)
        assert found.same_function
        assert found.numbers == NumbersChange()


def test_why_numbers_are_not_compared_is_said() -> None:
    base = fxcompress.snapshot(made(), X)
    without = fxcompress.snapshot(made(), X, numbers=False)
    assert "without numbers" in diff(base, without).numbers.note
    assert diff(without, without).numbers == NumbersChange()
    assert base.numbers is not None
    for name, value in (("seed", 7), ("digest", "0" * 16), ("generator", "another")):
        other: Numbers = replace(base.numbers, **{name: value})
        assert "inputs are not the same" in diff(base, replace(base, numbers=other)).numbers.note
    assert "as many outputs" in diff(base, replace(base, numbers=replace(base.numbers, outputs=()))).numbers.note
    whole = base.numbers.outputs[0]
    short = replace(whole, sketch=replace(whole.sketch, count=3))
    changed = replace(base, numbers=replace(base.numbers, outputs=(short, *base.numbers.outputs[1:])))
    assert diff(base, changed).numbers.note == "outputs of another size: ['scores']"


def exact_p(first: list[float], second: list[float]) -> float:
    """Of all ways to deal the values out, the share of those at least as far from the middle."""
    values, n = [*first, *second], len(first)

    def u(chosen: tuple[int, ...]) -> float:
        ours = [values[i] for i in chosen]
        others = [values[i] for i in range(len(values)) if i not in chosen]
        return sum((a > b) + 0.5 * (a == b) for a, b in itertools.product(ours, others))

    middle = n * (len(values) - n) / 2
    far = abs(u(tuple(range(n))) - middle)
    every = [abs(u(chosen) - middle) for chosen in itertools.combinations(range(len(values)), n)]
    return sum(one >= far - 1e-9 for one in every) / len(every)


@given(st.permutations(range(12)))
def test_the_test_of_latency_agrees_with_counting_all_ways(ranks: list[int]) -> None:
    a, b = [float(v) for v in ranks[:6]], [float(v) for v in ranks[6:]]
    assert mann_whitney(a, b) == pytest.approx(exact_p(a, b), abs=0.03)
    assert mann_whitney(a, b) == pytest.approx(mann_whitney(b, a), abs=1e-12)
    halves = [v // 2 for v in a], [v // 2 for v in b]  # values that occur twice
    assert mann_whitney(*halves) == pytest.approx(exact_p(*halves), abs=0.1)


def test_the_verdict_on_latency() -> None:
    base = [10.0 + 0.01 * i for i in range(12)]
    assert compare_times(base, [v * 0.5 for v in base]).verdict == "faster"
    assert compare_times(base, [v * 1.5 for v in base]).verdict == "slower"
    assert compare_times(base, base).verdict == "~"
    assert compare_times(base, base).p_value == 1.0
    assert compare_times(base, [v * 1.012 for v in base[::-1]]).verdict in ("slower", "~")
    clear_but_tiny = compare_times([10.0 + 1e-6 * i for i in range(12)], [10.01 + 1e-6 * i for i in range(12)])
    assert clear_but_tiny.p_value < 0.01
    assert clear_but_tiny.verdict == "~"


def test_latency_needs_both_graphs() -> None:
    base = fxcompress.snapshot(made(), X)
    with pytest.raises(InputError, match="no graph of Net to time"):
        diff(base, file(base), latency=True)
    found = latency(base, base, rounds=2)
    assert found.base_ms > 0
    assert found.verdict == "~"  # two rounds can tell nothing


def test_a_difference_has_no_latency_unless_asked() -> None:
    base = fxcompress.snapshot(made(), X)
    found = diff(base, base)
    assert isinstance(found, Difference)
    assert found.numbers.latency is None
