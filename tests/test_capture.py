"""Capture: dialect, signature, dynamic sizes, the ladder, and the user's model untouched."""

from __future__ import annotations

import copy
import time
from typing import Any

import capture_models as cm
import pytest
import torch
from torch import Tensor, fx, nn

from fxcompress.capture import Captured, capture
from fxcompress.capture.check import compare
from fxcompress.capture.exporter import export
from fxcompress.errors import InputError
from fxcompress.ir.inputs import Inputs


def modules(graph: nn.Module) -> list[type]:
    assert isinstance(graph, fx.GraphModule)
    return [type(graph.get_submodule(str(n.target))) for n in graph.graph.nodes if n.op == "call_module"]


def targets(graph: nn.Module) -> list[Any]:
    assert isinstance(graph, fx.GraphModule)
    return [n.target for n in graph.graph.nodes if n.op in ("call_function", "call_method")]


def same(model: nn.Module, captured: Captured, *args: Any, **kwargs: Any) -> None:
    with torch.no_grad():
        assert compare(model(*args, **kwargs), captured.module(*args, **kwargs)) is None


def test_shapes_in_python_do_not_stop_it_and_sizes_stay_symbolic() -> None:
    model = cm.seeded(cm.ShapeBranches)
    captured = capture(model, torch.randn(2, 3, 8, 8))
    assert captured.step == "fx"
    for shape in ((1, 3, 8, 8), (5, 3, 8, 8), (3, 3, 10, 6)):
        same(model, captured, torch.randn(shape))
    assert any("branches taken by the sizes" in note and "capture_models.py" in note for note in captured.notes)


def test_nodes_carry_the_users_line_and_the_module_stack() -> None:
    graph = capture(cm.seeded(cm.ShapeBranches), torch.randn(2, 3, 8, 8)).parts[0].graph
    node = next(n for n in graph.graph.nodes if n.target == "conv")
    assert "capture_models.py" in node.meta["stack_trace"]
    assert "conv" in node.meta["nn_module_stack"]
    assert "capture_models.py" in next(n for n in copy.deepcopy(graph).graph.nodes if n.target == "conv").meta["stack_trace"]


def test_in_place_arithmetic_becomes_plain_and_views_keep_their_writes() -> None:
    model = cm.seeded(cm.InPlace)
    captured = capture(model, torch.randn(3, 4))
    x = torch.randn(5, 4)
    same(model, captured, x)
    assert not any(isinstance(t, str) and t.endswith("_") for t in targets(captured.module))
    captured.parts[0].graph.graph.eliminate_dead_code()
    captured.parts[0].graph.recompile()
    same(model, captured, x)


def test_functional_layers_become_modules_and_keep_their_names() -> None:
    model = cm.seeded(cm.Functional)
    captured = capture(model, torch.randn(2, 3, 8, 8))
    same(model, captured, torch.randn(1, 3, 9, 7))
    assert modules(captured.module) == [nn.Conv2d, nn.BatchNorm2d, nn.Conv2d, nn.LayerNorm]
    assert {"conv.weight", "conv.bias", "norm.running_var", "norm.weight"} <= set(captured.module.state_dict())
    assert not any(m.training for m in captured.module.modules())


def test_signature_is_kept() -> None:
    model = cm.seeded(cm.Signature)
    x = torch.randn(2, 4)
    plain = capture(model, x)
    same(model, plain, x)
    with pytest.raises(InputError, match="scale"):
        plain.module(x, scale=3.0)
    with pytest.raises(InputError, match="more"):
        plain.module(x, x)
    everything = capture(model, Inputs((x, x + 1), {"scale": 3.0, "mask": x, "bias": x}))
    y = torch.randn(3, 4)
    same(model, everything, y, y * 2, scale=3.0, mask=y, bias=y + 3)


@pytest.mark.parametrize("kind", ["dict", "ordered", "named", "dataclass", "size"])
def test_nested_inputs_and_outputs(kind: str) -> None:
    model = cm.seeded(cm.Nested, kind)
    captured = capture(model, ({"x": torch.randn(2, 4), "rest": [torch.randn(2, 4), 3]},))
    batch = {"x": torch.randn(3, 4), "rest": [torch.randn(3, 4), 3]}
    same(model, captured, batch)
    result = captured.module(batch)
    assert isinstance(result, {"named": cm.Pair, "dataclass": cm.Result, "size": tuple}.get(kind, dict))
    assert type(captured.parts[0].graph.graph._codegen) is fx.graph.CodeGen
    with pytest.raises(InputError, match="rest"):
        captured.module({"x": batch["x"], "rest": [batch["x"], 4]})


def test_keyword_inputs() -> None:
    model = cm.seeded(cm.Signature)
    x = torch.randn(2, 4)
    captured = capture(model, {"x": x, "mask": x})
    same(model, captured, x=x + 1, mask=x - 1)


def test_tied_parameters_and_modules_called_twice() -> None:
    model = cm.seeded(cm.Tied)
    graph = capture(model, torch.randint(0, 10, (2, 3))).module
    assert graph.get_submodule("head").weight is graph.get_submodule("table").weight
    assert sum(str(n.target) == "act" for n in graph.graph.nodes) == 2  # type: ignore[union-attr]
    assert graph.get_submodule("head").weight is not model.get_submodule("head").weight


