"""The action and the examples for continuous integration: they parse, name options that exist, and hand the exit status on."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from fxcompress.cli import parser

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[1]
ACTION = ROOT / ".github/actions/fxcompress-check/action.yml"


def action() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(ACTION.read_text())
    return found


def run(folder: Path, status: int = 0, **inputs: str) -> tuple[int, list[str], str]:
    """The action's script with a Python that notes its arguments: exit status, arguments, outputs."""
    if shutil.which("bash") is None:
        pytest.skip("there is no bash")
    python = folder / "python with spaces"
    python.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > "{folder}/arguments"\nexit {status}\n')
    python.chmod(0o755)
    (step,) = action()["runs"]["steps"]
    given = {name: entry["default"] for name, entry in action()["inputs"].items()} | inputs | {"python": str(python)}
    filled = {key: re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda found: given[found[1]], text) for key, text in step["env"].items()}
    environ = {**os.environ, **filled, "GITHUB_OUTPUT": str(folder / "output")}
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
    done = subprocess.run(command, env=environ, cwd=folder, capture_output=True, text=True)
    return done.returncode, (folder / "arguments").read_text().splitlines(), (folder / "output").read_text()


def test_no_input_is_run_as_code() -> None:
    (step,) = action()["runs"]["steps"]
    assert "${{" not in step["run"]


@pytest.mark.parametrize("status", [0, 1, 2])
def test_the_status_is_handed_on(tmp_path: Path, status: int) -> None:
    assert run(tmp_path, status) == (status, ["-m", "fxcompress", "check"], f"status={status}\n")


def test_arguments_are_those_of_the_command(tmp_path: Path) -> None:
    inputs = {"only": " a  $(touch hacked) ", "config": "x y.toml", "html": "`touch hacked`.html", "junit": "j.xml"}
    arguments = run(tmp_path, **inputs)[1][2:]
    assert not (tmp_path / "hacked").exists()
    options = parser().parse_args(arguments)
    assert (options.only, str(options.config), str(options.html)) == (["a", "$(touch", "hacked)"], "x y.toml", "`touch hacked`.html")
    assert str(options.junit) == "j.xml"
    assert not options.update


def test_the_workflow_uses_the_action() -> None:
    steps = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["graphs"]["steps"]
    (used,) = [step for step in steps if step.get("uses") == "./.github/actions/fxcompress-check"]
    assert set(used["with"]) <= set(action()["inputs"])


def test_the_gitlab_example_names_options_that_exist() -> None:
    job = yaml.safe_load((ROOT / "examples/gitlab-ci.yml").read_text())["graphs"]
    (line,) = [line for line in job["script"] if line.startswith("fxcompress ")]
    options = parser().parse_args(line.split()[1:])
    assert str(options.html) in job["artifacts"]["paths"]
    assert str(options.junit) == job["artifacts"]["reports"]["junit"]
