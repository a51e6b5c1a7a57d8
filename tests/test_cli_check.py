"""``fxcompress check``: its exit statuses, its files, and what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from fxcompress import cli
from fxcompress.cli import check_report
from fxcompress.cli.outcome import Outcome, Status, failed, worst
from fxcompress.cli.surroundings import in_ci, summary_room
from fxcompress.compare import codec
from fxcompress.report.difference import CostChange, Difference, Gate, Place

NETS = """
import sys
import torch
from torch import nn

def net(channels=8, stride=1, scale=1.0):
    torch.manual_seed(0)
    made = nn.Sequential(nn.Conv2d(3, channels, 3, stride), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5))
    made[0].weight.data *= scale
    return made

def other(): return net(stride=2)
def heavy(): return net(channels=9)
def loud(): return net(scale=1.001)
def broken(): raise OSError("no disk")
def leaves(): sys.exit(0)

class Fails(nn.Module):
    def forward(self, x): return x.reshape(7)
"""
CONFIG = """
[tool.fxcompress.models.net]
spec = "{spec}"
inputs = ["1x3x8x8"]
{rest}
[tool.fxcompress.models.net.gates]
{gates}
"""
GATES = (
    'topology = "approved"\nattributes = "approved"\nweights = "same"\ncontract = "same"\ndtypes = "no-widen"\nmacs = "+0%"\nsqnr = "40 dB"'
)
ENVIRONMENT = ("CI", "GITHUB_ACTIONS", "GITLAB_CI", "TF_BUILD", "TEAMCITY_VERSION", "JENKINS_URL", "BUILDKITE", "GITHUB_STEP_SUMMARY")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "checknets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "checknets", raising=False)
    configure(tmp_path)
    return tmp_path


def configure(folder: Path, spec: str = "checknets:net", gates: str = GATES, rest: str = "") -> None:
    (folder / "pyproject.toml").write_text(CONFIG.format(spec=spec, gates=gates, rest=rest))


def run(*arguments: str) -> int:
    return cli.main(["check", *arguments])


def files(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts}


def test_missing_written_held_violated(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(project)
    assert run() == 1
    assert "baseline: measured none, limit baselines/net.fxs (run 'fxcompress check --update'" in capsys.readouterr().out
    assert files(project) == before
    assert run("--update") == 0
    assert "wrote baselines/net.fxs" in capsys.readouterr().out
    assert files(project) == before | {"baselines/net.fxs"}
    assert codec.read(project / "baselines/net.fxs").live is None
    written = (project / "baselines/net.fxs").read_bytes()
    assert run() == 0
    assert capsys.readouterr().out == "ok net: 7 gates hold\n1 model: 1 holds\n"
    assert run("--update") == 0
    assert "baselines/net.fxs is up to date" in capsys.readouterr().out
    configure(project, "checknets:other")
    assert run() == 1
    assert (project / "baselines/net.fxs").read_bytes() == written
    told = capsys.readouterr().out
    assert "FAIL net: 2 of 7 gates violated" in told
    assert "stride" in told


@pytest.mark.parametrize(
    ("spec", "violated"),
    [("net", set()), ("loud", {"weights"}), ("other", {"attributes", "sqnr"}), ("heavy", {"attributes", "weights", "macs", "sqnr"})],
)
def test_each_change_violates_its_gates(project: Path, spec: str, violated: set[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--update") == 0
    configure(project, f"checknets:{spec}")
    capsys.readouterr()
    assert run("--format", "json") == (1 if violated else 0)
    (model,) = json.loads(capsys.readouterr().out)["models"]
    assert {gate["name"] for gate in model["difference"]["gates"] if not gate["holds"]} == violated
    assert run("--update") == 0
    assert run() == 0


def test_relative_and_absolute_costs(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure(project, gates='params = "+0%"')
    assert run("--update") == 0
    for gates, status in (
        ('params = "+20%"', 0),
        ('params = "+10%"', 1),
        ('params = "1 k"', 0),
        ("params = 100", 1),
        ('params = ["1 k", "+1%"]', 1),
        ('weight_bytes = "+1 kB"', 0),
        ('weight_bytes = "+10 B"', 1),
    ):
        configure(project, "checknets:heavy", gates)
        assert run() == status, gates
    configure(project, "checknets:heavy", 'params = { limit = "100", message = "ask Ada" }')
    capsys.readouterr()
    assert run() == 1
    assert "ask Ada" in capsys.readouterr().out


def test_an_update_does_not_hide_an_absolute_limit(project: Path) -> None:
    configure(project, gates='params = "10"\nmacs = "+0%"')
    assert run("--update") == 1
    assert (project / "baselines/net.fxs").exists()


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ("[tool.fxcompress", "not valid TOML"),
        ("[tool.other]", "has no [tool.fxcompress]"),
        (CONFIG.format(spec="checknets:net", gates='toplogy = "approved"', rest=""), "did you mean 'topology'"),
        (CONFIG.format(spec="checknets:net", gates="", rest="imputs = []"), "did you mean 'inputs'"),
    ],
)
def test_a_wrong_configuration_is_a_failure(project: Path, config: str, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "pyproject.toml").write_text(config)
    assert run() == 2
    assert word in capsys.readouterr().err


@pytest.mark.parametrize(
    ("spec", "word"),
    [
        ("checknets:nett", "has no 'nett'"),
        ("nowhere_at_all:net", "no module 'nowhere_at_all'"),
        ("torchvision:resnet81", "torchvision:resnet18"),
        ("none.fxc", "there is no file"),
        ("checknets:broken", "no disk"),
        ("checknets:leaves", "SystemExit: 0"),
        ("checknets:Fails", "the model itself fails"),
    ],
)
def test_a_model_that_cannot_be_checked_is_a_failure(project: Path, spec: str, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Also one that ends the program with success; and the other models are checked all the same."""
    assert run("--update") == 0
    with (project / "pyproject.toml").open("a") as file:
        file.write(f'[tool.fxcompress.models.bad]\nspec = "{spec}"\ninputs = ["1x3x8x8"]\n')
    capsys.readouterr()
    assert run() == 2
    told = capsys.readouterr().out
    assert "ERROR bad: " in told
    assert word in told
    assert "ok net: 7 gates hold" in told
    assert run("--only", "net") == 0
    assert run("--only", "bad", "--update") == 2
    assert not (project / "baselines/bad.fxs").exists()


