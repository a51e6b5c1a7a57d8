"""Random networks through the front rooms: capture, and saving and loading."""

from __future__ import annotations

import tempfile
from pathlib import Path

from drawing import Feed, feeds, networks
from hypothesis import assume, given, settings
from networks import Net
from oracle import case, run, same
from torch import fx

from fxcompress.capture import capture
from fxcompress.errors import UnsupportedModelError
from fxcompress.ir.inputs import Inputs
from fxcompress.storage import load, save


@settings(max_examples=60)
@given(net=networks(), feed=feeds())
def test_capture(net: Net, feed: Feed) -> None:
    """The captured graph is the model, at any batch size, bit for bit."""
    assume(all(one.op != "counter" for one in net.steps))  # buffers that a call changes are refused
    it = case(net, feed)
    before = it.state()
    try:
        module = capture(it.model, Inputs(it.feeds[0])).module
    except UnsupportedModelError:  # dropout as a function, which eval() would not reach
        assert net.train
        return
    assert isinstance(module, fx.GraphModule)
    for x, want in zip(it.feeds, it.outputs, strict=True):
        same(want, run(module, x)[0], None, f"output for batch {len(x[0])}")
    same(before, it.state(), None, "the model")


@settings(max_examples=60)
@given(net=networks(), feed=feeds())
def test_save_and_load(net: Net, feed: Feed) -> None:
    it = case(net, feed)
    with tempfile.TemporaryDirectory() as folder:
        save(it.graph, Path(folder) / "net.fxc")
        loaded = load(Path(folder) / "net.fxc")
    for at, x in enumerate(it.feeds):
        output, buffers = run(loaded, x)
        same(it.outputs[at], output, None, f"output for batch {len(x[0])}")
        same(run(it.graph, x)[1], buffers, None, "buffers")
