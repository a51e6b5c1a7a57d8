"""What nobody reads goes, unless it does something."""

from __future__ import annotations

import torch
from rewriting import image, kinds, rewritten
from test_pass_functionalize import Apply
from torch import fx, nn

from fxcompress.ir.inputs import Inputs
from fxcompress.pipeline import Pipeline


def test_a_branch_and_its_parameters_go():
    def forward(m, x):
        m.aux(m.conv(x)).relu()
        return m.conv(x) * 1.5

    run = rewritten(Apply(forward, conv=nn.Conv2d(4, 4, 1), aux=nn.Conv2d(4, 9, 1)), image(), "dead-code", None)
    assert kinds(run) == ["Conv2d", "mul"]
    assert set(run.module.state_dict()) == {"conv.weight", "conv.bias"}


def test_parameters_that_no_node_reads_go():
    model = nn.Sequential(nn.Conv2d(4, 4, 1))
    graph = fx.symbolic_trace(model.eval())
    graph.add_submodule("unused", nn.Linear(3, 3))
    run = Pipeline.parse("dead-code").execute(graph, Inputs.of(image()))
    assert set(run.module.state_dict()) == {"0.weight", "0.bias"}
    assert run.steps[0].changed


def test_checks_and_writes_stay():
    def forward(m, x):
        torch._assert(x.shape[1] == 4, "four channels")
        y = x * 2
        y[:, 0].relu_()
        return y

    run = rewritten(Apply(forward), image(), "dead-code", None)
    assert "assert" in "".join(kinds(run))
    assert "relu_" in kinds(run)


def test_statistics_of_a_norm_in_training_mode_stay():
    def forward(m, x):
        m.norm(x)
        return x + 1

    model = Apply(forward, norm=nn.BatchNorm2d(4)).train()
    run = Pipeline.parse("dead-code").execute(fx.symbolic_trace(model), Inputs.of(image()))
    assert "BatchNorm2d" in kinds(run)


def test_a_clean_graph_is_not_changed():
    assert not rewritten(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()), image(), "dead-code", None).steps[0].changed