@pytest.mark.parametrize("damage", ["", "{", '{"format": "other"}', "truncated", "newer", "folder"])
def test_a_broken_baseline_is_a_failure_until_it_is_replaced(project: Path, damage: str) -> None:
    assert run("--update") == 0
    path = project / "baselines/net.fxs"
    whole = path.read_text()
    if damage == "folder":
        path.unlink()
        path.mkdir()
        assert run() == 2
        assert run("--update") == 2
        return
    changed = {"truncated": whole[: len(whole) // 2], "newer": whole.replace('"schema_version": 1', '"schema_version": 999')}
    path.write_text(changed.get(damage, damage))
    assert path.read_text() != whole
    assert run() == 2
    assert run("--update") == 0
    assert run() == 0


def test_wrong_arguments_are_failures(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--only", "nat") == 2
    assert "did you mean 'net'" in capsys.readouterr().err
    assert run("--config", "none.toml") == 2
    assert run("--html", "nowhere/x.html") == 2
    assert run("--html", "x.txt") == 2
    assert run("--junit", "x.html") == 2
    assert run("--allow-ci") == 2
    assert run("-o", "x.unknown") == 2
    with pytest.raises(SystemExit, match="2"):
        run("--updat")


# -- continuous integration


def test_in_ci_a_baseline_is_written_only_when_told_so(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CI", "true")
    before = files(project)
    assert run() == 1
    assert run("--update") == 2
    assert "--allow-ci" in capsys.readouterr().err
    assert files(project) == before
    assert run("--update", "--allow-ci") == 0
    assert files(project) == before | {"baselines/net.fxs"}
    assert run() == 0


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, False),
        ({"CI": ""}, False),
        ({"CI": "false"}, False),
        ({"CI": "0"}, False),
        ({"CI": "1"}, True),
        ({"CI": "woodpecker"}, True),
        ({"JENKINS_URL": "x"}, True),
    ],
)
def test_in_ci(environ: dict[str, str], expected: bool) -> None:
    assert in_ci(environ) is expected


def test_annotations_and_summary(project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--update") == 0
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    summary = project / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    capsys.readouterr()
    assert run() == 0
    assert "::" not in capsys.readouterr().out
    assert summary.read_text().startswith("before\n# fxcompress: 1 model: 1 holds\n")
    configure(project, "checknets:other")
    assert run() == 1
    told = capsys.readouterr().out
    errors = [line for line in told.splitlines() if line.startswith("::")]
    assert 2 <= len(errors) <= 10
    assert any(line.startswith("::error file=checknets.py,line=") for line in errors) or all("file=" not in line for line in errors)
    assert "stride" in summary.read_text()
    assert run("--format", "json") == 1
    json.loads(capsys.readouterr().out)  # no annotations inside
    assert run("-o", "r.json") == 1
    assert "::error" in capsys.readouterr().out


def test_a_summary_that_cannot_be_written_changes_nothing(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--update") == 0
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(project / "no" / "folder.md"))
    assert run() == 0
    assert "cannot be written" in capsys.readouterr().err


def test_room_in_the_summary(tmp_path: Path) -> None:
    path = tmp_path / "s.md"
    assert summary_room({}) == 0
    assert 1_000_000 < summary_room({"GITHUB_STEP_SUMMARY": str(path)}) <= 2**20
    path.write_bytes(b"x" * 2**20)
    assert summary_room({"GITHUB_STEP_SUMMARY": str(path)}) == 0


# -- forms


@pytest.mark.parametrize("form", check_report.FORMS)
def test_forms(project: Path, form: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--update") == 0
    configure(project, "checknets:other")
    with (project / "pyproject.toml").open("a") as file:
        file.write('[tool.fxcompress.models.bad]\nspec = "checknets:broken"\ninputs = ["1x3x8x8"]\n')
        file.write('[tool.fxcompress.models.new]\nspec = "checknets:net"\ninputs = ["1x3x8x8"]\n')
    capsys.readouterr()
    assert run("--format", form) == 2
    told = capsys.readouterr().out
    for word in ("net", "bad", "new", "no disk"):
        assert word in told
    assert len(told.splitlines()) <= 40 or form != "text"


def test_junit_and_html_beside_the_text(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--update", "--html", "r.html", "--junit", "r.xml") == 0
    assert "wrote r.html" in capsys.readouterr().out
    assert "<html" in (project / "r.html").read_text()
    suites = ElementTree.parse(project / "r.xml").getroot()
    assert len(suites.findall("testsuite/testcase")) == 7
    configure(project, "checknets:other")
    assert run("--junit", "r.xml", "-o", "r.md") == 1
    assert len(ElementTree.parse(project / "r.xml").getroot().findall("testsuite/testcase/failure")) == 2
    assert "stride" in (project / "r.md").read_text()


def outcome(name: str, *gates: Gate, nodes: int = 1, note: str = "") -> Outcome:
    added = tuple(Place(f"node{i}", f"kind{i}") for i in range(nodes))
    return Outcome(name, Difference("b", name, 0, nodes, 0, added=added, gates=gates, cost=(CostChange("macs", 1, 2),)), note=note)


def test_many_models_in_forty_lines() -> None:
    good, bad = Gate("macs", True, "1", "1"), Gate("macs", False, "1", "2")
    outcomes = [outcome(f"good{i}", good, nodes=0) for i in range(50)] + [outcome(f"bad{i}", bad, nodes=300) for i in range(30)]
    outcomes += [failed(f"failed{i}", "b", "line\n" * 50) for i in range(30)]
    for chosen in (outcomes, outcomes[:60], outcomes[45:55], outcomes[-1:], outcomes[50:51]):
        lines = check_report.text(chosen, 96).splitlines()
        assert len(lines) <= 40
        assert lines[-1].startswith(f"{len(chosen)} model")
        assert lines[0].startswith({Status.FAILED: "ERROR", Status.VIOLATED: "FAIL", Status.HOLDS: "ok"}[worst(chosen)])
    assert len(check_report.markdown(outcomes, 20_000).encode()) <= 20_000
    annotations = check_report.github(outcomes).splitlines()
    assert len(annotations) == 10
    assert all("more" not in line for line in annotations)
    alone = check_report.github(outcomes[50:51]).splitlines()
    assert "gate violated" in alone[0]
    assert len(alone) == 10
    assert [json.loads(check_report.to_json(outcomes))["models"][i]["name"] for i in (0, 79)] == ["good0", "bad29"]


def test_hostile_texts_stay_texts() -> None:
    evil = "::error file=x::y\n::warning::z <script>alert(1)</script> |`"
    outcomes = [failed("net", "b", evil), outcome("other", Gate("macs", False, evil, evil, evil))]
    for line in check_report.github(outcomes).splitlines():
        assert line.startswith("::error title=")
    for form in ("html", "junit"):
        assert "<script>alert" not in check_report.rendered(outcomes, form, 96)
    ElementTree.fromstring(check_report.junit(outcomes))
    for line in [*check_report.text(outcomes, 96).splitlines(), *check_report.markdown(outcomes).splitlines()]:
        assert not line.strip().startswith("::")  # GitHub takes indented ones, too


# -- baselines with weights, other folders, processes


def test_a_saved_model_is_a_baseline(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compress", "checknets:net", "--input", "1x3x8x8", "--target", "none", "--out", "old.fxc"]) == 0
    configure(project, gates='params = "+0%"\nlatency = "+10000%"\nsqnr = "60 dB"', rest='baseline = "old.fxc"\npipeline = "default"')
    written = (project / "old.fxc").read_bytes()
    assert run() == 0
    capsys.readouterr()
    assert run("--update") == 0
    assert "'old.fxc' is a model and is not written" in capsys.readouterr().out
    assert (project / "old.fxc").read_bytes() == written
    configure(project, rest='baseline = "older.fxc"')
    assert run() == 1


def test_latency(project: Path) -> None:
    configure(project, gates='latency = "100 s"')
    assert run("--update") == 0
    configure(project, gates='latency = "1 ns"')
    assert run() == 1


def test_from_a_folder_inside_of_the_project(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = project / "a" / "b"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    path = list(sys.path)
    assert run("--update") == 0
    assert (project / "baselines/net.fxs").exists()
    assert run() == 0
    assert [p for p in sys.path if p] == [p for p in path if p]


def test_in_a_process_of_its_own(project: Path) -> None:
    def own(*arguments: str) -> int:
        return subprocess.run([sys.executable, "-m", "fxcompress", "check", *arguments], capture_output=True).returncode

    assert own() == 1
    assert own("--update") == 0
    (project / "checknets.py").write_text("import sys; sys.exit(0)")
    assert own() == 2
    assert own("--nonsense") == 2
