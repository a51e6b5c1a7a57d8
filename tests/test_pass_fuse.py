"""Layers carry the residual and activation after them, with the same bits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from rewriting import image, kinds, missed, rewritten
from test_pass_functionalize import Apply
from torch import nn

PASSES = "functionalize,fuse"

ACTIVATIONS = {
    "ReLU": nn.ReLU(),
    "ReLU6": nn.ReLU6(inplace=True),
    "SiLU": nn.SiLU(),
    "Hardswish": nn.Hardswish(),
    "Hardsigmoid": nn.Hardsigmoid(),
    "GELU": nn.GELU(),
    "GELU tanh": nn.GELU("tanh"),
    "Sigmoid": nn.Sigmoid(),
    "Tanh": nn.Tanh(),
    "LeakyReLU": nn.LeakyReLU(0.2),
    "ELU": nn.ELU(0.7),
    "Mish": nn.Mish(),
    "Hardtanh": nn.Hardtanh(-0.2, 0.4),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("layer", [nn.Conv2d(4, 6, 3), nn.Linear(5, 3)], ids=["conv", "linear"])
def test_activations(name, layer):
    run = rewritten(nn.Sequential(layer, ACTIVATIONS[name]), image(), PASSES, None)
    assert kinds(run) == [f"Fused{type(layer).__name__}"]


def convs(**more):
    return {"a": nn.Conv2d(4, 4, 3, padding=1), "b": nn.Conv2d(4, 4, 3, padding=1), **more}


RESIDUALS = {
    "left": lambda m, x: F.relu(m.a(x) + x),
    "right": lambda m, x: F.relu(x + m.a(x)),
    "two layers": lambda m, x: F.relu(m.a(x) + m.b(x)),
    "computed after the layer": lambda m, x: late(m, x),
    "in place": lambda m, x: m.a(x).add_(x).relu_(),
    "no activation": lambda m, x: m.a(x) + x,
}


def late(m, x):
    y = m.a(x)
    return (y + torch.sigmoid(x)).clamp(0, 6)


@pytest.mark.parametrize("name", RESIDUALS)
def test_residuals(name):
    run = rewritten(Apply(RESIDUALS[name], **convs()), image(), PASSES, None)
    assert "add" not in kinds(run)
    assert "relu" not in kinds(run)
    assert "FusedConv2d" in kinds(run)


STAY = {
    "another reader": (lambda m, x: (y := m.a(x), F.relu(y) + y)[1], "also read by"),
    "broadcast": (lambda m, x: m.a(x) + x.mean((2, 3), keepdim=True), "broadcast"),
    "alpha": (lambda m, x: torch.add(m.a(x), x, alpha=2), ""),
    "the same value twice": (lambda m, x: (y := m.a(x), y + y)[1], ""),
}


@pytest.mark.parametrize("name", STAY)
def test_it_stays(name):
    function, reason = STAY[name]
    run = rewritten(Apply(function, **convs()), image(), PASSES, None)
    assert "FusedConv2d" not in kinds(run)
    assert reason in missed(run)


def test_the_activation_comes_last():
    run = rewritten(Apply(lambda m, x: F.relu(m.a(x)) + x, **convs()), image(), PASSES, None)
    assert kinds(run) == ["FusedConv2d", "add"]


def test_a_shared_layer_with_two_fates():
    run = rewritten(Apply(lambda m, x: F.relu(m.a(x)) + torch.sigmoid(m.a(x + 1)), **convs()), image(), PASSES, None)
    assert sum(p.numel() for p in run.module.parameters()) == 4 * 4 * 9 + 4
    assert kinds(run).count("FusedConv2d") == 2
