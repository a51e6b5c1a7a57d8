"""Calibration: any data, clear errors, and the same observers from any number of processes."""

from __future__ import annotations

import math
from collections import UserDict
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, fx, nn
from torch.utils.data import DataLoader, TensorDataset

from fxcompress.errors import InputError
from fxcompress.ir.inputs import Inputs
from fxcompress.quant.batches import BatchReader, inputs_in
from fxcompress.quant.calibration import CalibrationRecord, calibrate, observers_of
from fxcompress.quant.observers import OBSERVERS, Observer, observer
from fxcompress.quant.synchronize import synchronize

torch.set_num_threads(1)


class Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, name: str) -> bool:
        return True


class Net(nn.Module):
    """One observer behind each of two values, and one that two values share."""

    def __init__(self, kind: str = "histogram") -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.before, self.after, self.shared = (observer(kind) for _ in range(3))

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        y = self.after(self.conv(self.before(x)).relu())
        root = self.shared(y.sqrt() - 1)
        return self.shared(root.flatten(1))


def graph(kind: str = "histogram") -> fx.GraphModule:
    torch.manual_seed(0)
    net = Net(kind)
    return fx.GraphModule(net, Tracer().trace(net))


def images(count: int = 6, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 3, 6, 6, generator=generator) for _ in range(count)]


def states(module: nn.Module) -> list[tuple[object, ...]]:
    return [(o.low, o.high, o.sums().tolist(), o.qparams()) for o in observers_of(module).values()]


def test_observers_see_the_values_and_are_off_again() -> None:
    module = graph()
    data = images()
    record = calibrate(module, data)
    assert record.batches == 6
    assert record.seconds > 0
    everything = torch.cat(data)
    before = module.get_submodule("before")
    assert isinstance(before, Observer)
    assert (before.seen, before.low, before.high) == (everything.numel(), everything.min(), everything.max())
    conv = module.get_submodule("conv")
    after = module.get_submodule("after")
    assert isinstance(after, Observer)
    with torch.no_grad():
        assert after.high == pytest.approx(max(float(conv(x).max()) for x in data))
    assert not any(o.enabled for o in observers_of(module).values())
    assert not any(p.grad is not None for p in module.parameters())


def test_it_starts_afresh_and_is_reproducible() -> None:
    module = graph()
    calibrate(module, images(seed=1))
    calibrate(module, images())
    other = graph()
    calibrate(other, images()[::-1])
    assert states(module) == states(other)


def loader(labels: bool) -> DataLoader[tuple[Tensor, ...]]:
    stacked = torch.cat(images())
    columns = (stacked, torch.arange(len(stacked))) if labels else (stacked,)
    return DataLoader(TensorDataset(*columns), batch_size=2)


def generated() -> Iterator[Tensor]:
    yield from images()


def test_data_of_any_form_is_the_same_data() -> None:
    one = torch.ones(1)
    forms = [
        images(), tuple(images()), generated(), loader(True), loader(False), [(x,) for x in images()], [(x, one) for x in images()],
        [{"x": x} for x in images()], [{"x": x, "scale": one} for x in images()], [Inputs((x,)) for x in images()],
        [UserDict(x=x) for x in images()], [(x, one, "name.jpg") for x in images()], [[x] for x in images()],
    ]  # fmt: skip
    want = None
    for form in forms:
        module = graph()
        calibrate(module, form)
        want = want or states(module)
        assert states(module) == want


def takes_one(kind: str = "histogram") -> fx.GraphModule:
    net = nn.Sequential(observer(kind), nn.Conv2d(3, 4, 3))
    return fx.GraphModule(net, Tracer().trace(net))


def test_labels_are_left_out_and_said_to_be() -> None:
    record = calibrate(takes_one(), loader(True))
    assert record.remarks == (("calibration", "items behind the first 1 of 6 batches are left out: forward does not take them"),)
    assert calibrate(takes_one(), [(x, torch.rand(2)) for x in images()]).remarks[0][0] == "calibration"
    named = [UserDict({"x": x, "label": 1, "id": 2}) for x in images()]
    assert calibrate(graph(), named).remarks == (("calibration", "'label', 'id' of 6 batches are left out: forward does not take them"),)
    assert calibrate(takes_one(), images()).remarks == ()


def test_a_list_can_be_the_one_argument() -> None:
    class Joins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.watch = observer("min-max")

        def forward(self, parts: list[Tensor]) -> Tensor:
            return self.watch(torch.cat(parts))

    lists = [[torch.tensor([1.0]), torch.tensor([2.0])], [torch.tensor([3.0]), torch.tensor([5.0])]]
    module = Joins()
    like = Inputs.of(lists[0], module.forward)
    for batches in ([(pair,) for pair in lists], [Inputs((pair,)) for pair in lists], BatchReader(module, lists, like=like)):
        calibrate(module, batches)
        assert module.watch.range() == (1.0, 5.0)


