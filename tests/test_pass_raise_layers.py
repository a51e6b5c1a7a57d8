"""Functional layers become modules and keep the keys of the state_dict."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from rewriting import image, kinds, rewritten
from torch import nn

PASSES = "functionalize,raise-layers"


class Holder(nn.Module):
    """Owns parameters, and a norm's statistics."""

    def __init__(self, function, weight, bias=None, statistics=0):
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.empty(weight))
        self.bias = nn.Parameter(torch.empty(bias)) if bias else None
        if statistics:
            self.register_buffer("running_mean", torch.empty(statistics))
            self.register_buffer("running_var", torch.empty(statistics))

    def forward(self, x):
        return self.function(self, x)


LAYERS = {
    "Conv1d": (lambda m, x: F.conv1d(x.flatten(2), m.weight, m.bias, 2, 1, 1, 2), (6, 2, 3), 6, 0),
    "Conv2d": (lambda m, x: F.conv2d(x, m.weight, m.bias, stride=(2, 1), padding="valid"), (6, 4, 3, 1), 6, 0),
    "Conv3d": (lambda m, x: F.conv3d(x[:, :, None], m.weight, padding=(0, 1, 1)), (6, 4, 1, 3, 3), None, 0),
    "ConvTranspose2d": (lambda m, x: F.conv_transpose2d(x, m.weight, m.bias, 2, 1, 1, 2), (4, 3, 3, 3), 6, 0),
    "Linear": (lambda m, x: F.linear(x, m.weight, m.bias), (3, 5), 3, 0),
    "BatchNorm2d": (lambda m, x: F.batch_norm(x, m.running_mean, m.running_var, m.weight, m.bias, False, 0.1, 1e-3), (4,), 4, 4),
    "LayerNorm": (lambda m, x: F.layer_norm(x, (5,), m.weight, m.bias, 1e-4), (5,), 5, 0),
    "GroupNorm": (lambda m, x: F.group_norm(x, 2, m.weight, m.bias), (4,), 4, 0),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_every_layer(kind):
    holder = Holder(*LAYERS[kind])
    run = rewritten(nn.Sequential(holder, nn.ReLU()), image(), PASSES, None)
    assert kind in kinds(run)
    assert set(run.module.state_dict()) - {"0.num_batches_tracked"} == {f"0.{name}" for name in holder.state_dict()}


def test_tied_weights_stay_tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Linear(5, 5, bias=False)

        def forward(self, x):
            return F.linear(torch.relu(self.embed(x)), self.embed.weight)

    run = rewritten(Tied(), image(), PASSES, None)
    assert kinds(run).count("Linear") == 2
    assert len(list(run.module.parameters())) == 1


def test_one_weight_read_by_two_layers():
    holder = Holder(lambda m, x: F.conv2d(F.conv2d(x, m.weight, m.bias), m.weight), (4, 4, 1, 1), 4)
    run = rewritten(holder, image(), PASSES, None)
    assert kinds(run) == ["Conv2d", "Conv2d"]
    assert sum(p.numel() for p in run.module.parameters()) == 20


def test_statistics_of_the_batch_are_refused():
    holder = Holder(lambda m, x: F.batch_norm(x, None, None, m.weight, m.bias, True), (4,), 4)
    assert kinds(rewritten(holder, image(), PASSES, None)) == ["batch_norm"]


def test_computed_weights_stay():
    holder = Holder(lambda m, x: F.conv2d(x, m.weight * x.mean(), m.bias), (4, 4, 1, 1), 4)
    assert "conv2d" in kinds(rewritten(holder, image(), PASSES, None))
