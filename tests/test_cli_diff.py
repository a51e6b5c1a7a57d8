"""``fxcompress snapshot | diff | explain``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from fxcompress import cli
from fxcompress.cli.sides import is_snapshot
from fxcompress.compare import codec

NETS = """
import torch
from torch import nn

def net(stride=1):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, stride), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5))

def small():
    made = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    return made

def other():
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU())

def batches():
    return [torch.ones(1, 3, 8, 8)]
"""
X = ("--input", "1x3x8x8")


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    (tmp_path / "diffnets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "diffnets", raising=False)
    return tmp_path


def run(*arguments: str) -> int:
    return cli.main(arguments)


def test_a_snapshot_is_the_same_in_every_process(nets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("snapshot", "diffnets:small", *X, "-o", "a.fxs") == 0
    assert "wrote a.fxs: 5 nodes" in capsys.readouterr().out
    assert run("snapshot", "diffnets:small", *X) == 0
    assert capsys.readouterr().out == (nets / "a.fxs").read_text()
    for seed in ("0", "7"):
        command = [sys.executable, "-m", "fxcompress", "snapshot", "diffnets:small", *X, "-o", f"{seed}.fxs"]
        subprocess.run(command, check=True, capture_output=True, env={"PYTHONHASHSEED": seed, "PATH": "/usr/bin", "OMP_NUM_THREADS": "1"})
        assert (nets / f"{seed}.fxs").read_bytes() == (nets / "a.fxs").read_bytes()


def test_options_of_a_snapshot(nets: Path) -> None:
    assert run("snapshot", "diffnets:small", *X, "--no-numbers", "-o", "a.fxs") == 0
    assert codec.read(nets / "a.fxs").numbers is None
    assert run("snapshot", "diffnets:small", *X, "--pipeline", "default", "-o", "b.fxs") == 0
    assert len(codec.read(nets / "b.fxs").nodes) == 3
    assert run("snapshot", "diffnets:small", *X, "--data", "diffnets:batches", "-o", "c.fxs") == 0
    seeded, typical = codec.read(nets / "b.fxs").numbers, codec.read(nets / "c.fxs").numbers
    assert seeded is not None
    assert typical is not None
    assert seeded.digest != typical.digest
    assert run("snapshot", "diffnets:small", "--input", "2x3x8x8", "--dtype", "float64", "-o", "d.fxs") == 0
    assert codec.read(nets / "d.fxs").contract.inputs[0].dtype == "float64"


def test_every_kind_of_side(nets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("snapshot", "diffnets:small", *X, "-o", "a.fxs") == 0
    (nets / "renamed.json").write_bytes((nets / "a.fxs").read_bytes())
    assert run("compress", "diffnets:small", *X, "--target", "none", "--pipeline", "functionalize", "--out", "saved.fxc") == 0
    capsys.readouterr()
    for base in ("a.fxs", "renamed.json", "diffnets:small"):
        for head in ("a.fxs", "renamed.json", "diffnets:small"):
            assert run("diff", base, head, *X) == 0
            assert "no difference" in capsys.readouterr().out, (base, head)
    assert run("diff", "a.fxs", "saved.fxc", *X) == 0
    assert "small -> saved.fxc" in capsys.readouterr().out
    assert run("diff", "saved.fxc", "diffnets:other", *X) == 0
    assert "stride" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("form", "suffix"), [("text", ".txt"), ("md", ".md"), ("json", ".json"), ("junit", ".xml"), ("html", ".html"), ("github", "")]
)
def test_forms(nets: Path, form: str, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("diff", "diffnets:small", "diffnets:other", *X, "--format", form) == 0
    printed = capsys.readouterr().out
    assert "stride" in printed
    if suffix:
        assert run("diff", "diffnets:small", "diffnets:other", *X, "-o", f"r{suffix}") == 0
        assert (nets / f"r{suffix}").read_text() == printed.rstrip("\n") + "\n" * (
            printed.endswith("\n") and (nets / f"r{suffix}").read_text().endswith("\n")
        )
    if form == "json":
        found = json.loads(printed)
        assert {
            "added",
            "removed",
            "changed",
            "rewired",
            "moved",
            "groups",
            "contract",
            "cost",
            "numbers",
            "gates",
            "schema_version",
        } <= set(found)
    if form == "junit":
        ElementTree.fromstring(printed)
    if form == "github":
        assert all(line.startswith("::error ") for line in printed.splitlines())


def test_latency(nets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("diff", "diffnets:small", "diffnets:small", *X, "--latency") == 0
    assert "latency" in capsys.readouterr().out
    assert run("snapshot", "diffnets:small", *X, "-o", "a.fxs") == 0
    assert run("diff", "a.fxs", "diffnets:small", *X, "--latency") == 2
    assert "'a.fxs' is a snapshot" in capsys.readouterr().err


def test_the_step_summary(nets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = nets / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    for _ in range(2):
        assert run("diff", "diffnets:small", "diffnets:other", *X) == 0
    assert summary.read_text().count("## ") >= 2
    assert summary.stat().st_size < 2**20


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("diff", "a.fxs", "none.fxs"), ["there is no file 'none.fxs'", "torchvision:NAME"]),
        (("diff", "a.fxs", "diffnets:small"), ["needs example inputs", "--input"]),
        (("diff", "a.fxs", "diffnets:smal", *X), ["did you mean diffnets:small"]),
        (("diff", "broken.fxs", "a.fxs"), ["broken.fxs"]),
        (("diff", "empty.fxs", "a.fxs"), ["empty.fxs"]),
        (("diff", "a.fxs", "a.fxs", "-o", "r.doc"), [".html"]),
        (("diff", "a.fxs", "a.fxs", "-o", "nowhere/r.md"), ["there is no folder"]),
        (("snapshot", "diffnets:small", *X, "-o", "nowhere/r.fxs"), ["there is no folder"]),
        (("snapshot", "diffnets:small", "--input", "1x4x8x8"), ["the model itself fails"]),
        (("snapshot", "diffnets:small", *X, "--pipeline", "fold-nrm"), ["fold-norm"]),
        (("snapshot", "diffnets:small", *X, "--data", "diffnets:none"), ["none"]),
        (("explain", "diffnets:small", *X, "--pipeline", "fuze"), ["fuse"]),
        (("explain", "diffnets:small", *X, "--html", "x.txt"), [".html"]),
    ],
)
def test_mistakes(nets: Path, arguments: tuple[str, ...], parts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("snapshot", "diffnets:small", *X, "-o", "a.fxs") == 0
    (nets / "broken.fxs").write_text((nets / "a.fxs").read_text()[:200])
    (nets / "empty.fxs").write_text("")
    capsys.readouterr()
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("fxcompress: ")
    for part in parts:
        assert part in error


def test_explain(nets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("explain", "diffnets:small", *X, "--html", "e.html") == 0
    told = capsys.readouterr().out
    assert "conv + batch_norm -> conv" in told
    assert "wrote e.html" in told
    assert "fold-norm" in (nets / "e.html").read_text()
    assert run("explain", "diffnets:small", *X, "--pipeline", "functionalize", "--no-numbers", "--no-verify") == 0
    assert "fold-norm" not in capsys.readouterr().out


def test_what_is_a_snapshot(nets: Path) -> None:
    (nets / "a").write_text("{}")
    (nets / "b.fxs").write_bytes(b"\0")
    (nets / "c").write_bytes(b"\x78\0\0\0\0\0\0\0{")
    (nets / "d").write_bytes(b"")
    assert [is_snapshot(nets / name) for name in ("a", "b.fxs", "c", "d", "none", ".")] == [True, True, False, False, False, False]


def test_help_without_torch() -> None:
    code = (
        "import sys; from fxcompress import cli\n"
        "try: cli.main(['{}', '--help'])\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    for command in ("snapshot", "diff", "check", "explain"):
        done = subprocess.run([sys.executable, "-c", code.format(command)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "example:" in done.stdout
