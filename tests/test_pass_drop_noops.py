"""What does nothing at inference goes; what only looks like it stays."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from rewriting import image, kinds, rewritten
from test_pass_functionalize import Apply
from torch import nn

PASSES = "functionalize,drop-noops"

GONE = {
    "dropout": lambda m, x: m.layer(x * 2) + 1,
    "functional dropout": lambda m, x: F.dropout(x * 2, 0.5, training=m.training) + 1,
    "permute": lambda m, x: (x * 2).permute(0, 1, -2, 3) + 1,
    "transpose": lambda m, x: (x * 2).transpose(1, -3) + 1,
    "flatten of one axis": lambda m, x: (x * 2).flatten(3) + 1,
    "expand": lambda m, x: (x * 2).expand(-1, -1, -1, -1) + 1,
    "times one": lambda m, x: (x * 2) * 1 + 1,
    "divided by one": lambda m, x: (x * 2) / 1.0 + 1,
    "minus zero": lambda m, x: (x * 2) - 0 + 1,
    "clone": lambda m, x: (x * 2).clone() + 1,
    "cast": lambda m, x: (x * 2).double() + 1,
    "to": lambda m, x: (x * 2).to(torch.float64) + 1,
}

STAY = {
    "plus zero turns -0 into 0": (lambda m, x: (x * 0.0) + 0, 2),
    "division with rounding": (lambda m, x: torch.div(x * 2, 1, rounding_mode="floor"), 2),
    "permute that moves": (lambda m, x: (x * 2).permute(0, 2, 1, 3), 2),
    "narrowing cast": (lambda m, x: (x * 2).float(), 2),
    "view that only fits the example": (lambda m, x: (x * 2).view(2, 4, 7, 5), 2),
    "a copy of the input for the user": (lambda m, x: x.clone(), 1),
    "boolean times one": (lambda m, x: (x > 0) * 1, 2),
}


@pytest.mark.parametrize("name", GONE)
def test_it_goes(name):
    run = rewritten(Apply(GONE[name], layer=nn.Dropout2d(0.3)), image(), PASSES, None)
    assert kinds(run) == ["mul", "add"]


@pytest.mark.parametrize("name", STAY)
def test_it_stays(name):
    function, count = STAY[name]
    assert len(kinds(rewritten(Apply(function), image(), PASSES, None))) == count


def test_identity_and_nested_sequentials():
    model = nn.Sequential(nn.Identity(), nn.Conv2d(4, 4, 1), nn.Sequential(nn.Dropout(), nn.Identity()), nn.ReLU())
    assert kinds(rewritten(model, image(), PASSES, None)) == ["Conv2d", "ReLU"]


def test_dropout_in_training_mode_stays():
    from torch import fx

    from fxcompress.ir.inputs import Inputs
    from fxcompress.pipeline import Pipeline

    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).train()
    run = Pipeline.parse(PASSES).execute(fx.symbolic_trace(model), Inputs.of(image(3, 4)))
    assert kinds(run) == ["Linear", "Dropout"]


def test_the_whole_input_given_back():
    run = rewritten(Apply(lambda m, x: m.layer(x), layer=nn.Dropout()), image(), PASSES, None)
    assert kinds(run) == []
