"""``compress --int8`` on the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fxcompress import cli
from fxcompress.cli.quantizing import int8
from fxcompress.errors import InputError
from fxcompress.quant.options import Int8
from fxcompress.result import load

MODELS = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 16, 1), nn.Flatten(), nn.Linear(576, 5))


def images():
    return torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(1))


batches = list(images().split(4))
pairs = DataLoader(TensorDataset(images(), torch.zeros(12, dtype=torch.int64)), batch_size=4)
number = 3
empty = []


def loader():
    return pairs


def broken():
    raise FileNotFoundError("no folder")


def score(module):
    return 1.0
"""

SMALL = ("--target", "cpu", "--int8", "--int8-options", "speed=none")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a module ``quantnets``, which is the current folder."""
    (tmp_path / "quantnets.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "quantnets", raising=False)
    return tmp_path


def run(*arguments: str) -> int:
    return cli.main(("compress", "quantnets:Net", "--input", "2x3x8x8", *arguments))


@pytest.mark.parametrize("name", ["batches", "pairs", "loader"])
def test_int8(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*SMALL, "--calibration", f"quantnets:{name}", "--out", "net.fxc", "--report", "net.json") == 0
    printed = capsys.readouterr()
    assert "the quantized form was kept" in printed.out
    assert printed.err == ""
    small: Any = load("net.fxc")
    assert small.report.quantized.batches == 3
    assert small(torch.randn(5, 3, 8, 8)).shape == (5, 5)
    assert json.loads(Path("net.json").read_text())["report"]["quantized"]["kept"] is True


def test_pruned_and_int8(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*SMALL, "--calibration", "quantnets:batches", "--prune", "0.5") == 0
    assert "Net pruned and quantized" in capsys.readouterr().out


def test_weights_only_need_no_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--target", "cpu", "--int8", "--int8-options", "static=false,weight_only=[*]") == 0
    assert "int8 weights" in capsys.readouterr().out


def test_a_budget(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--target", "cpu", "--int8", "--int8-options", "speed=none,max_drop=0.01", "--evaluate", "quantnets:score")
    assert run(*options, "--calibration", "quantnets:batches") == 0
    assert "score 1, 1 in float" in capsys.readouterr().out


WRONG: dict[str, tuple[tuple[str, ...], str]] = {
    "no data": (("--int8",), "add --calibration package.module:loader"),
    "no such module": (("--int8", "--calibration", "nowhere:loader"), "no module 'nowhere'"),
    "no such name": (("--int8", "--calibration", "quantnets:loadr"), "quantnets:loader"),
    "no name": (("--int8", "--calibration", "quantnets"), "package.module:loader"),
    "no data behind the name": (("--int8", "--calibration", "quantnets:number"), "gives a int"),
    "an empty list": (("--int8", "--calibration", "quantnets:empty"), "needs calibration data"),
    "a loader that fails": (("--int8", "--calibration", "quantnets:broken"), "raised FileNotFoundError: no folder"),
    "an option": (("--int8", "--calibration", "quantnets:batches", "--int8-options", "bit=3"), "no option 'bit'"),
    "a value": (("--int8", "--calibration", "quantnets:batches", "--int8-options", "bits=9"), "2 to 8"),
    "an observer": (("--int8", "--calibration", "quantnets:batches", "--int8-options", "observer=best"), "sqnr, entropy"),
    "a text": (("--int8", "--calibration", "quantnets:batches", "--int8-options", "bits"), "has no value"),
    "a pattern": (("--int8", "--calibration", "quantnets:batches", "--int8-options", "ignore=[head]"), "called 'head'"),
    "options alone": (("--int8-options", "bits=8"), "add --int8"),
    "evaluate alone": (("--evaluate", "quantnets:score"), "add --int8"),
    "no function": (
        ("--int8", "--calibration", "quantnets:batches", "--int8-options", "max_drop=1", "--evaluate", "quantnets:number"),
        "takes a module",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, words = WRONG[case]
    assert run(*arguments) == 2
    printed = capsys.readouterr()
    assert words in printed.err
    assert len(printed.err.splitlines()) <= 3
    assert "Traceback" not in printed.err


def test_options_as_text() -> None:
    assert int8("") == Int8()
    text = "bits=7,observer=percentile,ignore=[head.*,stem],smooth=0.5,batches=3,equalize=true,speed=measure"
    wanted = Int8(bits=7, observer="percentile", ignore=("head.*", "stem"), smooth=0.5, batches=3, equalize=True, speed="measure")
    assert int8(text) == wanted
    with pytest.raises(InputError):
        int8("evaluate=print,max_drop=1")