def test_the_limit_and_the_bar(capsys: pytest.CaptureFixture[str]) -> None:
    asked = 0

    def endless() -> Iterator[Tensor]:
        nonlocal asked
        while True:
            asked += 1
            yield torch.randn(1, 3, 6, 6)

    assert calibrate(graph(), endless(), limit=3, progress=True).batches == 3
    assert asked == 3
    assert calibrate(graph(), images(), limit=100).batches == 6
    assert capsys.readouterr().err == ""  # it is no terminal
    with pytest.raises(InputError, match="limit=0"):
        calibrate(graph(), images(), limit=0)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "no batches"),
        (None, "calibration is None"),
        (torch.randn(2, 3, 6, 6), "one Tensor, not several"),
        ({"x": torch.randn(2, 3, 6, 6)}, "one dict, not several"),
        (3, "one int, not several"),
        ([torch.randn(2, 3, 6, 6), None], "batch 2 does not fit: it is None"),
        ([{"y": torch.randn(2, 3, 6, 6), "x": torch.randn(1)}], "cannot run on calibration batch 1"),
        ([torch.randn(2, 4, 6, 6)], "cannot run on calibration batch 1: RuntimeError"),
    ],
)
def test_wrong_data_gets_a_clear_error(batches: object, message: str) -> None:
    module = graph()
    with pytest.raises(InputError, match=message) as caught:
        calibrate(module, batches)  # type: ignore[arg-type]
    assert caught.value.hint
    assert not any(o.enabled for o in observers_of(module).values())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_the_node_that_gives_nan_is_named(bad: float) -> None:
    module = graph()
    data = images()
    data[3][0, 0, 0, 0] = bad
    with pytest.raises(InputError, match="calibration batch 4 itself holds 1 NaN or infinite numbers"):
        calibrate(module, data)
    with torch.no_grad():
        module.get_parameter("conv.bias")[1] = bad
    with pytest.raises(InputError, match=r"'relu' gives \d+ NaN or infinite numbers on calibration batch 1"):
        calibrate(module, images())


def test_with_a_shared_observer_the_first_node_is_named() -> None:
    module = graph()
    for node in module.graph.nodes:
        if node.name == "sub":  # the root of numbers below one
            node.args = (node.args[0], float("inf"))
    module.recompile()
    with pytest.raises(InputError, match="'sub' gives 128 NaN"):
        calibrate(module, images())


def test_a_module_that_is_no_graph_is_named_by_its_observer() -> None:
    net = nn.Sequential(nn.Linear(2, 2), observer("min-max"))
    nn.init.constant_(net.get_parameter("0.weight"), 10)
    with pytest.raises(InputError, match="'1' saw 2 NaN or infinite"):
        calibrate(net, [torch.full((1, 2), 3e38)])


def test_weak_ground_is_remarked() -> None:
    module = graph()
    module.add_module("unused", observer("min-max"))
    record = calibrate(module, [torch.zeros(1, 3, 6, 6)])
    why = dict(record.remarks)
    assert why["x"] == "it is 0 everywhere in the calibration data"
    assert why["unused"].startswith("it was never seen")


def test_the_data_is_not_written_to() -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.watch = observer("min-max")

        def forward(self, x: Tensor) -> Tensor:
            return self.watch(x.mul_(2))

    data = images()
    copies = [x.clone() for x in data]
    with torch.inference_mode():
        calibrate(Writes(), data)
    assert all(torch.equal(x, y) for x, y in zip(data, copies, strict=True))


# Processes.


def in_processes(function: object, store: Path, *args: object) -> None:
    mp.start_processes(function, (str(store), *args), nprocs=2, start_method="spawn")  # type: ignore[no-untyped-call]


def joined(rank: int, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    for kind in sorted(OBSERVERS):
        module = graph(kind)
        mine = images(7)[:2] if rank else images(7)[2:]
        record = calibrate(module, mine, group=dist.group.WORLD)
        alone = graph(kind)
        calibrate(alone, images(7))
        assert record.batches == 7
        assert states(module) == states(alone)
        if not rank:  # one process without data
            calibrate(alone, images(3))
        calibrate(module, images(3) if rank else [], group=dist.group.WORLD)
        if not rank:
            assert states(module) == states(alone)
    watchers = [observer("min-max"), observer("histogram" if rank else "entropy")]
    for group in (None, dist.group.WORLD):
        with pytest.raises(InputError, match="different observers"):
            synchronize(watchers, group)
    synchronize([])
    with pytest.raises(InputError, match="no batches"):
        calibrate(graph(), [], group=dist.group.WORLD)
    with pytest.raises(InputError, match="itself holds 27 NaN" if rank else "failed in 1 other process"):
        calibrate(takes_one(), [torch.full((1, 3, 3, 3), math.nan if rank else 1.0)], group=dist.group.WORLD)
    dist.destroy_process_group()


def test_two_processes_find_the_scales_of_one(tmp_path: Path) -> None:
    in_processes(joined, tmp_path / "store")


def test_the_record_is_a_value() -> None:
    assert CalibrationRecord(1, 0.5) == CalibrationRecord(1, 0.5, ())


def test_observers_are_told_how_many_inputs_a_batch_holds() -> None:
    one_by_one = [image for batch in images() for image in batch.split(1)]
    first, second = graph("sqnr"), graph("sqnr")
    calibrate(first, images())
    calibrate(second, one_by_one)
    found, wanted = ([o.qparams().scale for o in observers_of(m).values()] for m in (first, second))
    assert found == pytest.approx(wanted, rel=1e-5)  # a convolution of another batch size may round otherwise
    assert inputs_in(Inputs((torch.zeros(4, 2), torch.zeros(4)))) == 4
    assert inputs_in(Inputs((torch.zeros(4, 2), torch.zeros(3)))) == inputs_in(Inputs((torch.tensor(1.0),))) == 1
