"""The pipeline holds every pass to its promise: here are passes that break each of them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from networks import Net, step, trace
from oracle import establishing, same
from torch import nn
from torch.fx import GraphModule

from fxcompress.analysis import Shapes
from fxcompress.errors import (
    DishonestPassError,
    EquivalenceError,
    FxCompressError,
    GraphError,
    OrderError,
    PassError,
    PipelineError,
)
from fxcompress.ir.inputs import Inputs
from fxcompress.pipeline import Pass, PassContext, PassResult, Pipeline, Property, Remark, Semantics, registry
from fxcompress.rewrite import Rule

NET = Net(((3, 7, 5),), (step("conv", 0, cin=3, cout=4, kernel=3), step("fn", 1, name="relu"), step("conv", 2, cin=4, cout=2)), 3)
Action = Callable[[GraphModule], object]


@dataclass(frozen=True)
class Custom(Pass):
    """Does ``action`` to the graph and reports ``changed``."""

    name: ClassVar[str] = "custom"
    action: Action = lambda module: None
    changed: bool = True

    def run(self, module: GraphModule, ctx: PassContext) -> PassResult:
        found = self.action(module)
        module.recompile()
        return PassResult(found if isinstance(found, GraphModule) else module, self.changed)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Exact(Custom):
    semantics: ClassVar[Semantics] = Semantics.EXACT


@dataclass(frozen=True)
class Lossy(Custom):
    semantics: ClassVar[Semantics] = Semantics.LOSSY


def execute(*passes: Pass, dtype: torch.dtype = torch.float32, verify: bool = True, net: Net = NET):
    module = trace(net.build().to(dtype))
    torch.manual_seed(3)
    x = torch.randn(2, *net.inputs[0], dtype=dtype)
    return Pipeline(passes).execute(module, Inputs.of(x), verify=verify)


def output(module: GraphModule):
    return module.graph.output_node()


def scale_output(factor: float) -> Action:
    def action(module: GraphModule) -> None:
        node = output(module)
        with module.graph.inserting_before(node):
            node.args = (module.graph.call_function(torch.mul, (node.args[0], factor)),)

    return action


def add_dead_node(module: GraphModule) -> None:
    node = output(module)
    with module.graph.inserting_before(node):
        module.graph.call_function(torch.neg, (node.args[0],))


def new_weight(factor: float) -> Action:
    def action(module: GraphModule) -> None:
        module.m0.weight = nn.Parameter(module.m0.weight.detach() * factor)

    return action


def in_place_weight(module: GraphModule) -> None:
    module.m0.weight.data.mul_(1.5)


def moved_weights(module: GraphModule) -> None:
    """Leaves every sum over 8 bytes of the weight what it was."""
    module.m0.weight.data.copy_(module.m0.weight.data[[2, 3, 0, 1]])


def other_stride(module: GraphModule) -> None:
    module.m2.stride = (2, 2)


def eval_mode(module: GraphModule) -> None:
    module.m0.train()


@pytest.mark.parametrize("action", [add_dead_node, new_weight(1.1), in_place_weight, moved_weights, other_stride, eval_mode])
def test_an_unreported_change_is_dishonest(action: Action) -> None:
    with pytest.raises(DishonestPassError, match=r"'custom' reports no change but changed the graph"):
        execute(Custom(action, changed=False))


def test_a_reported_change_that_did_not_happen_is_dishonest() -> None:
    with pytest.raises(DishonestPassError, match=r"'custom' reports a change but made none"):
        execute(Custom())
    with pytest.raises(DishonestPassError):
        execute(Custom(lambda module: copy.deepcopy(module)))


def test_honesty_is_checked_without_verification_too() -> None:
    with pytest.raises(DishonestPassError):
        execute(Custom(add_dead_node, changed=False), verify=False)


def test_a_pass_that_raises_is_named() -> None:
    def fails(module: GraphModule) -> None:
        raise ZeroDivisionError("oh")

    with pytest.raises(PassError, match=r"'custom' raised ZeroDivisionError: oh") as caught:
        execute(Custom(lambda module: add_dead_node(module)), Custom(fails))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert "in pass 'custom' after 'custom'" in caught.value.__notes__


def test_an_interrupt_goes_through() -> None:
    def interrupted(module: GraphModule) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(Custom(interrupted))


@pytest.mark.parametrize("value", [None, True, "done", nn.Identity()])
def test_a_pass_that_returns_garbage(value: object) -> None:
    @dataclass(frozen=True)
    class Garbage(Pass):
        name: ClassVar[str] = "garbage"

        def run(self, module: GraphModule, ctx: PassContext) -> PassResult:
            return value  # type: ignore[return-value]

    with pytest.raises(PassError, match=r"'garbage' returned"):
        execute(Garbage())
    with pytest.raises(PassError, match="custom"):
        execute(WrongModule())


@dataclass(frozen=True)
class WrongModule(Custom):
    def run(self, module: GraphModule, ctx: PassContext) -> PassResult:
        return PassResult(nn.Identity(), True)  # type: ignore[arg-type]


def misplaced(module: GraphModule) -> None:
    first = next(n for n in module.graph.nodes if n.op == "call_module")
    output(module).prepend(first)


def missing_module(module: GraphModule) -> None:
    next(n for n in module.graph.nodes if n.op == "call_module").target = "nowhere.conv"


def missing_attribute(module: GraphModule) -> None:
    node = output(module)
    with module.graph.inserting_before(node):
        node.args = (module.graph.create_node("get_attr", "nothing", (), {}),)


@pytest.mark.parametrize("action", [misplaced, missing_module, missing_attribute])
@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr")
def test_a_broken_graph_is_found_and_named(action: Action) -> None:
    with pytest.raises(GraphError, match=r"'custom' left a broken graph"):
        execute(Custom(action))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("action", [scale_output(1 + 1e-6), new_weight(1 + 1e-6)])
def test_a_small_error_is_found_in_float64(dtype: torch.dtype, action: Action) -> None:
    with pytest.raises(EquivalenceError, match="'custom' promises equal numbers"):
        execute(Custom(action), dtype=dtype)


def test_the_guilty_pass_is_named_among_several() -> None:
    @dataclass(frozen=True)
    class Guilty(Custom):
        name: ClassVar[str] = "guilty"

    with pytest.raises(EquivalenceError, match="'guilty'"):
        execute(Custom(add_dead_node), Guilty(scale_output(1 + 1e-6)), Custom(add_dead_node))


def test_weights_changed_in_place_are_found() -> None:
    """The start shares its tensors with what the passes get, so it cannot show them."""
    with pytest.raises(DishonestPassError, match="written into a parameter or buffer in place"):
        execute(Custom(in_place_weight))


def test_an_exact_pass_must_not_round() -> None:
    def thirds(module: GraphModule) -> None:
        node = output(module)
        with module.graph.inserting_before(node):
            third = module.graph.call_function(torch.mul, (node.args[0], 1 / 3))
            node.args = (module.graph.call_function(torch.mul, (third, 3.0)),)

    with pytest.raises(EquivalenceError, match="promises the same bits"):
        execute(Exact(thirds))
    execute(Custom(thirds))


def other_activation(module: GraphModule) -> None:
    node = next(n for n in module.graph.nodes if n.name == "relu")
    node.target, node.kwargs = torch.tanh, {}


def test_the_first_differing_node_is_shown() -> None:
    with pytest.raises(EquivalenceError, match="first node that differs: relu") as caught:
        execute(Custom(other_activation))
    assert "> " in str(caught.value)


def test_a_graph_that_does_not_run_is_named() -> None:
    def narrower_linear(module: GraphModule) -> None:
        module.m2 = nn.Conv2d(9, 2, 1)

    with pytest.raises(GraphError, match=r"'custom' left a graph that does not run: RuntimeError"):
        execute(Custom(narrower_linear))


def narrower(module: GraphModule) -> None:
    node = output(module)
    with module.graph.inserting_before(node):
        node.args = (module.graph.call_method("half", (node.args[0],)),)


def in_a_tuple(module: GraphModule) -> None:
    output(module).args = ((output(module).args[0],) * 2,)


def with_nan(module: GraphModule) -> None:
    node = output(module)
    with module.graph.inserting_before(node):
        node.args = (module.graph.call_function(torch.mul, (node.args[0], float("nan"))),)


@pytest.mark.parametrize("action", [narrower, in_a_tuple, with_nan, other_stride])
def test_other_structure_shape_or_dtype_is_no_equivalence(action: Action) -> None:
    with pytest.raises(EquivalenceError, match=r"became|NaN"):
        execute(Custom(action))


def test_a_lossy_pass_may_change_numbers() -> None:
    run = execute(Lossy(scale_output(1.1)))
    assert run.steps[0].error == pytest.approx(0.1, rel=1e-3)


def test_without_verification_numbers_are_not_looked_at() -> None:
    run = execute(Custom(scale_output(2.0)), verify=False)
    assert run.proof.error is None
    assert run.proof.note == "not verified"


def test_the_graph_given_is_not_changed() -> None:
    module = trace(NET.build())
    before, code = {k: v.clone() for k, v in module.state_dict().items()}, module.code
    x = torch.randn(2, 3, 7, 5, dtype=torch.float64)
    run = Pipeline((Lossy(scale_output(2.0)), Lossy(new_weight(2.0)))).execute(module, Inputs.of(x))
    same(before, dict(module.state_dict()), None)
    assert module.code == code
    assert run.module is not module
    same(module(x) * 0 + run.module(x), run.module(x), None)


def test_analyses_are_dropped_after_a_change() -> None:
    seen = []

    @dataclass(frozen=True)
    class Look(Pass):
        name: ClassVar[str] = "look"

        def run(self, module: GraphModule, ctx: PassContext) -> PassResult:
            seen.append(ctx.analyses.get(Shapes).shape(output(module).args[0]))
            return PassResult(module, False)

    def pool(module: GraphModule) -> None:
        node = output(module)
        with module.graph.inserting_before(node):
            node.args = (module.graph.call_function(torch.flatten, (node.args[0], 1)),)

    execute(Look(), Lossy(pool), Look())
    assert seen == [(2, 2, 5, 3), (2, 30)]


# -- order --------------------------------------------------------------------------------------------------------------


def test_order_is_checked_when_the_pipeline_is_made() -> None:
    with pytest.raises(OrderError, match=r"'fold-norm' requires a graph that is FUNCTIONAL") as caught:
        Pipeline.parse("fold-norm")
    assert "functionalize" in str(caught.value)
    with pytest.raises(OrderError, match="cannot run after 'lower'"):
        Pipeline.parse("functionalize,lower,fold-norm")
    Pipeline.parse("functionalize,fold-norm")


def test_what_is_no_pass_is_refused() -> None:
    with pytest.raises(PipelineError, match="is not a pass"):
        Pipeline(("fold-norm",))  # type: ignore[arg-type]


def test_every_registered_pass_can_be_placed() -> None:
    for name in registry.names():
        assert Pipeline.parse(",".join(establishing(name))).passes[-1].name == name


def test_pipelines_are_passes() -> None:
    inner = Pipeline.parse("functionalize,fold-norm")
    outer = Pipeline((inner, *Pipeline.parse("dead-code").passes))
    assert [p.name for p in outer.passes] == ["functionalize", "fold-norm", "dead-code"]
    assert outer == inner + Pipeline.parse("dead-code") == Pipeline.of(inner, "dead-code")

    run = execute(Wrapped(), net=Net(((3, 7, 5),), (step("conv", 0, cin=3, cout=4), step("bn", 1, n=4)), 2))
    assert [(s.text, s.changed) for s in run.steps] == [("functionalize", False), ("fold-norm", True)]
    assert [n.name for n in run.module.graph.nodes if n.op == "call_module"] == ["m0"]


@dataclass(frozen=True)
class Wrapped(Pass):
    """A pass that is a pipeline inside."""

    name: ClassVar[str] = "wrapped"

    def run(self, module: GraphModule, ctx: PassContext) -> PassResult:
        return Pipeline.parse("functionalize,fold-norm").run(module, ctx)


def test_an_empty_pipeline_changes_nothing() -> None:
    run = execute()
    assert run.steps == ()
    assert Pipeline() == Pipeline.parse("") == Pipeline.parse(" , ")
    assert str(Pipeline()) == ""


# -- remarks ------------------------------------------------------------------------------------------------------------


def test_remarks_say_what_was_done_and_what_was_not() -> None:
    net = Net(
        ((3, 7, 5),), (step("conv", 0, cin=3, cout=4), step("bn", 1, n=4), step("conv", 2, cin=4, cout=4), step("bn", 3, n=4)), (4, 3)
    )
    run = execute(*Pipeline.parse("functionalize,fold-norm").passes, net=net)
    remarks = run.steps[-1].remarks
    assert [(r.applied, r.node) for r in remarks] == [(True, "m1"), (False, "m3")]
    assert "also read by" in remarks[1].why
    assert run.steps[-1].rewrites == 1
    assert str(remarks[1]).startswith("missed: m3: fold-norm: ")


def test_remarks_name_captured_nodes_and_their_source() -> None:
    module = torch.fx.symbolic_trace(TwoReaders().eval())
    for node in module.graph.nodes:
        node.meta["stack_trace"] = 'File "net.py", line 7, in forward\n    y = conv(x)'
    result = Pipeline.parse("functionalize,fold-norm").execute(module, Inputs.of(torch.randn(1, 3, 4, 4)))
    assert [r.source for r in result.steps[-1].remarks] == ["net.py:7"]
    assert Remark(False, "n", "why", "net.py:7").__str__() == "missed: n: why (net.py:7)"


class TwoReaders(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        y = self.conv(x)
        return self.norm(y) + y


# -- rules --------------------------------------------------------------------------------------------------------------


def test_rules_compose() -> None:
    first, second, third = (Rule(name, lambda node, scope: None, lambda match, scope: "") for name in "abc")
    assert [r.name for r in first + second + third] == ["a", "b", "c"]
    assert [r.name for r in first + (second + third)] == ["a", "b", "c"]


def test_properties_and_errors_are_documented() -> None:
    assert all(p.value for p in Property)
    assert issubclass(EquivalenceError, FxCompressError)
