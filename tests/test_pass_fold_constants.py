"""What reads no input is computed once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from rewriting import image, kinds, rewritten
from test_pass_functionalize import Apply
from torch import fx, nn

from fxcompress.ir.inputs import Inputs
from fxcompress.pipeline import Pipeline

PASSES = "functionalize,fold-constants"


class Standardized(nn.Module):
    """Weight standardisation: the weight is a function of a parameter."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(6, 4, 3, 3))
        self.bias = nn.Parameter(torch.empty(6))

    def forward(self, x):
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, (self.weight - mean) * 3, self.bias, padding=1)


def test_weight_standardisation():
    run = rewritten(Standardized(), image(), PASSES, None)
    assert kinds(run) == ["conv2d"]
    run = rewritten(Standardized(), image(), PASSES + ",raise-layers", None)
    assert kinds(run) == ["Conv2d"]


def test_pieces_of_a_constant():
    def forward(m, x):
        first, second = m.table.chunk(2, 0)
        return x * first.reshape(1, 4, 1, 1) + second.reshape(1, 4, 1, 1)

    model = Apply(forward)
    model.table = nn.Parameter(torch.empty(8))
    assert kinds(rewritten(model, image(), PASSES, None)) == ["mul", "add"]


def test_what_would_grow_too_much_stays():
    model = Apply(lambda m, x: x + m.row.expand(2, 4, 7, 5).clone())
    model.row = nn.Parameter(torch.empty(5))
    assert "clone" not in kinds(rewritten(model, image(), PASSES, None))
    assert "clone" in kinds(rewritten(model, image(), "functionalize,fold-constants{max_growth=100}", None))


def test_random_constants_stay():
    model = Apply(lambda m, x: x * torch.ones_like(m.row) + 0 * torch.rand_like(m.row))
    model.row = nn.Parameter(torch.empty(5))
    run = Pipeline.parse(PASSES).execute(fx.symbolic_trace(model.eval()), Inputs.of(image()), verify=False)
    assert "rand_like" in kinds(run)
    assert "ones_like" not in kinds(run)


def test_training_stops_it():
    graph = fx.symbolic_trace(nn.Sequential(Standardized(), nn.BatchNorm2d(6)).train())
    assert not Pipeline.parse(PASSES).execute(graph, Inputs.of(image())).steps[1].changed
