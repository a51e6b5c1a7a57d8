"""``compress --prune``, ``plan`` and ``apply`` on the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fxcompress import cli
from fxcompress.cli import pruning
from fxcompress.errors import InputError
from fxcompress.pruning.options import Budget, Prune
from fxcompress.pruning.plan import PruningPlan
from fxcompress.report import Report
from fxcompress.result import load

MODELS = """
import torch
from torch import nn


class Net(nn.Sequential):
    def __init__(self, width=32):
        super().__init__(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 16, 1), nn.Flatten(), nn.Linear(576, 5))


def wide():
    return Net(64)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a module ``prunenets``, which is the current folder."""
    (tmp_path / "prunenets.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "prunenets", raising=False)
    return tmp_path


def run(*arguments: str) -> int:
    return cli.main(arguments)


NET = ("prunenets:Net", "--input", "2x3x8x8")


def test_compress_with_a_ratio(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("compress", *NET, "--target", "none", "--prune", "0.5", "--out", "net.fxc", "--report", "net.json") == 0
    printed = capsys.readouterr()
    assert "prune-select" in printed.out
    assert "channels of" in printed.out
    assert printed.err == ""
    small: Any = load("net.fxc")
    assert small.plan.removed == 16 + 8
    assert small(torch.randn(1, 3, 8, 8)).shape == (1, 5)
    report = Report.from_json(Path("net.json").read_text())
    assert report.title == "Net pruned and compressed"
    assert [(line.name, line.kept) for line in report.pruned] == [("0", 16), ("3", 8)]


def test_compress_with_options() -> None:
    assert run("compress", *NET, "--target", "none", "--prune", "ratio=0.25,criterion=l1,ignore=[3],round_to=1", "--out", "net.fxc") == 0
    small: Any = load("net.fxc")
    assert [group.remaining for group in small.plan.groups] == [24, 16]


def test_plan_and_apply(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plan", *NET, "--ratio", "0.25", "--criterion", "l1", "--ignore", "3", "-o", "plan.json") == 0
    printed = capsys.readouterr()
    assert "pruning plan" in printed.out
    assert "wrote plan.json" in printed.out
    assert json.loads(Path("plan.json").read_text())["schema_version"] == 1
    assert run("apply", "plan.json", "prunenets:Net", "--out", "small.fxc", "--report", "small.md") == 0
    printed = capsys.readouterr()
    assert "Net pruned" in printed.out
    assert "wrote small.fxc" in printed.out
    small: Any = load("small.fxc")
    assert small.plan == PruningPlan.load("plan.json")
    assert small.get_submodule("0").out_channels == 24
    assert "## Channels" in Path("small.md").read_text()
    optimizer = torch.optim.SGD(small.parameters(), 0.1)
    small(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    assert run("compress", *NET, "--target", "none", "--prune", "plan.json", "--out", "fast.fxc") == 0
    fast: Any = load("fast.fxc")
    assert fast.plan == small.plan


def test_apply_with_inputs_of_its_own() -> None:
    assert run("plan", *NET, "-o", "plan.json") == 0
    assert run("apply", "plan.json", "prunenets:Net", "--input", "1x3x8x8", "--out", "small.fxc") == 0
    assert load("small.fxc")(torch.randn(4, 3, 8, 8)).shape == (4, 5)


def test_a_plan_need_not_be_written(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    assert run("plan", *NET, "--budget", "macs=-40%", "--budget", "params=3k", "--round-to", "4", "--scope", "global") == 0
    assert "MACs:" in capsys.readouterr().out
    assert sorted(p.name for p in folder.iterdir() if p.is_file()) == ["prunenets.py"]


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("0.5", Prune()),
        ("0", Prune(ratio=0.0)),
        ("macs=-40%", Prune(budget=Budget(macs="-40%"))),
        ("latency=12 ms,scope=global", Prune(budget=Budget(latency="12 ms"), scope="global")),
        ("ratios=[[layer4.*,0.7],[fc,0.1]]", Prune(ratios=(("layer4.*", 0.7), ("fc", 0.1)))),
    ],
)
def test_what_prune_takes(text: str, options: Prune) -> None:
    assert pruning.asked(text) == options


@pytest.mark.parametrize(
    "text", ["half", "1.5", "ratio=2", "ratio=half", "criterion=l3", "ration=0.5", "macs=40%", "plan.json", "ratio=[", "-0.5"]
)
def test_what_prune_does_not_take(text: str) -> None:
    with pytest.raises(InputError) as raised:
        pruning.asked(text)
    assert raised.value.hint
    assert len(str(raised.value).splitlines()) <= 3


WRONG = {
    "no ratio": (("plan", *NET, "--ratio", "half"), "half"),
    "no budget": (("plan", *NET, "--budget", "40%"), "macs=-40%"),
    "no such limit": (("plan", *NET, "--budget", "time=1s"), "latency=12ms"),
    "no such criterion": (("plan", *NET, "--criterion", "l3"), "known are"),
    "no such layer": (("plan", *NET, "--ignore", "nowhere"), "nowhere"),
    "no data": (("plan", *NET, "--criterion", "taylor"), "needs data"),
    "no folder": (("plan", *NET, "-o", "nowhere/plan.json"), "mkdir"),
    "no plan": (("apply", "nothing.json", "prunenets:Net"), "nothing.json"),
    "no valid plan": (("apply", "prunenets.py", "prunenets:Net"), "no valid pruning plan"),
    "no model": (("apply", "plan.json", "prunenets:Nett"), "did you mean"),
    "another model": (("apply", "plan.json", "prunenets:wide"), "another network"),
    "no report form": (("apply", "plan.json", "prunenets:Net", "--report", "a.pdf"), ".html"),
    "prune what": (("compress", *NET, "--prune", "half"), "write a share"),
}


@pytest.mark.parametrize("case", WRONG)
def test_mistakes_are_answered(case: str, capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    if "plan.json" in WRONG[case][0]:
        assert run("plan", *NET, "-o", "plan.json") == 0
    before = sorted(folder.iterdir())
    capsys.readouterr()
    arguments, words = WRONG[case]
    assert run(*arguments) == 2
    printed = capsys.readouterr()
    assert words in printed.err
    assert printed.err.startswith("fxcompress: ")
    assert "Traceback" not in printed.err
    assert len(printed.err.splitlines()) <= 4
    assert [p for p in sorted(folder.iterdir()) if p.name != "__pycache__"] == [p for p in before if p.name != "__pycache__"]


def test_help_says_how(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("plan", "apply", "compress"):
        with pytest.raises(SystemExit) as stopped:
            run(command, "--help")
        assert stopped.value.code == 0
        shown = capsys.readouterr().out
        assert "example: fxcompress" in shown
        assert "%%" not in shown
