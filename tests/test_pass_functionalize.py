"""In-place operations become ordinary ones, unless somebody could tell."""

from __future__ import annotations

import operator

import pytest
import torch
import torch.nn.functional as F
from rewriting import image, kinds, missed, rewritten
from torch import nn

from fxcompress.ir.effects import written_operand


class Apply(nn.Module):
    def __init__(self, function, **children):
        super().__init__()
        self.function = function
        for name, child in children.items():
            setattr(self, name, child)

    def forward(self, x):
        return self.function(self, x)


def writers(run):
    return [node.name for node in run.module.graph.nodes if written_operand(node) is not None]


FORMS = {
    "module": (lambda m, x: m.act(x + 1), {"act": nn.ReLU(inplace=True)}),
    "function with a flag": (lambda m, x: F.hardtanh(x + 1, -1, 2, True), {}),
    "function with a keyword": (lambda m, x: F.leaky_relu(x + 1, negative_slope=0.3, inplace=True), {}),
    "torch function": (lambda m, x: torch.relu_(x + 1), {}),
    "method": (lambda m, x: (x + 1).clamp_(-0.5, 0.5), {}),
    "operator": (lambda m, x: operator.iadd(x + 1, x), {}),
    "module with options": (lambda m, x: m.act(x + 1), {"act": nn.Hardtanh(-0.3, 0.2, inplace=True)}),
    "dropout in eval mode": (lambda m, x: m.act(x + 1), {"act": nn.Dropout(0.5, inplace=True)}),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_replaced(form):
    function, children = FORMS[form]
    assert not writers(rewritten(Apply(function, **children), image(), "functionalize", None))


def test_who_reads_afterwards_reads_the_new_value():
    def forward(m, x):
        y = x * 2
        before = y + 1
        y.relu_()
        return before, y + 1, y

    assert not writers(rewritten(Apply(forward), image(), "functionalize", None))


def test_a_chain_of_writes():
    def forward(m, x):
        y = m.conv(x)
        y += x
        y.relu_()
        y.mul_(2)
        return y

    run = rewritten(Apply(forward, conv=nn.Conv2d(4, 4, 3, padding=1)), image(), "functionalize", None)
    assert not writers(run)


def test_a_module_that_is_called_twice():
    def forward(m, x):
        return m.act(m.act(m.a(x)) - m.b(x))

    run = rewritten(Apply(forward, act=nn.ReLU6(inplace=True), a=nn.Conv2d(4, 4, 1), b=nn.Conv2d(4, 4, 1)), image(), "functionalize", None)
    assert not writers(run)


def test_the_input_itself():
    assert not writers(rewritten(Apply(lambda m, x: x.relu_() + 1), image(), "functionalize", None))


def test_a_view_that_is_read_later_stops_it():
    def forward(m, x):
        y = x * 2
        row = y[:, 0]
        y.relu_()
        return row + y[:, 1]

    run = rewritten(Apply(forward), image(), "functionalize", None)
    assert writers(run)
    assert "shares its memory" in missed(run)


def test_a_view_that_is_written_stops_it_when_the_whole_is_read_later():
    def forward(m, x):
        y = x * 2
        y[:, 0].relu_()
        return y

    assert writers(rewritten(Apply(forward), image(), "functionalize", None))


def test_a_view_of_the_last_value_does_not_stop_it():
    def forward(m, x):
        y = (x * 2).flatten(1)
        y.relu_()
        return y + 1

    assert not writers(rewritten(Apply(forward), image(), "functionalize", None))


def test_a_buffer_stays_written():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.seen = nn.Parameter(torch.zeros(4))  # a parameter: torch.fx would run a buffer's update while tracing

        def forward(self, x):
            return x + self.seen.add_(1).reshape(1, 4, 1, 1)

    run = rewritten(Counts(), image(), "functionalize", None)
    assert writers(run)
    assert "buffer" in missed(run)


def test_later_passes_leave_written_values_alone():
    def forward(m, x):
        y = m.norm(m.conv(x))
        row = y[:, 0]
        y.relu_()
        return row.sum(), y

    run = rewritten(Apply(forward, conv=nn.Conv2d(4, 4, 1), norm=nn.BatchNorm2d(4)), image(), "functionalize,fold-norm,fuse")
    assert writers(run)
    assert "relu" in kinds(run)[-2] or "relu_" in kinds(run)
