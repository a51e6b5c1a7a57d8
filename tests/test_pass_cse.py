"""Equal subexpressions are computed once; what only looks equal is not merged."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from rewriting import image, kinds, rewritten
from test_pass_functionalize import Apply
from torch import nn

PASSES = "functionalize,cse"


def shared():
    return {"conv": nn.Conv2d(4, 4, 3, padding=1), "other": nn.Conv2d(4, 4, 3, padding=1), "act": nn.ReLU(), "act2": nn.ReLU()}


MERGED = {
    "functions": (lambda m, x: F.relu(x) * F.relu(x), 2),
    "a module called twice on the same value": (lambda m, x: m.conv(x) + m.conv(x), 2),
    "two modules without state": (lambda m, x: m.act(x) * m.act2(x), 2),
    "whole chains": (lambda m, x: m.act(m.conv(x)) + m.act2(m.conv(x)), 3),
    "keyword arguments in another order": (lambda m, x: torch.sum(x, dim=1, keepdim=True) * torch.sum(x, keepdim=True, dim=1), 2),
    "slices": (lambda m, x: x[:, 1:3] + x[:, 1:3], 2),
}

APART = {
    "modules with other weights": (lambda m, x: m.conv(x) + m.other(x), 3),
    "other inputs": (lambda m, x: m.conv(x) + m.conv(x + 1), 4),
    "an int and a float": (lambda m, x: (x * 2) / (x * 2.0 + 9), 4),
    "True and 1": (lambda m, x: x.sum(1, keepdim=True) + x.sum(1, keepdim=True).sum(1, keepdim=False)[:, None], None),
}


@pytest.mark.parametrize("name", MERGED)
def test_merged(name):
    function, count = MERGED[name]
    assert len(kinds(rewritten(Apply(function, **shared()), image(), PASSES, None))) == count


@pytest.mark.parametrize("name", APART)
def test_apart(name):
    function, count = APART[name]
    found = kinds(rewritten(Apply(function, **shared()), image(), PASSES, None))
    assert count is None or len(found) == count


def test_random_numbers_are_drawn_as_often_as_before():
    from torch import fx

    from fxcompress.ir.inputs import Inputs
    from fxcompress.pipeline import Pipeline

    model = Apply(lambda m, x: m.drop(x) + m.drop(x), drop=nn.Dropout(0.5)).train()
    run = Pipeline.parse(PASSES).execute(fx.symbolic_trace(model), Inputs.of(image()))
    assert kinds(run).count("Dropout") == 2


def test_statistics_are_updated_as_often_as_before():
    from torch import fx

    from fxcompress.ir.inputs import Inputs
    from fxcompress.pipeline import Pipeline

    model = Apply(lambda m, x: m.norm(x) + m.norm(x), norm=nn.BatchNorm2d(4)).train()
    run = Pipeline.parse(PASSES).execute(fx.symbolic_trace(model), Inputs.of(image()))
    assert kinds(run).count("BatchNorm2d") == 2