def test_the_users_model_and_the_random_state_are_untouched() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()
    model[1].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    captured = capture(model, torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert "forward" not in vars(model[0])
    assert len(model[0]._forward_pre_hooks) + len(model[0]._forward_hooks) == 0
    assert captured.module.training
    assert not captured.module.get_submodule("1").training
    assert captured.module.get_submodule("2").training
    own = {t.data_ptr() for t in model.state_dict().values()}
    assert not own & {t.data_ptr() for t in captured.module.state_dict().values()}


def test_training_mode_keeps_batch_statistics_as_they_were() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    graph = capture(model, torch.randn(2, 3, 8, 8)).module
    assert torch.equal(graph.state_dict()["1.running_mean"], model.state_dict()["1.running_mean"])
    assert int(graph.state_dict()["1.num_batches_tracked"]) == 0


def test_a_cache_filled_by_a_run_is_not_taken_for_a_constant() -> None:
    model = cm.seeded(cm.Cache)
    captured = capture(model, torch.randn(2, 4))
    assert set(captured.module.state_dict()) == {"bias"}
    assert model.cache == {}


def test_a_loop_over_the_batch_is_fixed_to_it_and_says_so() -> None:
    model = cm.seeded(cm.BakedLoop)
    captured = capture(model, torch.randn(3, 4))
    assert any("batch size is fixed" in note for note in captured.notes)
    same(model, captured, torch.randn(3, 4))
    with pytest.raises(InputError, match="shape"):
        captured.module(torch.randn(2, 4))


def test_leaves_stay_one_node() -> None:
    model = nn.Sequential(cm.InPlace(), nn.ReLU()).eval()
    assert cm.InPlace in modules(capture(model, torch.randn(2, 4), leaves=[cm.InPlace]).module)
    assert cm.InPlace not in modules(capture(model, torch.randn(2, 4)).module)


def test_custom_autograd_functions_are_looked_into() -> None:
    model = cm.seeded(cm.CustomFunction)
    captured = capture(model, torch.randn(1, 3, 8, 8))
    assert captured.step == "fx"
    same(model, captured, torch.randn(3, 3, 10, 7))


def test_export_takes_over_and_comes_back_in_the_same_dialect() -> None:
    model = cm.seeded(cm.Masked)
    captured = capture(model, torch.randn(1, 3, 8, 8))
    assert captured.step == "export"
    same(model, captured, torch.randn(3, 3, 10, 7))
    assert modules(captured.module) == [nn.BatchNorm2d, nn.Conv2d, nn.Linear]
    assert set(captured.module.state_dict()) == set(model.state_dict())


def test_exporter_alone() -> None:
    for model, x in ((cm.seeded(cm.CustomFunction), torch.randn(1, 3, 8, 8)), (cm.seeded(cm.Functional), torch.randn(2, 3, 8, 8))):
        graph = export(model, Inputs.of(x))
        y = torch.randn(3, 3, 12, 10)
        with torch.no_grad():
            assert compare(model(y), graph(y)) is None
        assert not any(isinstance(t, torch._ops.OpOverload) for t in targets(graph))
        assert "aten" not in graph.code


def test_parts_of_a_model_with_a_data_dependent_branch() -> None:
    model = cm.seeded(cm.DataDependentOutside)
    captured = capture(model, torch.randn(1, 3, 8, 8))
    assert captured.step == "parts"
    assert [part.path for part in captured.parts] == ["body", "head"]
    assert type(captured.module) is cm.DataDependentOutside
    assert any("capture_models.py" in note for note in captured.notes)
    same(model, captured, torch.randn(2, 3, 10, 12))
    assert isinstance(model.get_submodule("body"), nn.Sequential)
    other = captured.with_part("head", nn.Identity())
    assert isinstance(other.module.get_submodule("head"), nn.Identity)
    assert isinstance(captured.module.get_submodule("head"), fx.GraphModule)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtype_and_memory_format_are_kept(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval().to(dtype, memory_format=torch.channels_last)
    captured = capture(model, torch.randn(2, 3, 8, 8, dtype=dtype))
    weight = captured.module.get_submodule("0").weight
    assert isinstance(weight, Tensor)
    assert weight.dtype is dtype
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_complex_numbers() -> None:
    model = nn.Linear(4, 4, dtype=torch.complex64).eval()
    wrapped = nn.Sequential(model)
    same(wrapped, capture(wrapped, torch.randn(2, 4, dtype=torch.complex64)), torch.randn(3, 4, dtype=torch.complex64))


def test_nan_inputs_and_models_without_parameters() -> None:
    model = nn.Sequential(nn.ReLU(), nn.Flatten()).eval()
    captured = capture(model, torch.full((2, 3, 4), float("nan")))
    same(model, captured, torch.randn(1, 3, 4))


@pytest.mark.parametrize("depth", [100, 3000])
def test_time_per_node_is_flat(depth: int) -> None:
    model = cm.Chain(depth).eval()
    start = time.perf_counter()
    capture(model, torch.randn(2, 4))
    assert (time.perf_counter() - start) / depth < 0.02


def test_a_buffer_that_changes_at_every_call() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.seen.add_(1)

    model, x = Counts().eval(), torch.randn(2, 4)
    graph = capture(model, x).module
    assert torch.equal(model.seen, torch.zeros(4))
    for _ in range(3):
        assert torch.equal(graph(x), model(x))


def test_a_keyword_that_must_be_given_after_one_that_need_not() -> None:
    class Late(nn.Module):
        def forward(self, x: torch.Tensor, scale: float = 2.0, *, y: torch.Tensor) -> torch.Tensor:
            return x * scale + y

    x = torch.randn(2, 4)
    graph = capture(Late(), {"x": x, "y": x}).module
    assert torch.equal(graph(x, y=x), Late()(x, y=x))
