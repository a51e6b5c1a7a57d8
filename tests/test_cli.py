"""The command line, in this process and in one of its own."""

from __future__ import annotations

import json
import os
import pty
import runpy
import select
import signal
import subprocess
import sys
from functools import partial
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fxcompress import cli
from fxcompress.cli import commands, files, inputs, spec
from fxcompress.errors import ArchiveError, EquivalenceError, InputError
from fxcompress.pipeline import registry
from fxcompress.report import Report
from fxcompress.result import load

MODELS = '''
import os
import signal
import time

import torch
from torch import nn


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 6, 5))


class Interrupted(nn.Module):
    """Its forward is hit by Ctrl-C."""

    def forward(self, x):
        os.kill(os.getpid(), signal.SIGINT)
        return x + 1


class TwoInputs(nn.Module):
    def forward(self, ids, images):
        return ids.float().sum() + images[0].relu()


class Odd(nn.Module):
    def forward(self, x):
        return torch.relu(torch.tanh(x)) + 1


def slow():
    time.sleep(4)
    return Net()


def broken():
    raise OSError("no disk")


ready = Net()
number = 3
'''


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a module ``clinets``, which is the current folder."""
    (tmp_path / "clinets.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "clinets", raising=False)
    return tmp_path


def run(*arguments: str) -> int:
    return cli.main(arguments)


def own_process(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    # A shell in the background ignores Ctrl-C, and so would the new process.
    hears = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    command = [sys.executable, "-m", "fxcompress", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, preexec_fn=hears)


SMALL = ("--input", "1x3x8x8", "--target", "none")


def test_compress_writes_model_and_report(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("compress", "clinets:Net", *SMALL, "--out", "net.fxc", "--report", "net.json") == 0
    printed = capsys.readouterr()
    assert "fold-norm" in printed.out
    assert "wrote net.fxc" in printed.out
    assert printed.err == ""
    fast, x = load("net.fxc"), torch.randn(2, 3, 8, 8)
    torch.manual_seed(0)
    net = sys.modules["clinets"].Net().eval()
    torch.testing.assert_close(fast(x), net(x))
    assert Report.from_json((models / "net.json").read_text()).model == "Net"
    assert sorted(p.name for p in models.iterdir() if p.suffix != "") == ["clinets.py", "net.fxc", "net.json"]


@pytest.mark.parametrize("suffix", ["txt", "md", "html"])
def test_report_forms(models: Path, suffix: str) -> None:
    assert (
        run("compress", "clinets:ready", *SMALL, "--report", f"r.{suffix}", "--no-verify", "--pipeline", "fold-norm") == 2
    )  # needs FUNCTIONAL
    assert run("compress", "clinets:ready", *SMALL, "--report", f"r.{suffix}", "--no-verify", "--pipeline", "functionalize,fold-norm") == 0
    assert "fold-norm" in (models / f"r.{suffix}").read_text()


def test_a_saved_file_is_a_spec(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("compress", "clinets:Net", *SMALL, "--out", "a.fxc") == 0
    assert run("compress", "a.fxc", *SMALL, "--out", "b.fxc") == 0
    x = torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(load("a.fxc")(x), load("b.fxc")(x))
    assert "a.fxc compressed" in capsys.readouterr().out


def test_several_inputs_lists_and_types(models: Path) -> None:
    ids, images = spec.make_inputs(["1x4:int64", "[3x8x8,3x4x4]"], "float64")
    assert (ids.dtype, images[0].dtype, images[1].shape) == (torch.int64, torch.float64, (3, 4, 4))
    assert run("compress", "clinets:TwoInputs", "--input", "1x4:int64", "--input", "[3x8x8]", "--target", "none") == 0


def test_half_precision(models: Path) -> None:
    assert run("compress", "clinets:Net", *SMALL, "--dtype", "bfloat16", "--threads", "1") == 0


@pytest.mark.parametrize("text", ["", "x", "1x", "1x0x3", "-1x3", "1x3:float7", "1,3", "[1x3", "99999999x99999999", "1x3x٣"])
def test_inputs_that_cannot_be_read(text: str) -> None:
    with pytest.raises(InputError):
        spec.make_input(text, "float32")


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("torchvision:resnet81", ["torchvision has no model 'resnet81'", "torchvision:resnet18"]),
        ("nowhere_at_all:net", ["there is no module 'nowhere_at_all'", "pip install nowhere_at_all"]),
        ("clinets:Nett", ["'clinets' has no 'Nett'", "clinets:Net"]),
        ("clinets:broken", ["clinets:broken() raised OSError: no disk"]),
        ("clinets:number", ["clinets:number is a int"]),
        ("clinets:os.getpid", ["gave a int"]),
        ("clinets:../x", ["cannot read the model"]),
        ("missing.fxc", ["there is no file 'missing.fxc'", "torchvision:NAME"]),
        ("clinets.py", ["not a complete archive"]),
    ],
)
def test_specs_that_cannot_be_found(models: Path, capsys: pytest.CaptureFixture[str], spec: str, parts: list[str]) -> None:
    assert run("compress", spec, "--input", "1x3x8x8") == 2
    printed = capsys.readouterr()
    assert all(part in printed.err for part in parts), printed.err
    assert "Traceback" not in printed.err
    assert len(printed.err.splitlines()) < 20


def test_a_missing_package_is_named(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)  # makes the import fail as if it were not installed
    with pytest.raises(InputError, match="pip install timm"):
        spec.load_model("timm:resnet18")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "no/such/folder/x.fxc"], "mkdir -p 'no/such/folder'"),
        (["--out", "."], "it is a folder"),
        (["--report", "r.pdf"], "let it end in .txt, .md, .json, .html"),
        (["--report", "x.json", "--out", "x.json"], "the same file"),
        (["--out", "locked.fxc"], "it is read-only"),
    ],
)
def test_outputs_are_checked_before_the_work(
    models: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.setattr(inputs, "load_model", lambda *_: pytest.fail("the work has begun"))
    (models / "locked.fxc").touch()
    monkeypatch.setattr(files.os, "access", lambda path, mode: Path(path).name != "locked.fxc")
    assert run("compress", "clinets:Net", "--input", "1x3x8x8", *arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "opnevino"], "did you mean openvino"),
        (["--pipeline", "fold-nrom"], "did you mean fold-norm"),
        (["--input", "3"], "do not fit forward"),
    ],
)
def test_mistakes_in_options(models: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert run("compress", "clinets:Net", "--input", "1x3x8x8", *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


@pytest.mark.parametrize("arguments", ["", "nothing", "compress", "compress x:y", "bench x:y --input 1 --seconds -1"])
def test_usage(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(*arguments.split())
    assert "usage: fxcompress" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["compress", "passes", "bench", "minify"])
def test_help_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        run(command, "--help")
    assert f"fxcompress {command}" in capsys.readouterr().out.partition("example:")[2]


# -- weights


def test_weights(models: Path) -> None:
    torch.manual_seed(5)
    state = {key: torch.randn_like(v) if v.is_floating_point() else v for key, v in spec.load_model("clinets:Net").state_dict().items()}
    torch.save({"state_dict": state}, "w.pt")
    save_file(state, "w.safetensors")
    for name in ("w.pt", "w.safetensors"):
        model = spec.load_model("clinets:Net", weights=Path(name))
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_weights_that_do_not_fit(models: Path) -> None:
    torch.save({"other": torch.zeros(1)}, "other.pt")
    torch.save(torch.nn.Linear(1, 1), "code.pt")
    (models / "junk.safetensors").write_bytes(b"junk")
    for name, kind in (("other.pt", InputError), ("code.pt", ArchiveError), ("junk.safetensors", ArchiveError), ("none.pt", InputError)):
        with pytest.raises(kind, match=name):
            spec.load_model("clinets:Net", weights=Path(name))


# -- the other commands


def test_passes_lists_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("passes") == 0
    out = capsys.readouterr().out
    assert all(name in out for name in registry.names())
    assert "target=cpu" in out
    assert max(map(len, out.splitlines())) < 140


def test_passes_shows_a_broken_plugin(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    broken = EntryPoint("gone", "no_such_module:Pass", registry.GROUP)
    monkeypatch.setattr(commands, "entry_points", lambda group: [broken])
    monkeypatch.setattr(registry, "_entries", lambda: {"gone": broken})
    assert run("passes") == 0
    assert "cannot be loaded" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("suffix", ["txt", "md", "json"])
def test_bench(models: Path, capsys: pytest.CaptureFixture[str], suffix: str) -> None:
    assert run("bench", "clinets:Net", *SMALL, "--seconds", "0.02", "--out", f"b.{suffix}") == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("eager", "channels_last", "compressed", "median", "spread"))
    text = (models / f"b.{suffix}").read_text()
    if suffix == "json":
        assert [form["name"] for form in json.loads(text)["forms"]] == ["eager", "eager channels_last", "compressed"]


def test_minify(models: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    entries = registry._entries()
    broken = EntryPoint("double-relu", "test_cli_minify:DoubleRelu", registry.GROUP)
    monkeypatch.setattr(registry, "_entries", lambda: {**entries, "double-relu": broken})
    assert run("minify", "clinets:Odd", "--input", "2x3", "--pipeline", "functionalize,double-relu", "--out", "case") == 0
    out = capsys.readouterr().out
    assert "EquivalenceError in pipeline 'double-relu': 5 nodes shrunk to 3" in out
    assert sorted(p.name for p in (models / "case").iterdir()) == ["graph.fxc", "inputs.pt", "reproduce.py"]
    with pytest.raises(EquivalenceError):
        runpy.run_path(str(models / "case" / "reproduce.py"))


def test_minify_of_what_works(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("minify", "clinets:Odd", "--input", "2x3") == 2
    assert "does not fail" in capsys.readouterr().err
    assert not (models / "fxcompress-minified").exists()


# -- interruption and progress


def test_ctrl_c_leaves_no_file(models: Path) -> None:
    done = own_process("compress", "clinets:Interrupted", "--input", "1x3", "--out", "x.fxc", "--report", "x.html", folder=models)
    assert done.returncode == 130
    assert done.stderr.strip() == "fxcompress: interrupted"
    assert [p.name for p in models.iterdir() if p.suffix] == ["clinets.py"]


def test_ctrl_c_while_a_file_is_written(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(source: object, target: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.write_text(models / "r.md", "half a report")
    assert not [p for p in models.iterdir() if p.suffix in (".md", ".tmp")]


def test_a_folder_that_vanishes_is_an_error_not_a_crash(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="cannot write"):
        files.write_text(tmp_path / "gone" / "r.md", "text")


def test_the_reader_of_a_pipe_may_leave(models: Path) -> None:
    done = subprocess.run(
        f"'{sys.executable}' -m fxcompress passes | head -1", shell=True, cwd=models, capture_output=True, text=True, timeout=300
    )
    assert done.stderr == ""
    assert done.stdout.startswith("pass")


def test_silent_where_stderr_is_no_terminal(models: Path) -> None:
    done = own_process("compress", "clinets:slow", *SMALL, folder=models)
    assert (done.returncode, done.stderr) == (0, "")


def test_progress_on_a_terminal(models: Path) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "fxcompress", "compress", "clinets:slow", *SMALL], cwd=models, stdout=subprocess.DEVNULL, stderr=theirs
    )
    os.close(theirs)
    seen = b""
    while b"load clinets:slow" not in seen and select.select([ours], [], [], 120)[0]:
        try:
            seen += os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
    process.terminate()
    process.wait(timeout=60)
    os.close(ours)
    assert b"load clinets:slow" in seen
